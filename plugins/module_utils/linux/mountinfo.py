# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read /proc/self/mountinfo (proc_pid_mountinfo(5)), and decode the options of overlays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

_SLASH = ord("/")
_OCTAL = re.compile(rb"\\([0-7]{3})")

#: Options of an overlay that name layers. All others are settings.
LAYER_OPTIONS = frozenset((b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir", b"workdir"))


#: Types of a live NFS mount: the kernel reports nfs for version 3 and nfs4 for version 4, whatever type was requested.
NFS_TYPES = (b"nfs", b"nfs4")


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo. Escapes are undone in paths, and kept in the options of the file system."""

    id: int
    parent: int
    device: tuple[int, int]
    #: The directory of the file system that is shown; ``/`` unless this is a bind mount. See ``shown`` for NFS.
    root: bytes
    path: bytes
    #: Options of this mount, such as ``ro`` and ``nosuid``.
    flags: tuple[bytes, ...]
    #: Propagation, such as ``shared:12``; empty for a private mount.
    propagation: tuple[bytes, ...]
    fstype: bytes
    source: bytes
    #: Options of the file system as the kernel prints them, with octal escapes in the values.
    super_options: tuple[bytes, ...]

    @property
    def shown(self) -> bytes:
        """The directory of the file system that is shown.

        For NFS the kernel prints ``/`` as the root of all mounts, and this directory in the source. Mounts of one server have one device.
        """
        server, separator, path = self.source.partition(b":/")
        if self.fstype in NFS_TYPES and server and separator:
            return b"/" + path.strip(b"/")
        return self.root


@dataclass(frozen=True)
class Mountpoint:
    """The state of a path that something is mounted on, or may be."""

    #: The topmost mount at the path itself.
    mount: Mount | None
    #: Whether the directory is empty; None if it does not exist, and if a mount covers it.
    empty: bool | None


@dataclass(frozen=True)
class OverlayLayers:
    """The layers and settings of an overlay, decoded from its options."""

    lower: tuple[bytes, ...]
    data: tuple[bytes, ...]
    upper: bytes | None
    work: bytes | None
    settings: tuple[tuple[bytes, bytes | None], ...]


def unescape(field: bytes) -> bytes:
    """Return a field with its octal escapes undone, such as ``\\040`` for a space."""
    return _OCTAL.sub(lambda match: bytes((int(match.group(1), 8) & 0xFF,)), field)


def parse(text: bytes) -> Iterator[Mount]:
    """Yield the mounts in the order of mountinfo, where a later mount on the same path covers an earlier one.

    Raises OverlayError if a line does not have the format of mountinfo.
    """
    for line in text.split(b"\n"):
        if line:
            try:
                yield _parsed(line)
            except ValueError:
                raise OverlayError(f"line {show(line[:200])!r} does not have the format of mountinfo") from None


def _parsed(line: bytes) -> Mount:
    before, _separator, after = line.partition(b" - ")
    mount_id, parent, device, root, path, flags, *propagation = before.split(b" ")
    fstype, source, super_options = after.split(b" ", 2)
    major, minor = device.split(b":")
    return Mount(
        id=int(mount_id),
        parent=int(parent),
        device=(int(major), int(minor)),
        root=unescape(root),
        path=unescape(path),
        flags=tuple(flags.split(b",")),
        propagation=tuple(propagation),
        fstype=fstype,
        source=unescape(source),
        super_options=tuple(super_options.split(b",")),
    )


def top_mount(mounts: Sequence[Mount], path: bytes) -> Mount | None:
    """Return the visible mount at ``path`` itself: the one that no mount there or above covers. None if there is none."""
    mount = containing_mount(mounts, path)
    return mount if mount and mount.path == path else None


def stack(mounts: Sequence[Mount], path: bytes) -> list[Mount]:
    """Return the mounts at ``path`` itself, from the visible one down to the lowest that it covers."""
    by_id = {mount.id: mount for mount in mounts}
    found: list[Mount] = []
    mount = top_mount(mounts, path)
    while mount is not None and mount.path == path and mount not in found:
        found.append(mount)
        mount = by_id.get(mount.parent)
    return found


def inside(mounts: Sequence[Mount], mount: Mount) -> list[Mount]:
    """Return the mounts inside ``mount``, at any depth, sorted by path; without those that cover all of it."""
    on: dict[int, list[Mount]] = {}
    for other in mounts:
        if other.id != other.parent:
            on.setdefault(other.parent, []).append(other)
    # A mount that covers all of it has the same path.
    found = [other for other in on.get(mount.id, ()) if other.path != mount.path]
    for holder in found:
        found.extend(on.get(holder.id, ()))
    return sorted(found, key=lambda one: one.path)


def droppable(mounts: Sequence[Mount], stacked: Sequence[Mount]) -> int:
    """Return how many of the lowest mounts of a stack can be removed beneath the others: read-only overlays without inner mounts.

    ``stacked`` is the return value of ``stack``.
    """
    count = 0
    for mount in reversed(stacked[1:]):
        if mount.fstype != b"overlay" or overlay_layers(mount).upper is not None or inside(mounts, mount):
            break
        count += 1
    return count


def containing_mount(mounts: Sequence[Mount], path: bytes) -> Mount | None:
    """Return the mount that contains a path without symbolic links. Like the kernel, search from the root down."""
    ids = {mount.id for mount in mounts if mount.parent != mount.id}
    places = {b"/", path, *(path[:end] for end, char in enumerate(path) if char == _SLASH)}
    above = [mount for mount in mounts if mount.path in places]
    found: Mount | None = None
    for place in sorted({mount.path for mount in above}, key=len):
        here = [mount for mount in above if mount.path == place]
        while True:
            # In a chroot that is not a mountpoint, the parents of the first mounts are not listed.
            on_top = [
                mount
                for mount in here
                if (mount.parent == found.id if found else mount.parent not in ids) and mount is not found
            ]
            if not on_top:
                break
            found = on_top[-1]
    return found


def goes_with(other: Mount, mount: Mount) -> bool:
    """Return whether unmounting ``mount`` propagates to ``other``, a mount in another mount namespace."""
    peers = {word for word in mount.propagation if word.startswith(b"shared:")}
    follows = {word.replace(b"master:", b"shared:") for word in other.propagation}
    return other.path == mount.path and not follows.isdisjoint(peers)


def check_absolute(overlay: str, paths: Iterable[bytes], role: str = "a layer") -> None:
    """Check that the paths of an overlay are absolute. ``overlay`` and ``role`` are for the message. Raises OverlayError if one is not."""
    for path in paths:
        if not path.startswith(b"/"):
            raise OverlayError(
                f"{overlay} was mounted with the relative path {show(path)} as {role}, which cannot be resolved afterwards: mount it with"
                " absolute paths"
            )


def overlay_layers(mount: Mount) -> OverlayLayers:
    """Return the layers and settings of an overlay, decoded from its options.

    The kernel prints layers that were given one at a time (``lowerdir+``, ``datadir+``) one at a time. It prints ``lowerdir``,
    ``upperdir`` and ``workdir`` as they were given. In ``lowerdir``, colons separate layers and two colons start the data-only layers. In
    all three, backslashes escape (Documentation/filesystems/overlayfs.rst, Linux 6.8). ``TRIGGER`` is left out at the end of a layer.
    """
    lower: list[bytes] = []
    data: list[bytes] = []
    single = {}
    settings = []
    for option in mount.super_options:
        name, separator, raw = option.partition(b"=")
        value = unescape(raw)
        if name == b"lowerdir+":
            lower.append(value)
        elif name == b"datadir+":
            data.append(value)
        elif name == b"lowerdir":
            ordinary, data_only = split_lowerdir(value)
            lower.extend(ordinary)
            data.extend(data_only)
        elif name in LAYER_OPTIONS:
            single[name] = re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL)
        else:
            settings.append((name, value if separator else None))
    upper, work = (single.get(name) for name in (b"upperdir", b"workdir"))
    return OverlayLayers(tuple(map(_plain, lower)), tuple(map(_plain, data)), upper, work, tuple(settings))


#: What is written after the path of a directory so that an automount there is mounted. The kernel mounts nothing on demand for the last
#: component of a layer.
TRIGGER = b"/."


def _plain(layer: bytes) -> bytes:
    return layer[: -len(TRIGGER)] if layer.endswith(TRIGGER) else layer


def split_lowerdir(value: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the ordinary and the data-only layers in the value of a ``lowerdir`` option."""
    layers = [b""]
    position = 0
    while position < len(value):
        char = value[position : position + 1]
        if char == b"\\" and position + 1 < len(value):
            position += 1
            layers[-1] += value[position : position + 1]
        elif char == b":":
            layers.append(b"")
        else:
            layers[-1] += char
        position += 1
    if b"" in layers:
        first_data = layers.index(b"")
        return layers[:first_data], [layer for layer in layers[first_data:] if layer]
    return layers, []


def join_lowerdir(lower: Sequence[bytes], data: Sequence[bytes]) -> bytes:
    """Return layers as the value of one ``lowerdir`` option, escaped: the inverse of ``split_lowerdir``."""

    def escape(path: bytes) -> bytes:
        return re.sub(rb"[\\:,]", rb"\\\g<0>", path)

    return b":".join(map(escape, lower)) + b"".join(b"::" + escape(path) for path in data)


def escape_single(path: bytes) -> bytes:
    """Return a path as the value of ``upperdir`` or ``workdir``, escaped."""
    return path.replace(b"\\", b"\\\\")


def shown_settings(settings: Sequence[tuple[bytes, bytes | None]]) -> dict[str, Any]:
    """Return settings as modules return them, without ``ro`` and ``rw``, which the flags of the mount have too."""
    return {
        show(name): True if value is None else show(value) for name, value in settings if name not in (b"ro", b"rw")
    }


def described(mount: Mount) -> dict[str, Any]:
    """Return the mount of an overlay as modules return it."""
    layers = overlay_layers(mount)
    return {
        "path": show(mount.path),
        "root": show(mount.root),
        "lower": [show(path) for path in layers.lower],
        "data": [show(path) for path in layers.data],
        "upper": None if layers.upper is None else show(layers.upper),
        "work": None if layers.work is None else show(layers.work),
        "options": shown_settings(layers.settings),
        "flags": [show(flag) for flag in mount.flags],
        "propagation": [show(word) for word in mount.propagation],
    }


#: The most mounts that a message names.
_MOST_NAMED = 10


def in_namespace(pid: int | None) -> str:
    """Return the part of a message that names a mount namespace by one of its processes; empty for our own (None)."""
    return "" if pid is None else f" in the mount namespace of process {pid}"


def listed(inner: Sequence[Mount]) -> str:
    """Return mounts for a message: the path and type of each."""
    named = [f"{show(mount.path)} ({mount.fstype.decode('ascii', 'replace')})" for mount in inner]
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more
