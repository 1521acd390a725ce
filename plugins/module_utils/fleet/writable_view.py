# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A view that can be written to, and what happens to its changes when it is switched, unmounted or removed.

Each generation has an upper layer of its own, since the content of an upper layer belongs to its lower layer. So a view with changes only
leaves its generation if the changes may be discarded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import uppers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    DetachOverlay,
    SwitchOverlay,
    UnmountOverlay,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.strategies import REDIRECT, SHOWN_DIRECTORY
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.uppers import Changes
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.usage import POLL_SECONDS
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    GenerationName,
    ViewPaths,
    generation_of,
)

SCRATCH, UPPER = "scratch", "upper"
#: Seconds after which a use is taken for one that does not end by itself. A module that mounts something has copies of all mounts.
_LASTING_SECONDS = 3.0


@dataclass(frozen=True)
class LeftChanges:
    """The changes of a view that it is about to leave behind."""

    #: The directory of the generation with this upper layer; None for scratch space.
    directory: str | None
    changes: Changes

    def described(self, paths: ViewPaths) -> str:
        """Return a clause about the changes."""
        if self.directory is None:
            return f"{self.changes.count} inodes in its scratch space"
        more = ", ..." if self.changes.count > len(self.changes.paths) else ""
        listed = ", ".join(show(path) for path in self.changes.paths)
        generation, upper = generation_of(self.directory), paths.upper(self.directory)
        return f"{self.changes.count} files over generation {generation}, in {upper}: {listed}{more}"


@dataclass(frozen=True)
class DiscardChanges(Action):
    """Discard what was written to a view."""

    view: str
    #: What is discarded.
    what: str
    directory: str | None

    def __str__(self) -> str:
        return f"discard what was written to view {self.view}: {self.what}"


def mount_parameters(view: Mapping[str, Any], paths: ViewPaths, directory: str, live: Mount | None) -> dict[str, Any]:
    """Return the parameters of overlay_mount for the upper layer of a generation, given its directory's name, and for the switch to it.

    ``live`` is the mount at the mountpoint. An overlay with an upper layer is only replaced when nobody uses it.
    """
    kept = view["writable"] == UPPER
    replaced = _upper_of(live) is not None and view["switch"] != "never"
    return {
        "upper": paths.upper(directory) if kept else None,
        "work": paths.work(directory) if kept else None,
        "scratch": view["scratch_size"] if view["writable"] == SCRATCH else None,
        "read_only": None,
        "like_lower": kept,
        "switch": "replace" if replaced else view["switch"],
    }


#: The parameters of overlay_mount for a view that is unmounted.
NOT_MOUNTED = {"upper": None, "work": None, "scratch": None, "read_only": None}


def _upper_of(live: Mount | None) -> bytes | None:
    return overlay_layers(live).upper if live is not None and live.fstype == b"overlay" else None


def left_behind(
    view: Mapping[str, Any], paths: ViewPaths, directory: str | None, live: Mount | None
) -> tuple[LeftChanges, ...]:
    """Return the changes that the view leaves when it shows the generation in ``directory``, or when it is taken down if that is None.

    ``live`` is the mount at the mountpoint. Upper layers without changes are included; scratch space is not.
    """
    found = [*_left_in_scratch(view, paths, directory, live)]
    if view["state"] == "unmounted":
        # Upper layers stay, and are used again when the view is mounted again.
        return tuple(found)
    for name in _uppers(paths):
        if name != directory or view["writable"] != UPPER:
            parsed = GenerationName.parse(name)
            shown = SHOWN_DIRECTORY.encode() if parsed and parsed.strategy == REDIRECT else b""
            found.append(LeftChanges(name, uppers.changes_in(os.fsencode(paths.upper(name)), shown)))
    return tuple(found)


def _uppers(paths: ViewPaths) -> list[str]:
    try:
        return sorted(os.listdir(paths.changes))
    except FileNotFoundError:
        return []


def _left_in_scratch(
    view: Mapping[str, Any], paths: ViewPaths, directory: str | None, live: Mount | None
) -> Iterator[LeftChanges]:
    size = uppers.scratch_size(live) if live else None
    if live is None or size is None:
        return
    layer = os.path.dirname(overlay_layers(live).lower[0])
    stays = (
        directory is not None
        and view["writable"] == SCRATCH
        and size == view["scratch_size"]
        and layer == os.fsencode(os.path.realpath(paths.generation(directory)))
    )
    if not stays:
        changes = uppers.scratch_changes(live)
        if changes.count:
            yield LeftChanges(None, changes)


