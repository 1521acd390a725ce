# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install data images on a host: ``STATE_DIR/data/ID.erofs``, with the record ``ID.json``, for all views of the state directory."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import published
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files, trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import data_image_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import copying
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access

_DIRECTORY = "data"
#: The directory that images are copied to. An interrupted copy continues from what is here.
INCOMING = "incoming"
_LOCK = "lock"

#: Seconds to wait for another run that installs data images on this host.
_LOCK_SECONDS = 3600.0


def data_directory(state_dir: str) -> str:
    """Return the path of the directory with the installed data images."""
    return os.path.join(state_dir, _DIRECTORY)


def data_image_path(state_dir: str, image_id: str) -> str:
    """Return the path of an installed data image, given its ID."""
    return os.path.join(data_directory(state_dir), image_id + published.SUFFIX)


def record_path(state_dir: str, image_id: str) -> str:
    """Return the path of the record of an installed data image, given its ID."""
    return os.path.join(data_directory(state_dir), image_id + published.RECORD_SUFFIX)


def installed(state_dir: str) -> dict[str, DataImage]:
    """Return the installed data images, by ID. No file server is asked.

    Images without a whole file, without a record, or with one of an older version of the collection are left out. Raises OverlayError if
    a record is damaged, or if others than root can write to the directory or to an image.
    """
    place = data_directory(state_dir)
    if not trust.check_own(place, stat.S_IFDIR):
        return {}
    found = {}
    for name in sorted(os.listdir(place)):
        image_id, suffix = os.path.splitext(name)
        if suffix == published.RECORD_SUFFIX and data_image_record.is_image_id(image_id):
            image = _installed(state_dir, image_id)
            if image is not None:
                found[image_id] = image
    return found


def _installed(state_dir: str, image_id: str) -> DataImage | None:
    """Return an installed data image; None if it is not whole. Raises OverlayError if its record is damaged."""
    path = data_image_path(state_dir, image_id)
    image = recorded(state_dir, image_id) if trust.check_own(path, stat.S_IFREG) else None
    return image if image and os.stat(path).st_size == image.bytes_on_disk else None


def recorded(state_dir: str, image_id: str) -> DataImage | None:
    """Return what the record of an installed data image says; None if there is no record of this version of the collection.

    Raises OverlayError if the record is damaged, or if others than root can write to it.
    """
    record = record_path(state_dir, image_id)
    if not trust.check_own(record, stat.S_IFREG):
        return None
    try:
        image = data_image_record.data_image_from_json(record_files.read(record, data_image_record.LARGEST_RECORD))
    except (FileNotFoundError, OutdatedError):
        return None
    except OverlayError as error:
        raise OverlayError(
            f"{show(os.fsencode(record))}: {error}; remove it, and install the data image again"
        ) from None
    if image.id != image_id:
        raise OverlayError(
            f"{show(os.fsencode(record))} is the record of data image {image.id}: remove both files, and install it again"
        )
    return image


def install(
    image_store: str,
    image: DataImage,
    state_dir: str,
    progress: Progress = no_progress,
    access: Access = SYSTEM,
    require_verity: bool = False,
    replaces: bool = False,
) -> None:
    """Copy a data image from a store, a directory or the address of a web server, to this host, unless it is installed.

    With ``replaces`` it takes the place of an installed one, which overlays go on using until they are switched.

    An interrupted copy continues where it ended, but a copy that did not fit on the disk is removed. The image gets fs-verity where the
    file system has it. Raises OverlayError if the copy does not have the recorded digest, or if ``require_verity`` is not possible, and
    OSError if there is no room.
    """
    trust.check_state_dir(state_dir)
    place = data_directory(state_dir)
    files.make_directories(place, 0o700)
    trust.check_own(place, stat.S_IFDIR)
    with locked(place, progress):
        path = data_image_path(state_dir, image.id)
        is_there = not replaces and _installed(state_dir, image.id) is not None
        if is_there and (not require_verity or files.has_verity(path)):
            # It counts as young again, so that a run that prunes does not remove it before it is mounted.
            os.utime(record_path(state_dir, image.id))
            return
        incoming = os.path.join(place, INCOMING)
        part = os.path.join(incoming, image.digest.partition(":")[2])
        try:
            files.make_directories(incoming, 0o755)
            location = published.image_path(image_store, image)
            copying.bring(location, part, image.bytes_on_disk, image.digest, progress, access)
            files.enable_verity(part, require_verity)
            os.rename(part, path)
            with files.written_aside(record_path(state_dir, image.id), 0o600) as stream:
                stream.write(data_image_record.data_image_to_json(image))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                for leftover in (part, *(() if os.path.exists(record_path(state_dir, image.id)) else (path,))):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(leftover)
            raise


@contextlib.contextmanager
def locked(place: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of the installed data images while the block runs."""
    fd = files.open_or_make(os.path.join(place, _LOCK), 0o600)
    try:
        files.wait_for_lock(fd, f"the data images in {show(os.fsencode(place))}", _LOCK_SECONDS, progress)
        yield
    finally:
        os.close(fd)
