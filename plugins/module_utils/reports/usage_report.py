# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report what uses releases on the hosts of a farm: as a table for a terminal, as CSV, and as a decision about retiring them.

A host that was not reached, or on which the task failed, is unknown: it may use every release.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_ranges import fold_hosts, natural_key
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import cell

#: How many users of a release the table lists. The CSV and the return value have all of them.
_MOST_LISTED = 20
_LONGEST_REASON = 400

_HEADINGS = ("release", "host", "state", "view", "generation", "mountpoints", "pid", "name", "how", "paths")


@dataclass
class FarmUse:
    """What uses one release on the hosts of a farm."""

    release: str
    #: The processes that use it, by host, as the module release_usage_info returns them.
    processes: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    #: The generations that show it, by host, as the module returns them.
    views: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def shown_on(self) -> list[str]:
        """The hosts that have a generation with the release mounted."""
        return [host for host, views in self.views.items() if any(view.get("mounted") for view in views)]


@dataclass
class FarmUsage:
    """What uses releases on the hosts of a farm."""

    hosts: list[str]
    #: By release.
    uses: dict[str, FarmUse]
    #: The hosts that may use every release, each with the reason.
    unknown: dict[str, str]
    #: The IDs of all generations on the hosts.
    generations: set[str] = field(default_factory=set)

    def obstacles(self, release: str, unknown_counts: bool = True) -> list[str]:
        """Return why a release cannot be retired, in sentences; none if it can. ``unknown_counts`` is whether unknown hosts use it."""
        use = self.uses.get(release, FarmUse(release))
        found = [
            f"{len(users)} process{'es' if len(users) > 1 else ''} on {host} use{'s' if len(users) == 1 else ''} it"
            f" ({', '.join(_named(one) for one in users[:_MOST_LISTED])})"
            for host, users in use.processes.items()
        ]
        if use.shown_on:
            names = {view["view"] for views in use.views.values() for view in views if view.get("mounted")}
            found.append(f"view {', '.join(sorted(names))} shows it on {', '.join(fold_hosts(use.shown_on))}")
        if unknown_counts:
            found += [f"it is unknown whether {host} uses it: {reason}" for host, reason in self.unknown.items()]
        return found

    def as_dict(self, unknown_counts: bool = True) -> dict[str, Any]:
        """Return the usage for JSON and for other programs."""
        return {
            "hosts": self.hosts,
            "unknown": self.unknown,
            "generations": sorted(self.generations),
            "releases": [
                {
                    "release": release,
                    "processes": use.processes,
                    "views": use.views,
                    "obstacles": self.obstacles(release, unknown_counts),
                }
                for release, use in self.uses.items()
            ],
        }


def farm_usage(results: Mapping[str, Sequence[Mapping[str, Any]]], releases: Iterable[str]) -> FarmUsage:
    """Return the usage of ``releases``, or of all that hosts report if there are none.

    ``results`` has for each host what its tasks returned. The first result that is about releases counts.
    """
    hosts = sorted(results, key=natural_key)
    found = FarmUsage(hosts, {release: FarmUse(release) for release in dict.fromkeys(releases)}, {})
    named = bool(found.uses)
    for host in hosts:
        result = next((one for one in results[host] if _says_something(one)), None)
        problem = _problem(result)
        if problem:
            found.unknown[host] = problem
        found.generations.update(one["generation"] for one in (result or {}).get("generations") or ())
        for one in (result or {}).get("releases") or ():
            if named and one["release"] not in found.uses:
                continue
            use = found.uses.setdefault(one["release"], FarmUse(one["release"]))
            if one.get("processes"):
                use.processes[host] = list(one["processes"])
            if one.get("views"):
                use.views[host] = list(one["views"])
    found.uses = dict(sorted(found.uses.items(), key=lambda pair: natural_key(pair[0])))
    return found


def _says_something(result: Mapping[str, Any]) -> bool:
    return bool(result.get("unreachable") or result.get("failed")) or "releases" in result


def _problem(result: Mapping[str, Any] | None) -> str:
    """Return why it is unknown what a host uses; empty if it is known."""
    if result is None:
        return "it was not asked: see the output of the run"
    # A task that has waited in vain has failed, and says what is left.
    if result.get("unreachable") or (result.get("failed") and "releases" not in result):
        state = "unreachable" if result.get("unreachable") else "failed"
        return f"{state}: {' '.join(str(result.get('msg', '')).split())}"[:_LONGEST_REASON]
    return "; ".join(result.get("unknown") or ())[:_LONGEST_REASON]


def _named(process: Mapping[str, Any]) -> str:
    return f"{process['name']} ({process['pid']})"


def table_lines(usage: FarmUsage, time: str) -> list[str]:
    """Return the usage as lines for a terminal."""
    lines = [f"{_counted(usage.hosts)} at {time}"]
    for release, use in usage.uses.items():
        counts = [
            (f"used on {_counted(list(use.processes))}", use.processes),
            (f"shown on {_counted(use.shown_on)}", use.shown_on),
        ]
        lines.append(f"{release}: {', '.join(text for text, hosts in counts if hosts) or 'not in use'}")
        if use.shown_on:
            lines.append(f"  shown: {', '.join(fold_hosts(use.shown_on))}")
        kept = [host for host in use.views if host not in use.shown_on]
        if kept:
            # A rollback to such a generation would show it again.
            lines.append(f"  in generations that are not mounted: {', '.join(fold_hosts(kept))}")
        users = [(host, one) for host, processes in use.processes.items() for one in processes]
        for host, one in users[:_MOST_LISTED]:
            where = f"view {one['view']}" if one.get("view") else "the software root"
            paths = ", ".join(one.get("paths", ())[:3])
            lines.append(f"  {host}: {_named(one)} uses {paths or 'it'} ({', '.join(one['how'])}) in {where}")
        if len(users) > _MOST_LISTED:
            lines.append(f"  and {len(users) - _MOST_LISTED} more")
    reasons: dict[str, list[str]] = {}
    for host, reason in usage.unknown.items():
        reasons.setdefault(reason, []).append(host)
    for reason, hosts in reasons.items():
        lines.append(f"UNKNOWN: {_counted(hosts)} ({', '.join(fold_hosts(hosts))}): {reason}")
    return lines


def _counted(hosts: Sequence[str]) -> str:
    return f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}"


def usage_csv(usage: FarmUsage) -> str:
    """Return the usage as CSV: a line for each process, for each generation, and for each unknown host."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")

    def write(*values: Any) -> None:
        writer.writerow([cell(value) for value in (*values, *[""] * (len(_HEADINGS) - len(values)))])

    write(*_HEADINGS)
    for release, use in usage.uses.items():
        for host, views in use.views.items():
            for view in views:
                state = "mounted" if view.get("mounted") else view["state"]
                shown = " ".join(view.get("mountpoints", ()))
                write(release, host, state, view["view"], view["generation"], shown)
        for host, processes in use.processes.items():
            for one in processes:
                place = (one.get("view") or "", one.get("generation") or "", "")
                what = (one["pid"], one["name"], " ".join(one["how"]), " ".join(one.get("paths", ())))
                write(release, host, "used", *place, *what)
    for host, reason in usage.unknown.items():
        write("", host, f"unknown: {reason}")
    return stream.getvalue()
