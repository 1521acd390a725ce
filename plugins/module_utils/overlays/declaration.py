# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the declaration of an overlay from the parameters of a task, and check its layers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountpoints, namespaces, still_paths
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    containing_mount,
    inside,
    top_mount,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.trust import check_way
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    is_image_path,
    without_suffix,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MountSpec,
    Writable,
    mount_differences,
    mount_spec,
    scratch_space,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import TreePart


def declared(
    path: bytes,
    params: Mapping[str, Any],
    live: Mount | None,
    defaults: Mapping[bytes, bytes],
    visit: Callable[[bytes], None] = lambda _layer: None,
) -> MountSpec:
    """Return the declaration of an overlay at ``path``.

    ``params`` are the parameters of overlay_mount, with absolute paths; they may have ``like_lower``, which is that of ``Writable``, and
    ``parts``, the places of the parts of a tree, each with the paths of its data layers.
    ``live`` is the mount at ``path``, and ``defaults`` are the host's defaults of overlay options. No file server is asked for a layer if
    the declaration equals ``live``. Otherwise ``visit`` is called with the path of each layer before the layer is looked up.

    Raises OverlayError if the declaration is not valid.
    """
    if live is not None:
        written = as_written(path, params, namespaces.own_mounts())
        parts, _inner = tree_parts.split(live, inside(namespaces.own_mounts(), live))
        if not mount_differences(written, live, defaults, parts):
            return written

    def resolved(layer: bytes) -> bytes:
        visit(layer)
        return os.path.realpath(layer)

    return _declared(path, params, resolved, images.among)


def as_written(path: bytes, params: Mapping[str, Any], seen: Sequence[Mount]) -> MountSpec:
    """Return the declaration of an overlay at ``path`` without asking a file server: layers with names of images are images.

    ``seen`` are the mounts that this process sees. Raises OverlayError if the declaration is not valid.
    """
    return _declared(
        path,
        params,
        lambda layer: still_paths.resolved(layer, seen),
        lambda layers: list(filter(is_image_path, layers)),
    )


def _declared(
    path: bytes,
    params: Mapping[str, Any],
    resolved: Callable[[bytes], bytes],
    images_among: Callable[[Sequence[bytes]], list[bytes]],
) -> MountSpec:
    """Return the declaration. ``resolved`` resolves the path of a layer, and ``images_among`` returns the layers that are images."""
    lower, data = ([resolved(os.fsencode(layer)) for layer in params[option]] for option in ("lower", "data"))
    writable = None
    if params["scratch"] is not None:
        if params["scratch"] <= 0:
            raise OverlayError(f"'scratch' has the value {params['scratch']}: give a size greater than 0, such as 2G")
        writable = scratch_space(params["scratch"])
    elif params["upper"] is not None:
        upper, work = (os.path.realpath(os.fsencode(params[option])) for option in ("upper", "work"))
        writable = Writable(upper, work, like_lower=params.get("like_lower", False))
    read_only = writable is None if params["read_only"] is None else params["read_only"]
    found = images_among((*lower, *data))
    spec = mount_spec(path, lower, data, params["options"], read_only, found, writable, params["strategy"])
    parts = (
        TreePart(os.fsencode(place), tuple(resolved(os.fsencode(layer)) for layer in layers))
        for place, layers in params.get("parts", {}).items()
    )
    return replace(spec, parts=tuple(sorted(parts)))


def check_layers(spec: MountSpec, mounting: bool, check_mode: bool) -> list[str]:
    """Check that the layers of a declaration exist, and that only root can replace them.

    ``mounting`` says whether the overlay has to be mounted. Return a warning if a layer is missing. It is only a warning if nothing has to
    be mounted, since a live overlay keeps its layers, and in check mode, since an earlier task may create it.

    Raises OverlayError if a layer is missing otherwise, if others than root can replace one, or if an image has the layer name of a
    directory that is not empty.
    """
    live = namespaces.own_mounts()
    _check_trusted(spec, live)

    def may_look(layer: bytes) -> bool:
        # If nothing has to be mounted, an unreachable file server must not fail the task.
        return mounting or still_paths.is_local(layer, live)

    for image in spec.images:
        name = without_suffix(image)
        if may_look(name) and _has_other_content(name, live):
            raise OverlayError(
                f"image {show(image)} is next to directory {show(name)}, which is not empty: the kernel reports both under one name, so"
                " rename one of them"
            )
    missing = [layer for layer in spec.directories if may_look(layer) and not os.path.isdir(layer)]
    missing += [image for image in spec.images if may_look(image) and not os.path.isfile(image)]
    if not missing:
        return []
    kind = "file" if missing[0] in spec.images else "directory"
    sentence = (
        f"layer {show(missing[0])} of the overlay at {show(spec.path)} does not exist or is not a {kind}: create it"
    )
    if mounting and not check_mode:
        raise OverlayError(sentence)
    return [sentence]


def _has_other_content(name: bytes, live: Sequence[Mount]) -> bool:
    """Return whether the layer name of an image is a directory that is not empty, or has a mount that is not of an image."""
    if not os.path.isdir(name):
        return False
    mount = top_mount(live, name)
    return mount.fstype != b"erofs" if mount else not mountpoints.directory_state(name)


def _check_trusted(spec: MountSpec, live: list[Mount]) -> None:
    """Check that only root can replace the layers that decide which files users read and run.

    These are images, the layers over a data layer, the upper layer and the work directory. Layers on a file server are trusted like the
    software there, and are not examined, since the server may be unreachable. Raises OverlayError if others than root can replace one.
    """
    for path in (*spec.images, *(spec.directories if spec.data else ())):
        if path not in spec.all_data and not _is_remote(path, live):
            # The directory layer of a generation has the uid, gid and mode that the view shows, so its parent is checked.
            of_generation = os.path.lexists(os.path.join(os.path.dirname(path), b"view.json"))
            check_way(os.path.dirname(path) if of_generation else path, unless_hidden=True)
    for path in spec.kept:
        if not _is_remote(path, live):
            check_way(path, unless_hidden=True)


def _is_remote(path: bytes, live: list[Mount]) -> bool:
    mount = containing_mount(live, path)
    return mount is not None and mount.fstype.startswith(still_paths.REMOTE)
