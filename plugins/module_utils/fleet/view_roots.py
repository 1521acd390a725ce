# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The software roots of a view that is declared over several.

The name of a release of such a view begins with the name of its root: ``maya/2025`` is at ``2025`` on the root ``maya``. It has this name
in the manifest store, in locks and in records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import below_root, root_of_release
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import sharing
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.sharing import OverlayPlan
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import NO_DATA

#: The keys of a software root that say how it is mounted.
MOUNT_KEYS = ("source", "fstype", "options", "read_ahead")

Roots = Sequence[Mapping[str, Any]]


def patterns_of(roots: Roots) -> dict[str, Pattern]:
    """Return the pattern of each root, by name. Raises OverlayError if a pattern is not valid."""
    return {root["name"]: Pattern.parse(root["pattern"], root["name"]) for root in roots}


def _roots_with_source(views: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (root for view in views for root in view["roots"] or () if root["source"])


def mounts_of(views: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the software roots of views that are to be mounted, as the module software_root takes them: each path once, outer ones first.

    Of two software roots with the same path, the first counts.
    """
    found: dict[str, dict[str, Any]] = {}
    for root in _roots_with_source(views):
        given = {name: root[name] for name in ("path", *MOUNT_KEYS) if root[name] is not None}
        found.setdefault(root["path"], given)
    return [found[path] for path in sorted(found)]


def mount_differences(views: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what keeps the software roots of one host from being mounted: two sources for one path, or two paths for one name."""
    by_path: dict[str, Mapping[str, Any]] = {}
    by_name: dict[str, Mapping[str, Any]] = {}
    for root in _roots_with_source(views):
        other = by_path.setdefault(root["path"], root)
        for key in MOUNT_KEYS:
            if root[key] != other[key]:
                names = root["name"] if root["name"] == other["name"] else f"{other['name']} and {root['name']}"
                yield f"software root {names} at {root['path']}: {key} is given twice and differs: mount one export there, in one way"
                break
        known = by_name.setdefault(root["name"], root)
        if known["path"] != root["path"]:
            yield (
                f"software root {root['name']} has a source and the paths {known['path']} and {root['path']}: give it one path"
            )


def overlays_of(roots: Roots, releases: Iterable[Mapping[str, Any]]) -> OverlayPlan:
    """Return the overlays of a view that shows ``releases``, each as a record of a generation has it.

    Raises OverlayError naming releases that cannot be in one view.
    """
    return sharing.overlays(((one["at"].strip("/"), one["root"]) for one in releases), patterns_of(roots))


def mount_parameters(roots: Roots, releases: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters of overlay_mount that say from where a view over several roots reads its releases."""
    plan = overlays_of(roots, releases)
    path_of = {root["name"]: root["path"] for root in roots}
    if not plan.parts:
        return {"data": [path_of[name] for name in plan.roots], "parts": {}}
    parts = {place: [path_of[name] for name in names] for place, names in plan.parts.items()}
    return {"data": [to_text(NO_DATA)], "parts": parts}


def release_of_root(roots: Roots, release: Mapping[str, Any]) -> dict[str, Any]:
    """Return a declared release with its place in the view and the path of its data, unless these are given.

    Raises OverlayError if its name does not begin with that of a root.
    """
    name = root_of_release(release["release"], [one["name"] for one in roots])
    root = next(one for one in roots if one["name"] == name)
    path = below_root(release["release"], name)
    at = "/".join(filter(None, (root["at"], path)))
    given = {"source": path, **({"at": at} if at != release["release"] else {})}
    return {**given, **release}
