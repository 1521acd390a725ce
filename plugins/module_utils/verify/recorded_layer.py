# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declare a layer again from the record of its generation, which has everything that decides what the view shows."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ManifestRecord, Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec, input_digest

#: Takes the path of a release and the digest of its manifest; returns the path of the manifest and its record.
FindManifest = Callable[[str, str], tuple[str, ManifestRecord]]


def spec_of(name: str, generation: Generation, find_manifest: FindManifest) -> LayerSpec:
    """Return the declaration of the layer of a generation of the view ``name``.

    Raises OverlayError if the declaration does not give the generation, and whatever ``find_manifest`` raises.
    """
    composition = generation.composition
    placements = [_placement(release, find_manifest) for release in composition["releases"]]
    lists = composition.get("precedence")
    owner_map, group_map = (_map(composition.get(option, ())) for option in ("owner_map", "group_map"))
    is_mapped = composition["owner"] is not None or composition["group"] is not None or owner_map or group_map
    spec = LayerSpec(
        name=name,
        placements=tuple(
            placements if lists is None else (placements[number] for number in _order(len(placements), lists))
        ),
        format=generation.format,
        strategy=generation.strategy,
        xattr_namespace=generation.xattr_namespace,
        owner=composition["owner"],
        group=composition["group"],
        owner_map=owner_map,
        group_map=group_map,
        mode=composition.get("mode", ""),
        keep_setid=bool(is_mapped) and not composition.get("setid_stripped", False),
        on_conflict="error" if lists is None else "first",
        several_roots=composition.get("several_roots", False),
        links=tuple(Link(to_bytes(link["path"]), to_bytes(link["target"])) for link in generation.links),
    )
    if input_digest(spec) != generation.digest:
        raise OverlayError(
            f"view {name}: the manifests in the store do not give generation {generation.id}: give the store that it was built from"
        )
    return spec


def _placement(release: Mapping[str, Any], find_manifest: FindManifest) -> Placement:
    path, record = find_manifest(release["release"], release["digest"])
    include, exclude = (tuple(map(to_bytes, release.get(option, ()))) for option in ("include", "exclude"))
    return Placement(path, record, to_bytes(release["at"]), to_bytes(release["source"]), include, exclude)


def _map(pairs: Iterable[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((one, other) for one, other in pairs)


def _order(count: int, lists: Sequence[Sequence[int]]) -> list[int]:
    """Return the indexes of the placements in an order that has all ``lists`` as parts. Raises OverlayError if there is none."""
    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter(dict.fromkeys(range(count), ()))
    for one in lists:
        for earlier, later in zip(one, one[1:]):
            sorter.add(later, earlier)
    try:
        return [number for number in sorter.static_order() if number < count]
    except graphlib.CycleError:
        raise OverlayError("the record of the generation has an order of releases that contradicts itself") from None
