# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving a directory within a mounted overlay so that its new place has nothing of the lower layers but content.

A directory that is renamed as a whole stays merged with the lower one. So a new one is made, which is opaque, and what is in the old one
is renamed into it, entry by entry.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import overlap

#: The xattr of a directory that is being filled: the mtime of the old one in nanoseconds, a space, the old one's path, a NUL, and its own
#: path. That one tells it from a copy that ``cp -a`` has made, xattrs included.
MARKER = b"trusted.renderfarm-overlay.moving"


@dataclass(frozen=True)
class MoveSpec:
    """Absolute paths without symbolic links."""

    source: bytes
    destination: bytes


@dataclass(frozen=True)
class Tree:
    """What is in a directory, itself not counted."""

    #: All that is not a directory.
    files: int
    directories: int
    #: The path within the overlay that has the most bytes.
    longest: bytes


@dataclass(frozen=True)
class MoveState:
    """What is there at both places."""

    #: The mounts that both are on, and the mounts below the old place.
    source_mount: Mount | None
    destination_mount: Mount | None
    below: tuple[bytes, ...]
    #: None where there is no directory.
    tree: Tree | None
    #: ``none``, ``empty``, ``moving`` (an earlier run has not finished) or ``other``.
    destination: str
    #: Bytes of a path that the kernel can lead a metadata copy to.
    longest_redirect: int
    #: The settings of the overlay by name, with the host's defaults filled in.
    settings: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class MoveDirectory(Action):
    spec: MoveSpec

    def __str__(self) -> str:
        return f"move directory {show(self.spec.source)} to {show(self.spec.destination)}"


@dataclass(frozen=True)
class FinishMove(Action):
    """All is at the new place; what is left is the directory's time."""

    spec: MoveSpec

    def __str__(self) -> str:
        return f"finish moving directory {show(self.spec.source)} to {show(self.spec.destination)}"


def marker_of(source: bytes, destination: bytes, mtime_ns: int) -> bytes:
    return b"%d %s\0%s" % (mtime_ns, source, destination)


def parse_marker(value: bytes) -> tuple[bytes, bytes, int] | None:
    """Return both paths and the time of a marker: the inverse of ``marker_of``. None for what is none."""
    number, _space, paths = value.partition(b" ")
    source, _nul, destination = paths.partition(b"\0")
    try:
        return source, destination, int(number)
    except ValueError:
        return None


def plan_move(spec: MoveSpec, state: MoveState) -> Plan:
    """Raises OverlayError for what cannot be moved so that each file is at every moment at one of both places."""
    source, destination = show(spec.source), show(spec.destination)
    if overlap(spec.source, spec.destination):
        raise OverlayError(f"{source} and {destination} are the same or inside of each other: nothing can be moved")
    if state.tree is None:
        if state.destination == "none":
            raise OverlayError(f"there is neither a directory {source} nor {destination}: there is nothing to move")
        return (FinishMove(spec),) if state.destination == "moving" else ()
    _check_overlay(spec, state)
    if state.below:
        raise OverlayError(
            f"{source} has a mount at {show(state.below[0])}, which cannot be moved with it: unmount that"
        )
    if state.destination == "other":
        raise OverlayError(f"{destination} exists, and nothing was moved there from {source}: it is left alone")
    if len(state.tree.longest) > state.longest_redirect:
        raise OverlayError(
            f"{show(state.tree.longest)} has {len(state.tree.longest)} bytes, and the kernel finds the content of renamed files by"
            f" paths of {state.longest_redirect} at most: raise /sys/module/overlay/parameters/redirect_max"
        )
    return (MoveDirectory(spec),)


def _check_overlay(spec: MoveSpec, state: MoveState) -> None:
    mount = state.source_mount
    if mount is None or mount.fstype != b"overlay" or overlay_layers(mount).upper is None:
        raise OverlayError(f"{show(spec.source)} is not in an overlay with an upper layer")
    if mount != state.destination_mount:
        raise OverlayError(f"{show(spec.source)} and {show(spec.destination)} are not in the same overlay")
    if b"ro" in mount.flags:
        raise OverlayError(f"the overlay at {show(mount.path)} is mounted read-only")
    if mount.path == spec.source:
        raise OverlayError(f"{show(spec.source)} is the overlay itself: name a directory in it")
    for name in (b"metacopy", b"redirect_dir"):
        if dict(state.settings).get(name) != b"on":
            raise OverlayError(
                f"the overlay at {show(mount.path)} has not {name.decode()}=on, without which renaming files of lower layers copies them:"
                " mount it with overlay_mount"
            )
