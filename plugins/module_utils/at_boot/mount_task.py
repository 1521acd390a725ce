# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A task that mounts or unmounts an overlay: its whole plan, the check of its result, and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import boot
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import (
    RemoveUnit,
    Stored,
    WriteUnit,
    plan_persistence,
    plan_places,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    deadline,
    mountinfo,
    namespaces,
    processes,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import (
    creating,
    inner_mounts,
    mounts,
    probe,
    uppers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    DropCovered,
    MountOverlay,
    MountpointState,
    SwitchOverlay,
    plan_mounted,
    switch_method,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MountSpec,
    declared_by,
    explained_differences,
    mount_differences,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts

#: The most places that a warning names.
_MOST_NAMED = 5


@dataclass(frozen=True)
class MountTask:
    """What is observed, what is declared, and the plan."""

    path: bytes
    state: MountpointState
    #: The declaration; None if no overlay is to be mounted.
    spec: MountSpec | None
    #: The part of the plan that is about the mount.
    mounting: Plan
    #: The whole plan, with what mounts the overlay when the host starts.
    plan: Plan
    stored: Stored
    warnings: list[str]
    #: The overlay that the plan replaces or unmounts, and its mount IDs in all mount namespaces.
    old: Mount | None
    old_mounts: set[int]
    #: A sentence for each mount inside the old overlay that has no place in the new one. Only found in check mode.
    problems: list[str]


@dataclass(frozen=True)
class MountReport:
    """What a task returns: the return values, the diff and the warnings."""

    values: dict[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    warnings: list[str]


def plan_declared(
    spec: MountSpec, state: MountpointState, defaults: Mapping[bytes, bytes], switch: str, inner: str
) -> Plan:
    """Return the plan for the mount of a declaration, with what this kernel can do and the state of the upper layer.

    ``switch`` and ``inner`` are parameters of overlay_mount. Raises OverlayError if the overlay cannot be mounted or switched.
    """
    plan = plan_mounted(spec, state, defaults, switch, mounts.can_mount_beneath(), uppers.observe(spec), inner)
    if spec.data_images and any(isinstance(action, (MountOverlay, SwitchOverlay)) for action in plan):
        _check_data_images(spec)
    return plan


def _check_data_images(spec: MountSpec) -> None:
    """Check that the kernel takes the data images of an overlay, before anything is changed. Raises OverlayError with the reason."""
    feature = deadline.run(lambda _progress: probe.probe(("data_only",)), creating.CHILD_SECONDS)["data_only"]
    if not feature.supported:
        raise OverlayError(
            f"the overlay at {show(spec.path)} has the data image {show(spec.data_images[0])}, and data images need data-only layers (Linux"
            f" 6.5, or a distribution kernel that has them), which this kernel does not have: {feature.detail}; leave the data images out"
        )
    if not creating.takes_layers_one_by_one():
        creating.lowerdir(spec)


def planned(
    path: bytes,
    state: MountpointState,
    spec: MountSpec | None,
    mounting: Plan,
    persist: str,
    warnings: list[str],
    check_mode: bool,
) -> MountTask:
    """Return a task with its whole plan. ``mounting`` is the plan for the mount, and ``persist`` the parameter of overlay_mount.

    In check mode, also find the mounts inside the old overlay that cannot be carried over. Raises OverlayError if the overlay cannot be
    mounted when the host starts, or in check mode if the switch would fail.
    """
    if spec and persist != "none":
        boot.check_hidden(spec)
    stored = boot.read()
    missing = boot.missing_places(spec) if spec and persist != "none" else set()
    append = persist != "none" and creating.takes_layers_one_by_one()
    any_length = append and boot.takes_long_options()
    plan = (
        *plan_places(spec, persist, missing),
        *mounting,
        *plan_persistence(path, spec, persist, stored, namespaces.own_mounts(), append, any_length),
    )
    # Dropping covered overlays changes nothing that is seen.
    old = state.mount if any(not isinstance(action, DropCovered) for action in mounting) else None
    old_mounts = set().union(*namespaces.mounts_like_each([old, *state.parts]).values()) if old else set()
    problems = inner_mounts.not_carried(mounting, state) if check_mode and spec and not warnings else []
    return MountTask(path, state, spec, mounting, plan, stored, warnings, old, old_mounts, problems)


def observed_result(task: MountTask) -> MountpointState:
    """Return what is at the mountpoint after the plan was carried out.

    Raises OverlayError if the kernel mounted something else than declared. A mount that is new is then unmounted again.
    """
    if not task.mounting:
        return task.state
    state = mounts.observe(task.path)
    if task.spec:
        _check_result(task.spec, state, is_new=task.state.mount is None)
    return state


def _check_result(spec: MountSpec, state: MountpointState, is_new: bool) -> None:
    live = state.mount
    defaults = creating.overlay_defaults()
    changes = mount_differences(spec, live, defaults, state.parts) if live else {"mount": (None, "overlay")}
    if changes:
        if is_new and live:
            mounts.detach(spec.path)
        undone = "; it was unmounted again" if is_new and live else ""
        raise OverlayError(
            f"the overlay at {show(spec.path)} differs from the declaration after mounting: {explained_differences(changes)}{undone}"
        )


def report(task: MountTask, after: MountpointState, check_mode: bool) -> MountReport:
    """Return the report of a task. ``after`` is what is at the mountpoint now; in check mode, what was there before."""
    method = switch_method(task.mounting)
    elsewhere = _shown_elsewhere(task.old) if task.old and not check_mode else []
    carried, lost = _carried(task, after)
    values: dict[str, Any] = {
        "mount": _mount_value(after),
        "switched": method is not None,
        "method": method,
        "users": [process.as_dict() for process in processes.of_mounts(task.old_mounts)] if task.old else [],
        "elsewhere": [{"path": show(place), "pid": pid} for place, pid in elsewhere],
        "carried": carried,
    }
    left_behind = task.problems if check_mode else [f"{path} has no place in the new overlay" for path in lost]
    stays = _still_mounted(task.path, elsewhere, method == "over" and bool(after.below))
    return MountReport(values, *_diff(task), [*task.warnings, *stays, *left_behind])


def _mount_value(state: MountpointState) -> dict[str, Any] | None:
    if state.mount is None or state.mount.fstype != b"overlay":
        return None
    return {**mountinfo.described(state.mount), "parts": tree_parts.described(state.parts)}


def _shown_elsewhere(old: Mount) -> list[tuple[bytes, int | None]]:
    """Return where an overlay is seen: each path, with a process in the mount namespace there, or None for our own."""
    return [
        (mount.path, pid)
        for pid, live in namespaces.everywhere()
        for mount in live
        # The mount ID may have been reused, so it is not compared.
        if (mount.device, mount.fstype, mount.super_options) == (old.device, old.fstype, old.super_options)
        and mountinfo.top_mount(live, mount.path) == mount
    ]


def _carried(task: MountTask, after: MountpointState) -> tuple[list[str], list[str]]:
    """Return the mountpoints inside the old overlay that are also inside the new one, and those that are not."""
    if not any(isinstance(action, SwitchOverlay) for action in task.mounting):
        return [], []
    before = [show(mount.path) for mount in task.state.inner]
    now = {show(mount.path) for mount in after.inner}
    return [path for path in before if path in now], [path for path in before if path not in now]


def _still_mounted(path: bytes, elsewhere: Sequence[tuple[bytes, int | None]], covered: bool) -> list[str]:
    """Return a warning if the old overlay is still mounted. ``covered`` says whether the new one covers it.

    Each process may have a mount namespace of its own, so one warning counts the places and names the first of them.
    """
    found = []
    if covered:
        found.append(f"the old overlay at {show(path)} stays mounted below the new one until both are unmounted")
    if elsewhere:
        count = f"{len(elsewhere)} places: " if len(elsewhere) > 1 else ""
        more = f" and {len(elsewhere) - _MOST_NAMED} more" if len(elsewhere) > _MOST_NAMED else ""
        named = ", ".join(show(place) + _owner(pid) for place, pid in elsewhere[:_MOST_NAMED])
        found.append(f"the old overlay of {show(path)} is still mounted at {count}{named}{more}")
    return found


def _owner(pid: int | None) -> str:
    return "" if pid is None else f"{mountinfo.in_namespace(pid)} ({processes.name_of(pid)})"


def _diff(task: MountTask) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the two sides of the diff: the overlay, and what mounts it when the host starts."""
    before = declared_by(task.state.mount, task.state.parts)
    after = (task.spec.as_dict() if task.spec else {}) if task.mounting else before
    others = [str(action) for action in task.plan if action not in task.mounting]
    if not others:
        return before, after
    was = {unit.name: unit.text.decode("utf-8", "replace") for unit in task.stored.units}
    writes = [action.unit for action in task.plan if isinstance(action, WriteUnit)]
    removed = [action.name for action in task.plan if isinstance(action, RemoveUnit)]
    units_before = {name: was[name] for name in (*(unit.name for unit in writes), *removed) if name in was}
    units_after = {unit.name: unit.text.decode("utf-8", "replace") for unit in writes}
    return (
        {**before, "at boot": {"units": units_before, "to do": []}},
        {**after, "at boot": {"units": units_after, "to do": others}},
    )
