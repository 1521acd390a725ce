# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report where the views of this host stand, as rows of a report (``reports/report.py``).

Reads the state directory, the mounts in /proc, the units of systemd and fstab. No path on a data layer and no mountpoint is looked up, so a
file server that does not answer delays nothing.
"""

from __future__ import annotations

import functools
import os
import posixpath
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import boot
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import Stored, plan_persistence
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import (
    data_choice,
    host_view,
    status_file,
    view_roots,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.shown_layer import ShownLayer, shown_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.status import ViewStatus
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces, still_paths
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, declaration
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, mount_differences
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import drift
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import time_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import verified_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import pruning, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ViewState
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    PREVIOUS,
    GenerationName,
    ViewPaths,
    generation_of,
)

#: Returns the message for an error.
Explain = Callable[["OverlayError | OSError"], str]

#: The keys of a view that decide how it is mounted, with what they are if they are left out.
_UNDECLARED: dict[str, Any] = {"options": {}, "data": [], "writable": "none", "scratch_size": 2 << 30}


class _Host:
    """What all views of a host are compared with. Each is read once, when it is needed."""

    @functools.cached_property
    def mounts(self) -> list[Mount]:
        return namespaces.own_mounts()

    @functools.cached_property
    def defaults(self) -> dict[bytes, bytes]:
        return creating.overlay_defaults()

    @functools.cached_property
    def stored(self) -> Stored:
        return boot.read()

    @functools.cached_property
    def append(self) -> bool:
        return creating.takes_layers_one_by_one()

    def place(self, path: str) -> bytes:
        """Return the path of a mountpoint without symbolic links, as far as no file server is asked."""
        parent, name = posixpath.split(posixpath.normpath(os.fsencode(path)))
        place = posixpath.join(still_paths.resolved(parent, self.mounts), name)
        return place if mountinfo.top_mount(self.mounts, place) else still_paths.resolved(place, self.mounts)


@dataclass(frozen=True)
class _Wanted:
    """What a view is declared to be, as far as it is known."""

    mountpoint: str | None
    #: ``mounted``, ``unmounted`` or ``absent``.
    state: str
    generation: str | None
    persist: str | None
    #: The keys that decide how it is mounted; None if they are not known.
    mount: Mapping[str, Any] | None
    #: What ``data_images`` of the view declares; None if it is not known.
    data_images: str | None = None


class _View:
    """One view on this host."""

    def __init__(self, host: _Host, name: str, state_dir: str) -> None:
        self.host = host
        self.state_dir = state_dir
        self.paths = ViewPaths.of(state_dir, name)
        resolved = still_paths.resolved(os.fsencode(state_dir), host.mounts)
        self.generations = os.fsencode(ViewPaths.of(os.fsdecode(resolved), name).generations)
        self.data = os.fsencode(installing.data_directory(os.fsdecode(resolved)))
        self.state: ViewState = view_state.observe(self.paths)
        self.records: dict[str, Generation] = {
            directory: view_state.read_generation(self.paths, directory) for directory in self.state.generations
        }

    def mountpoint(self) -> str | None:
        """Return where a generation of the view is mounted; None if none is."""
        for mount in self.host.mounts:
            # What is mounted beside the layers at boot is no mountpoint of the view.
            is_beside = is_inside(mount.path, self.generations)
            if (
                shown_layer(mount, self.generations)
                and not is_beside
                and mountinfo.top_mount(self.host.mounts, mount.path) == mount
            ):
                return os.fsdecode(mount.path)
        return None

    def since(self, shown: ShownLayer) -> int | None:
        """Return when the generation that is shown became the current one, in seconds since 1970; None if it is not."""
        if shown.directory != self.state.current:
            return None
        return int(os.lstat(self.paths.link(CURRENT)).st_mtime)

    def data_images(self, shown: ShownLayer) -> list[dict[str, Any]]:
        """Return the data images that the view is mounted with."""
        installed = installing.installed(self.state_dir)
        ids = [posixpath.basename(os.fsdecode(layer)) for layer in self._image_layers(shown)]
        return [
            {"id": one, "release": installed[one].release, "bytes_on_disk": installed[one].bytes_on_disk}
            for one in ids
            if one in installed
        ]

    def is_detached(self, shown: ShownLayer) -> bool:
        """Return whether the view is mounted with data images alone."""
        data = mountinfo.overlay_layers(shown.mount).data
        return bool(data) and list(data) == self._image_layers(shown)

    def parts(self, shown: ShownLayer) -> list[dict[str, Any]]:
        """Return the mounted parts of the view, each with the software roots of the releases that it shows."""
        parts, _inner = tree_parts.split(shown.mount, mountinfo.inside(self.host.mounts, shown.mount))
        record = self.records.get(shown.directory)
        releases = [(os.fsencode(one["at"].strip("/")), one["root"]) for one in record.releases] if record else []
        return [
            {**described, "roots": sorted({root for at, root in releases if is_inside(at, part.place)})}
            for described, part in zip(
                tree_parts.described(sorted(parts, key=lambda one: one.path)),
                tree_parts.as_declared(shown.mount, parts),
            )
        ]

    def _image_layers(self, shown: ShownLayer) -> list[bytes]:
        data = mountinfo.overlay_layers(shown.mount).data
        return [layer for layer in data if posixpath.dirname(layer) == self.data]

    def spec(self, wanted: _Wanted, place: bytes, directory: str) -> MountSpec | None:
        """Return the declaration of the mount that shows a generation, given its directory's name; None if it is not known."""
        if wanted.mount is None or GenerationName.parse(directory) is None:
            return None
        view = {**_UNDECLARED, **wanted.mount, "mountpoint": wanted.mountpoint, "switch": "auto"}
        if view.get("roots") and directory in self.records:
            view.update(view_roots.mount_parameters(view["roots"], self.records[directory].releases))
        params = host_view.mount_parameters(view, self.paths, directory, None)
        return declaration.as_written(place, params, self.host.mounts)

    def directory_of(self, generation: str, shown: ShownLayer | None) -> str | None:
        """Return the directory of a generation: of its forms the one that is shown or current, or else any; None if there is none."""
        forms = [one for one in sorted(self.state.generations) if generation_of(one) == generation]
        preferred = [one for one in (shown.directory if shown else None, self.state.current) if one in forms]
        return next(iter((*preferred, *forms)), None)

    def drift(self, wanted: _Wanted, expected: str | None, stack: Sequence[Mount], place: bytes) -> Iterator[str]:
        """Yield how the view differs from its declaration. ``expected`` is the generation that it has to show."""
        shown = shown_layer(stack[0] if stack else None, self.generations)
        spec = None
        if wanted.state != "mounted":
            if shown:
                yield f"it is mounted, and is declared {wanted.state}"
            if wanted.state == "absent" and self.state.exists:
                yield "it is on this host, and is declared absent"
        else:
            yield from drift.of_mountpoint(place, stack, self.generations)
            yield from drift.of_generation(shown.directory if shown else None, expected, self.state)
            live = self.spec(wanted, place, shown.directory) if shown else None
            if shown and live:
                parts, _inner = tree_parts.split(shown.mount, mountinfo.inside(self.host.mounts, shown.mount))
                yield from drift.of_mount(mount_differences(live, shown.mount, self.host.defaults, parts))
            if shown and wanted.data_images == data_choice.ONLY and not self.is_detached(shown):
                yield "it has the software root as a data layer, and is declared to stand without it"
            directory = self.directory_of(expected, shown) if expected else None
            spec = self.spec(wanted, place, directory) if directory else None
        if wanted.persist is not None and (spec or wanted.state != "mounted" or wanted.persist == "none"):
            append = wanted.persist != "none" and self.host.append
            any_length = append and boot.takes_long_options()
            plan = plan_persistence(place, spec, wanted.persist, self.host.stored, self.host.mounts, append, any_length)
            yield from drift.of_boot(place, plan, self.host.stored)


