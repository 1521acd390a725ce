# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish images in an image store, and install them from there.

An image store is a directory, usually on the file server, with one compressed image and one small JSON record for each generation. An image
is built once, on one host, and the other hosts install it by its digest. The record is written last, so an image without one is not whole.
Hosts may also install from the address of a web server that serves the directory.

Beside an image there are deltas from images of the store that have most of their releases in common with it. A host that has one of these
images copies only the delta. Whatever a host copies, the image that it makes must have the recorded digest. Stores of earlier versions have
images that are not compressed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import packed_image
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.deflating import DamagedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import LayerBuilder
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import (
    FORMATS,
    Image,
    LayerFormat,
    StoredDelta,
    StoredFile,
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
    view_state,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import ID_LENGTH, Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    ViewPaths,
    layer_path,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    record_path as generation_record_path,
)

#: The end of the name of a compressed image, after that of the image.
_PACKED = ".gz"
_IS_RECORD = re.compile(f"[0-9a-f]{{{ID_LENGTH}}}\\.json")

#: From how many generations deltas are made, and how many of the newest records are read to choose them.
_MOST_DELTAS = 2
_MOST_COMPARED = 50
#: Each delta of an image with a million files (256 MB) takes 8 seconds of processor time, so none are made of larger images than this.
_LARGEST_FOR_DELTAS = 1 << 30

#: Provides the directory of a generation while it is made, as ``generations.staged`` does.
Staged = Callable[[ViewPaths, str, Progress], AbstractContextManager[str]]

FROM_DELTA = "delta"
FROM_IMAGE = "image"


@dataclass(frozen=True)
class Installed:
    """How an image was installed."""

    #: ``delta`` or ``image``: what was copied last.
    installed_from: str
    #: How many bytes of files were read from the store, without records.
    bytes_copied: int
    warnings: tuple[str, ...] = ()
    generation: Generation | None = None


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


def stored_path(image: str, recorded: Image) -> str:
    """Return the path or address of the file that holds an image in its store."""
    return image + _PACKED if recorded.packed else image


def delta_path(image: str, delta: StoredDelta) -> str:
    """Return the path or address of the file that holds a delta in the store of an image."""
    return f"{image[: -len(format_of(image).suffix)]}.{delta.base.partition(':')[2][:ID_LENGTH]}.delta"


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
    if not any(store_files.exists(file, access) for file in (image + _PACKED, image)):
        return None
    generation = generation_files.find(path, access)
    if generation is None or generation.image is None or not _is_whole(image, generation.image, access):
        return None
    expected = generation.id + FORMATS[generation.format].suffix
    if os.path.basename(image) != expected:
        raise OverlayError(
            f"{locations.shown(path)} is the record of generation {generation.id}, whose image is called {expected}: remove both files and"
            " build the image again"
        )
    return generation


def _is_whole(image: str, recorded: Image, access: Access) -> bool:
    """Return whether the file of an image is in the store with its recorded length, as far as a web server tells the length."""
    try:
        size = store_files.size(stored_path(image, recorded), access)
    except FileNotFoundError:
        return False
    return size in (None, (recorded.packed or recorded).bytes)


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
        image = image_path(store, generation.id)
        _check_replaceable(image)
        published = _packed(store, generation, aside.path, progress)
        with contextlib.suppress(FileNotFoundError):
            # Without its record the image is not whole, whatever happens while it is replaced.
            os.unlink(record_path(image))
        for name in os.listdir(aside.path):
            if name.startswith(f"{generation.id}."):
                os.rename(os.path.join(aside.path, name), os.path.join(store, name))
        with contextlib.suppress(FileNotFoundError):
            # What an earlier version of the collection has left here.
            os.unlink(image)
        generation_files.write(record_path(image), published)
    return published


