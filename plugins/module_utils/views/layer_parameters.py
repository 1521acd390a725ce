# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the declaration of a layer from the parameters of metadata_layer, looking up manifests, users and groups on this host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import clean_globs
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import DIRECTORY, FORMATS
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import accounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_cache, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement, relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import Access
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import check_composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import (
    LayerSpec,
    composition_of,
)

_PATTERNS = {"type": "list", "elements": "str", "default": []}
#: The options of metadata_layer that declare a layer or say where it comes from, as an argument spec.
OPTIONS: dict[str, Any] = {
    "releases": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "manifest": {"type": "path"},
            "release": {"type": "str"},
            "digest": {"type": "str"},
            "at": {"type": "str"},
            "source": {"type": "str"},
            "include": _PATTERNS,
            "exclude": _PATTERNS,
        },
        "required_one_of": [("manifest", "release")],
        "mutually_exclusive": [("manifest", "release")],
    },
    "on_conflict": {"type": "str", "choices": ["error", "first", "last"], "default": "error"},
    "links": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"path": {"type": "str", "required": True}, "target": {"type": "str", "required": True}},
    },
    "store": {"type": "path"},
    "format": {"type": "str", "choices": ["auto", *sorted(FORMATS)], "default": "auto"},
    "strategy": {"type": "str", "choices": ["auto", "data_only", "redirect"], "default": "auto"},
    "xattr_namespace": {"type": "str", "choices": ["trusted", "user"], "default": "trusted"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "owner_map": {"type": "dict", "default": {}},
    "group_map": {"type": "dict", "default": {}},
    "mode": {"type": "str"},
    "keep_setid": {"type": "bool", "default": False},
    "image_store": {"type": "path"},
    "image": {"type": "path"},
    "image_digest": {"type": "str"},
    "ca_path": {"type": "path"},
    "require_verity": {"type": "bool", "default": False},
    "generation": {"type": "str"},
}


def access(params: Mapping[str, Any]) -> Access:
    """Return how this host reaches the stores that are addresses of web servers."""
    return Access(params["ca_path"])


def layer_spec(params: Mapping[str, Any], progress: Progress = no_progress) -> LayerSpec:
    """Return the declaration with the format ``directory``, and with strategy ``data_only`` for ``auto``.

    The view may show several software roots if ``params`` has ``roots``. Raises OverlayError if a parameter is not usable, or if the
    manifest store is missing.
    """
    store = _store(params, progress) if params["store"] is not None and params["releases"] else None
    spec = LayerSpec(
        name=params["name"],
        placements=tuple(_placement(release, store) for release in params["releases"]),
        format=DIRECTORY.name,
        strategy=strategies.DATA_ONLY if params["strategy"] == "auto" else params["strategy"],
        xattr_namespace=params["xattr_namespace"],
        owner=None if params["owner"] is None else accounts.number(params["owner"], "owner", accounts.user),
        group=None if params["group"] is None else accounts.number(params["group"], "group", accounts.group),
        owner_map=accounts.number_map(params["owner_map"], "owner_map", accounts.user),
        group_map=accounts.number_map(params["group_map"], "group_map", accounts.group),
        mode=params["mode"] or "",
        keep_setid=params["keep_setid"],
        on_conflict=params["on_conflict"],
        several_roots=bool(params.get("roots")),
        links=declared_links((os.fsencode(link["path"]), os.fsencode(link["target"])) for link in params["links"]),
    )
    check_composition(spec.name, composition_of(spec))
    return spec


#: Takes a release and returns the path of its manifest, and the path of the release below the software root.
_Store = Callable[[Mapping[str, Any]], "tuple[str, str]"]


def _store(params: Mapping[str, Any], progress: Progress) -> _Store:
    """Return what finds manifests in the store. Raises OverlayError if there is no store."""
    store = locations.check(params["store"], "store")
    if not locations.is_address(store):
        manifest_store.check_store(store)
        return lambda release: (manifest_store.manifest_path(store, _path(release)), _path(release))
    view_state.make_state_dir(params["state_dir"])
    cache = os.path.join(params["state_dir"], "manifests")
    manifest_cache.remove_unused(cache, progress)

    def fetched(release: Mapping[str, Any]) -> tuple[str, str]:
        path, digest = _path(release), release.get("digest")
        return manifest_cache.fetched(store, path, digest, cache, progress, access(params)), path

    return fetched


def _path(release: Mapping[str, Any]) -> str:
    return os.fsdecode(relative_path(os.fsencode(release["release"]), "release"))


def _placement(release: Mapping[str, Any], store: _Store | None) -> Placement:
    path, expected = _manifest(release, store)
    record = manifest_store.read_record(path, expected)
    if release.get("digest") not in (None, record.digest):
        raise OverlayError(
            f"the manifest of release {record.release} has the digest {record.digest}, but the lock has {release['digest']}: resolve the"
            " views again"
        )

    def place(option: str) -> bytes:
        given = record.release if release[option] is None else release[option]
        return relative_path(os.fsencode(given), f"'{option}' of release {record.release}")

    def patterns(option: str) -> tuple[bytes, ...]:
        given = [os.fsencode(pattern) for pattern in release[option]]
        return clean_globs(given, f"'{option}' of release {record.release}")

    return Placement(path, record, place("at"), place("source"), patterns("include"), patterns("exclude"))


def _manifest(release: Mapping[str, Any], store: _Store | None) -> tuple[str, str | None]:
    """Return the path of a release's manifest, and the path of the release below the software root if it is given.

    Raises OverlayError if the release is given without a store.
    """
    if release["manifest"] is not None:
        if locations.is_address(release["manifest"]):
            raise OverlayError(
                f"manifest {locations.shown(release['manifest'])} is an address: give 'release' and 'digest' instead, and the"
                " address of the manifests as 'store'"
            )
        return str(release["manifest"]), None
    if store is None:
        raise OverlayError(
            f"release {release['release']} is given without its manifest: set 'store' to the directory of the manifests"
        )
    return store(release)
