# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a tree of overlays.

A redirect does not name a data layer, so one overlay cannot show two software roots that may have the same paths. A tree of overlays can:
all of its overlays have the same metadata layer, and each has the data layer of one root. The overlay at the mountpoint shows the whole
layer, over an empty data layer. A *part* is a directory of another overlay, which is mounted at the same place inside the first one. So
each file is read from the root of its release, and one generation describes the whole view. If a part is unmounted, its files cannot be
opened, and no other root answers for them.

A part is recognised by what the kernel reports: an overlay with the same lower layers, which shows the directory that it covers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers

#: The empty data layer of the overlay at the mountpoint. An overlay without an upper layer needs two layers.
NO_DATA = b"/run/renderfarm-overlay/no-data"


@dataclass(frozen=True, order=True)
class TreePart:
    """A directory of the view that is shown through an overlay of its own."""

    #: Path in the view, relative to its root.
    place: bytes
    #: The data layers of that overlay.
    data: tuple[bytes, ...]


def split(top: Mount, inside: Sequence[Mount]) -> tuple[list[Mount], list[Mount]]:
    """Return the mounts inside the overlay ``top`` that are parts of its tree, and those that others have mounted."""
    parts = [one for one in inside if _is_part(one, top)]
    ids = {one.id for one in parts}
    return parts, [one for one in inside if one.id not in ids]


def _is_part(one: Mount, top: Mount) -> bool:
    # A bind mount of the overlay itself has the same device.
    if one.parent != top.id or one.device == top.device or (one.fstype, top.fstype) != (b"overlay", b"overlay"):
        return False
    place = one.path[len(top.path.rstrip(b"/")) :]
    return one.root == place and overlay_layers(one).lower == overlay_layers(top).lower


def described(parts: Iterable[Mount]) -> list[dict[str, Any]]:
    """Return mounted parts as modules return them: the mountpoint of each, and the data layers that its files are read from."""
    return [{"path": show(one.path), "data": [show(layer) for layer in overlay_layers(one).data]} for one in parts]


def as_declared(top: Mount, parts: Iterable[Mount]) -> tuple[TreePart, ...]:
    """Return the declaration that mounted parts fulfil."""
    return tuple(sorted(TreePart(one.path[len(top.path) + 1 :], overlay_layers(one).data) for one in parts))