def _packed(store: str, generation: Generation, aside: str, progress: Progress) -> Generation:
    """Compress the image that was built in the directory ``aside``, make deltas for it there, and return what to record."""
    if generation.image is None:
        raise OverlayError(
            f"generation {generation.id} is not an image, so it cannot be published: give the format erofs"
        )
    image, built = image_path(aside, generation.id), layer_path(aside, generation.format)
    recorded = replace(generation.image, packed=packed_image.pack(built, image + _PACKED, progress))
    deltas = []
    for base in _bases(store, generation):
        delta = _delta(store, base, image, recorded, built, progress)
        deltas += [delta] if delta else []
    return replace(generation, image=replace(recorded, deltas=tuple(deltas)))


def _delta(
    store: str, base: Generation, image: str, recorded: Image, built: str, progress: Progress
) -> StoredDelta | None:
    """Make the delta from a generation in the store. Return None, and leave none, if there is none or if it saves less than half."""
    if base.image is None or recorded.packed is None or base.image.digest == recorded.digest:
        return None
    # The record of the old image may have been written by somebody else.
    if max(recorded.bytes, base.image.bytes) > _LARGEST_FOR_DELTAS:
        return None
    old = image_path(store, base.id)
    delta = StoredDelta(recorded.packed.digest, recorded.packed.bytes, base.image.digest)
    unpacked = os.path.join(os.path.dirname(image), "base")
    try:
        # The image in the store may be damaged or removed at any time, so a copy of it is checked and used.
        if base.image.packed:
            packed_image.unpack(stored_path(old, base.image), unpacked, base.image, progress)
        else:
            copying.bring(old, unpacked, base.image.bytes, base.image.digest, progress)
        made = packed_image.make_delta(unpacked, built, delta_path(image, delta), recorded.packed.bytes // 2, progress)
    except (DamagedError, OverlayError, FileNotFoundError):
        return None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unpacked)
    return replace(delta, digest=made.digest, bytes=made.bytes) if made else None


def _bases(store: str, generation: Generation) -> list[Generation]:
    """Return the generations of a store from which deltas are made: those with the most releases in common, the newest first.

    The store has the images of all views. A generation that a host has before this one shows most of the same releases.
    """
    dated = []
    with os.scandir(store) as entries:
        for entry in entries:
            if _IS_RECORD.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    dated.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    mine = {json.dumps(release, sort_keys=True) for release in generation.releases}
    found = []
    for _written, name in sorted(dated, reverse=True)[:_MOST_COMPARED]:
        try:
            other = find(image_path(store, name[:ID_LENGTH]))
        except (OverlayError, OSError):
            # This image does not depend on what is wrong with others.
            continue
        if other and other.id != generation.id and other.format == generation.format:
            shared = len(mine & {json.dumps(release, sort_keys=True) for release in other.releases})
            if shared * 2 >= len(mine) and shared:
                found.append((shared, other))
    return [other for _shared, other in sorted(found, key=lambda one: -one[0])[:_MOST_DELTAS]]


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
    staged: Staged = generations.staged,
) -> Installed:
    """Copy an image to this host and make it a generation of the view. The caller has to hold the lock of the view.

    ``staged`` provides the directory that becomes the generation when the image is there.

    If the host has an image from which the store has a delta, only the delta is copied. An interrupted copy continues where it ended, but a
    copy that did not fit on the disk is removed. The image gets fs-verity where the file system has it. Raises OverlayError if no image
    with the recorded digest can be made, or if ``require_verity`` is not possible.
    """
    if generation.image is None:
        raise OverlayError(f"{locations.shown(image)} is not recorded as an image: build it again")
    recorded = generation.image
    copies = {_copy_name(one) for one in (recorded, recorded.packed, *recorded.deltas) if one}
    removal.clear(paths, paths.incoming, progress, keep=copies)
    try:
        files.make_directories(paths.incoming, 0o755)
        copied = _bring(paths, image, recorded, progress, access)
        files.enable_verity(os.path.join(paths.incoming, _copy_name(recorded)), require_verity)
        # Nothing large is left if the run is killed when the generation has its name.
        _remove_copies(paths, copies - {_copy_name(recorded)})
        with staged(paths, generation.directory, progress) as directory:
            layer = layer_path(directory, generation.format)
            os.rename(os.path.join(paths.incoming, _copy_name(recorded)), layer)
            here = replace(
                generation,
                image=replace(recorded, packed=None, deltas=()),
                bytes_on_disk=os.stat(layer).st_blocks * 512,
            )
            generation_files.write(generation_record_path(directory), here)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _remove_copies(paths, copies)
            removal.clear(paths, paths.incoming, progress)
        raise
    removal.clear(paths, paths.incoming, progress)
    return replace(copied, generation=here)


