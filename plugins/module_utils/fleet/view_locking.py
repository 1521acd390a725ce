# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve one view on the host that scans: which releases it shows with those that linger, and which generation they make."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import data_locking, view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_view import Brought, Run
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import short_release
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.format_support import SUPPORT
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, is_of_host
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    image_store,
    layer_choice,
    layer_parameters,
    layer_sources,
    linger,
    release_checks,
    view_record,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import (
    ForgetReleases,
    PublishImage,
    RecordReleases,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import (
    LayerSpec,
    releases_of,
)

#: The options of a release that releases leave out.
_NOT_GIVEN = {"manifest": None, "at": None, "source": None, "include": (), "exclude": ()}


def lock(view: Mapping[str, Any], now: int, note: Callable[[str], None], run: Run) -> Brought:
    """Return what a view is resolved to. A failure is returned, and not raised. ``now`` is in seconds since 1970."""
    locked = Brought(view["name"])
    note(f"view {view['name']}")
    try:
        releases, leaving, plan, record = _releases(view, now, note, run)
        options = {**view, "releases": [{**_NOT_GIVEN, **one} for one in releases]}
        spec = layer_parameters.layer_spec(options)
        if view["roots"]:
            view_roots.overlays_of(view["roots"], releases_of(spec.placements))
        # The digests of the manifests that the generation is made from.
        digests = {one.record.release: one.record.digest for one in spec.placements}
        locked.values = {
            "generation": spec.generation,
            "releases": [{**short_release(one), "digest": digests[one["release"]]} for one in releases],
            "leaving": leaving,
            "image_digest": None,
        }
        if view["image_store"] is not None:
            _publish(view, spec, locked, run)
        if view["data_images"]:
            of_releases = {one["release"]: digests[one["release"]] for one in releases}
            found = data_locking.find_or_build(view, of_releases, note, run.progress, run.carry_out, run.explain)
            locked.values["data_images"] = [one.as_dict() for one in found.images]
            locked.actions += found.actions
            if found.unbuilt:
                # The next call says the rest.
                locked.values["unbuilt"] = list(dict.fromkeys(found.unbuilt))
                return locked
            locked.warnings += found.warnings
        # The record is written last: a view whose image cannot be built has not changed what it declares.
        run.carry_out(plan, _record_handlers(view, record))
        locked.actions += plan
    except (OverlayError, OSError) as error:
        locked.failure = run.explain(error)
        locked.values["of_host"] = is_of_host(error)
    return locked


def _releases(
    view: Mapping[str, Any], now: int, note: Callable[[str], None], run: Run
) -> tuple[list[dict[str, Any]], list[dict[str, str]], Plan, linger.Record]:
    """Return the releases of a view with those that linger, when these leave, and the plan for the record."""
    name, store, seconds = view["name"], view["store"], view["linger"]
    sources = release_checks.RootSources.of(view)
    declared = [linger.placed(**one) for one in view["releases"]]
    before = view_record.read(store, name)
    for one in sources.sources.values():
        os.close(scan.open_root(os.fsencode(one.root)))
    paths = [one.release for one in declared]
    release_checks.check_declared(name, sources, paths, view["sample"], note, run.progress)
    links = [
        os.fsdecode(link.path)
        for link in declared_links((os.fsencode(one["path"]), os.fsencode(one["target"])) for one in view["links"])
    ]
    lingering = [one.placed.release for one in linger.candidates(declared, links, before)[0]]
    unusable = release_checks.unusable_releases(sources, paths, lingering, run.progress)
    record = linger.decide(declared, links, before, now, seconds, unusable).record
    releases = [one.as_dict() for one in (*declared, *(one.placed for one in record.leaving))]
    leaving = [
        {"release": one["release"], "until": one["until"]} for one in view_record.leaving_values(record, seconds)
    ]
    return releases, leaving, linger.plan_record(name, before, record, seconds), record


def _record_handlers(view: Mapping[str, Any], record: linger.Record) -> Handlers:
    name, store = view["name"], view["store"]
    return {
        RecordReleases: lambda _action: view_record.write(store, name, record),
        ForgetReleases: lambda _action: view_record.remove(store, name),
    }


def _publish(view: Mapping[str, Any], wanted: LayerSpec, locked: Brought, run: Run) -> None:
    """Make sure that the image of the generation is in the image store."""
    spec = layer_choice.as_image(wanted)
    store = view["image_store"]
    image_store.check_store(store, view["store"])
    image = image_store.image_path(store, spec.generation)
    found = image_store.find(image)
    if found is None:
        builder = SUPPORT[spec.format].find_builder()
        source = layer_sources.from_releases(spec, builder, "", run.progress)
        plan: Plan = (PublishImage(image),)
        composition = source.composed_for(plan)
        locked.warnings += layer_sources.hidden_warnings(composition)
        if composition and not run.check_mode:
            found = image_store.publish(store, spec, builder, composition, run.progress)
            locked.warnings += layer_sources.rights_warnings(found.rights)
        locked.actions += plan
    # In check mode there may be no image yet. A host then shows what its releases would change.
    if found and found.image:
        locked.values["image_digest"] = found.image.digest
