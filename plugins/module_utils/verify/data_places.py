# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which data layers the kernel searches for a file of a view, and which of them its release is on.

A view over several software roots may be a tree of overlays. Each overlay shows a directory of the view, and has the data layers of its own
roots. Roots whose releases cannot have equal paths share an overlay. The kernel takes the first data layer of the overlay that has the
file, even if that is the root of another release.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import NO_DATA


@dataclass(frozen=True)
class DataPlace:
    """The data layers of one overlay of a view, in the order in which the kernel searches them."""

    layers: tuple[bytes, ...]
    #: The data layer of each release that the overlay shows, by the path of the release there; empty if there is one software root.
    root_of: Mapping[bytes, bytes] = field(default_factory=dict)

    def root_for(self, target: bytes) -> bytes | None:
        """Return the data layer of the release that has a path; None if every data layer may have it."""
        if not self.root_of:
            return None
        return next((self.root_of[path] for path in _upwards(target) if path in self.root_of), None)


class DataPlaces:
    """The data layers of all overlays of a view, by the directory of the view that each overlay shows; empty for the whole view."""

    def __init__(self, overlays: Mapping[bytes, DataPlace]) -> None:
        self._overlays = dict(overlays)

    @classmethod
    def of_one_overlay(cls, layers: Sequence[bytes]) -> DataPlaces:
        """Return the data layers of a view that one overlay shows."""
        return cls({b"": DataPlace(tuple(layers))})

    @classmethod
    def of_roots(cls, roots: Sequence[Mapping[str, Any]], releases: Sequence[Mapping[str, Any]]) -> DataPlaces:
        """Return the data layers of a view over several software roots. ``releases`` are those of the record of its generation.

        Raises OverlayError naming a release whose root is not among ``roots``, or releases that cannot be in one view.
        """
        mount = view_roots.mount_parameters(roots, releases)
        path_of = {root["name"]: to_bytes(root["path"]) for root in roots}
        layers_of = {b"": mount["data"], **{to_bytes(place): data for place, data in mount["parts"].items()}}
        root_of: dict[bytes, dict[bytes, bytes]] = {place: {} for place in layers_of}
        for release in releases:
            place = next(one for one in _upwards(to_bytes(release["at"]).strip(b"/")) if one in layers_of)
            root_of[place][to_bytes(release["source"]).strip(b"/")] = path_of[release["root"]]
        return cls(
            {
                place: DataPlace(tuple(layer for layer in map(to_bytes, data) if layer != NO_DATA), root_of[place])
                for place, data in layers_of.items()
            }
        )

    @property
    def layers(self) -> tuple[bytes, ...]:
        """The data layers of all overlays."""
        return tuple(dict.fromkeys(layer for one in self._overlays.values() for layer in one.layers))

    def of(self, path: bytes) -> DataPlace:
        """Return the data layers of the overlay that shows a path of the view."""
        if len(self._overlays) == 1:
            return self._overlays[b""]
        return next(self._overlays[one] for one in _upwards(path.strip(b"/")) if one in self._overlays)


def _upwards(path: bytes) -> Iterator[bytes]:
    """Yield a relative path, and all directories above it up to the top, which is empty."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]
    yield b""
