# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy a file of a store to this host, continuing an interrupted copy, and check its digest."""

from __future__ import annotations

import hashlib
import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import store_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.locations import is_address, shown
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.remote_file import ChangedError, RemoteFile
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access

_CHUNK = 1 << 20


class WrongDigestError(OverlayError):
    """A file of a store does not have the recorded digest."""


def check_room(location: str, directory: str, size: int) -> None:
    """Check that copies from an address may take ``size`` bytes in a directory: at most half of what is free there.

    Nothing but a record on the same server tells this size, so a server could fill the disk otherwise. Files of a directory are not
    checked. Raises OverlayError if there is too little space.
    """
    if not is_address(location):
        return
    place = os.statvfs(directory)
    free = place.f_bavail * place.f_frsize
    if size > free // 2:
        raise OverlayError(
            f"{shown(location)}: the server says that it takes {size} bytes, and {free} are free in {directory}, of which it may take half:"
            " nothing was installed; free space there, or check the record on the server"
        )


def bring(
    location: str,
    part: str,
    size: int,
    digest: str,
    progress: Progress = no_progress,
    access: Access = SYSTEM,
) -> int:
    """Copy a file of a store to the path ``part``, whose directory exists, and return how many bytes were read from the store.

    What is at ``part`` already is taken as the begin of the file.

    The file must have ``size`` bytes and the digest ``digest``, which begins with ``sha256:``. No more than ``size`` bytes are written. A
    wrong copy is removed. It stays, to be continued, if the store cannot be read to its end. Raises OverlayError if the file has another
    size or digest, and what ``store_files.open_from`` raises.
    """
    count = 0
    # What an earlier run has left may be damaged, or the file was replaced meanwhile, so everything is copied once more.
    for is_last in (False, True):
        is_fresh = not os.path.exists(part)
        try:
            found, copied = _copied(location, part, size, progress, access)
            count += copied
            if found == digest:
                return count
        except ChangedError:
            if is_last:
                raise
            is_fresh = False
        os.unlink(part)
        if is_fresh:
            break
    raise WrongDigestError(
        f"{shown(location)} does not have the recorded digest {digest}: nothing was installed; remove it from the store and make it again"
    )


def _copied(location: str, part: str, size: int, progress: Progress, access: Access) -> tuple[str, int]:
    """Copy the missing part of a file, and return the digest of the whole copy and how many bytes were copied."""
    digest = hashlib.sha256()
    with open(files.open_or_make(part, 0o600), "a+b", buffering=0) as target:
        target.seek(0)
        there = 0
        for chunk in iter(lambda: target.read(_CHUNK), b""):
            digest.update(chunk)
            there += len(chunk)
            progress()
        kept = there
        if there < size:
            with store_files.open_from(location, there, access, size) as source:
                _check_size(location, source, size)
                while there < size:
                    chunk = source.read(min(_CHUNK, size - there))
                    if not chunk:
                        break
                    digest.update(chunk)
                    files.write(target, chunk, part)
                    there += len(chunk)
                    progress()
        os.fchmod(target.fileno(), 0o644)
        os.fsync(target.fileno())
    return "sha256:" + digest.hexdigest(), there - kept


def _check_size(location: str, source: store_files.Stream, size: int) -> None:
    """Check what a server says of the length of a file. Raises OverlayError if it is not ``size``."""
    if isinstance(source, RemoteFile) and source.size not in (None, size):
        raise OverlayError(
            f"{shown(location)} has {source.size} bytes where {size} are recorded: nothing was installed; remove it from the store and make"
            " it again"
        )
