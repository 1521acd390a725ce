# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe how a view on a host differs from its declaration: one sentence for each difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import (
    RemoveUnit,
    RemoveViewLines,
    Stored,
    WriteUnit,
    WriteViewLines,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.view_lines import has_view_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.shown_layer import shown_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ViewState
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    generation_of,
)

#: The most units that a sentence names.
_MOST_UNITS = 5


def of_mountpoint(path: bytes, stack: Sequence[Mount], generations: bytes) -> Iterator[str]:
    """Yield why a mountpoint does not show a generation of the view. ``stack`` has the mounts there, the visible one first."""
    if not stack:
        yield f"it is not mounted at {show(path)}"
    elif shown_layer(stack[0], generations) is None:
        other = f"a mount of type {show(stack[0].fstype)} from {show(stack[0].source)}"
        if any(shown_layer(mount, generations) for mount in stack[1:]):
            yield f"{other} covers it at {show(path)}"
        else:
            yield f"{other} is at {show(path)} instead of it"


def of_generation(shown: str | None, wanted: str | None, state: ViewState) -> Iterator[str]:
    """Yield how the generation that is shown differs from ``wanted``, and what is missing or damaged of both. ``shown`` is a directory."""
    if shown is not None and wanted is not None and generation_of(shown) != wanted:
        yield f"it shows generation {generation_of(shown)} instead of {wanted}"
    if shown is not None and shown not in state.generations and shown not in state.damaged:
        yield f"the layer or the record of generation {generation_of(shown)}, which is mounted, is missing"
    if wanted is not None and not any(generation_of(one) == wanted for one in (*state.generations, *state.damaged)):
        yield f"generation {wanted} is not on this host"


#: The parts of a mount in sentences. Others are mount options.
_PARTS = {
    "lower": "its layers are",
    "data": "its data layers are",
    "root": "the directory of the overlay that it shows is",
    "upper": "its upper layer is",
    "work": "its work directory is",
}


def of_mount(changes: Mapping[str, tuple[object, object]]) -> Iterator[str]:
    """Yield how a mount differs from its declaration. ``changes`` is what ``mount_differences`` returned."""
    for name, (now, wanted) in changes.items():
        if name.startswith("part "):
            yield _of_part(name, now, wanted)
            continue
        yield f"{_PARTS.get(name, f'mount option {name} is')} {_word(now)} instead of {_word(wanted)}"


def _of_part(name: str, now: object, wanted: object) -> str:
    """Return how a part of a tree differs. ``now`` and ``wanted`` are its data layers; None if it is not mounted, or not declared."""
    if now is None:
        return f"its {name}, which has the files of {_word(wanted)}, is not mounted"
    if wanted is None:
        return f"its {name}, which has the files of {_word(now)}, is mounted and not declared"
    return f"its {name} has the files of {_word(now)} instead of {_word(wanted)}"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def of_boot(path: bytes, plan: Plan, stored: Stored) -> Iterator[str]:
    """Yield how what mounts a view at boot differs from its declaration. ``plan`` is what would mend it.

    A view of many software roots has a unit for each, so units that differ in the same way are one reason.
    """
    there = {unit.name for unit in stored.units}
    needed = [action.unit.name for action in plan if isinstance(action, WriteUnit)]
    yield from _units("needed", [name for name in needed if name not in there], "is missing", "are missing")
    yield from _units(
        "needed",
        [name for name in needed if name in there],
        "differs from the declaration",
        "differ from the declaration",
    )
    for action in plan:
        if isinstance(action, WriteViewLines):
            wrong = "differ from the declaration" if has_view_lines(stored.fstab, path) else "are missing"
            yield f"the lines in /etc/fstab that mount it at boot {wrong}"
        elif isinstance(action, RemoveViewLines):
            yield "the lines in /etc/fstab that mount it at boot are not declared"
    removed = [action.name for action in plan if isinstance(action, RemoveUnit)]
    yield from _units("there", removed, "is not declared", "are not declared")


def _units(use: str, names: Sequence[str], wrong: str, all_wrong: str) -> Iterator[str]:
    """Yield a sentence about units with one fault; none if there are none."""
    if len(names) == 1:
        yield f"unit {names[0]}, which is {use} to mount it at boot, {wrong}"
    elif names:
        more = f" and {len(names) - _MOST_UNITS} more" if len(names) > _MOST_UNITS else ""
        yield f"{len(names)} units, which are {use} to mount it at boot, {all_wrong}: {', '.join(names[:_MOST_UNITS])}{more}"


def status_of(failure: str, drift: Sequence[str], is_held: bool) -> str:
    """Return the status of a declared view: one of ``report.STATUSES``."""
    if failure:
        return "failed"
    if drift:
        return "drifted"
    return "held" if is_held else "as declared"
