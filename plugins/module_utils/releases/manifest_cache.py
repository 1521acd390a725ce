# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep manifests of a store that is the address of a web server on this host.

Each manifest is in a directory that is named by the digest of its text, so it never changes. As in a store, its record is written last.
"""

from __future__ import annotations

import contextlib
import os
import re
import time

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError, OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ManifestRecord, Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import copying, store_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.locations import joined, shown
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access

#: Seconds after which a manifest that no run has used is removed.
_KEPT_FOR = 30 * 24 * 3600
_CHUNK = 1 << 20
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def fetched(
    store: str,
    release: str,
    digest: str | None,
    cache: str,
    progress: Progress = no_progress,
    access: Access = SYSTEM,
) -> str:
    """Return the path of a manifest in the directory ``cache``, copying it from the address ``store`` if it is not there.

    ``digest`` is that of the text, which a lock has. Raises OverlayError if it is not given or the server has another manifest, and what
    ``store_files.open_from`` raises if the server cannot be read.
    """
    fits = _DIGEST.fullmatch(digest or "")
    if not fits:
        raise OverlayError(
            f"release {release}: the digest of its manifest is not known, and {shown(store)} is an address, whose manifests are only taken"
            " by their digest: deploy with a lock, which has it"
        )
    place = os.path.join(cache, fits[1])
    path = manifest_store.manifest_path(place, release)
    record = None
    with contextlib.suppress(ManifestError):
        record = manifest_store.find_record(path, release)
    if record is None or record.digest != digest or not _is_whole(path, record):
        record = _record(store, release, fits[0], access)
        files.make_directories(os.path.dirname(path), 0o755)
        _copy(store, path, record, progress, access)
        with files.written_aside(manifest_store.record_path(path)) as aside:
            aside.write(manifest.record_to_json(record))
    os.utime(place)
    return path


def _is_whole(path: str, record: ManifestRecord) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(path).st_size == record.stored_bytes
    return False


def _record(store: str, release: str, digest: str, access: Access) -> ManifestRecord:
    """Return the record of a release on the server. Raises OverlayError if it is missing, damaged, or that of another manifest."""
    address = joined(store, release + manifest_store.RECORD_SUFFIX)
    try:
        record = manifest.record_from_json(store_files.read(address, manifest.LARGEST_RECORD, access))
    except FileNotFoundError:
        raise ManifestError(
            f"{shown(address)}: the server has no such manifest: copy the manifest store to it, or resolve the views again"
        ) from None
    except OverlayError as error:
        raise ManifestError(f"{shown(address)}: {error}") from None
    if record.release != release or record.digest != digest:
        raise ManifestError(
            f"{shown(address)} is the record of release {record.release} with the digest {record.digest}, but the lock has {digest}: copy"
            " the manifest store to the server, or resolve the views again"
        )
    return record


def _copy(store: str, path: str, record: ManifestRecord, progress: Progress, access: Access) -> None:
    """Copy a manifest from the server and check its text. Raises ManifestError if it is not the one that the record describes."""
    address = joined(store, record.release + manifest_store.SUFFIX)
    copying.check_room(address, os.path.dirname(path), record.stored_bytes)
    with store_files.open_from(address, 0, access, record.stored_bytes) as source, files.written_aside(path) as aside:
        # One byte more than recorded is enough to find that a file is too long.
        left = record.stored_bytes + 1
        while left:
            chunk = source.read(min(_CHUNK, left))
            if not chunk:
                break
            aside.write(chunk)
            left -= len(chunk)
            progress()
    try:
        if left != 1:
            raise ManifestError(f"it does not have the recorded {record.stored_bytes} bytes")
        for _part in manifest_store.text(Placement(path, record, b"", b"")):
            progress()
    except OverlayError as error:
        os.unlink(path)
        raise ManifestError(f"{shown(address)}: the manifest is not the recorded one: {error}") from None


def remove_unused(cache: str, progress: Progress = no_progress) -> None:
    """Remove the manifests that no run has used for 30 days."""
    limit = time.time() - _KEPT_FOR
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(cache):
            place = os.path.join(cache, name)
            # Another run may remove it at the same time.
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(place).st_mtime < limit:
                    files.remove_tree(place, progress)
