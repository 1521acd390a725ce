# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish images in an image store, and install them from there.

An image store is a directory, usually on the file server, with one image and one small JSON record for each generation. An image is built
once, on one host, and the other hosts install it by its digest. The record is written last, so an image without one is not whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import LayerBuilder
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import (
    FORMATS,
    LayerFormat,
    published_format,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
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

_CHUNK = 1 << 20


def check_store(store: str, manifests: str | None) -> None:
    """Check that there is an image store at ``store``. Raises OverlayError if there is none.

    An image store directly inside the manifest store ``manifests`` may be missing: ``publish`` creates it.
    """
    if os.path.isdir(store):
        return
    path = _printable(store)
    if os.path.lexists(store):
        raise OverlayError(f"image store {path} is not a directory: give the path of a directory")
    above = os.path.dirname(store.rstrip("/"))
    if manifests is None or not os.path.isdir(above) or os.path.realpath(above) != os.path.realpath(manifests):
        raise OverlayError(f"image store {path} does not exist: is it mounted? Create a new store once, with mkdir")


def image_path(store: str, generation: str) -> str:
    """Return the path of the image of a generation in a store, given the generation's ID."""
    return os.path.join(store, generation + published_format().suffix)


def format_of(image: str) -> LayerFormat:
    """Return the format of an image, given its path. Raises OverlayError if the path is not that of an image."""
    formats = [one for one in FORMATS.values() if one.is_image]
    for one in formats:
        if image.endswith(one.suffix):
            return one
    suffixes = " or ".join(one.suffix for one in formats)
    raise OverlayError(f"{_printable(image)} is not an image: give a path that ends in {suffixes}")


def record_path(image: str) -> str:
    """Return the path of the record of an image. Raises OverlayError if the path is not that of an image."""
    return image[: -len(format_of(image).suffix)] + ".json"


def find(image: str) -> Generation | None:
    """Return the generation whose image is at a path; None if there is no whole image of this version of the collection.

    A record without its image is not read. Raises OverlayError if the record of an image is damaged or belongs to another generation.
    """
    path = record_path(image)
    try:
        size = os.stat(image).st_size
    except FileNotFoundError:
        return None
    generation = generation_files.find(path)
    if generation is None or generation.image is None or generation.image.bytes != size:
        return None
    expected = generation.id + FORMATS[generation.format].suffix
    if os.path.basename(image) != expected:
        raise OverlayError(
            f"{_printable(path)} is the record of generation {generation.id}, whose image is called {expected}: remove both files and build"
            " the image again"
        )
    return generation


def read(image: str, digest: str) -> Generation:
    """Return the generation whose image is at a path.

    Raises OverlayError if there is no whole image, if its record cannot be used, or if its digest is not ``digest``.
    """
    found = find(image)
    if found is None or found.image is None:
        raise OverlayError(
            f"image {_printable(image)} is missing, incomplete or of an older version of the collection: build it again with metadata_layer"
            " and 'image_store'"
        )
    if found.image.digest != digest:
        raise OverlayError(
            f"image {_printable(image)} has the digest {found.image.digest}, but image_digest is {digest}: nothing was installed"
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
            f"image {_printable(image)} has lost its record or a part of its content, but it is in use, so it is not replaced"
            f" ({'; '.join(uses)}): unmount it, then build it again"
        )


def install(
    paths: ViewPaths,
    image: str,
    generation: Generation,
    progress: Progress = no_progress,
    require_verity: bool = False,
) -> Generation:
    """Copy an image to this host and make it a generation of the view. The caller has to hold the lock of the view.

    An interrupted copy continues where it ended, but a copy that did not fit on the disk is removed. The image gets fs-verity where the
    file system has it. Raises OverlayError if the copy does not have the recorded digest, or if ``require_verity`` is not possible.
    """
    if generation.image is None:
        raise OverlayError(f"{_printable(image)} is not recorded as an image: build it again")
    part = os.path.join(paths.incoming, generation.image.digest.partition(":")[2])
    removal.clear(paths, paths.incoming, progress, keep=[os.path.basename(part)])
    try:
        bring(image, part, generation.image.digest, progress)
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


def bring(image: str, part: str, recorded: str, progress: Progress) -> None:
    """Copy an image to ``part``, continuing an interrupted copy, and sync it.

    Raises OverlayError if the copy does not have the recorded digest, ``sha256:...``.
    """
    files.make_directories(os.path.dirname(part), 0o755)
    if not _copied(image, part, recorded, progress):
        # What an earlier run has left may be damaged, so copy everything once more.
        os.unlink(part)
        if not _copied(image, part, recorded, progress):
            os.unlink(part)
            raise OverlayError(
                f"image {_printable(image)} does not have the recorded digest {recorded}: nothing was installed; remove it and build it"
                " again"
            )


def _copied(image: str, part: str, recorded: str, progress: Progress) -> bool:
    """Copy the missing part of an image, and return whether the whole copy has the recorded digest."""
    digest = hashlib.sha256()
    with (
        open(files.open_or_make(part, 0o600), "a+b", buffering=0) as target,
        record_files.open_regular(image) as source,
    ):
        target.seek(0)
        for chunk in iter(lambda: target.read(_CHUNK), b""):
            digest.update(chunk)
            progress()
        source.seek(target.tell())
        for chunk in iter(lambda: source.read(_CHUNK), b""):
            digest.update(chunk)
            files.write(target, chunk, part)
            progress()
        os.fchmod(target.fileno(), 0o644)
        os.fsync(target.fileno())
    return "sha256:" + digest.hexdigest() == recorded


def _printable(path: str) -> str:
    return show(os.fsencode(path))