def of_views(views: Iterable[Mapping[str, Any]], explain: Explain) -> list[dict[str, Any]]:
    """Return a row for each declared view."""
    host = _Host()
    return [_row(host, view["name"], view["state_dir"], view, explain, None) for view in views]


def of_run(views: Sequence[Mapping[str, Any]], failures: Mapping[str, str], explain: Explain) -> list[dict[str, Any]]:
    """Return a row for each view of a run of the module ``view``. ``failures`` has why each view failed, or an empty text.

    The rows do not repeat the releases that the lock has.
    """
    host = _Host()
    rows = [_row(host, view["name"], view["state_dir"], view, explain, failures) for view in views]
    for view, row in zip(views, rows):
        if row["generation"] and row["generation"] == view["locked_generation"]:
            row.pop("releases", None)
    return rows


def of_view(name: str, state_dir: str, explain: Explain) -> dict[str, Any]:
    """Return the row of one view, compared with what the last run declared."""
    return _row(_Host(), name, state_dir, None, explain, None)


def of_others(
    state_dirs: Iterable[str], declared: Collection[str], is_declaration: bool, explain: Explain
) -> list[dict[str, Any]]:
    """Return a row for each view below the state directories that is not one of ``declared``.

    ``is_declaration`` says whether ``declared`` has all views of the host, so that others are not declared. If not, the views are compared
    with what the last run declared. Raises OverlayError if users other than root can write to a state directory.
    """
    host = _Host()
    found: dict[str, dict[str, Any]] = {}
    for state_dir in dict.fromkeys(state_dirs):
        for name in pruning.view_names(state_dir):
            if name not in declared and name not in found:
                found[name] = _row(host, name, state_dir, None, explain, None)
    if is_declaration:
        for row in found.values():
            row.update(status="not declared", drift=[])
    return list(found.values())


