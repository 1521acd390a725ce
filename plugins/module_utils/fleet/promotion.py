# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide whether what canary hosts show may go to the others, and as which lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import (
    LOCK_FORMAT,
    LockedView,
    lock_from_values,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import (
    differing_views,
    host_list,
    problems_of_hosts,
)

Shown = Mapping[str, Any]


def promoted(read: Mapping[str, Shown], least: int | None, seconds: int) -> tuple[list[LockedView], list[str]]:
    """Return the lock of what canary hosts show, and the reasons why it may not be promoted, one line each.

    ``read`` has for each canary host what view_lock_info returned; nothing if the host was left out of the run. At least ``least`` hosts
    must have been reached, or all if that is None. They must have shown each view for at least ``seconds``.
    """
    reached = {host: shown for host, shown in read.items() if shown and not shown.get("unreachable")}
    problems = [*_missing(read, reached, least)]
    found: dict[str, list[str]] = {}
    rows: dict[str, Sequence[Shown]] = {}
    for host, shown in reached.items():
        rows[host] = shown.get("views", ())
        if shown.get("failed"):
            found[host] = [f"what it shows cannot be read: {shown.get('msg')}"]
        else:
            found[host] = [
                f"view {view['name']}: {reason}" for view in rows[host] for reason in _reasons(view, seconds)
            ]
    problems += problems_of_hosts(found)
    problems += differing_views(rows)
    locks: dict[str, LockedView] = {}
    for view in (view for views in rows.values() for view in views if view["lock"]):
        name = view["name"]
        locked = lock_from_values({"format": LOCK_FORMAT, "views": [view["lock"]]})[name]
        known = locks.setdefault(name, locked)
        if known.generation == locked.generation and known.image_digest != locked.image_digest:
            problems.append(f"view {name}: canary hosts show different images of generation {locked.generation}")
        if known.generation == locked.generation and len(locked.data_images) > len(known.data_images):
            # A canary host without data images may have been deployed with another lock of the same generation.
            locks[name] = locked
    if reached and not locks and not problems:
        problems.append("the canary hosts declare no view that is to be mounted")
    return list(locks.values()), list(dict.fromkeys(problems))


def _missing(read: Mapping[str, Shown], reached: Mapping[str, Shown], least: int | None) -> Iterator[str]:
    if not read:
        yield "overlay_canary names no host of the inventory: give a host or a group, -e overlay_canary=GROUP"
        return
    wanted = len(read) if least is None else max(1, least)
    if len(reached) < wanted:
        missing = host_list([host for host in read if host not in reached])
        yield (
            f"{len(reached)} of {len(read)} canary hosts were read, and {wanted} have to be; these are unreachable, or --limit leaves them"
            f" out: {missing}"
        )


def _reasons(view: Shown, seconds: int) -> Iterator[str]:
    """Yield why a view may not be promoted as a host shows it."""
    generation = view["generation"]
    if not view["mounted"]:
        yield "it is not mounted: deploy to the canary hosts first"
        return
    if view["failure"]:
        yield f"the last run failed: {view['failure']}"
    if view["hold"]:
        held = view["hold"]["generation"]
        yield f"a rollback holds it at generation {held}: deploy to the canary hosts with overlay_lift_holds=true first"
    elif not view["lock"] or view["lock"]["generation"] != generation:
        yield f"it shows generation {generation}, which was not deployed with a lock: deploy to the canary hosts first"
    if view["seconds"] < seconds:
        yield f"it has shown generation {generation} for {view['seconds']} seconds, and overlay_promote_after is {seconds}"
