# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the rows of a report from what a task returned on each host of a play."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView

_LOST = "a task before its views failed, or it could not be reached: see the output of the run"


@dataclass(frozen=True)
class HostResults:
    """What is known of one host."""

    host: str
    #: What tasks returned on the host, the most important one first.
    results: Sequence[Mapping[str, Any]]
    #: The names of the views that the host declares.
    declared: Collection[str]
    #: Whether the host is still in the play: it has not failed, and was not unreachable.
    is_left: bool

    @property
    def has_failed(self) -> bool:
        """Whether one of the tasks failed, or could not reach the host."""
        return any(one.get("failed") or one.get("unreachable") for one in self.results)


def rows_of_results(
    hosts: Iterable[HostResults], lock: Mapping[str, LockedView], unresolved: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of all hosts, and the names of the hosts that the run has not come to.

    Rows without releases get those of the lock. ``unresolved`` has the views that could not be resolved, by name, each with the reason.
    """
    rows: list[dict[str, Any]] = []
    left = []
    for one in hosts:
        found = list(_rows_of(one))
        if not found and not one.results and one.is_left:
            left.append(one.host)
            continue
        known = {row.get("view") for row in found}
        for row in found:
            # It stays at what it showed last, and is not what is declared.
            reason = unresolved.get(str(row.get("view")))
            if reason and not row.get("failure"):
                row.update(status="failed", failure=reason)
        found += [
            {"host": one.host, "view": view, "status": "failed", "failure": reason}
            for view, reason in unresolved.items()
            if view in one.declared and view not in known and None not in known
        ]
        rows += found
    for row in rows:
        locked = lock.get(str(row.get("view")))
        if locked and locked.generation == row.get("generation") and not row.get("releases"):
            row["releases"] = list(dict.fromkeys(release["release"] for release in locked.releases))
    return rows, left


def _rows_of(one: HostResults) -> Iterable[dict[str, Any]]:
    for result in one.results:
        if result.get("unreachable"):
            return [{"host": one.host, "status": "unreachable", "failure": str(result.get("msg", ""))}]
        if isinstance(result.get("report"), (list, tuple)):
            return [{**row, "host": one.host} for row in result["report"]]
        if result.get("failed"):
            return [{"host": one.host, "status": "failed", "failure": str(result.get("msg", ""))}]
    return [] if one.is_left else [{"host": one.host, "status": "failed", "failure": _LOST}]


def run_ends(hosts: Collection[HostResults], percentage: float) -> bool:
    """Return whether a run ends with a batch of hosts: all of them failed, or more than ``percentage`` percent."""
    failed = sum(one.has_failed for one in hosts)
    return failed == len(hosts) or failed > len(hosts) * percentage / 100
