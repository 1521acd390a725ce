# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find and publish data images in an image store.

``STORE/.data/RELEASE/ID.erofs`` is an image, and ``ID.json`` its record. ``KIND.json`` is the record of the current image of a kind. A
record is written after what it describes, so an image without one is not complete.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import data_image_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage

#: The directory of all data images in an image store. No release has a path that starts with a dot in front of a name of its own.
DIRECTORY = ".data"
SUFFIX = ".erofs"
RECORD_SUFFIX = ".json"


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
