# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The software roots that retired releases are on: one, or several of which each has a name.

The names of the releases of several roots begin with the names of the roots: ``maya/2025`` is at ``2025`` on the root ``maya``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import below_root, root_of_release
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import is_view_name


@dataclass(frozen=True)
class ReleaseRoot:
    """A software root."""

    path: str
    #: Its identity in manifests.
    identity: str
    ready_marker: str = ""
    #: What the names of its releases have before their path below it (``entries.below_root``).
    prefix: str = ""

    def below(self, release: str) -> str:
        """Return the path of a release below this root. Raises OverlayError if it is of another one."""
        return below_root(release, self.prefix)

    def release_at(self, path: str) -> str:
        """Return the name that a release at a path below this root has."""
        return f"{self.prefix}/{path}" if self.prefix else path


def named_roots(given: Iterable[tuple[str, str, str]]) -> tuple[ReleaseRoot, ...]:
    """Return several software roots. ``given`` has the name, the path and the ready marker of each.

    Raises OverlayError if two have the same name, or if a name cannot be that of a root.
    """
    found: dict[str, ReleaseRoot] = {}
    for name, path, marker in given:
        if not is_view_name(name):
            raise OverlayError(
                f"root name {name!r} is not usable: use letters, digits, '.', '_' and '-' only, up to 100 of them"
            )
        if found.setdefault(name, ReleaseRoot(path, name, marker, name)).path != path:
            raise OverlayError(f"root {name} is given twice: give each software root a name of its own")
    return tuple(found.values())


def root_of(roots: Sequence[ReleaseRoot], release: str) -> ReleaseRoot:
    """Return the root that a release is on. Raises OverlayError naming the roots if it is on none of them."""
    if len(roots) == 1 and not roots[0].prefix:
        return roots[0]
    name = root_of_release(release, [root.prefix for root in roots])
    return next(root for root in roots if root.prefix == name)