def _remove_copies(paths: ViewPaths, names: Iterable[str]) -> None:
    """Remove copies, which no overlay uses as they are."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(paths.incoming, name))


def _copy_name(stored: Image | StoredFile) -> str:
    """Return the name of the copy of a file in the directory for copies."""
    return stored.digest.partition(":")[2]


def _bring(paths: ViewPaths, image: str, recorded: Image, progress: Progress, access: Access) -> Installed:
    """Make an image among the copies of a view, and say how."""
    target = os.path.join(paths.incoming, _copy_name(recorded))
    whole = recorded.bytes + (recorded.packed.bytes if recorded.packed else 0)
    # What an interrupted run has copied is no longer free.
    there = sum(os.lstat(os.path.join(paths.incoming, name)).st_size for name in os.listdir(paths.incoming))
    copying.check_room(image, paths.incoming, max(0, whole - there))
    count = 0
    warnings: list[str] = []
    for delta, old in _usable_deltas(paths, recorded):
        location = delta_path(image, delta)
        part = os.path.join(paths.incoming, _copy_name(delta))
        try:
            copying.check_room(location, paths.incoming, delta.bytes)
            count += copying.bring(location, part, delta.bytes, delta.digest, progress, access)
            packed_image.apply_delta(old, part, target, recorded, progress)
            return Installed(FROM_DELTA, count, tuple(warnings))
        except (DamagedError, OverlayError, FileNotFoundError) as error:
            warnings.append(f"the whole image was copied, because its delta cannot be used: {_reason(location, error)}")
    stored = recorded.packed or recorded
    part = os.path.join(paths.incoming, _copy_name(stored))
    location = stored_path(image, recorded)
    count += copying.bring(location, part, stored.bytes, stored.digest, progress, access)
    if recorded.packed:
        try:
            packed_image.unpack(part, target, recorded, progress)
        except DamagedError as error:
            os.unlink(part)
            raise OverlayError(
                f"{locations.shown(location)} {error}: nothing was installed; remove it and its record from the store, and build it again"
            ) from None
    return Installed(FROM_IMAGE, count, tuple(warnings))


def _reason(delta: str, error: Exception) -> str:
    """Return why a delta cannot be used."""
    if isinstance(error, copying.WrongDigestError):
        return f"{locations.shown(delta)} does not have the recorded digest"
    if isinstance(error, OverlayError):
        return str(error)
    return f"{locations.shown(delta)} {error if isinstance(error, DamagedError) else 'is missing'}"


def _usable_deltas(paths: ViewPaths, recorded: Image) -> list[tuple[StoredDelta, str]]:
    """Return the smallest delta from an image that the view has on this host, with the path of that image; none if there is none."""
    by_base = {delta.base: delta for delta in recorded.deltas}
    found = []
    for directory in sorted(view_state.observe(paths).generations) if by_base else ():
        here = view_state.read_generation(paths, directory)
        if here.image and here.image.digest in by_base:
            found.append((by_base[here.image.digest], layer_path(paths.generation(directory), here.format)))
    return sorted(found, key=lambda one: one[0].bytes)[:1]
