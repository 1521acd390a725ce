# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a host shows of a view, and the lock that it was brought to that with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import lock_file, status_file
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.shown_layer import shown_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    ViewPaths,
    generation_of,
)


def read(view: Mapping[str, Any], now: int) -> dict[str, Any]:
    """Return what a host shows of a view. Only its own files and its mounts are read. ``now`` is in seconds since 1970."""
    paths = ViewPaths.of(view["state_dir"], view["name"])
    state = view_state.observe(paths)
    mount = mountinfo.top_mount(namespaces.own_mounts(), os.fsencode(view["mountpoint"]))
    shown = shown_layer(mount, os.fsencode(paths.generations))
    status = status_file.find(paths)
    locked = lock_file.find(paths)
    hold = status.hold if status and status.hold and status.hold.holds(now, status.generation) else None
    return {
        "name": view["name"],
        "generation": generation_of(state.current) if state.current else None,
        "mounted": shown is not None and shown.directory == state.current,
        "seconds": max(0, now - int(os.lstat(paths.link(CURRENT)).st_mtime)) if state.current else 0,
        "hold": hold.as_dict() if hold else None,
        "failure": status.failure if status else "",
        "lock": locked.as_dict() if locked else None,
    }
