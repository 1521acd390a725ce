# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring one view of a host to its state: its layer, its mount, its units, and the generations that nobody needs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_task import MountTask
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import pruning_images
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import (
    data_choice,
    health,
    host_data,
    lock_file,
    status_file,
    view_roots,
    writable_view,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import LockedImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_data import HostData, NotCoveredError
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView, short_release
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.shown_layer import shown_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.status import Hold, ViewStatus, mount_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.writable_view import LeftChanges
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import DIRECTORY, USER
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    deadline,
    mountinfo,
    mountpoints,
    namespaces,
    still_paths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, mentions
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import (
    creating,
    declaration,
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
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import MakeCurrent, ViewState
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_sources import Source
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    GenerationName,
    ViewPaths,
    generation_of,
    layer_path,
)


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
    #: The data layers that it is mounted with; None if it was not brought so far.
    data: list[str] | None = None

    @property
    def named_failure(self) -> str:
        """Why the view failed, with its name."""
        label = f"view {self.name}"
        return self.failure if mentions(self.failure, label) else f"{label}: {self.failure}"

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
    is_shown = view["state"] == "mounted"
    try:
        known = status_file.find(paths)
        if not is_shown:
            hold = known.hold if known else None
            _take_down(view, paths, run, brought)
        else:
            hold = _hold_of_return(view, known) if view["take_back"] else _active_hold(view, known)
            if view["take_back"] and hold is None:
                return brought
            _show(view, paths, run, brought, hold)
            hold = _hold_of_rollback(view, brought) or hold
    except (OverlayError, OSError) as error:
        brought.failure = run.explain(error)
    if not run.check_mode and os.path.isdir(paths.root):
        try:
            status_file.write(paths, _new_status(view, brought, known, hold))
            if _has_lock(view) and not hold and not brought.failure:
                lock_file.write(paths, _lock_of(view, paths))
        except (OverlayError, OSError) as error:
            brought.failure = brought.failure or run.explain(error)
    return brought


def _new_status(view: Mapping[str, Any], brought: Brought, known: ViewStatus | None, hold: Hold | None) -> ViewStatus:
    is_shown = view["state"] == "mounted"
    last, shown = known.generation if known else None, brought.values.get("generation")
    # A view that could not be resolved has no declared generation but that of the last run.
    generation = view["locked_generation"] or (last or shown if view["unresolved"] else shown or last)
    before = brought.before.get("generation")
    mount = {**mount_of(view), "data": brought.data or (known.mount if known and known.mount else view)["data"]}
    return ViewStatus(
        view["name"],
        view["mountpoint"],
        generation if is_shown else None,
        view["persist"],
        brought.failure,
        hold,
        mount if is_shown else None,
        before if is_shown and before and not brought.failure and shown != before else None,
    )


def given_up(view: Mapping[str, Any], reason: str, check_mode: bool) -> Brought:
    """Return a view that hung, and record the reason in its status. The process that brought it to its state has ended."""
    brought = Brought(view["name"], failure=reason)
    paths = ViewPaths.of(view["state_dir"], view["name"])
    known = None if check_mode else status_file.find(paths)
    if known:
        with contextlib.suppress(OSError):
            status_file.write(paths, replace(known, failure=reason))
    return brought


def _has_lock(view: Mapping[str, Any]) -> bool:
    given = view["image"] is not None or all(one["release"] and one["digest"] for one in view["releases"])
    return bool(view["locked_generation"]) and given


def _lock_of(view: Mapping[str, Any], paths: ViewPaths) -> LockedView:
    """Return what the view was locked to. Releases of an image are not given, so they are taken from its record."""
    if view["image"] is None:
        releases = [
            {name: value for name, value in release.items() if value not in (None, [])} for release in view["releases"]
        ]
    else:
        current = view_state.observe(paths).current
        releases = [short_release(one) for one in view_state.read_generation(paths, str(current)).releases]
    return LockedView(
        view["name"],
        view["locked_generation"],
        tuple(releases),
        tuple(view["leaving"]),
        view["image_digest"],
        tuple(LockedImage.from_dict(one) for one in view["locked_data_images"]),
        tuple(view["links"]),
    )


def _active_hold(view: Mapping[str, Any], known: ViewStatus | None) -> Hold | None:
    """Return the hold that keeps the view at a generation, unless it has ended, is lifted, or another generation is asked for."""
    hold = known.hold if known else None
    if hold is None or view["lift_holds"] or view["generation"] is not None:
        return None
    return hold if hold.holds(int(time.time()), view["locked_generation"]) else None


def _hold_of_return(view: Mapping[str, Any], known: ViewStatus | None) -> Hold | None:
    """Return the hold at the generation that the last run replaced; None if it replaced none.

    It lasts until another generation is declared than the one that the host returns from.
    """
    if known is None or known.switched_from is None:
        return None
    return Hold(known.switched_from, 0, view["hold_reason"] or "", known.generation)


def _hold_of_rollback(view: Mapping[str, Any], brought: Brought) -> Hold | None:
    if view["generation"] is None or view["hold"] is None:
        return None
    until = int(time.time()) + view["hold"] if view["hold"] else 0
    return Hold(brought.values["generation"], until, view["hold_reason"] or "")


def _show(view: Mapping[str, Any], paths: ViewPaths, run: Run, brought: Brought, hold: Hold | None) -> None:
    """Provide the declared generation, mount it, make it the current one, and remove the generations that nobody needs."""
    state = view_state.observe(paths)
    if view["unresolved"] and not hold and state.current is None:
        # It was never shown here. The run says why it could not be resolved.
        return
    wanted = _with_generation(view, state, hold)
    source = layer_sources.from_parameters(wanted, paths, state, run.seconds, run.progress)
    if not hold and view["generation"] is None:
        _check_locked(view, source)
    view = _with_roots(view, source)
    _check_kernel(view, source, run)
    path, live = _mounted_at(view)
    data = host_data.prepare(view, source)
    left = writable_view.left_behind(view, paths, source.directory, live)
    writable_view.check_may_leave(view, paths, left)
    writable_view.check_discardable(paths, left, live, run.progress)
    brought.before = dict(view_state.content_of_current(paths, state))
    brought.after = source.content()
    brought.values["held"] = hold.as_dict() if hold else None
    # Conflicts are refused before anything is written, and in check mode as well.
    composition = source.composed_for(layer_plan.plan_layer(source.directory, source.action, state))
    brought.warnings += layer_sources.hidden_warnings(composition)
    provided = _carry_out_layer(source, paths, state, run, brought, provide_only=True)
    params = mount_parameters(view, paths, source.directory, live)
    opened = _new_releases(source, paths, state)

    def check_health(task: MountTask) -> None:
        _check_health(params, source, opened, task, run, brought)

    mounted = _mount_with_data(params, data, source, paths, path, live, run, brought, check_health)
    # Only now, so that a view that cannot be shown stays at its generation.
    finished = _carry_out_layer(source, paths, provided, run, brought)
    layer = source.values_on_host(paths, finished, composition)
    for name in ("generation", "format", "format_reason", "strategy", "previous", "layer"):
        brought.values[name] = layer[name]
    brought.values.update(source.copied)
    _discard(paths, left, run, brought)
    _warn_of_rights(view, layer, mounted, brought)
    _prune(view, paths, run, brought)
    if data.problem:
        raise OverlayError(data.problem)


def _with_generation(view: Mapping[str, Any], state: ViewState, hold: Hold | None) -> dict[str, Any]:
    """Return a view with the generation that it shows, if that is on this host already and is not made from what is declared."""
    generation = hold.generation if hold else CURRENT if view["unresolved"] else view["generation"]
    locked = view["locked_generation"]
    if generation is None and view["data_images"] == data_choice.ONLY:
        # The store with the manifests may be on the file server that the view does without.
        generation = locked if locked in {generation_of(one) for one in state.generations} else None
    if generation is None:
        return dict(view)
    return {**view, "generation": generation, "image": None, "image_digest": None, "releases": []}


def _with_roots(view: Mapping[str, Any], source: Source) -> Mapping[str, Any]:
    """Return a view over several software roots with the data layers of the generation that it is to show."""
    if not view["roots"]:
        return view
    if source.strategy == strategies.REDIRECT:
        raise OverlayError(
            f"view {view['name']} shows several software roots, which needs data-only layers (Linux 6.5), and its layer is made for"
            " strategy redirect: give each root a view of its own on this host"
        )
    if view["data_images"] != data_choice.NONE or view["writable"] != "none":
        raise OverlayError(
            f"view {view['name']} shows several software roots, so it has neither data images nor an upper layer: leave these out"
        )
    return {**view, **view_roots.mount_parameters(view["roots"], source.releases)}


def _carry_out_layer(
    source: Source, paths: ViewPaths, state: ViewState, run: Run, brought: Brought, provide_only: bool = False
) -> ViewState:
    """Provide a generation and make it the current one, given the state of the view; return the state afterwards.

    ``provide_only`` leaves the current generation as it is.
    """

    def planned(state: ViewState) -> Plan:
        plan = layer_plan.plan_layer(source.directory, source.action, state)
        return tuple(one for one in plan if not (provide_only and isinstance(one, MakeCurrent)))

    plan = planned(state)
    handlers = source.handlers(paths, run.progress, brought.warnings)
    if plan and not run.check_mode:
        with view_state.locked(paths, run.seconds, run.progress):
            # Another run may have done it while this one waited.
            plan = planned(view_state.observe(paths))
            run.carry_out(plan, handlers)
            state = view_state.observe(paths)
    else:
        run.carry_out(plan, handlers)
    brought.actions += [one for one in plan if one not in brought.actions]
    return state


def _new_releases(source: Source, paths: ViewPaths, state: ViewState) -> list[Mapping[str, Any]]:
    """Return the releases that the current generation does not have, so that a switch on a whole farm asks the file server little."""

    def key(release: Mapping[str, Any]) -> tuple[str, ...]:
        return release["release"], release["digest"], release["at"]

    current = state.current if state.current in state.generations else None
    known = {key(one) for one in view_state.read_generation(paths, current).releases} if current else set()
    return [release for release in source.releases if key(release) not in known]


def _check_health(
    view: Mapping[str, Any],
    source: Source,
    releases: Sequence[Mapping[str, Any]],
    task: MountTask,
    run: Run,
    brought: Brought,
) -> None:
    """Check the new overlay before the host switches to it. Raises OverlayError with the reason if it does not work.

    ``view`` has the parameters of overlay_mount besides the keys of the view. ``releases`` are those to open.
    """
    spec = task.spec
    if view["health_check"] == health.NONE or spec is None:
        return
    if spec.writable:
        # The upper layer can be in use, and a check is to leave nothing there.
        options = {name: value for name, value in view["options"].items() if name != "volatile"}
        params = {**view, **writable_view.NOT_MOUNTED, "options": options}
        spec = declaration.declared(task.path, params, None, creating.overlay_defaults())
    environment = {
        "OVERLAY_VIEW": view["name"],
        "OVERLAY_MOUNTPOINT": view["mountpoint"],
        "OVERLAY_GENERATION": source.generation,
    }
    check = health.HealthCheck(view["health_check"], view["health_user"], view["health_timeout"], environment)
    try:
        health.try_unseen(
            spec,
            view["inner_mounts"],
            releases,
            check,
            run.seconds,
            run.progress,
        )
    except (OverlayError, OSError) as error:
        before = brought.before.get("generation")
        stays = f"it still shows generation {before}" if task.state.mount and before else "it was not mounted"
        raise OverlayError(
            f"generation {source.generation} failed its health check, and {stays}: {run.explain(error)}"
        ) from None


def _check_kernel(view: Mapping[str, Any], source: Source, run: Run) -> None:
    """Raises OverlayError if the kernel cannot mount the view, or the software root is missing. Does nothing if a view is mounted."""
    if mountinfo.top_mount(namespaces.own_mounts(), os.fsencode(view["mountpoint"])) is not None:
        return
    if view["data_images"] != data_choice.ONLY:
        _check_root(view, run)
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


def _check_root(view: Mapping[str, Any], run: Run) -> None:
    """Raises OverlayError if the software root is missing. In check mode, an earlier task may not have mounted it."""
    seen = namespaces.own_mounts()
    # Layers with a part of the software root come before it. If it is on a file server, it is mounted, and is not listed.
    used = {layer for layers in view.get("parts", {}).values() for layer in layers} or view["data"]
    for root in (sorted(used) if view["roots"] else view["data"][-1:]) if not run.check_mode else ():
        # An automounter may take seconds to mount it.
        run.progress()
        if still_paths.is_local(os.path.realpath(os.fsencode(root)), seen):
            mountpoints.check_has_content(os.fsencode(root))


def _check_locked(view: Mapping[str, Any], source: Source) -> None:
    wanted = view["locked_generation"]
    if wanted and source.generation != wanted:
        raise OverlayError(
            f"view {view['name']}: this host would show generation {source.generation}, but the lock has {wanted}: a manifest is not the"
            " one that was locked, or a user or group has another uid or gid here; resolve the views again"
        )


def mount_parameters(view: Mapping[str, Any], paths: ViewPaths, directory: str, live: Mount | None) -> dict[str, Any]:
    """Return the parameters of overlay_mount for a view that shows the generation in ``directory``, given the directory's name.

    ``live`` is the mount at the mountpoint.
    """
    name = GenerationName.parse(directory)
    if name is None:
        raise OverlayError(f"view {paths.name}: {directory} is no name of a generation")
    return {
        **view,
        "path": view["mountpoint"],
        "lower": [layer_path(paths.generation(directory), name.format)],
        "strategy": name.strategy,
        "options": {**({"userxattr": True} if name.xattr_namespace == USER else {}), **view["options"]},
        **writable_view.mount_parameters(view, paths, directory, live),
    }


def _mounted_at(view: Mapping[str, Any]) -> tuple[bytes, Mount | None]:
    """Return the path of the mountpoint of a view, and the mount there."""
    live = namespaces.own_mounts()
    path = still_paths.mountpoint(os.fsencode(view["mountpoint"]), live)
    return path, mountinfo.top_mount(live, path)


def _mount(
    params: Mapping[str, Any],
    paths: ViewPaths,
    path: bytes,
    run: Run,
    brought: Brought,
    check_first: Callable[[MountTask], None] = lambda _task: None,
) -> bool:
    """Bring the mount of a view to its state; return whether it changed. ``check_first`` is called before it is changed."""
    carry_out = writable_view.guarded(params, paths, path, run.carry_out)
    task, report = mounting.bring(path, params, run.check_mode, run.seconds, run.progress, carry_out, check_first)
    if run.check_mode:
        writable_view.check_scratch(params, paths, task.state.mount, task.plan)
    brought.actions += task.plan
    brought.values["mount_changed"] = bool(task.mounting)
    brought.values.update(report.values)
    brought.warnings += report.warnings
    brought.before["mount"] = report.before
    brought.after["mount"] = report.after
    return bool(task.mounting)


def _mount_with_data(
    params: Mapping[str, Any],
    data: HostData,
    source: Source,
    paths: ViewPaths,
    path: bytes,
    live: Mount | None,
    run: Run,
    brought: Brought,
    check_health: Callable[[MountTask], None],
) -> bool:
    """Install the data images of a view, and mount it with them; return whether the mount changed.

    A view that is to stand without the software root is mounted with it if the images do not have all of its content, which ``data`` then
    has as its problem. Raises OverlayError if the software root is not there either.
    """

    def mount(with_root: bool, check_first: Callable[[MountTask], None]) -> bool:
        layers = data.layers(with_root)
        changed = _mount({**params, "data": layers}, paths, path, run, brought, check_first)
        brought.data = layers
        return changed

    def check_covered(task: MountTask) -> None:
        namespace = params["xattr_namespace"] if source.format == DIRECTORY.name else strategies.TRUSTED
        host_data.check_covered(data, params["lower"][0], namespace, run.seconds, run.progress)
        check_health(task)

    shows = live is not None and shown_layer(live, os.fsencode(paths.generations))
    is_attached = live is not None and _has_root(live, params)
    changed = False
    for action, ends_pass in host_data.install(data, run.check_mode, run.progress, run.carry_out, run.explain):
        brought.actions.append(action)
        # Who uses the view meanwhile reads from the images that are there, and a run that is killed is not for nothing.
        if ends_pass and is_attached and shows and shows.directory == source.directory:
            changed = mount(True, lambda _task: None) or changed
    if data.is_used:
        brought.values.update(data_images=data.values(), detached=False)
    if data.wants_to_detach and not (run.check_mode and data.left_out):
        try:
            changed = mount(False, check_covered) or changed
            brought.values["detached"] = True
            return changed
        except NotCoveredError as error:
            data.problem = str(error)
            if live is not None and not is_attached:
                raise OverlayError(f"{error}; it stays as it is") from None
            _check_root(params, run)
    elif data.warning():
        brought.warnings.append(data.warning())
    if live is not None and not is_attached:
        _check_root(params, run)
    return mount(True, check_health) or changed


def _has_root(live: Mount, view: Mapping[str, Any]) -> bool:
    """Return whether the mount of a view has the software root as a data layer."""
    root = still_paths.resolved(os.fsencode(view["data"][-1]), namespaces.own_mounts()) if view["data"] else None
    return live.fstype != b"overlay" or root in mountinfo.overlay_layers(live).data


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
    _prune_images(view, run, brought)


def _prune_images(view: Mapping[str, Any], run: Run, brought: Brought) -> None:
    """Remove the data images that nobody needs. They belong to all views of the state directory."""
    with pruning_images.locked(view["state_dir"], run.check_mode, run.progress):
        found = host_data.find_unneeded(view, run.check_mode)
        run.carry_out(found.plan, found.handlers(run.progress))
    brought.actions += found.plan


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
    _prune_images(view, run, brought)
