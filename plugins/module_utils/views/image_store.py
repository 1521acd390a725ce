# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish images in an image store, and install them from there.

An image store is a directory, usually on the file server, with one image and one small JSON record for each generation. An image is built
once, on one host, and the other hosts install it by its digest. The record is written last, so an image without one is not whole. Hosts may
also install from the address of a web server that serves the directory.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import LayerBuilder
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import (
    FORMATS,
    LayerFormat,
    published_format,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import copying, locations, store_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    generation_files,
    generations,
    removal,
    usage,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    ViewPaths,
    layer_path,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    record_path as generation_record_path,
)


def check_store(store: str, manifests: str | None) -> None:
    """Check that images can be published in ``store``. Raises OverlayError if it is not the absolute path of a directory.

    An image store directly inside the manifest store ``manifests`` may be missing: ``publish`` creates it.
    """
    path = locations.shown(locations.check(store, "image_store"))
    if locations.is_address(store):
        raise OverlayError(
            f"image store {path} is an address, and nothing can be published to a web server: give the directory that it serves"
        )
    if os.path.isdir(store):
        return
    if os.path.lexists(store):
        raise OverlayError(f"image store {path} is not a directory: give the path of a directory")
    above = os.path.dirname(store.rstrip("/"))
    if manifests is None or not os.path.isdir(above) or os.path.realpath(above) != os.path.realpath(manifests):
        raise OverlayError(f"image store {path} does not exist: is it mounted? Create a new store once, with mkdir")


def image_path(store: str, generation: str) -> str:
    """Return the path or address of the image of a generation in a store, given the generation's ID."""
    return locations.joined(store, generation + published_format().suffix)


def format_of(image: str) -> LayerFormat:
    """Return the format of an image, given its path. Raises OverlayError if the path is not that of an image."""
    formats = [one for one in FORMATS.values() if one.is_image]
    for one in formats:
        if image.endswith(one.suffix):
            return one
    suffixes = " or ".join(one.suffix for one in formats)
    raise OverlayError(f"{locations.shown(image)} is not an image: give a path that ends in {suffixes}")


def record_path(image: str) -> str:
    """Return the path of the record of an image. Raises OverlayError if the path is not that of an image."""
    return image[: -len(format_of(image).suffix)] + ".json"


def find(image: str, access: Access = SYSTEM) -> Generation | None:
    """Return the generation whose image is at a path or address; None if there is no whole image of this version of the collection.

    A record without its image is not read. Raises OverlayError if the record of an image is damaged or belongs to another generation.
    """
    path = record_path(image)
    try:
        size = store_files.size(image, access)
    except FileNotFoundError:
        return None
    generation = generation_files.find(path, access)
    if generation is None or generation.image is None or size not in (None, generation.image.bytes):
        return None
    expected = generation.id + FORMATS[generation.format].suffix
    if os.path.basename(image) != expected:
        raise OverlayError(
            f"{locations.shown(path)} is the record of generation {generation.id}, whose image is called {expected}: remove both files and"
            " build the image again"
        )
    return generation


def read(image: str, digest: str, access: Access = SYSTEM) -> Generation:
    """Return the generation whose image is at a path or address.

    Raises OverlayError if there is no whole image, if its record cannot be used, or if its digest is not ``digest``.
    """
    found = find(image, access)
    if found is None or found.image is None:
        raise OverlayError(
            f"image {locations.shown(image)} is missing, incomplete or of an older version of the collection: build it again with"
            " metadata_layer and 'image_store'"
        )
    if found.image.digest != digest:
        raise OverlayError(
            f"image {locations.shown(image)} has the digest {found.image.digest}, but image_digest is {digest}: nothing was installed"
        )
    return found


def publish(
    store: str, spec: LayerSpec, builder: LayerBuilder, composition: Composition, progress: Progress = no_progress
) -> Generation:
    """Build an image and publish it in a store. A killed run leaves no image that looks whole.

    The store is created if only its own directory is missing. Raises OverlayError if an image that is in use would be replaced.
    """
    if os.path.isdir(os.path.dirname(store.rstrip("/"))):
        # A missing directory above is a share that is not mounted, so it is not created.
        files.make_directories(store, 0o755)
    with files.made_aside(store) as aside:
        files.remove_abandoned(store, uid=aside.uid)
        generation, _report = generations.build_layer(aside.path, spec, builder, composition, progress)
        built = layer_path(aside.path, spec.format)
        with open(built, "rb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        image = image_path(store, generation.id)
        _check_replaceable(image)
        with contextlib.suppress(FileNotFoundError):
            # Without its record the image is not whole, whatever happens while it is replaced.
            os.unlink(record_path(image))
        os.rename(built, image)
        generation_files.write(record_path(image), generation)
    return generation


def _check_replaceable(image: str) -> None:
    """Check that an image that is not whole is not in use on this host. Raises OverlayError if it is."""
    uses = usage.of_image(image) if os.path.lexists(image) else []
    if uses:
        raise OverlayError(
            f"image {locations.shown(image)} has lost its record or a part of its content, but it is in use, so it is not replaced"
            f" ({'; '.join(uses)}): unmount it, then build it again"
        )


def install(
    paths: ViewPaths,
    image: str,
    generation: Generation,
    progress: Progress = no_progress,
    access: Access = SYSTEM,
    require_verity: bool = False,
) -> Generation:
    """Copy an image to this host and make it a generation of the view. The caller has to hold the lock of the view.

    An interrupted copy continues where it ended, but a copy that did not fit on the disk is removed. The image gets fs-verity where the
    file system has it. Raises OverlayError if the copy does not have the recorded digest, or if ``require_verity`` is not possible.
    """
    if generation.image is None:
        raise OverlayError(f"{locations.shown(image)} is not recorded as an image: build it again")
    part = os.path.join(paths.incoming, generation.image.digest.partition(":")[2])
    removal.clear(paths, paths.incoming, progress, keep=[os.path.basename(part)])
    try:
        files.make_directories(paths.incoming, 0o755)
        copying.bring(image, part, generation.image.bytes, generation.image.digest, progress, access)
        files.enable_verity(part, require_verity)
        with generations.staged(paths, generation.directory, progress) as directory:
            layer = layer_path(directory, generation.format)
            os.rename(part, layer)
            here = replace(generation, bytes_on_disk=os.stat(layer).st_blocks * 512)
            generation_files.write(generation_record_path(directory), here)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            removal.clear(paths, paths.incoming, progress)
        raise
    removal.clear(paths, paths.incoming, progress)
    return here
