# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The declaration of a layer, from the parameters of metadata_layer and what this host knows: manifests, users and groups."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import layer_formats
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import clean_globs
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import accounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement, relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import LayerSpec


def layer_spec(params: dict[str, Any]) -> LayerSpec:
    """Return the declaration, with the format ``directory``, and strategy ``data_only`` for ``auto``.

    Raises OverlayError that names the parameter which cannot be, or the manifest store that is missing.
    """
    if params["store"] is not None and params["releases"]:
        manifest_store.check_store(params["store"])
    spec = LayerSpec(
        name=params["name"],
        placements=tuple(_placement(release, params["store"]) for release in params["releases"]),
        format=layer_formats.DIRECTORY,
        strategy=strategies.DATA_ONLY if params["strategy"] == "auto" else params["strategy"],
        xattr_namespace=params["xattr_namespace"],
        owner=None if params["owner"] is None else accounts.number(params["owner"], "owner", accounts.user),
        group=None if params["group"] is None else accounts.number(params["group"], "group", accounts.group),
        owner_map=accounts.number_map(params["owner_map"], "owner_map", accounts.user),
        group_map=accounts.number_map(params["group_map"], "group_map", accounts.group),
        mode=params["mode"] or "",
        keep_setid=params["keep_setid"],
        on_conflict=params["on_conflict"],
        links=declared_links((os.fsencode(link["path"]), os.fsencode(link["target"])) for link in params["links"]),
    )
    names.check_composition(spec.name, names.composition_of(spec))
    return spec


def _placement(release: dict[str, Any], store: str | None) -> Placement:
    path, asked_for = _manifest(release, store)
    record = manifest_store.read_record(path, asked_for)

    def place(option: str) -> bytes:
        given = record.release if release[option] is None else release[option]
        return relative_path(os.fsencode(given), f"'{option}' of release {record.release}")

    def patterns(option: str) -> tuple[bytes, ...]:
        given = [os.fsencode(pattern) for pattern in release[option]]
        return clean_globs(given, f"'{option}' of release {record.release}")

    return Placement(path, record, place("at"), place("source"), patterns("include"), patterns("exclude"))


def _manifest(release: dict[str, Any], store: str | None) -> tuple[str, str | None]:
    """Return the path of a release's manifest, and that of the release where it is given."""
    if release["manifest"] is not None:
        return str(release["manifest"]), None
    if store is None:
        raise OverlayError(
            f"release {release['release']} is given by its path, so 'store' has to say where its manifest is"
        )
    path = os.fsdecode(relative_path(os.fsencode(release["release"]), "release"))
    return manifest_store.manifest_path(store, path), path