def check_may_leave(view: Mapping[str, Any], paths: ViewPaths, left: tuple[LeftChanges, ...]) -> None:
    """Check that a view may leave its changes behind. Raises OverlayError with the number of changes and where they are if not."""
    listed = "; ".join(one.described(paths) for one in left if one.changes.count)
    if listed and not view["discard_changes"]:
        raise OverlayError(
            f"view {paths.name} stays as it is, since it was written to: {listed}. Copy what is needed to another place. Then run once with"
            f" 'discard_changes: true' for this view, which discards these changes"
        )


def discarding(paths: ViewPaths, left: tuple[LeftChanges, ...], progress: Progress) -> tuple[Plan, Handlers]:
    """Return the plan that discards changes, and what carries it out. Scratch space is gone already when its overlay is."""

    def discard(action: DiscardChanges) -> None:
        if action.directory is not None:
            files.remove_tree(os.path.join(paths.changes, action.directory), progress)

    plan = tuple(DiscardChanges(paths.name, one.described(paths), one.directory) for one in left if one.changes.count)
    return plan, {DiscardChanges: discard}


def remove_empty(paths: ViewPaths, left: tuple[LeftChanges, ...], progress: Progress) -> None:
    """Remove the upper layers that had no changes and still have none."""
    for one in left:
        if one.directory is None or one.changes.count or uppers.has_changes(os.fsencode(paths.upper(one.directory))):
            continue
        if not _lasting_users(paths, one.directory, None, progress):
            files.remove_tree(os.path.join(paths.changes, one.directory), progress)


def _users(paths: ViewPaths, directory: str, leaving: Mount | None) -> list[str]:
    """Return where overlays with the upper layer of a generation are mounted, in all mount namespaces.

    What is unmounted along with ``leaving``, the mount of the view, is left out.
    """
    upper = os.fsencode(os.path.realpath(paths.upper(directory)))
    return [
        show(mount.path) + mountinfo.in_namespace(pid)
        for pid, live in namespaces.everywhere()
        for mount in live
        if _upper_of(mount) == upper
        and not (leaving and (mountinfo.goes_with(mount, leaving) if pid is not None else mount.id == leaving.id))
    ]


def _lasting_users(paths: ViewPaths, directory: str, leaving: Mount | None, progress: Progress) -> list[str]:
    """Return what ``_users`` returns, after waiting for uses that end by themselves."""
    end = time.monotonic() + _LASTING_SECONDS
    while True:
        users = _users(paths, directory, leaving)
        if not users or time.monotonic() > end:
            return users
        progress()
        time.sleep(POLL_SECONDS)


def check_discardable(
    paths: ViewPaths, left: tuple[LeftChanges, ...], leaving: Mount | None, progress: Progress
) -> None:
    """Check that no overlay uses an upper layer whose changes are discarded, besides ``leaving``, the mount of the view.

    Raises OverlayError if an overlay uses one, as in a container.
    """
    for one in left:
        if one.directory is None or not one.changes.count:
            continue
        if users := _lasting_users(paths, one.directory, leaving, progress):
            raise OverlayError(
                f"view {paths.name}: the changes in {paths.upper(one.directory)} cannot be discarded, since the overlay at"
                f" {', '.join(users)} uses them: unmount it, and run the task again"
            )


def check_scratch(view: Mapping[str, Any], paths: ViewPaths, live: Mount | None, plan: Plan) -> None:
    """Check the scratch space of an overlay that a plan unmounts. Raises OverlayError if it has changes that may not be discarded."""
    if live is not None and uppers.scratch_size(live) is not None and _unmounts(plan):
        check_may_leave(view, paths, (LeftChanges(None, uppers.scratch_changes(live)),))


def _unmounts(plan: Plan) -> bool:
    return any(isinstance(action, (DetachOverlay, SwitchOverlay, UnmountOverlay)) for action in plan)


def guarded(
    view: Mapping[str, Any], paths: ViewPaths, path: bytes, carry_out: Callable[[Plan, Handlers], None]
) -> Callable[[Plan, Handlers], None]:
    """Return ``carry_out`` with ``check_scratch`` of the overlay at ``path``, which is read-only from that check on."""

    def carry_out_guarded(plan: Plan, handlers: Handlers) -> None:
        live = mountinfo.top_mount(namespaces.own_mounts(), path)
        if live is None or uppers.scratch_size(live) is None or not _unmounts(plan) or view["discard_changes"]:
            carry_out(plan, handlers)
            return
        with uppers.read_only(live):
            check_scratch(view, paths, live, plan)
            carry_out(plan, handlers)

    return carry_out_guarded
