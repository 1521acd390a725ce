# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which software roots of a view share an overlay, and which directories of the view each overlay shows.

Roots share an overlay if their patterns exclude each other: no path below a release of one can be below a release of another. All others
have an overlay of their own, whichever releases they have now, since releases appear later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern


@dataclass(frozen=True)
class OverlayPlan:
    """The overlays of a view, each with the names of the roots that it reads from."""

    #: The roots of the only overlay; empty if the view is a tree.
    roots: tuple[str, ...]
    #: The directories of the view that have an overlay of their own, and its roots.
    parts: Mapping[str, tuple[str, ...]]


def groups(patterns: Mapping[str, Pattern]) -> list[tuple[str, ...]]:
    """Return the roots that share an overlay, in the order of their declaration. ``patterns`` has the pattern of each root, by name."""
    found: list[list[str]] = []
    for root, pattern in patterns.items():
        for group in found:
            if all(pattern.excludes(patterns[other]) for other in group):
                group.append(root)
                break
        else:
            found.append([root])
    return [tuple(group) for group in found]


def overlays(places: Iterable[tuple[str, str]], patterns: Mapping[str, Pattern]) -> OverlayPlan:
    """Return the overlays of a view. ``places`` has the path of each release in the view, with the name of its root.

    Each part is the highest directory with releases of roots that share an overlay. Raises OverlayError naming two releases at one place,
    or inside each other, whose roots cannot share an overlay, or a root that is not declared.
    """
    group_of = {root: group for group in groups(patterns) for root in group}
    placed = sorted(set(places))
    for _place, root in placed:
        if root not in group_of:
            declared = ", ".join(patterns)
            raise OverlayError(
                f"there are releases of the software root {root}, which is not declared; the declared ones are {declared}: add it to roots"
            )
    used = list(dict.fromkeys(group for group in group_of.values() if any(root in group for _place, root in placed)))
    if len(used) < 2:
        return OverlayPlan(used[0] if used else (), {})
    _check_separate(placed, group_of)
    #: The groups that have releases below each directory.
    below: dict[str, set[tuple[str, ...]]] = {}
    for place, root in placed:
        for directory in _upwards(place):
            below.setdefault(directory, set()).add(group_of[root])
    parts = {}
    for place, root in placed:
        # The top of the view has releases of several groups.
        highest = [one for one in _upwards(place) if len(below[one]) == 1][-1]
        parts[highest] = group_of[root]
    return OverlayPlan((), parts)


def _upwards(place: str) -> list[str]:
    """Return a path in the view and all directories above it, up to the top, which is empty."""
    names = place.split("/") if place else []
    return ["/".join(names[:count]) for count in range(len(names), -1, -1)]


def _check_separate(placed: Sequence[tuple[str, str]], group_of: Mapping[str, tuple[str, ...]]) -> None:
    at_place: dict[str, list[str]] = {}
    for place, root in placed:
        at_place.setdefault(place, []).append(root)
    for place, root in placed:
        for directory in _upwards(place):
            for other in at_place.get(directory, ()):
                if group_of[other] != group_of[root]:
                    raise OverlayError(
                        f"a release of the software root {root} is at {place or '/'} in the view, and a release of the software root"
                        f" {other} is at {directory or '/'}. These roots may have the same paths, so their files"
                        " cannot be merged in one directory: place the releases in separate directories with 'at'"
                    )
