# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of what views declared last and of what is leaving them: STORE/.views/NAME.json, below the manifest store.

The store may be written to by others than root, so records are opened by descriptor and through no symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import linger

FOLDER = ".views"

_RECORD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def path_of(store: str, view: str) -> str:
    """Return the path of a view's record."""
    return os.path.join(store, FOLDER, view + ".json")


def read(store: str, view: str) -> linger.Record | None:
    """Return the record of a view, or None where there is none. Raises OverlayError for a store that is missing and a damaged record."""
    manifest_store.check_store(store)
    path = path_of(store, view)
    shown = show(os.fsencode(path))
    try:
        text = _content(store, view)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    try:
        return linger.record_from_json(view, text)
    except OverlayError as error:
        raise OverlayError(
            f"{shown} is no record of the releases of view {view}: {error}; remove it, and releases that leave the view"
            " until the next run go at once"
        ) from None


def _content(store: str, view: str) -> bytes:
    with _opened(store) as top:
        fd = beneath.open_at(top, os.fsencode(path_of("", view)), _RECORD)
    with open(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OverlayError(f"{show(os.fsencode(path_of(store, view)))} is not a regular file: remove it")
        return stream.read(linger.RECORD_LIMIT + 1)


def write(store: str, view: str, record: linger.Record) -> None:
    """Write the record of a view; a run that is killed leaves the old one or the new one."""
    try:
        mode = files.mode_within(store)
        with (
            files.directory_within(store, FOLDER, mode) as folder,
            files.written_aside(f"{folder}/{view}.json") as aside,
        ):
            aside.write(linger.record_to_json(view, record))
    except OSError as error:
        raise OverlayError(
            f"{show(os.fsencode(path_of(store, view)))} cannot be written: {error.strerror}; what leaves view {view} is recorded"
            " there, so this host has to be able to write to the manifest store, unless 'linger' is 0"
        ) from None


def remove(store: str, view: str) -> None:
    """Remove the record of a view; one that is not there is passed over."""
    with contextlib.suppress(FileNotFoundError), files.directory_within(store, FOLDER, None) as folder:
        os.unlink(os.path.join(folder, view + ".json"))


@contextlib.contextmanager
def _opened(store: str) -> Iterator[int]:
    """Give a descriptor of the manifest store."""
    fd = os.open(store, syscalls.LIST_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _check_presence(fd: int, release: str) -> None:
    """Ask the file server for a release's directory, and close it. Raises OverlayError when it is gone."""
    try:
        syscalls.refresh(fd)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise OverlayError(f"release {release} was deleted on the file server") from None
    finally:
        os.close(fd)


def trouble(root: str, store: str, release: str, marker: str) -> str:
    """Return why a release cannot be shown any more, or an empty text: it is gone, withdrawn, or has no whole manifest."""
    name = os.fsencode(release)
    try:
        _check_presence(scan.open_release(os.fsencode(root), name), release)
        if not scan.is_ready(os.fsencode(root), name, os.fsencode(marker)):
            return f"release {release} is not ready: it has no {marker}, so it was withdrawn or is still being written"
        manifest_store.read_record(manifest_store.manifest_path(store, release))
    except OverlayError as error:
        return str(error)
    except PermissionError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def root_of(store: str, release: str) -> str:
    """Return the identity of the software root that a scanned release is of."""
    return manifest_store.read_record(manifest_store.manifest_path(store, release)).root
