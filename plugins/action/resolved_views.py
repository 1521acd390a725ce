# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve the views of all hosts of a play to a lock, once, with the modules of the collection on one host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleFilterError
from ansible.plugins.action import ActionBase
from ansible.release import __version__ as ansible_version

from ansible_collections.renderfarm.overlay.plugins.filter.select_releases import select_releases
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import (
    LockedView,
    lock_from_json,
    lock_from_values,
    lock_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import (
    Choice,
    Listing,
    batches,
    choose,
    marker_of,
    nothing_declared,
    passed_over,
    problems_of_hosts,
    shared_views,
    unlistable,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.view_roots import mounts_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, mentions

#: Releases that one call scans. One call for each would be most of the time of a first run; one for all would show no progress.
_BATCH = 25


#: Problems that a message names.
_MOST_PROBLEMS = 30
#: Whether Ansible shows the message of a failure in lines. Before 2.19 it shows JSON text, with all of them on one line.
_SHOWS_LINES = tuple(map(int, ansible_version.split(".")[:2])) >= (2, 19)


class _HostError(Exception):
    """A module failed on the host that resolves, for a reason that concerns every view."""


@dataclass
class _Resolution:
    """What has been found out so far."""

    locked: list[LockedView] = field(default_factory=list)
    #: Views that could not be resolved, by name, each with the reason.
    failures: dict[str, str] = field(default_factory=dict)
    #: Views that check mode cannot resolve, since it does not scan.
    pending: dict[str, str] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    #: A sentence for each thing on the software root that no view can choose, and for each link that is not shown.
    passed_over: list[str] = field(default_factory=list)
    #: Why this host could not list or scan, although another one may; empty if it could.
    obstacle: str = ""

    def pass_over(self, sentences: Iterable[str]) -> None:
        """Add sentences about what is passed over, each once."""
        self.passed_over += [one for one in sentences if one not in self.passed_over]


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See plugins/modules/resolved_views.py for the documentation."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _result, given = self.validate_argument_spec(
            {
                "declared": {"type": "dict", "required": True},
                "scan_host": {"type": "str", "default": ""},
                "mounted_root": {"type": "str", "default": ""},
                "lock": {"type": "raw"},
                "resolve": {"type": "bool", "default": True},
            }
        )
        if given["declared"] and not any("views" in one for one in given["declared"].values()):
            # The check, in an earlier task, gives an entry also to a host without views.
            reason = "the declarations were not checked in this run: leave out --start-at-task"
            result.update(failed=True, problems=[reason], msg=reason)
            return result
        declared = {host: one.get("views", []) for host, one in given["declared"].items()}
        problems = problems_of_hosts({host: one.get("problems", []) for host, one in given["declared"].items()})
        views, differing = shared_views(declared, given["scan_host"], given["mounted_root"])
        problems += [*differing, *nothing_declared(given["declared"].values())]
        if not given["lock"] and given["resolve"]:
            problems += unlistable(views)
        if problems:
            if len(problems) > 1 and not _SHOWS_LINES:
                for problem in problems[:_MOST_PROBLEMS]:
                    self._display.display(problem)
            result.update(failed=True, problems=problems[:_MOST_PROBLEMS], msg=_counted(problems))
            return result
        if not given["resolve"]:
            result.update(changed=False, mounts=mounts_of(views))
            return result
        try:
            resolution = self._use(views, given["lock"]) if given["lock"] else self._resolve(views, variables)
        except OverlayError as error:
            result.update(failed=True, problems=[str(error)], msg=str(error))
            return result
        except _HostError as error:
            # Another host may be able to.
            result.update(changed=False, obstacle=str(error))
            return result
        text = lock_to_json(resolution.locked)
        result.update(
            changed=bool(resolution.actions),
            lock=json.loads(text),
            text=text,
            failures=resolution.failures,
            messages=[_about_view(name, reason) for name, reason in resolution.failures.items()],
            pending=resolution.pending,
            leaving=[
                f"view {view.name}: no longer declared, and still shown: "
                + ", ".join(f"{one['release']} until {one['until']}" for one in view.leaving)
                for view in resolution.locked
                if view.leaving
            ],
            passed_over=resolution.passed_over,
            actions=resolution.actions,
        )
        if resolution.obstacle:
            result["obstacle"] = resolution.obstacle
        if resolution.warnings:
            result["warnings"] = resolution.warnings
        return result

    def _use(self, views: Sequence[Mapping[str, Any]], given: Any) -> _Resolution:
        """Take the views from a lock."""
        try:
            found = lock_from_json(given) if isinstance(given, str) else lock_from_values(given)
        except OverlayError as error:
            raise OverlayError(f"overlay_lock: {error}") from None
        resolution = _Resolution()
        for view in views:
            name = view["name"]
            if name in found:
                resolution.locked.append(found[name])
            else:
                resolution.failures[name] = f"the lock has no view {name}: resolve it again, or leave the view out"
        return resolution

    def _resolve(self, views: Sequence[Mapping[str, Any]], variables: dict[str, Any]) -> _Resolution:
        resolution = _Resolution()
        choices = self._chosen(views, resolution, variables)
        self._scan(views, choices, resolution, variables)
        wanted = [
            {
                **_options_of(view),
                "releases": list(choices[view["name"]].releases),
                "links": list(choices[view["name"]].links),
            }
            for view in views
            if view["name"] in choices
        ]
        if wanted:
            self._lock(wanted, resolution, variables)
        resolution.locked = [replace(one, links=choices[one.name].links) for one in resolution.locked]
        return resolution

    def _chosen(
        self, views: Sequence[Mapping[str, Any]], resolution: _Resolution, variables: dict[str, Any]
    ) -> dict[str, Choice]:
        """Return what each view shows. Releases are listed once for all views that choose from the same."""
        listings: dict[Listing, dict[str, Any]] = {}
        found: dict[str, Choice] = {}
        declared = {one["release"] for view in views for one in view["releases"]}
        for view in views:
            name, wanted = view["name"], Listing.of(view)
            failed = None
            for listing in wanted:
                if listing not in listings:
                    result = listings[listing] = self._call("release_info", listing.options(), variables)
                    resolution.pass_over(passed_over(result, listing.ready_marker, declared))
                if listings[listing].get("failed"):
                    # Each software root whose server does not answer takes a time limit of its own.
                    failed = listings[listing]
                    break
            if failed:
                resolution.obstacle = str(failed.get("msg"))
                self._give_up(name, resolution.obstacle, resolution)
                continue
            try:
                listed, links = (
                    [item for one in wanted for item in listings[one][kind]] for kind in ("releases", "links")
                )
                choice = choose(view, listed, select_releases, links)
            except AnsibleFilterError as error:
                choice = Choice(problem=str(error))
            if choice.problem:
                self._give_up(name, choice.problem, resolution)
            else:
                found[name] = choice
                resolution.pass_over(choice.left_out)
        return found

    def _give_up(self, name: str, reason: str, resolution: _Resolution) -> None:
        # In check mode on a new farm, an earlier task would have mounted the software root.
        target = resolution.pending if self._task.check_mode else resolution.failures
        target[name] = reason

    def _scan(
        self,
        views: Sequence[Mapping[str, Any]],
        choices: dict[str, Choice],
        resolution: _Resolution,
        variables: dict[str, Any],
    ) -> None:
        """Scan the releases that have no manifest, each once, and drop the choices of views whose releases cannot be scanned."""
        unscanned: dict[tuple[Listing, str], dict[str, list[str]]] = {}
        for view in views:
            listings = Listing.of(view)
            for path in choices.get(view["name"], Choice()).unscanned:
                listing = next(one for one in listings if one.prefix in ("", path.partition("/")[0]))
                unscanned.setdefault((listing, view["checksum"]), {}).setdefault(path, []).append(view["name"])
        for (listing, checksum), paths in unscanned.items():
            options = {**listing.scan_options(), "checksum": checksum}
            left = list(paths)
            for batch in batches(paths, _BATCH):
                self._display.display(f"scanning {', '.join(batch)}")
                found = self._call("release_manifest", {**options, "releases": batch}, variables)
                resolution.actions += found.get("actions", [])
                resolution.warnings += found.get("warnings", [])
                failures = found.get("failures", [])
                # Without a reason for each release, as after a time limit, the next batch would fail in the same way.
                is_broken_off = bool(found.get("failed")) and not failures
                if is_broken_off or any(one.get("of_host") for one in failures):
                    resolution.obstacle = str(found.get("msg"))
                for path, reason in _failures_of(found, left if is_broken_off else batch).items():
                    for name in paths[path]:
                        choices.pop(name, None)
                        self._give_up(name, reason, resolution)
                if is_broken_off:
                    break
                left = left[len(batch) :]
        if self._task.check_mode:
            for name in [name for name, choice in choices.items() if choice.unscanned]:
                listed = ", ".join(choices.pop(name).unscanned)
                self._give_up(name, f"these releases would have to be scanned first: {listed}", resolution)

    def _lock(self, wanted: list[dict[str, Any]], resolution: _Resolution, variables: dict[str, Any]) -> None:
        """Lock views. Data images are built with one call for each release, so that the run shows which one is built."""
        # The first call builds none, and says which ones are missing. In check mode none is built.
        builds = None if self._task.check_mode else 0
        left = {view["name"]: {**view, "data_builds": builds} for view in wanted}
        while left:
            found = self._call("view_lock", {"views": list(left.values())}, variables)
            if "views" not in found:
                raise _HostError(str(found.get("msg", "view_lock failed")))
            resolution.actions += found.get("actions", [])
            resolution.warnings += found.get("warnings", [])
            options, left = left, {}
            for view in found["views"]:
                if view["msg"]:
                    self._give_up(view["name"], view["msg"], resolution)
                    if view.get("of_host"):
                        resolution.obstacle = _about_view(view["name"], view["msg"])
                elif view.get("unbuilt"):
                    # The first call has compared the sample.
                    left[view["name"]] = {**options[view["name"]], "sample": 0, "data_builds": 1}
                    more = len(view["unbuilt"]) - 1
                    self._display.display(
                        f"view {view['name']}: building the data image of {view['unbuilt'][0]}{f', {more} more to build' if more else ''}"
                    )
                else:
                    resolution.locked.append(LockedView.from_dict(view))

    def _call(self, module: str, options: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._execute_module(
                module_name=f"renderfarm.overlay.{module}", module_args=options, task_vars=variables
            )
        except AnsibleConnectionFailure as error:
            # An unreachable host would end the play, even if ignore_unreachable is set: it has run_once or any_errors_fatal.
            raise _HostError(f"unreachable: {error}") from error
        return found


def _options_of(view: Mapping[str, Any]) -> dict[str, Any]:
    """Return a view as view_lock takes it; blank texts are left out."""
    options = {
        "name": view["name"],
        "root": view["scan_root"],
        "store": view["scan_store"],
        "image_store": view["scan_image_store"] if view["build"] == "central" else None,
        "data_images": view["data_images"],
        "data_required": view["data_required"],
        "data_image_store": view["scan_image_store"] if view["data_images"] else None,
        "roots": [
            {
                "name": root["name"],
                "path": root["path"],
                "pattern": root["pattern"],
                "ready_marker": marker_of(view, root),
            }
            for root in view["roots"]
        ],
        **{
            name: view[name]
            for name in (
                *(
                    "links",
                    "ready_marker",
                    "ignore_names",
                    "linger",
                    "sample",
                    "owner",
                    "group",
                    "owner_map",
                    "group_map",
                ),
                *("mode", "keep_setid", "on_conflict", "xattr_namespace"),
            )
        },
    }
    return {name: value for name, value in options.items() if value not in ("", None)}


def _failures_of(found: Mapping[str, Any], batch: Sequence[str]) -> dict[str, str]:
    """Return the reason, with its name, for each release of ``batch`` that could not be scanned."""
    if not found.get("failed"):
        return {}
    failures = {one["release"]: one["msg"] for one in found.get("failures", [])}
    reasons = failures or dict.fromkeys(batch, str(found.get("msg")))
    return {
        release: reason if mentions(reason, f"release {release}") else f"release {release} cannot be scanned: {reason}"
        for release, reason in reasons.items()
    }


def _about_view(name: str, reason: str) -> str:
    return reason if mentions(reason, f"view {name}") else f"view {name}: {reason}"


def _counted(problems: Sequence[str]) -> str:
    """Return problems as the message of one failure, each in a line of its own."""
    if len(problems) == 1:
        return problems[0]
    more = len(problems) - _MOST_PROBLEMS
    lines = [*problems[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
    return "\n".join((f"the declaration has {len(problems)} problems:", *lines))
