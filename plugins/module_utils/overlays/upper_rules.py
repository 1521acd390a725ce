# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check whether two directories can be the upper layer and the work directory of an overlay.

The kernel checks only part of this when it mounts. For the rest it falls back to fewer features or mounts anyway, so check it up front.
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

#: The xattr of an upper layer's root that holds the lower layers of its first overlay. With an index the kernel checks the topmost lower
#: layer itself, and without one it checks none.
RECORD = b"trusted.renderfarm-overlay.lower"

#: The most bytes of paths in a record. They are only for messages, and some file systems hold 4 KiB of xattrs per file.
_LONGEST_NAMES = 1024

#: File systems that cannot hold an upper layer: they lack trusted xattrs, whiteouts or RENAME_EXCHANGE, or are read-only.
_CANNOT_HOLD = re.compile(
    rb"nfs4?|cifs|smb3?|9p|ceph|afs|v?fat|msdos|exfat|ntfs3?|hfs(plus)?|iso9660|udf|squashfs|erofs|overlay|ramfs|proc|sysfs|cgroup2?"
)


@dataclass(frozen=True)
class OwnedDirectory:
    """A directory with its owner and mode."""

    path: bytes
    uid: int
    #: As st_mode.
    mode: int


@dataclass(frozen=True)
class UpperDirectory:
    """The directory of an upper layer, or its work directory."""

    path: bytes
    #: Whether the directory exists.
    exists: bool
    #: The mount that it is on, or will be created on.
    mount: Mount
    #: The directories from the root down to this one, as far as they exist.
    directories: tuple[OwnedDirectory, ...]


@dataclass(frozen=True)
class UpperState:
    """The state of an upper layer and its work directory."""

    upper: UpperDirectory
    work: UpperDirectory
    #: The value of the xattr RECORD; None if it is not set.
    record: bytes | None
    #: The mark that the kernel leaves in a work directory that is or was used with 'volatile'; None if there is none.
    volatile: bytes | None
    #: The overlays in all mount namespaces, each with a process in the namespace, or None for the namespace of this process.
    overlays: tuple[tuple[int | None, Mount], ...] = ()


def lower_record(spec: MountSpec) -> bytes:
    """Return the record of an overlay's lower layers: a digest of their paths, and the first bytes of the paths.

    It does not include data layers, since the content of an upper layer does not depend on them.
    """
    names = join_lowerdir(spec.lower, ())
    return hashlib.sha256(names).hexdigest().encode("ascii") + b" " + names[:_LONGEST_NAMES]


def check_upper(spec: MountSpec, state: UpperState, leaving: Mount | None) -> None:
    """Check that an overlay can use its upper layer and work directory.

    ``leaving`` is a mount that is unmounted first, or None. Raises OverlayError if a file system cannot hold them, if others than root
    can write to them, if they are on different mounts, or if they were used with other lower layers or are in use.
    """
    for directory, role in ((state.upper, "upper layer"), (state.work, "work directory")):
        _check_file_system(directory, role)
        _check_permissions(directory, role)
    if state.upper.mount.id != state.work.mount.id:
        raise OverlayError(
            f"upper layer {show(spec.upper or b'')} and work directory {show(spec.work or b'')} are not on the same mount: choose"
            " two directories on one, since the kernel creates files in the work directory and renames them into the upper layer"
        )
    if state.volatile is not None:
        raise OverlayError(
            f"the upper layer {show(state.upper.path)} was used with 'volatile', so parts of it may be missing on the disk, and the kernel"
            " does not mount it again: use an empty upper layer and work directory. If the host has not gone down since, you may run"
            f" sync(1) and remove {show(state.volatile)} instead"
        )
    _check_record(spec, state)
    _check_not_in_use(state, leaving)


def _check_file_system(directory: UpperDirectory, role: str) -> None:
    kind = directory.mount.fstype
    if _CANNOT_HOLD.fullmatch(kind):
        raise OverlayError(
            f"{role} {show(directory.path)} is on a file system of type {kind.decode('ascii', 'replace')}, which lacks trusted xattrs,"
            " whiteouts or RENAME_EXCHANGE: use a directory on ext4, XFS, Btrfs or tmpfs"
        )
    if b"ro" in directory.mount.flags or b"ro" in directory.mount.super_options:
        raise OverlayError(
            f"{role} {show(directory.path)} is on a file system that is mounted read-only: use another directory"
        )


def _check_permissions(directory: UpperDirectory, role: str) -> None:
    """Check that only root can write to an upper layer or work directory: its xattrs decide which file of a lower layer is read.

    Raises OverlayError naming the directory that others can write to or own.
    """
    hint = "others than root could change what the overlay shows; use a directory that only root can enter"
    for one in directory.directories:
        what = f"{role} {show(directory.path)}"
        if one.path != directory.path:
            what = f"directory {show(one.path)}, above {what},"
        if one.uid != 0:
            raise OverlayError(f"{what} belongs to uid {one.uid}: {hint}")
        # In a sticky directory others can neither rename nor remove entries of root.
        sticky = one.mode & stat.S_ISVTX and one.path != directory.path
        if one.mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            raise OverlayError(f"{what} is writable by others (mode {stat.S_IMODE(one.mode):04o}): {hint}")
        if not one.mode & (stat.S_IRWXG | stat.S_IRWXO):
            # Only root can go further.
            return


def _check_record(spec: MountSpec, state: UpperState) -> None:
    wanted = lower_record(spec)
    if state.record is not None and state.record.partition(b" ")[0] != wanted.partition(b" ")[0]:
        raise OverlayError(
            f"upper layer {show(state.upper.path)} was used over other lower layers ({show(state.record.partition(b' ')[2])}) than"
            f" {show(wanted.partition(b' ')[2])}, and holds metadata of their files: use an empty upper layer. If the layers were only"
            f" moved, you may remove its xattr {RECORD.decode()} instead"
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
                        f"{show(ours)} is in use by the overlay at {show(mount.path)}{in_namespace(pid)}, which has {show(theirs)}: two"
                        " overlays cannot write to the same directory, so use another one"
                    )


def check_separate(spec: MountSpec, layers: Sequence[bytes]) -> None:
    """Check that the upper layer, the work directory, the other ``layers`` and the mountpoint are separate trees.

    Raises OverlayError naming two that are not.
    """
    for number, path in enumerate(spec.kept):
        role = ("upper layer", "work directory")[number]
        others = [("layer", layer) for layer in layers] + [("mountpoint", spec.path)]
        if number:
            others.append(("upper layer", spec.kept[0]))
        for what, other in others:
            if overlap(path, other):
                raise OverlayError(
                    f"{role} {show(path)} and {what} {show(other)} of the overlay at {show(spec.path)} are not separate: choose directories"
                    " that are not inside each other"
                )
