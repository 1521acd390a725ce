# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the data that the page of a report embeds. The template ``report.html.j2`` reads them.

The data are small for large farms: every text, list of releases and kind of row is stored once, and referred to by its number.

| field | what it has |
|---|---|
| ``time`` | the time of the report in seconds since 1970; null if it was not given |
| ``base`` | the time that all times of rows are before, in seconds since 1970 |
| ``statuses``, ``hosts``, ``views``, ``releases``, ``texts`` | lists of texts |
| ``lists`` | lists of releases: the number of the first one, then the distance to each next one |
| ``sets`` | view, generation (text or null), and list of releases |
| ``kinds`` | set, status, declared generation (text or null), text of the mountpoint, texts of the reasons |
| ``rows`` | for each host: kind, since, bytes on disk, last run, when it was verified, and the number of problems, row by row |
| ``problems`` | status, text of the reason, views, and hosts as distances |
| ``unlisted_problems`` | how many more problems there are |
| ``uses`` | release, host, view, and texts of the process, how it uses it, and the paths; null if they were not asked for |
| ``unlisted_uses`` | how many more uses there are |

A number that refers to nothing, and a time that is not known, is -1. Times are in seconds before ``base``.
"""

from __future__ import annotations

import calendar
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_ranges import natural_key
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import (
    STATUSES,
    Row,
    one_line,
    problems_of,
    shorten,
)

#: Characters that the reasons may take together. A reason beyond that is replaced.
_REASONS_LENGTH = 400_000
_NO_ROOM = "there are too many different reasons for this page: see the CSV"
_MOST_PROBLEMS = 300
_MOST_USES = 5000


class _Numbers:
    """Values, each with the number under which it is stored."""

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}

    def of(self, value: Hashable) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def values(self) -> list[Any]:
        return list(self.numbers)


class _Texts(_Numbers):
    """Texts whose length is limited together."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.room = limit

    def reason(self, text: str) -> int:
        text = shorten(text)
        if text not in self.numbers:
            if len(text) > self.room:
                return self.of(_NO_ROOM)
            self.room -= len(text)
        return self.of(text)


@dataclass(frozen=True)
class _Use:
    """What uses a release. The release is None if it may be any, and the view if it is none."""

    release: str | None
    host: str
    view: str | None
    process: str
    how: str
    paths: str


def _uses(usage: Mapping[str, Any]) -> Iterator[_Use]:
    """Yield what uses releases, as the module gathered_usage returns it. Hosts of which it is unknown come first."""
    for host, reason in usage["unknown"].items():
        yield _Use(None, host, None, "unknown", "", reason)
    for one in usage["releases"]:
        for host, processes in one["processes"].items():
            for process in processes:
                paths = list(process.get("paths", ()))
                more = process.get("path_count", len(paths)) - len(paths)
                yield _Use(
                    one["release"],
                    host,
                    process.get("view"),
                    f"{process['name']} ({process['pid']})",
                    ", ".join(process["how"]),
                    ", ".join([*paths, *([f"{more} more"] if more > 0 else [])]),
                )


def page_data(rows: Sequence[Row], time: str = "", usage: Mapping[str, Any] | None = None) -> str:
    """Return the data of a page as JSON that is safe inside of a script element.

    ``time`` is the time of the report. ``usage`` is what uses releases, as the module gathered_usage returns it.
    """
    uses = list(_uses(usage)) if usage else []
    names = {
        "host": {row.host for row in rows} | {use.host for use in uses},
        "view": {row.view for row in rows if row.view is not None} | {use.view for use in uses if use.view is not None},
        "release": {release for row in rows for release in row.releases}
        | {use.release for use in uses if use.release is not None},
    }
    hosts, views, releases = (sorted(found, key=natural_key) for found in names.values())
    number_of = {
        "host": {name: number for number, name in enumerate(hosts)},
        "view": {name: number for number, name in enumerate(views)},
        "release": {name: number for number, name in enumerate(releases)},
    }
    texts, lists, sets, kinds = _Texts(_REASONS_LENGTH), _Numbers(), _Numbers(), _Numbers()
    known: dict[tuple[str, ...], int] = {}
    base = max(map(_seconds, _times(rows, time)), default=0)
    problems = problems_of(rows)
    listed = [
        [
            STATUSES.index(one.status),
            texts.reason(one.reason),
            [number_of["view"][view] for view in one.views],
            _distances(number_of["host"][host] for host in one.hosts),
        ]
        for one in problems[:_MOST_PROBLEMS]
    ]
    columns: list[list[int]] = [[] for _host in hosts]
    for row in rows:
        if row.releases not in known:
            shown = {number_of["release"][release] for release in row.releases}
            known[row.releases] = lists.of(tuple(_distances(shown)))
        view = -1 if row.view is None else number_of["view"][row.view]
        kind = (
            sets.of((view, row.generation, known[row.releases])),
            STATUSES.index(row.status),
            row.declared_generation,
            -1 if row.mountpoint is None else texts.of(one_line(row.mountpoint)),
            tuple(texts.reason(reason) for reason in row.reasons()),
        )
        since, last_run, verified = (
            -1 if text is None else base - _seconds(text) for text in (row.since, row.last_run, row.verified_at)
        )
        found_problems = -1 if row.verified_problems is None else row.verified_problems
        columns[number_of["host"][row.host]] += [
            *(kinds.of(kind), since, row.bytes_on_disk, last_run, verified, found_problems),
        ]
    used = [
        [
            -1 if use.release is None else number_of["release"][use.release],
            number_of["host"][use.host],
            -1 if use.view is None else number_of["view"][use.view],
            *(texts.reason(text) for text in (use.process, use.how, use.paths)),
        ]
        for use in uses[:_MOST_USES]
    ]
    found = {
        "time": _seconds(time) if time else None,
        "base": base,
        "statuses": STATUSES,
        "hosts": [one_line(host) for host in hosts],
        "views": [one_line(view) for view in views],
        "releases": [one_line(release) for release in releases],
        "texts": texts.values(),
        "lists": lists.values(),
        "sets": sets.values(),
        "kinds": kinds.values(),
        "rows": columns,
        "problems": listed,
        "unlisted_problems": len(problems) - len(listed),
        "uses": used if usage else None,
        "unlisted_uses": max(len(uses) - _MOST_USES, 0),
    }
    return _for_script(found)


def _times(rows: Sequence[Row], time: str) -> Iterator[str]:
    """Yield all times that the data have."""
    for row in rows:
        yield from filter(None, (row.since, row.last_run, row.verified_at))
    yield from filter(None, (time,))


def _distances(numbers: Iterable[int]) -> list[int]:
    ordered = sorted(numbers)
    return [number - before for before, number in zip([0, *ordered], ordered)]


def _seconds(time: str) -> int:
    """Return a time such as ``2026-11-27T15:00:00Z`` in seconds since 1970."""
    day, _separator, clock = time.rstrip("Z").partition("T")
    numbers = [int(one) for one in (*day.split("-"), *clock.split(":"))]
    return calendar.timegm((*numbers, 0, 0, 0))


def _for_script(values: Any) -> str:
    """Return JSON in ASCII without the characters that end a script element or begin a comment in it."""
    text = json.dumps(values, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # Before 2.19, ansible-core takes text that begins with a brace for a dictionary, and writes it as Python does.
    return " " + text
