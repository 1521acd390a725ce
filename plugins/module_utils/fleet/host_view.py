# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring one view of a host to its state: its layer, its mount, its units, and the generations that nobody needs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import status_file, writable_view
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.status import Hold, ViewStatus
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.writable_view import LeftChanges
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    deadline,
    mountinfo,
    namespaces,
    still_paths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import (
    probe,
    strategies,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    layer_plan,
    layer_sources,
    mounting,
    pruning,
    removal,
    usage,
    view_state,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_sources import Source
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths


@dataclass(frozen=True)
class Run:
    """How a module works: whether it is in check mode, its time limit in seconds, and what carries out its plans."""

    check_mode: bool
    seconds: float
    progress: Progress
    carry_out: Callable[[Plan, Handlers], None]
    explain: Callable[[OverlayError | OSError], str]


@dataclass
class Brought:
    """What was done, or in check mode would be done, with one view."""

    name: str
    actions: list[Action] = field(default_factory=list)
    #: Return values.
    values: dict[str, Any] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    #: Why the view failed; empty if it did not.
    failure: str = ""

    @property
    def named_failure(self) -> str:
        """Why the view failed, with its name."""
        label = f"view {self.name}"
        return self.failure if self.failure.startswith(label) else f"{label}: {self.failure}"

    def as_dict(self) -> dict[str, Any]:
        """Return the return values of this view."""
        return {
            "name": self.name,
            "changed": bool(self.actions),
            "actions": [str(action) for action in self.actions],
            **self.values,
            "failed": bool(self.failure),
            "msg": self.failure,
        }


def bring(view: Mapping[str, Any], run: Run) -> Brought:
    """Bring a view to its declared state. A failure is returned, and recorded in the status of the view, and not raised."""
    brought = Brought(view["name"])
    paths = ViewPaths.of(view["state_dir"], view["name"])
    known: ViewStatus | None = None
    hold: Hold | None = None
    try:
        if view["state"] != "mounted":
            _take_down(view, paths, run, brought)
            return brought
        known = status_file.find(paths)
        hold = _active_hold(view, known)
        _show(view, paths, run, brought, hold)
        hold = _new_hold(view, brought) or hold
    except (OverlayError, OSError) as error:
        brought.failure = run.explain(error)
    if not run.check_mode and os.path.isdir(paths.root):
        generation = (
            view["locked_generation"] or brought.values.get("generation") or (known.generation if known else None)
        )
        status = ViewStatus(view["name"], view["mountpoint"], generation, view["persist"], brought.failure, hold)
        try:
            status_file.write(paths, status)
        except (OverlayError, OSError) as error:
            brought.failure = brought.failure or run.explain(error)
    return brought


def _active_hold(view: Mapping[str, Any], known: ViewStatus | None) -> Hold | None:
    """Return the hold that keeps the view at a generation, unless it has ended, is lifted, or another generation is asked for."""
    hold = known.hold if known else None
    if hold is None or view["lift_hold"] or view["generation"] is not None or not hold.holds(int(time.time())):
        return None
    return hold


def _new_hold(view: Mapping[str, Any], brought: Brought) -> Hold | None:
    if view["generation"] is None or view["hold"] is None:
        return None
    until = int(time.time()) + view["hold"] if view["hold"] else 0
    return Hold(brought.values["generation"], until, view["hold_reason"] or "")


def _show(view: Mapping[str, Any], paths: ViewPaths, run: Run, brought: Brought, hold: Hold | None) -> None:
    """Make the declared generation the current one, mount it, and remove the generations that nobody needs."""
    wanted = {**view, "generation": hold.generation} if hold else dict(view)
    if wanted["generation"] is not None:
        wanted.update(image=None, image_digest=None, releases=[])
    state = view_state.observe(paths)
    source = layer_sources.from_parameters(wanted, paths, state, run.seconds, run.progress)
    if not hold and view["generation"] is None:
        _check_locked(view, source)
    _check_kernel(view, source, run)
    path, live = _mounted_at(view)
    left = writable_view.left_behind(view, paths, source.directory, live)
    writable_view.check_may_leave(view, paths, left)
    writable_view.check_discardable(paths, left, live, run.progress)
    brought.before = dict(view_state.content_of_current(paths, state))
    brought.after = source.content()
    brought.values["held"] = hold.as_dict() if hold else None
    plan = layer_plan.plan_layer(source.directory, source.action, state)
    # Conflicts are refused before anything is written, and in check mode as well.
    composition = source.composed_for(plan)
    if plan and not run.check_mode:
        with view_state.locked(paths, run.seconds, run.progress):
            # Another run may have done it while this one waited.
            plan = layer_plan.plan_layer(source.directory, source.action, view_state.observe(paths))
            run.carry_out(plan, source.handlers(paths, run.progress, brought.warnings))
            state = view_state.observe(paths)
    elif run.check_mode:
        run.carry_out(plan, source.handlers(paths, run.progress, brought.warnings))
    brought.actions += plan
    layer = source.values_on_host(paths, state, composition)
    for name in ("generation", "format", "format_reason", "strategy", "previous", "layer"):
        brought.values[name] = layer[name]
    mounted = _mount(
        {
            **view,
            "path": view["mountpoint"],
            "lower": [layer["layer"]],
            "strategy": source.strategy,
            "options": {**({"userxattr": True} if view["xattr_namespace"] == "user" else {}), **view["options"]},
            **writable_view.mount_parameters(view, paths, source.directory, live),
        },
        paths,
        path,
        run,
        brought,
    )
    _discard(paths, left, run, brought)
    _warn_of_rights(view, layer, mounted, brought)
    _prune(view, paths, run, brought)


def _check_kernel(view: Mapping[str, Any], source: Source, run: Run) -> None:
    """Raises OverlayError if the kernel cannot mount the view. It is tried only if there is no mount at the mountpoint."""
    if mountinfo.top_mount(namespaces.own_mounts(), os.fsencode(view["mountpoint"])) is not None:
        return
    feature = "redirect" if source.strategy == strategies.REDIRECT else "data_only"
    if view["xattr_namespace"] == "user":
        feature = "data_only_userxattr"
    found = deadline.run(lambda _progress: probe.probe((feature,))[feature], run.seconds)
    if not found.supported:
        raise OverlayError(
            f"view {view['name']}: kernel {os.uname().release} cannot mount it with strategy {source.strategy}: {found.detail};"
            f" data-only layers need Linux {'6.16' if feature == 'data_only_userxattr' else '6.5'} or a distribution kernel that carries"
            " them, and strategy redirect does without them"
        )


def _check_locked(view: Mapping[str, Any], source: Source) -> None:
    wanted = view["locked_generation"]
    if wanted and source.generation != wanted:
        raise OverlayError(
            f"view {view['name']}: this host would show generation {source.generation}, but the lock has {wanted}: a manifest is not the"
            " one that was locked, or a user or group has another uid or gid here; resolve the views again"
        )


def _mounted_at(view: Mapping[str, Any]) -> tuple[bytes, Mount | None]:
    """Return the path of the mountpoint of a view, and the mount there."""
    live = namespaces.own_mounts()
    path = still_paths.mountpoint(os.fsencode(view["mountpoint"]), live)
    return path, mountinfo.top_mount(live, path)


def _mount(params: Mapping[str, Any], paths: ViewPaths, path: bytes, run: Run, brought: Brought) -> bool:
    """Bring the mount of a view to its state; return whether it changed."""
    carry_out = writable_view.guarded(params, paths, path, run.carry_out)
    task, report = mounting.bring(path, params, run.check_mode, run.seconds, run.progress, carry_out)
    if run.check_mode:
        writable_view.check_scratch(params, paths, task.state.mount, task.plan)
    brought.actions += task.plan
    brought.values.update(report.values)
    brought.warnings += report.warnings
    brought.before["mount"] = report.before
    brought.after["mount"] = report.after
    return bool(task.mounting)


def _discard(paths: ViewPaths, left: tuple[LeftChanges, ...], run: Run, brought: Brought) -> None:
    """Discard the changes that a view has left behind, and remove its other upper layers."""
    plan, handlers = writable_view.discarding(paths, left, run.progress)
    if not run.check_mode:
        writable_view.check_discardable(paths, left, None, run.progress)
        writable_view.remove_empty(paths, left, run.progress)
    run.carry_out(plan, handlers)
    brought.actions += plan


def _warn_of_rights(view: Mapping[str, Any], layer: Mapping[str, Any], mounted: bool, brought: Brought) -> None:
    """Warn of files whose set-ID bits and capabilities have no effect, once, when the view is mounted."""
    count = layer.get("privileged", 0)
    if mounted and count and view["options"].get("nosuid"):
        listed = ", ".join(layer["privileged_paths"])
        brought.warnings.append(
            f"view {view['name']}: it is mounted nosuid, so the set-ID bits and capabilities of {count} files have no effect: {listed};"
            " 'options: {nodev: true}' of the view gives them effect"
        )


def _prune(view: Mapping[str, Any], paths: ViewPaths, run: Run, brought: Brought) -> None:
    if not os.path.isdir(paths.root):
        return
    with contextlib.ExitStack() as stack:
        if not run.check_mode:
            stack.enter_context(view_state.locked(paths, run.seconds, run.progress))
        found = pruning.find_removable(paths, view["keep"], view["min_age"], run.check_mode)
        run.carry_out(found.plan, found.handlers(run.progress))
    brought.actions += found.plan
    brought.values["removed"] = [one["generation"] for one in found.removed_values()]


def _take_down(view: Mapping[str, Any], paths: ViewPaths, run: Run, brought: Brought) -> None:
    """Unmount a view, and remove it if that is declared."""
    state = view_state.observe(paths)
    brought.before = dict(view_state.content_of_current(paths, state))
    brought.after = {} if view["state"] == "absent" else dict(brought.before)
    path, live = _mounted_at(view)
    left = writable_view.left_behind(view, paths, None, live)
    writable_view.check_may_leave(view, paths, left)
    writable_view.check_discardable(paths, left, live, run.progress)
    unmounted = {**view, **writable_view.NOT_MOUNTED, "path": view["mountpoint"], "lower": []}
    mounted = _mount(unmounted, paths, path, run, brought)
    _discard(paths, left, run, brought)
    # Check mode has not unmounted it, and the layers of a mounted view are not removed.
    if view["state"] != "absent" or (run.check_mode and mounted):
        return
    uses = usage.lasting(paths, run.progress) if state.exists and run.check_mode else {}
    plan = layer_plan.plan_view_removal(paths.name, state, uses)
    handlers: Handlers = {layer_plan.RemoveView: lambda _action: removal.remove_view(paths, run.progress)}
    with contextlib.ExitStack() as stack:
        if plan and not run.check_mode:
            stack.enter_context(view_state.locked(paths, run.seconds, run.progress))
        run.carry_out(plan, handlers)
    brought.actions += plan