def _row(
    host: _Host,
    name: str,
    state_dir: str,
    declared: Mapping[str, Any] | None,
    explain: Explain,
    failures: Mapping[str, str] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "view": name,
        "mountpoint": declared["mountpoint"] if declared else None,
        "generation": None,
        "hold": None,
        "drift": [],
    }
    problems = [failures[name]] if failures and failures.get(name) else []
    try:
        view = _View(host, name, state_dir)
        status = None
        try:
            status = status_file.read(view.paths)
        except OverlayError as error:
            problems.append(explain(error))
        if failures is None and status and status.failure:
            problems.append(status.failure)
        problems += [problem for problem in view.state.damaged.values() if problem not in problems]
        row.update(_values(host, view, status, declared))
    except (OverlayError, OSError) as error:
        problems.append(explain(error))
    failure = "; ".join(dict.fromkeys(problems))
    row.update(failure=failure, status=drift.status_of(failure, row["drift"], row["hold"] is not None))
    return row


def _values(host: _Host, view: _View, status: ViewStatus | None, declared: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a row that follow from the state of a view."""
    wanted = _wanted(view, status, declared)
    is_held = status is not None and status.hold is not None and status.hold.holds(int(time.time()), wanted.generation)
    # A view that is not to be mounted is not held at a generation until it is.
    hold = status.hold if status and is_held and wanted.state == "mounted" else None
    place = host.place(wanted.mountpoint) if wanted.mountpoint else None
    stack = mountinfo.stack(host.mounts, place) if place else []
    shown = shown_layer(stack[0] if stack else None, view.generations)
    since = view.since(shown) if shown else None
    record = view.records.get(shown.directory) if shown else None
    last_run = status_file.last_run(view.paths)
    expected = hold.generation if hold else wanted.generation
    return {
        "mountpoint": wanted.mountpoint,
        "generation": generation_of(shown.directory) if shown else None,
        "declared_generation": wanted.generation,
        "since": None if since is None else time_text(since),
        "releases": list(dict.fromkeys(one["release"] for one in record.releases)) if record else [],
        "drift": list(view.drift(wanted, expected, stack, place)) if place else [],
        "hold": hold.as_dict() if hold else None,
        "data_images": view.data_images(shown) if shown else [],
        "detached": view.is_detached(shown) if shown else False,
        "parts": view.parts(shown) if shown else [],
        "bytes_on_disk": sum(record.bytes_on_disk for record in view.records.values()),
        "last_run": None if last_run is None else time_text(last_run),
        "verified": _last_verified(view.paths),
    }


def _last_verified(paths: ViewPaths) -> dict[str, Any] | None:
    """Return what the last complete verification of a view found; None if there was none."""
    found = verified_files.find(paths)
    if found is None:
        return None
    return {
        "time": time_text(found.time),
        "generation": found.generation,
        "level": found.level,
        "sample": found.sample,
        "problems": found.problems,
        "counts": found.counts,
    }


def _wanted(view: _View, status: ViewStatus | None, declared: Mapping[str, Any] | None) -> _Wanted:
    """Return what a view is declared to be: by ``declared`` if it is given, else by what the last run recorded, else by what is current."""
    if declared is not None:
        state = declared.get("state") or "mounted"
        generation = declared.get("locked_generation") or declared.get("generation")
        if not generation or generation == PREVIOUS:
            generation = status.generation if status else None
        return _Wanted(
            declared["mountpoint"],
            state,
            generation_of(generation) if generation and state == "mounted" else None,
            declared.get("persist") or "none",
            {
                **{name: declared[name] for name in (*_UNDECLARED, "roots") if declared.get(name) is not None},
                **_data(declared, status),
            },
            declared.get("data_images"),
        )
    if status is not None:
        # A view whose first run failed has no generation.
        is_shown = status.generation is not None or status.mount is not None
        state = "mounted" if is_shown else "unmounted"
        return _Wanted(status.mountpoint, state, status.generation, status.persist, status.mount)
    # Another module than view made it, which records no declaration.
    current = generation_of(view.state.current) if view.state.current else None
    return _Wanted(view.mountpoint(), "mounted", current, None, None)


def _data(declared: Mapping[str, Any], status: ViewStatus | None) -> dict[str, Any]:
    """Return the data layers of a view with data images: the last run chose which images fit on the host."""
    has_images = declared.get("data_images") not in (None, data_choice.NONE)
    return {"data": status.mount["data"]} if has_images and status and status.mount else {}
