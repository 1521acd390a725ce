# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find and publish data images in an image store.

``STORE/.data/RELEASE/ID.erofs`` is an image, and ``ID.json`` its record. ``KIND.json`` is the record of the current image of a kind. A
record is written after what it describes, so an image without one is not complete.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import data_image_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import usage

#: The directory of all data images in an image store.
DIRECTORY = ".data"
SUFFIX = ".erofs"
RECORD_SUFFIX = ".json"

_CHUNK = 1 << 20

#: Seconds after which an image without a record is a leftover of a killed run.
_ABANDONED_AFTER = 24 * 3600


def release_directory(image_store: str, release: str) -> str:
    """Return the path of the directory with the data images of a release."""
    return os.path.join(image_store, DIRECTORY, release)


def image_path(image_store: str, image: DataImage) -> str:
    """Return the path of a data image in a store."""
    return os.path.join(release_directory(image_store, image.release), image.id + SUFFIX)


def find(image_store: str, release: str, kind: str) -> DataImage | None:
    """Return the current data image of a kind of a release.

    Return None if there is none, if it is incomplete, or if an older version of the collection made it. Raises OverlayError if its record
    is damaged or belongs to another release.
    """
    found = _read(os.path.join(release_directory(image_store, release), kind + RECORD_SUFFIX), release)
    if found is None or not _is_whole(image_store, found):
        return None
    return replace(found, kind=kind)


def find_by_id(image_store: str, release: str, image_id: str) -> DataImage | None:
    """Return a data image of a release, given its ID, whether it is the current one or not.

    Return None if there is none, if it is incomplete, or if an older version of the collection made it. Raises OverlayError if its record
    is damaged or belongs to another release or image.
    """
    path = os.path.join(release_directory(image_store, release), image_id + RECORD_SUFFIX)
    found = _read(path, release)
    if found is None or not _is_whole(image_store, found):
        return None
    if found.id != image_id:
        raise OverlayError(
            f"{_shown(path)} is the record of data image {found.id}: remove both files, and build the image again"
        )
    return found


def current_ids(image_store: str, release: str) -> dict[str, str]:
    """Return the IDs of the current images of a release, by kind. Raises OverlayError if a record is damaged."""
    found = ((kind, find(image_store, release, kind)) for kind in data_image_record.KINDS)
    return {kind: image.id for kind, image in found if image is not None}


def other_ids(image_store: str, release: str) -> list[str]:
    """Return the IDs of the images of a release that are not current for any kind, the newest first.

    Images that a killed run has left without a record count as the oldest ones after a day.
    """
    current = set(current_ids(image_store, release).values())
    place = release_directory(image_store, release)
    ages: list[tuple[float, str]] = []
    try:
        with files.fresh_listing(place) as listing:
            names = {item.name: item.stat(follow_symlinks=False).st_mtime for item in listing}
    except FileNotFoundError:
        return []
    for name, mtime in names.items():
        image_id, suffix = os.path.splitext(name)
        if not data_image_record.is_image_id(image_id) or image_id in current:
            continue
        if suffix == RECORD_SUFFIX:
            ages.append((mtime, image_id))
        elif image_id + RECORD_SUFFIX not in names and mtime < time.time() - _ABANDONED_AFTER:
            ages.append((0.0, image_id))
    return [image_id for _mtime, image_id in sorted(ages, reverse=True)]


def publish(image_store: str, image: DataImage, built: str, is_private: bool, progress: Progress = no_progress) -> None:
    """Copy the file ``built`` of an image to a store, and make it the current image of its kind.

    With ``is_private`` only root can read the copy. An interrupted run leaves the current image as it was. Several hosts may publish the
    same image at the same time. Raises OSError if there is no room, and leaves nothing then.
    """
    mode = 0o600 if is_private else 0o644
    text = data_image_record.data_image_to_json(image)
    is_there = find_by_id(image_store, image.release, image.id) is not None
    place = os.path.join(DIRECTORY, image.release)
    with files.directory_within(image_store, place, files.mode_within(image_store)) as directory:
        if not is_there:
            with (
                open(built, "rb") as source,
                files.written_aside(os.path.join(directory, image.id + SUFFIX), mode) as aside,
            ):
                for chunk in iter(lambda: source.read(_CHUNK), b""):
                    aside.write(chunk)
                    progress()
            _write(os.path.join(directory, image.id + RECORD_SUFFIX), text, mode)
        _write(os.path.join(directory, image.kind + RECORD_SUFFIX), text, mode)


def _write(path: str, text: bytes, mode: int) -> None:
    with files.written_aside(path, mode) as aside:
        aside.write(text)


def remove(image_store: str, release: str, image_id: str) -> bool:
    """Remove an image of a release from a store, unless it is current for a kind or in use on this host; return whether it was removed."""
    if image_id in current_ids(image_store, release).values():
        return False
    if usage.of_image(os.path.join(release_directory(image_store, release), image_id + SUFFIX)):
        return False
    _unlink(image_store, release, (image_id + RECORD_SUFFIX, image_id + SUFFIX))
    return True


def remove_current(image_store: str, release: str) -> None:
    """Make no image of a release the current one of any kind."""
    _unlink(image_store, release, [kind + RECORD_SUFFIX for kind in data_image_record.KINDS])


def remove_directories(image_store: str, release: str) -> None:
    """Remove the directory of the images of a release, and those above it, as far as they are empty."""
    above = release
    while above:
        try:
            with files.directory_within(
                image_store, os.path.join(DIRECTORY, os.path.dirname(above)), None
            ) as directory:
                os.rmdir(os.path.join(directory, os.path.basename(above)))
        except OSError:
            return
        above = os.path.dirname(above)


def _unlink(image_store: str, release: str, names: Sequence[str]) -> None:
    with (
        contextlib.suppress(FileNotFoundError),
        files.directory_within(image_store, os.path.join(DIRECTORY, release), None) as directory,
    ):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
        files.sync_directory(directory)


def _read(path: str, release: str) -> DataImage | None:
    try:
        found = data_image_record.data_image_from_json(record_files.read(path, data_image_record.LARGEST_RECORD))
    except (FileNotFoundError, NotADirectoryError, OutdatedError):
        return None
    except OverlayError as error:
        raise OverlayError(f"{_shown(path)}: {error}; remove it, and build the data image again") from None
    if found.release != release:
        raise OverlayError(
            f"{_shown(path)} is the record of a data image of release {_shown(found.release)}: remove it, and build the image again"
        )
    return found


def _is_whole(image_store: str, image: DataImage) -> bool:
    try:
        return os.stat(image_path(image_store, image)).st_size == image.bytes_on_disk
    except FileNotFoundError:
        return False


def _shown(path: str) -> str:
    return show(os.fsencode(path))
