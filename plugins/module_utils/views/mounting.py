# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan a mount whose layers may be generations of views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import (
    creating,
    declaration,
    mount_task,
    mounts,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    plan_unmounted,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_task import MountTask
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import data_layers


def planned(path: bytes, params: Mapping[str, Any], check_mode: bool) -> MountTask:
    """Return the task that brings the mount at ``path`` to its declared state; ``params`` are the parameters of overlay_mount.

    Raises OverlayError if it cannot be.
    """
    state = mounts.observe(path)
    if params["state"] != "mounted":
        mounting = plan_unmounted(path, state, params["state"] == "absent")
        return mount_task.planned(path, state, None, mounting, params["persist"], [], check_mode)
    defaults = creating.overlay_defaults()
    spec = declaration.declared(path, params, state.mount, defaults)
    mounting = mount_task.plan_declared(spec, state, defaults, params["switch"], params["inner_mounts"])
    warnings = declaration.check_layers(spec, bool(mounting), check_mode)
    data_layers.check(spec, mounting)
    return mount_task.planned(path, state, spec, mounting, params["persist"], warnings, check_mode)
