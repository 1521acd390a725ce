# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan a mount whose layers may be generations of views."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import boot, mount_task
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_task import MountReport, MountTask
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mount_lock, mountpoints, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, declaration, detached, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    plan_unmounted,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import data_layers


@contextlib.contextmanager
def _layers_held(progress: Progress) -> Iterator[Callable[[bytes], None]]:
    """Provide a function that holds the directory of a layer open until the block ends.

    An automounter mounts it then, and keeps it mounted while the layers are checked and mounted. Each mount can take seconds, and counts as
    progress.
    """
    held: set[bytes] = set()
    with contextlib.ExitStack() as stack:

        def hold(layer: bytes) -> None:
            if layer in held:
                return
            held.add(layer)
            # What checks the layers says what is wrong with one.
            with contextlib.suppress(OSError):
                stack.enter_context(namespaces.held([layer]))
            progress()

        yield hold


def _planned(path: bytes, params: Mapping[str, Any], check_mode: bool, hold: Callable[[bytes], None]) -> MountTask:
    """Return the task that brings the mount at ``path`` to its declared state; ``params`` are the parameters of overlay_mount.

    ``hold`` is called with each layer that is looked up. Raises OverlayError if the state cannot be reached.
    """
    state = mounts.observe(path)
    if params["state"] != "mounted":
        mounting = plan_unmounted(path, state, params["state"] == "absent")
        return mount_task.planned(path, state, None, mounting, params["persist"], [], check_mode)
    defaults = creating.overlay_defaults()
    spec = declaration.declared(path, params, state.mount, defaults, hold)
    mounting = mount_task.plan_declared(spec, state, defaults, params["switch"], params["inner_mounts"])
    warnings = declaration.check_layers(spec, bool(mounting), check_mode)
    data_layers.check(spec, mounting)
    return mount_task.planned(path, state, spec, mounting, params["persist"], warnings, check_mode)


def bring(
    path: bytes,
    params: Mapping[str, Any],
    check_mode: bool,
    seconds: float,
    progress: Progress,
    carry_out: Callable[[Plan, Handlers], None],
    check_first: Callable[[MountTask], None] = lambda _task: None,
) -> tuple[MountTask, MountReport]:
    """Bring the mount at ``path`` to its declared state; return the task and its report. Check mode only plans.

    Waits up to ``seconds`` for another run at this mountpoint. ``check_first`` is called before the mount is changed. What it raises leaves
    everything as it was. Raises OverlayError if the state cannot be reached.
    """
    with _layers_held(progress) as hold:
        try:
            task = _planned(path, params, check_mode, hold)
            if check_mode or not task.plan:
                return task, mount_task.report(task, task.state, check_mode)
        except OverlayError:
            # Another run, which holds the lock, may be changing what is in the way.
            if check_mode:
                raise
        with mount_lock.held(path, seconds, progress):
            # Another run may have changed something before this one got the lock.
            task = _planned(path, params, check_mode, hold)
            if task.mounting:
                check_first(task)
            with mountpoints.undone_on_failure():
                carry_out(task.plan, boot.HANDLERS)
                after = mount_task.observed_result(task)
            report = mount_task.report(task, after, check_mode)
            if task.mounting:
                # Remove the records of overlays that are no longer in use.
                detached.in_use()
            return task, report
