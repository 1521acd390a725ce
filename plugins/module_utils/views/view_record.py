# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read, write and show the record of the releases of a view: STORE/.views/NAME.json in the manifest store.

Users other than root may be able to write to the store, so the record is opened by directory descriptor and never through a symbolic link.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import HostError, OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import linger

_DIRECTORY = ".views"

#: A named pipe is opened without waiting for a writer.
_RECORD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def path_of(store: str, view: str) -> str:
    """Return the path of the record of a view."""
    return os.path.join(store, _DIRECTORY, _name_of(view))


def _name_of(view: str) -> str:
    return view + ".json"


def read(store: str, view: str) -> linger.Record | None:
    """Return the record of a view, or None if there is none.

    Raises OverlayError if the store does not exist or the record is damaged.
    """
    manifest_store.check_store(store)
    shown = show(os.fsencode(path_of(store, view)))
    try:
        with files.directory_within(store, _DIRECTORY, None) as directory:
            fd = os.open(os.path.join(directory, _name_of(view)), _RECORD)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OverlayError(f"{shown} is not a regular file: remove it")
    with open(fd, "rb") as stream:
        text = stream.read(linger.LARGEST_RECORD + 1)
    try:
        return linger.record_from_json(view, text)
    except OverlayError as error:
        raise OverlayError(
            f"{shown} is not a record of the releases of view {view}: {error}; remove it, and releases that leave the view"
            " until the next run are removed at once"
        ) from None


def write(store: str, view: str, record: linger.Record) -> None:
    """Write the record of a view. An interrupted run leaves either the old or the new record.

    Raises HostError if the store is not writable.
    """
    try:
        mode = files.mode_within(store)
        with (
            files.directory_within(store, _DIRECTORY, mode) as directory,
            files.written_aside(os.path.join(directory, _name_of(view))) as aside,
        ):
            aside.write(linger.record_to_json(view, record))
    except OSError as error:
        raise HostError(
            f"{show(os.fsencode(path_of(store, view)))} cannot be written: {error.strerror}; it records the releases that leave view"
            f" {view}, so let this host write to the manifest store, unless 'linger' is 0"
        ) from None


def remove(store: str, view: str) -> None:
    """Remove the record of a view, if there is one."""
    with contextlib.suppress(FileNotFoundError), files.directory_within(store, _DIRECTORY, None) as directory:
        os.unlink(os.path.join(directory, _name_of(view)))


def leaving_values(record: linger.Record, seconds: int) -> list[dict[str, str]]:
    """Return the releases that linger, each with the times from and until which it does so: the return value ``leaving``."""
    return [
        {"release": one.placed.release, "since": _utc(one.since), "until": _utc(one.since + seconds)}
        for one in record.leaving
    ]


def diff_values(record: linger.Record | None, seconds: int) -> dict[str, list[str]]:
    """Return a record for the diff, empty if there is none. Releases linger for ``seconds``."""
    if record is None:
        return {}
    return {
        "declared": [f"{one.release} at {one.at or '/'}" for one in record.declared],
        "leaving": [f"{one['release']} until {one['until']}" for one in leaving_values(record, seconds)],
    }


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
