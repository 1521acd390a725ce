# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summarize what verifications found on the hosts of a farm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_ranges import fold_hosts
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import one_line, shorten

#: Problems that the table and the summary list one by one.
_MOST_PROBLEMS = 50

_Row = dict[str, Any]


def verification_rows(results: Mapping[str, Any]) -> list[_Row]:
    """Return a row for each view that was verified, and for each host on which none was.

    ``results`` maps hosts to what overlay_verify returned there: a result, a list of them, or the registered result of a loop. None
    or an empty text stands for a host on which it did not run. Raises OverlayError if it is something else.
    """
    return [row for host, result in results.items() for row in _of_host(str(host), result)]


def _of_host(host: str, result: Any) -> Iterator[_Row]:
    if result is None or result == "":
        yield {
            "host": host,
            "view": None,
            "ok": False,
            "failure": "no view was verified: the host failed before, or did not answer",
            "counts": {},
            "repaired": {},
            "problems": [],
        }
        return
    items = result.get("results", [result]) if isinstance(result, Mapping) else result
    if not isinstance(items, (list, tuple)):
        raise OverlayError(
            f"the result of host {host} is neither a mapping nor a list: give what overlay_verify returned"
        )
    for one in items:
        if isinstance(one, Mapping) and not one.get("skipped"):
            yield _of_view(host, one)


def _of_view(host: str, result: Mapping[str, Any]) -> _Row:
    item = result.get("item")
    failed = bool(result.get("failed") or result.get("unreachable")) and "counts" not in result
    return {
        "host": host,
        "view": result.get("view") or (item if isinstance(item, str) else None),
        "ok": bool(result.get("ok")) and not failed,
        "complete": bool(result.get("complete")),
        "left": result.get("left", 0),
        "level": result.get("level"),
        "checked": result.get("checked", 0),
        "counts": dict(result.get("counts") or {}),
        "repaired": dict(Counter(one["code"] for one in result.get("repaired") or ())),
        "problems": list(result.get("problems") or ()),
        "failure": one_line(str(result.get("msg") or "it failed without a message")) if failed else "",
    }


def verification_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a summary of rows that is small enough for the artifacts of a job."""
    counts: dict[str, int] = {}
    for row in rows:
        for code, count in row["counts"].items():
            counts[code] = counts.get(code, 0) + count
    problems = [{"host": row["host"], "view": row["view"], **problem} for row in rows for problem in row["problems"]]
    return {
        "ok": all(row["ok"] for row in rows),
        "hosts": len({row["host"] for row in rows}),
        "views": len([row for row in rows if row["view"]]),
        "checked": sum(row.get("checked", 0) for row in rows),
        "counts": counts,
        "unfinished_hosts": sorted({row["host"] for row in rows if row.get("left")}),
        "repaired_hosts": sorted({row["host"] for row in rows if row["repaired"]}),
        "damaged_hosts": sorted({row["host"] for row in rows if row["counts"]}),
        "failed_hosts": sorted({row["host"] for row in rows if row["failure"]}),
        "problems": problems[:_MOST_PROBLEMS],
    }


def verification_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a summary of rows as lines for a terminal: one for each code and view, and one for each reason of a failure."""
    summary = verification_summary(rows)
    counts = (_counted(summary["views"], "view"), _counted(summary["hosts"], "host"), summary["checked"])
    lines = ["{} on {}, {} entries verified".format(*counts)]
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        ends = ["not finished within the time limit"] if row.get("left") else []
        for what in (*row["counts"], *(f"repaired {code}" for code in row["repaired"]), *ends):
            found.setdefault((str(row["view"] or "-"), what), []).append(row["host"])
    for (view, what), hosts in sorted(found.items()):
        lines.append(f"{view}: {what} on {_shown(hosts)}")
    failures: dict[str, list[str]] = {}
    for row in rows:
        if row["failure"]:
            failures.setdefault(shorten(row["failure"]), []).append(row["host"])
    for failure, hosts in failures.items():
        lines.append(f"not verified on {_shown(hosts)}: {failure}")
    parts = ("host", "view", "path", "code", "detail")
    lines += ["  " + one_line(": ".join(str(problem[part]) for part in parts)) for problem in summary["problems"]]
    if not any(row["counts"] or row["failure"] for row in rows):
        lines.append("no problems")
    return lines


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _shown(hosts: Iterable[str]) -> str:
    return ", ".join(fold_hosts(list(dict.fromkeys(hosts))))
