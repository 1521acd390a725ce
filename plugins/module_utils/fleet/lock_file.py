# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file beside a view's generations that has the lock of the view, so that others can be brought to what this host shows."""

from __future__ import annotations

import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import (
    LARGEST_LOCK,
    LockedView,
    lock_from_json,
    lock_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths


def path_of(paths: ViewPaths) -> str:
    """Return the path of the lock of a view."""
    return os.path.join(paths.root, "lock.json")


def find(paths: ViewPaths) -> LockedView | None:
    """Return the lock of a view; None if there is none that can be read. The next run that resolves the view writes it anew."""
    try:
        return lock_from_json(record_files.read(path_of(paths), LARGEST_LOCK)).get(paths.name)
    except (FileNotFoundError, OverlayError):
        return None


def write(paths: ViewPaths, locked: LockedView) -> None:
    """Write the lock of a view, whose directory exists, if it differs."""
    if find(paths) == locked:
        return
    with files.written_aside(path_of(paths), 0o600) as stream:
        stream.write(lock_to_json([locked]).encode())
