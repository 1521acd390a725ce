# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Map paths in a view to releases, and paths on the software root to places in views, by the composition of a generation.

Several releases may be merged at one place. Then a path in the view may belong to each of them, and only the layer says to which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside, to_bytes


@dataclass(frozen=True)
class PlacedRelease:
    """A release at a place in a view. Paths are relative."""

    release: str
    #: Identity of the software root.
    root: str
    #: Path in the view; empty for its root.
    at: bytes
    #: Path in the data layer.
    source: bytes

    def source_of(self, path: bytes) -> bytes | None:
        """Return the path in the data layer of a path in the view; None if it is outside of the release."""
        return joined(self.source, within(path, self.at))

    def place_of(self, source: bytes) -> bytes | None:
        """Return the path in the view of a path in the data layer; None if it is outside of the release."""
        return joined(self.at, within(source, self.source))


def placed_releases(releases: Iterable[Mapping[str, Any]]) -> tuple[PlacedRelease, ...]:
    """Return the releases of a generation as ``view.json`` lists them."""
    return tuple(
        PlacedRelease(one["release"], one["root"], to_bytes(one["at"]), to_bytes(one["source"])) for one in releases
    )


def within(path: bytes, directory: bytes) -> bytes | None:
    """Return a relative path as seen from a directory; empty for the directory itself, and None if the path is outside of it."""
    if not directory:
        return path
    return path[len(directory) :].lstrip(b"/") if is_inside(path, directory) else None


def joined(directory: bytes, rest: bytes | None) -> bytes | None:
    """Return a path in a directory; None if there is no rest."""
    if rest is None:
        return None
    return b"/".join(part for part in (directory, rest) if part)


def releases_at(placed: Iterable[PlacedRelease], path: bytes, redirect: bytes | None) -> list[PlacedRelease]:
    """Return the releases that a path in a view may belong to.

    ``redirect`` is the path in the data layer of the file at the path, as far as the layer says it: it decides among merged releases.
    """
    found = [one for one in placed if within(path, one.at) is not None]
    if redirect is None or len(found) < 2:
        return found
    return [one for one in found if within(redirect, one.source) is not None] or found
