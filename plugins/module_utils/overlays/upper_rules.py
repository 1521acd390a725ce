# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Upper layers: whether two directories can be the upper layer and the work directory of an overlay.

The kernel finds out some of it when it mounts, and falls back to less, or says nothing, about the rest. So it is asked here first.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    goes_with,
    in_namespace,
    join_lowerdir,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import overlap
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import SCRATCH_PLACE, MountSpec

#: The attribute of an upper layer's root in which the lower layers are noted that it was first used with. With the index the kernel
#: knows the uppermost one by itself, and without it none.
RECORD = b"trusted.renderfarm-overlay.lower"

#: Bytes of the names in a record; they are for the message, and a file system may take 4 KiB for all attributes of a file.
_LONGEST_NAMES = 1024

#: File systems that cannot hold an upper layer: without attributes of the kind trusted, whiteouts or exchanging renames, or read-only.
_CANNOT_HOLD = re.compile(
    rb"nfs4?|cifs|smb3?|9p|ceph|afs|v?fat|msdos|exfat|ntfs3?|hfs(plus)?|iso9660|udf|squashfs|erofs|overlay|ramfs|proc|sysfs|cgroup2?"
)


@dataclass(frozen=True)
class Folder:
    path: bytes
    owner: int
    #: As st_mode.
    mode: int


@dataclass(frozen=True)
class Place:
    """Where an upper layer or a work directory is, or would be made."""

    path: bytes
    #: Whether the directory is there.
    exists: bool
    #: The mount that it is on.
    mount: Mount
    #: The folders from the root down to it, itself included, as far as they are there.
    folders: tuple[Folder, ...]


@dataclass(frozen=True)
class UpperState:
    """What is there of an upper layer."""

    upper: Place
    work: Place
    #: The value of the attribute RECORD; None where it is not set.
    record: bytes | None
    #: What the kernel leaves in a work directory while it is used with 'volatile', and after that; None where it is not there.
    volatile: bytes | None
    #: All mounted overlays in all mount namespaces, each with a process there; None in our own.
    overlays: tuple[tuple[int | None, Mount], ...] = ()


def record_of(spec: MountSpec) -> bytes:
    """Return what is noted about the lower layers of an overlay: a digest of their paths, and as much of these as fits.

    Data layers are no part of it: an upper layer holds nothing that depends on them.
    """
    names = join_lowerdir(spec.lower, ())
    return hashlib.sha256(names).hexdigest().encode("ascii") + b" " + names[:_LONGEST_NAMES]


def check_upper(spec: MountSpec, state: UpperState, leaving: Mount | None) -> None:
    """``leaving`` is a mount that is unmounted before. Raises OverlayError that says why the directories cannot be used."""
    for place, role in ((state.upper, "upper layer"), (state.work, "work directory")):
        _check_file_system(place, role)
        _check_folders(place, role)
    if state.upper.mount.id != state.work.mount.id:
        raise OverlayError(
            f"upper layer {show(spec.upper or b'')} and work directory {show(spec.work or b'')} are not on the same mount: files are"
            " made in the one and renamed into the other"
        )
    if state.volatile is not None:
        raise OverlayError(
            f"the upper layer {show(state.upper.path)} was used with 'volatile', so nobody knows whether all of it is on the disk, and the"
            " kernel does not mount it again: start with an empty upper layer and work directory, or, when the host has not gone down"
            f" since, run sync(1) and remove {show(state.volatile)}"
        )
    _check_record(spec, state)
    _check_not_in_use(state, leaving)


def _check_file_system(place: Place, role: str) -> None:
    kind = place.mount.fstype
    if _CANNOT_HOLD.fullmatch(kind):
        raise OverlayError(
            f"{role} {show(place.path)} is on a file system of type {kind.decode('ascii', 'replace')}, which cannot hold one: it takes"
            " attributes of the kind trusted, whiteouts, and renames that exchange, as ext4, XFS, Btrfs and tmpfs have them"
        )
    if b"ro" in place.mount.flags or b"ro" in place.mount.super_options:
        raise OverlayError(f"{role} {show(place.path)} is on a file system that is mounted read-only")


def _check_folders(place: Place, role: str) -> None:
    """Whoever can write to an upper layer directly can have any file of the lower layers read as another one."""
    for folder in place.folders:
        what = (
            f"{role} {show(place.path)}"
            if folder.path == place.path
            else f"folder {show(folder.path)}, above {role} {show(place.path)},"
        )
        hint = "others than root could change what the overlay shows; use a folder that only root can enter"
        if folder.owner != 0:
            raise OverlayError(f"{what} belongs to user {folder.owner}: {hint}")
        # In a sticky folder nobody can exchange what is root's.
        sticky = folder.mode & stat.S_ISVTX and folder.path != place.path
        if folder.mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            raise OverlayError(f"{what} can be written to by others (mode {stat.S_IMODE(folder.mode):04o}): {hint}")
        if not folder.mode & (stat.S_IRWXG | stat.S_IRWXO):
            # Nobody else comes further than here.
            return


def _check_record(spec: MountSpec, state: UpperState) -> None:
    wanted = record_of(spec)
    if state.record is not None and state.record.partition(b" ")[0] != wanted.partition(b" ")[0]:
        raise OverlayError(
            f"upper layer {show(state.upper.path)} was used over other lower layers ({show(state.record.partition(b' ')[2])}) than"
            f" {show(wanted.partition(b' ')[2])}, and holds metadata of those: use an empty one, or, when they have only been moved, remove"
            f" its attribute {RECORD.decode()}"
        )


def _check_not_in_use(state: UpperState, leaving: Mount | None) -> None:
    for pid, mount in state.overlays:
        if leaving is not None and (goes_with(mount, leaving) if pid is not None else mount.id == leaving.id):
            continue
        layers = overlay_layers(mount)
        if layers.upper is None or layers.upper.startswith(SCRATCH_PLACE):
            continue
        for theirs in (layers.upper, layers.work or layers.upper):
            for ours in (state.upper.path, state.work.path):
                if overlap(ours, theirs):
                    raise OverlayError(
                        f"{show(ours)} is in use by the overlay at {show(mount.path)}{in_namespace(pid)}, which has {show(theirs)}:"
                        " two overlays cannot write to the same directory"
                    )


def check_separate(spec: MountSpec, layers: Sequence[bytes]) -> None:
    """Raises OverlayError where upper layer, work directory, other layers and mountpoint are not separate trees."""
    for number, path in enumerate(spec.kept):
        role = ("upper layer", "work directory")[number]
        others = [("layer", layer) for layer in layers] + [("mountpoint", spec.path)]
        if number:
            others.append(("upper layer", spec.kept[0]))
        for what, other in others:
            if overlap(path, other):
                raise OverlayError(
                    f"{role} {show(path)} and {what} {show(other)} of the overlay at {show(spec.path)} are not separate, as they"
                    " have to be separate"
                )
