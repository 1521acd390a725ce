# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image store: a folder, usually on the file server, with one EROFS image and one small JSON record for each generation.

An image is built once, on one host, and installed on the others by its digest. The record is written last, so an image counts only
when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    IMAGE_SUFFIX,
    without_suffix,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, removal, usage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import (
    Generation,
    LayerSpec,
    ViewPaths,
)

_CHUNK = 1 << 20


def check_store(store: str, manifests: str | None) -> None:
    """Raises OverlayError when there is no image store at ``store``. One directly inside the manifest store is made when it is needed."""
    if os.path.isdir(store):
        return
    shown = show(os.fsencode(store))
    if os.path.lexists(store):
        raise OverlayError(f"image store {shown} is not a directory")
    above = os.path.dirname(store.rstrip("/"))
    if manifests is None or not os.path.isdir(above) or os.path.realpath(above) != os.path.realpath(manifests):
        raise OverlayError(f"image store {shown} does not exist: is it mounted? A new one is made once, with mkdir")


def image_path(store: str, generation_id: str) -> str:
    return os.path.join(store, generation_id + IMAGE_SUFFIX)


def record_path(image: str) -> str:
    """Return where the record of an image is. Raises OverlayError for a path that is no image's."""
    if not image.endswith(IMAGE_SUFFIX):
        raise OverlayError(f"{show(os.fsencode(image))} is not an image: their names end in {IMAGE_SUFFIX}")
    return without_suffix(image) + ".json"


def find(image: str) -> Generation | None:
    """Return what the record of an image says, or None where there is no whole image."""
    path = record_path(image)
    try:
        generation = names.generation_from_json(record_files.read(path, names.LARGEST_RECORD), path)
        size = os.stat(image).st_size
    except FileNotFoundError:
        return None
    if generation.image is None or generation.image.bytes != size:
        return None
    if os.path.basename(image) != generation.id + IMAGE_SUFFIX:
        raise OverlayError(
            f"{show(os.fsencode(path))} is the record of generation {generation.id}, whose image is called {generation.id}{IMAGE_SUFFIX}:"
            " remove both files and build the image again"
        )
    return generation


def read(image: str, digest: str) -> Generation:
    """Return the generation that an image is. Raises OverlayError when it is not there, or is not the one with ``digest``."""
    found = find(image)
    if found is None:
        raise OverlayError(
            f"{show(os.fsencode(image))}: there is no whole image; build it with metadata_layer and 'image_store'"
        )
    recorded = found.image.digest if found.image else "none"
    if recorded != digest:
        raise OverlayError(
            f"image {show(os.fsencode(image))} has the digest {recorded}, and {digest} was asked for: nothing was installed"
        )
    return found


def publish(
    store: str, spec: LayerSpec, builder: Builder, composition: Composition, progress: Progress = no_progress
) -> Generation:
    """Build an image and put it into the store, which is made where ``check_store`` lets it. A killed run leaves no image that counts."""
    if os.path.isdir(os.path.dirname(store.rstrip("/"))):
        # Only the directory itself: what is above is mounted, or it is an error.
        files.make_directories(store, 0o755)
    with files.made_aside(store) as aside:
        files.remove_abandoned(store, uid=aside.uid)
        generation, _report = generations.build_layer(aside.path, spec, builder, composition, progress)
        built = names.layer_path(aside.path, spec.format)
        with open(built, "rb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        image = image_path(store, generation.id)
        _check_replaceable(image)
        with contextlib.suppress(FileNotFoundError):
            # While the image is exchanged it has no record, and counts for nobody.
            os.unlink(record_path(image))
        os.rename(built, image)
        with files.written_aside(record_path(image)) as record:
            record.write(names.generation_to_json(generation))
    return generation


def _check_replaceable(image: str) -> None:
    """Raises OverlayError where an image without its record, or of another length, is in use on this host."""
    uses = usage.of_image(image) if os.path.lexists(image) else []
    if uses:
        raise OverlayError(
            f"image {show(os.fsencode(image))} has lost its record or a part, and is in use, so it is not replaced"
            f" ({'; '.join(uses)}): unmount it, then build it again"
        )


def install(paths: ViewPaths, image: str, generation: Generation, progress: Progress = no_progress) -> Generation:
    """Copy an image to this host and make it a generation of the view. The view's lock has to be held.

    A copy that was interrupted goes on where it ended, but nothing is left of one for which there was no room. Raises OverlayError when
    what was copied has not the digest that was recorded.
    """
    if generation.image is None:
        raise OverlayError(f"{show(os.fsencode(image))} is not recorded as an image")
    part = os.path.join(paths.incoming, generation.image.digest.partition(":")[2])
    removal.clear(paths, paths.incoming, progress, keep=[os.path.basename(part)])
    try:
        _bring(image, part, generation.image, progress)
        with generations.staged(paths, generation.folder, progress) as folder:
            layer = names.layer_path(folder, generation.format)
            os.rename(part, layer)
            here = replace(generation, bytes_on_disk=os.stat(layer).st_blocks * 512)
            generations.write_record(folder, here)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            removal.clear(paths, paths.incoming, progress)
        raise
    removal.clear(paths, paths.incoming, progress)
    return here


def _bring(image: str, part: str, recorded: Image, progress: Progress) -> None:
    """Copy an image. Raises OverlayError when the copy has not the digest that was recorded."""
    files.make_directories(os.path.dirname(part), 0o755)
    if not _copied(image, part, recorded, progress):
        # What an earlier run had left may have been damaged: once more, all of it.
        os.unlink(part)
        if not _copied(image, part, recorded, progress):
            os.unlink(part)
            raise OverlayError(
                f"image {show(os.fsencode(image))} does not have the digest {recorded.digest} that was recorded: nothing was installed;"
                " remove it and build it again"
            )


def _copied(image: str, part: str, recorded: Image, progress: Progress) -> bool:
    """Copy what is missing of an image, and tell whether all of it has the digest recorded."""
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
    return "sha256:" + digest.hexdigest() == recorded.digest
