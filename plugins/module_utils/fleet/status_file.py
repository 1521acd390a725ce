# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of a view's status record, beside its generations."""

from __future__ import annotations

import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import status
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.status import ViewStatus
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError, RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths


def path_of(paths: ViewPaths) -> str:
    """Return the path of the status record of a view."""
    return os.path.join(paths.root, "status.json")


def last_run(paths: ViewPaths) -> int | None:
    """Return when the last run brought a view to its state, or tried to, in seconds since 1970; None if none did."""
    try:
        return int(os.stat(path_of(paths)).st_mtime)
    except FileNotFoundError:
        return None


def read(paths: ViewPaths) -> ViewStatus | None:
    """Return the status of a view; None if there is none, or if an older version of the collection wrote it.

    Raises OverlayError naming the file if it is damaged.
    """
    try:
        return status.status_from_json(record_files.read(path_of(paths), status.LARGEST_STATUS))
    except (FileNotFoundError, OutdatedError):
        return None
    except RecordError as error:
        raise RecordError(
            f"{show(os.fsencode(path_of(paths)))} is damaged: {error}; the next run of the module view writes it anew"
        ) from None


def find(paths: ViewPaths) -> ViewStatus | None:
    """Return the status of a view; None if there is none that can be read. The next run writes it anew."""
    try:
        return read(paths)
    except RecordError:
        return None


def write(paths: ViewPaths, value: ViewStatus) -> None:
    """Write the status of a view, whose directory exists. If it is the same as before, only the mtime of the file changes."""
    if find(paths) == value:
        os.utime(path_of(paths))
        return
    with files.written_aside(path_of(paths), 0o600) as stream:
        stream.write(status.status_to_json(value))
