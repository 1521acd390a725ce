# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the move of a directory within a mounted overlay, to a directory that takes nothing but file content from the lower layers.

A directory that is renamed as a whole stays merged with its lower directory. So a new directory is made, which is opaque, and the entries
of the old one are renamed into it one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import overlap

#: The xattr of a directory that is being filled. Its value is the mtime of the old directory in nanoseconds, a space, the path of the old
#: directory, a NUL and its own path. The latter makes it invalid on a copy that ``cp -a`` made.
MARKER = b"trusted.renderfarm-overlay.moving"


@dataclass(frozen=True)
class MoveSpec:
    """The directory to move and its new path. Both are absolute and free of symbolic links."""

    source: bytes
    destination: bytes


@dataclass(frozen=True)
class TreeSize:
    """The number of entries below a directory."""

    #: Everything that is not a directory.
    files: int
    directories: int
    #: The longest path of such a file, relative to the overlay's root, with a leading slash.
    longest: bytes


@dataclass(frozen=True)
class MoveState:
    """What there is at the source and at the destination."""

    #: The mounts that both are on, and the mountpoints below the source.
    source_mount: Mount | None
    destination_mount: Mount | None
    below: tuple[bytes, ...]
    #: None if the source does not exist.
    tree: TreeSize | None
    #: ``none``, ``empty``, ``moving`` (begun by an earlier run) or ``other``.
    destination: str
    #: Longest redirect that the kernel writes, in bytes.
    longest_redirect: int
    #: Names and values of overlay options, with the host's defaults filled in.
    settings: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class MoveDirectory(Action):
    """Move a directory entry by entry, or continue a move that an earlier run began."""

    spec: MoveSpec

    def __str__(self) -> str:
        return f"move directory {show(self.spec.source)} to {show(self.spec.destination)}"


@dataclass(frozen=True)
class FinishMove(Action):
    """Set the mtime of a directory into which an earlier run has moved everything."""

    spec: MoveSpec

    def __str__(self) -> str:
        return f"finish moving directory {show(self.spec.source)} to {show(self.spec.destination)}"


def marker_of(source: bytes, destination: bytes, mtime_ns: int) -> bytes:
    """Return the value of MARKER."""
    return b"%d %s\0%s" % (mtime_ns, source, destination)


def parse_marker(value: bytes) -> tuple[bytes, bytes, int] | None:
    """Return the paths and the mtime in a value of MARKER, or None if it is malformed."""
    mtime, _space, paths = value.partition(b" ")
    source, _nul, destination = paths.partition(b"\0")
    try:
        return source, destination, int(mtime)
    except ValueError:
        return None


def plan_move(spec: MoveSpec, state: MoveState) -> Plan:
    """Return the actions that move a directory. Raises OverlayError if some file would be at neither place for a moment, or be copied."""
    source, destination = show(spec.source), show(spec.destination)
    if overlap(spec.source, spec.destination):
        raise OverlayError(
            f"{source} and {destination} are the same directory, or one is inside the other: give a destination outside the source"
        )
    if state.tree is None:
        if state.destination == "none":
            raise OverlayError(f"neither {source} nor {destination} exists: give the path of a directory to move")
        return (FinishMove(spec),) if state.destination == "moving" else ()
    _check_overlay(spec, state)
    if state.below:
        raise OverlayError(
            f"{source} has a mount at {show(state.below[0])}, which cannot be moved with it: unmount it first"
        )
    if state.destination == "other":
        raise OverlayError(
            f"{destination} exists, and not from an earlier move of {source}: rename it, or give another destination"
        )
    if len(state.tree.longest) > state.longest_redirect:
        raise OverlayError(
            f"{show(state.tree.longest)} has {len(state.tree.longest)} bytes, and a redirect to the content of a renamed file has at most"
            f" {state.longest_redirect}: raise /sys/module/overlay/parameters/redirect_max"
        )
    return (MoveDirectory(spec),)


def _check_overlay(spec: MoveSpec, state: MoveState) -> None:
    mount = state.source_mount
    if mount is None or mount.fstype != b"overlay" or overlay_layers(mount).upper is None:
        raise OverlayError(f"{show(spec.source)} is not in an overlay with an upper layer: give a directory in one")
    if mount != state.destination_mount:
        raise OverlayError(
            f"{show(spec.source)} and {show(spec.destination)} are not in the same overlay: give a destination in that one"
        )
    if b"ro" in mount.flags:
        raise OverlayError(f"the overlay at {show(mount.path)} is mounted read-only: mount it writable")
    if mount.path == spec.source:
        raise OverlayError(f"{show(spec.source)} is the mountpoint of the overlay: give a directory in it")
    for name in (b"metacopy", b"redirect_dir"):
        if dict(state.settings).get(name) != b"on":
            raise OverlayError(
                f"the overlay at {show(mount.path)} is mounted without {name.decode()}=on, so renaming a file of a lower layer would copy"
                " its content: mount the overlay with overlay_mount"
            )
