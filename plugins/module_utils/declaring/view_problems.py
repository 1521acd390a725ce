# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what does not go together within a view, and between the views of a host."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside, overlap, to_bytes

#: The keys that are the same for all views of a state directory, since they share its data images.
_OF_STATE_DIR = ("data_budget", "data_keep_free")


def contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not go together within one view."""
    if view["state"] == "mounted" and not view["generation"]:
        if not view["releases"] and not view["query"]:
            yield "releases and query are both missing: give one of them"
        elif view["releases"] and view["query"]:
            yield "releases and query are both given: give one of them"
    if view["on_conflict"] == "error":
        counts = Counter(map(repr, view["releases"]))
        twice = next((one for one in view["releases"] if counts[repr(one)] > 1), None)
        if twice:
            yield f"releases has {twice['release']} twice at one place: leave one of them out"
    if view["build"] == "central" and view["format"] == "directory":
        yield "build: central builds images, so format: directory cannot be: leave out one of them"
    if view["require_verity"] and view["build"] == "local":
        yield "require_verity is for images, and build: local builds layers on each host: set build: central, or leave it out"
    if view["strategy"] == "redirect" and (view["build"] == "central" or view["format"] == "erofs"):
        yield "strategy: redirect cannot have images: set build: local, and format: directory or auto"
    if view["strategy"] == "redirect" and view["xattr_namespace"] != "trusted":
        yield "strategy: redirect needs xattr_namespace: trusted"
    if view["roots"]:
        yield from _root_contradictions(view)
    if view["writable"] == "scratch" and view["persist"] != "none":
        yield "writable: scratch ends with the mount, so it cannot be mounted at boot: set persist: none, or writable: upper"
    yield from _data_image_contradictions(view)
    yield from _mountpoint_contradictions(view)


def _mountpoint_contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a view cannot be mounted where it is declared."""
    if view["mountpoint"] == "/":
        yield "mountpoint / is the root of the host: give a directory below it"
        return
    for path in filter(None, (view["root"], *view["data"], *(root["path"] for root in view["roots"]))):
        if _inside(view["mountpoint"], path):
            yield f"mountpoint {view['mountpoint']} is inside of the software root {path}: mount the view outside of it"
            return


def _root_contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not go together with several software roots."""
    for name in ("root", "data"):
        if view[name]:
            yield f"roots and {name} are both given: give one of them"
    if view["strategy"] == "redirect":
        yield "strategy: redirect has no data-only layers, which roots needs: leave out one of them"
    if view["writable"] != "none":
        yield f"writable: {view['writable']} is for views of one software root: give root instead of roots, or leave it out"
    if view["data_images"] != "none":
        yield f"data_images: {view['data_images']} is for views of one software root: give root instead of roots, or leave it out"


def _data_image_contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    kind = view["data_images"]
    if kind == "none":
        return
    if view["strategy"] == "redirect":
        yield f"strategy: redirect has no data-only layers, so data_images: {kind} cannot be: leave out one of them"
    if view["writable"] != "none":
        yield (
            f"writable: {view['writable']} keeps a view from being switched while it is in use, which data_images: {kind} needs: leave out"
            " one of them"
        )


def problems_between(views: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what does not go together between views."""
    seen: dict[str, Mapping[str, Any]] = {}
    for view in views:
        name = view["name"]
        if name in seen:
            yield f"view {name} is declared twice: give each view a name of its own"
        elif name:
            seen[name] = view
    shown = [view for view in seen.values() if view["mountpoint"] not in (None, "/") and view["state"] == "mounted"]
    yield from view_roots.mount_differences(shown)
    for number, view in enumerate(shown):
        for other in shown[:number]:
            yield from _differences_of_state_dir(other, view)
        # The first that clashes is enough, else a hundred views at one mountpoint were thousands of lines.
        clashes = (_clash(other["name"], other["mountpoint"], view) for other in shown[:number])
        yield from itertools.islice(filter(None, clashes), 1)
    yield from _hidden_paths(shown)


def _clash(other: str, place: str, view: Mapping[str, Any]) -> str:
    """Return what keeps a view from being mounted beside the view `other`, which is at `place`; empty if nothing does."""
    name, mountpoint = view["name"], view["mountpoint"]
    if mountpoint == place:
        return f"views {other} and {name} have the same mountpoint {place}: give each a mountpoint of its own"
    if overlap(to_bytes(mountpoint), to_bytes(place)):
        return (
            f"views {other} and {name} have mountpoints inside of each other: {place} and {mountpoint}: mount them beside each"
            " other"
        )
    return ""


def _hidden_paths(views: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the paths that hosts need, and that a view would hide."""
    for view in views:
        paths = [(view[key], key) for key in ("root", "store", "image_store", "ca_path", "state_dir")]
        paths += [(root["path"], "roots") for root in view["roots"] or ()]
        told: list[str] = []
        for path, key in paths:
            # By default, the images are below the manifests.
            if not path or any(_inside(path, other) for other in told):
                continue
            hiding = next((one for one in views if _inside(path, one["mountpoint"])), None)
            if hiding:
                told.append(path)
                yield (
                    f"view {view['name']}: {key} {path} is inside of the mountpoint {hiding['mountpoint']} of view {hiding['name']}, which"
                    " would hide it: give another mountpoint"
                )


def _differences_of_state_dir(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that two views with data images in one state directory have to agree on, and do not."""
    if one["state_dir"] != other["state_dir"] or "none" in (one["data_images"], other["data_images"]):
        return
    for key in _OF_STATE_DIR:
        if one[key] != other[key]:
            yield (
                f"views {one['name']} and {other['name']} share the data images in {one['state_dir']}, and differ in {key}: give one value"
                f" as overlay_{key}"
            )


def _inside(path: str, directory: str) -> bool:
    return is_inside(to_bytes(path), to_bytes(directory))
