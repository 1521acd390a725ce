# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report where the views of a farm stand: as a table for a terminal, as CSV, and as a summary for other programs.

A report is made from rows, one for each view of each host. A host that was not reached has one row without a view.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_ranges import fold_hosts, natural_key
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

#: Every status of a view on a host, the worst first.
STATUSES = ("failed", "unreachable", "drifted", "not declared", "held", "as declared")

#: Characters of a reason that the table, the summary and the page show. The CSV and the whole report have all of it.
_REASON_LENGTH = 400
#: Reasons of one status that the table and the summary list.
_MOST_REASONS = 20
#: Lines of host ranges in one entry of the table.
_MOST_LINES = 6
#: Columns of the table that views and statuses take at most. What is longer moves the rest of its line.
_WIDEST = 36

#: The form of every time: UTC, in whole seconds.
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_ADDRESS = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)")

_ID = records.nullable(records.form("[0-9a-f]{16}"))
_WHEN = records.nullable(records.form(TIME))
#: The year 9999.
_SECONDS = records.integer(0, 253_402_300_799)


def _any_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be text"


def _texts(value: Any) -> str | None:
    is_list = isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    return None if is_list else "must be a list of texts"


def _hold(value: Any) -> str | None:
    if value is None:
        return None
    until = value.get("until") if isinstance(value, Mapping) else ""
    # The status record of a view has seconds.
    problem = _SECONDS(until) if isinstance(until, int) else _WHEN(until)
    return "must be null, or a mapping with the keys until, which is a time, and reason" if problem else None


def _verified(value: Any) -> str | None:
    if value is None:
        return None
    fields = value if isinstance(value, Mapping) else {}
    problem = records.form(TIME)(fields.get("time")) or records.integer(0, records.LARGEST_SIZE)(fields.get("problems"))
    return "must be null, or a mapping with the keys time and problems" if problem else None


def _hold_end(until: Any) -> str | None:
    """Return the end of a hold as text; None if it has none. It may be given in seconds since 1970, with 0 for none."""
    return (time_text(until) if until else None) if isinstance(until, int) else until


def time_text(seconds: int) -> str:
    """Return a time that is given in seconds since 1970 as text in UTC, such as ``2026-11-27T15:00:00Z``."""
    days, second = divmod(seconds, 86_400)
    # Days are counted from 1 March of the year 0, so that a leap day is the last day of its year. 400 years have 146,097 days.
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5 - 1
    month = month + 3 if month < 10 else month - 9
    year += era * 400 + (month <= 2)
    return f"{year:04d}-{month:02d}-{day:02d}T{second // 3_600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"


#: The fields of a row that may be left out, with what they hold then.
_FIELDS: dict[str, tuple[records.Check, Any]] = {
    "view": (records.nullable(_any_text), None),
    "generation": (_ID, None),
    "declared_generation": (_ID, None),
    "since": (_WHEN, None),
    "mountpoint": (records.nullable(_any_text), None),
    "releases": (records.nullable(_texts), ()),
    "drift": (records.nullable(_texts), ()),
    "failure": (records.nullable(_any_text), ""),
    "hold": (_hold, None),
    "bytes_on_disk": (records.nullable(records.integer(0, records.LARGEST_SIZE)), 0),
    "last_run": (_WHEN, None),
    "verified": (_verified, None),
}


@dataclass(frozen=True)
class Row:
    """One view on one host. Times are UTC, such as ``2026-11-27T15:00:00Z``."""

    host: str
    status: str
    #: None if the row is about the host as a whole.
    view: str | None = None
    #: What the host shows, and what it is declared to show.
    generation: str | None = None
    declared_generation: str | None = None
    #: Since when the generation is shown.
    since: str | None = None
    mountpoint: str | None = None
    releases: tuple[str, ...] = ()
    #: One sentence for each difference from the declaration.
    drift: tuple[str, ...] = ()
    failure: str = ""
    is_held: bool = False
    hold_until: str | None = None
    hold_reason: str = ""
    bytes_on_disk: int = 0
    last_run: str | None = None
    #: When the view was last verified, with how many problems, and how thoroughly; None if it never was.
    verified_at: str | None = None
    verified_problems: int | None = None
    verified_level: str | None = None

    @classmethod
    def of(cls, values: Any, number: int) -> Row:
        """Return the row of a mapping. Raises OverlayError with the ``number`` of the row if a field is wrong."""
        if not isinstance(values, Mapping) or not isinstance(values.get("host"), str) or not values["host"]:
            raise OverlayError(f"row {number} of the report must be a mapping that names its host")
        where = f"row {number} of the report, host {values['host']}"
        if values.get("status") not in STATUSES:
            raise OverlayError(f"{where}: status must be one of {', '.join(STATUSES)}, not {values.get('status')!r}")
        found = {}
        for name, (check, default) in _FIELDS.items():
            found[name] = values.get(name, default)
            problem = check(found[name])
            if problem:
                raise OverlayError(f"{where}: {name} {problem}")
        hold, verified = found.pop("hold"), found.pop("verified")
        found["releases"], found["drift"] = tuple(found["releases"] or ()), tuple(found["drift"] or ())
        found["failure"] = found["failure"] or ""
        found["bytes_on_disk"] = found["bytes_on_disk"] or 0
        if hold is not None:
            found.update(
                is_held=True, hold_until=_hold_end(hold.get("until")), hold_reason=str(hold.get("reason") or "")
            )
        if verified is not None:
            level = str(verified.get("level") or "")
            found.update(verified_at=verified["time"], verified_problems=verified["problems"], verified_level=level)
        return cls(host=str(values["host"]), status=str(values["status"]), **found)

    def reasons(self) -> list[str]:
        """Return why the view is not simply as declared, each reason as one line."""
        found = [*self.drift, *([self.failure] if self.failure else [])]
        if self.is_held:
            until = f"{_HELD_UNTIL}{self.hold_until or 'the hold is lifted'}"
            found.append(f"{until}: {self.hold_reason}" if self.hold_reason else until)
        if not found and self.status != "as declared":
            found = [_DEFAULT_REASONS[self.status]]
        return [one_line(reason) for reason in found]

    def as_dict(self) -> dict[str, Any]:
        """Return the row as it was given, without its releases."""
        hold = {"until": self.hold_until, "reason": self.hold_reason} if self.is_held else None
        verified = (
            {"time": self.verified_at, "problems": self.verified_problems, "level": self.verified_level}
            if self.verified_at
            else None
        )
        apart = ("hold", "releases", "verified")
        return {
            **{name: getattr(self, name) for name in ("host", "status", *_FIELDS) if name not in apart},
            "drift": list(self.drift),
            "hold": hold,
            **({"verified": verified} if verified else {}),
        }


_DEFAULT_REASONS = {
    "failed": "it failed without a message",
    "unreachable": "the host did not answer",
    "drifted": "it differs from the declaration",
    "not declared": "it is on the host, and no such view is declared there",
    "held": "held",
}


def rows_of(values: Iterable[Any], hosts: Iterable[str] = ()) -> list[Row]:
    """Return the rows of mappings, sorted by host and view.

    A row without releases gets those of another row with its view and generation, so that large farms need not repeat them. Each of
    ``hosts`` that has no row gets one with the status ``unreachable``. Raises OverlayError if a row is wrong.
    """
    rows = [Row.of(one, number) for number, one in enumerate(values, 1)]
    known_releases = {(row.view, row.generation): row.releases for row in rows if row.generation and row.releases}
    for number, row in enumerate(rows):
        if row.generation and not row.releases:
            rows[number] = replace(row, releases=known_releases.get((row.view, row.generation), ()))
    known = {row.host for row in rows}
    rows += [Row(host, "unreachable") for host in dict.fromkeys(hosts) if host not in known]
    return sorted(rows, key=lambda row: (natural_key(row.host), natural_key(row.view or "")))


def one_line(text: str) -> str:
    """Return a text as one line that is safe to print: control characters and lone surrogates are escaped."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in line)


def shorten(text: str) -> str:
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 1] + "…"


# What hosts have in common


@dataclass(frozen=True)
class ShownGeneration:
    """One generation of a view, and the hosts that show it."""

    view: str
    #: None if the hosts show no generation of the view.
    generation: str | None
    hosts: tuple[str, ...]
    #: How many of the hosts have each status, the worst first.
    statuses: tuple[tuple[str, int], ...]
    releases: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One reason why views are not as declared, and the hosts that have it."""

    status: str
    reason: str
    #: Empty if the reason is about hosts as a whole.
    views: tuple[str, ...]
    hosts: tuple[str, ...]


def shown_generations(rows: Iterable[Row]) -> list[ShownGeneration]:
    """Return the generations that hosts show, by view, those of most hosts first."""
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        if row.view is not None:
            groups.setdefault((row.view, row.generation), []).append(row)
    found = [
        ShownGeneration(view, generation, tuple(row.host for row in group), _statuses(group), group[0].releases)
        for (view, generation), group in groups.items()
    ]
    return sorted(found, key=lambda one: (natural_key(one.view), -len(one.hosts), one.generation or ""))


def _statuses(rows: Iterable[Row]) -> tuple[tuple[str, int], ...]:
    counts = Counter(row.status for row in rows)
    return tuple((status, counts[status]) for status in STATUSES if counts[status])


def problems_of(rows: Iterable[Row]) -> list[Problem]:
    """Return the problems of rows, the worst status first, then those of most hosts.

    Reasons that differ in the name or the address of their host, or in the end of a hold only are one problem.
    """
    groups: dict[tuple[str, str], _Reasons] = {}
    for row in rows:
        if row.status == "as declared":
            continue
        for reason in row.reasons():
            group = groups.setdefault((row.status, _without_host(_without_end(reason, row), row.host)), _Reasons())
            group.texts.add(reason)
            group.ends.add(row.hold_until or "")
            group.hosts_of.setdefault(row.view or "", {})[row.host] = None
    found = [
        Problem(status, shorten(group.shown(masked)), views, hosts)
        for (status, masked), group in groups.items()
        for hosts, views in _views_by_hosts(group.hosts_of)
    ]
    return sorted(found, key=lambda one: (STATUSES.index(one.status), -len(one.hosts), one.reason, one.views))


@dataclass
class _Reasons:
    """Reasons that are one problem."""

    #: The reasons as they are.
    texts: set[str] = field(default_factory=set)
    #: When the holds end that are among them.
    ends: set[str] = field(default_factory=set)
    #: The hosts of each view.
    hosts_of: dict[str, dict[str, None]] = field(default_factory=dict)

    def shown(self, masked: str) -> str:
        """Return one reason for all, given what they have in common."""
        if len(self.texts) == 1:
            return next(iter(self.texts))
        return masked.replace(f"{_HELD_UNTIL}{_END}", f"{_HELD_UNTIL}{min(self.ends)} to {max(self.ends)}", 1)


_HELD_UNTIL = "held until "
#: What stands for the end of a hold in reasons that are compared.
_END = "TIME"


def _without_end(reason: str, row: Row) -> str:
    """Return a reason without the end of the hold, which each host reckons from its own rollback."""
    if row.hold_until is None:
        return reason
    return reason.replace(f"{_HELD_UNTIL}{row.hold_until}", f"{_HELD_UNTIL}{_END}", 1)


def _without_host(reason: str, host: str) -> str:
    short = host.partition(".")[0]
    # The short name of an address would be a number.
    for name in (host,) if short.isdigit() else (host, short):
        if name in reason:
            reason = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "HOST", reason)
    return _ADDRESS.sub("ADDRESS", reason)


def _views_by_hosts(hosts_of: Mapping[str, Iterable[str]]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield hosts with the views that have exactly these hosts."""
    found: dict[tuple[str, ...], list[str]] = {}
    for view, hosts in hosts_of.items():
        found.setdefault(tuple(hosts), []).append(view)
    for hosts_in_common, views in found.items():
        yield hosts_in_common, tuple(view for view in views if view)


# The table

_NO_VIEWS = (
    "no views: the hosts have none in their state directories. If the deployment set overlay_state_dir, set it here too,"
    " for example with -e @views.yml"
)


def table_text(rows: Sequence[Row], time: str = "", width: int = 120) -> str:
    """Return a report for a terminal of ``width`` columns. It stays readable for hundreds of hosts.

    There is one entry for each view and generation, then one for each reason why views are not as declared, then the counts.
    """
    if not rows:
        return f"{_NO_VIEWS}\n"
    lines = [f"{_counted(len({row.host for row in rows}), 'host')}{f' at {time}' if time else ''}", ""]
    generations = shown_generations(rows)
    if generations:
        lines += [*_generation_lines(generations, width), ""]
    lines += _problem_lines(problems_of(rows), width)
    counts = Counter(row.status for row in rows)
    lines.append(", ".join(f"{counts[status]} {status}" for status in reversed(STATUSES)))
    lines += _verified_lines(rows, width)
    return "\n".join(lines) + "\n"


def _verified_lines(rows: Sequence[Row], width: int) -> Iterator[str]:
    """Yield what verifications found, if there were any."""
    verified = [row for row in rows if row.verified_at]
    if not verified:
        return
    oldest = min(row.verified_at or "" for row in verified)
    damaged = {row.host: None for row in verified if row.verified_problems}
    found = f"problems on {_counted(len(damaged), 'host')}:" if damaged else "no problems"
    yield ""
    yield f"VERIFIED: {len(verified)} of {_counted(len(rows), 'view')} since {oldest}, {found}"
    if damaged:
        yield from _with_hosts("  ", list(damaged), width)


def _generation_lines(generations: Sequence[ShownGeneration], width: int) -> Iterator[str]:
    widths = [
        min(max(map(len, ("VIEW", *(one.view for one in generations)))), _WIDEST),
        min(max(map(len, ("STATUS", *(_status_text(one.statuses) for one in generations)))), _WIDEST),
    ]

    def start(view: str, generation: str, hosts: str, status: str) -> str:
        return f"{view:{widths[0]}}  {generation:16}  {hosts:>5}  {status:{widths[1]}}  "

    yield start("VIEW", "GENERATION", "HOSTS", "STATUS") + "SHOWN ON"
    last = None
    for one in generations:
        view = "" if one.view == last else one_line(one.view)
        before = start(view, one.generation or "none", str(len(one.hosts)), _status_text(one.statuses))
        yield from _with_hosts(before, one.hosts, width)
        last = one.view


def _status_text(statuses: Sequence[tuple[str, int]]) -> str:
    if len(statuses) == 1:
        return statuses[0][0]
    return ", ".join(f"{count} {status}" for status, count in statuses)


def _problem_lines(problems: Sequence[Problem], width: int) -> Iterator[str]:
    for status in STATUSES:
        these = [problem for problem in problems if problem.status == status]
        if not these:
            continue
        yield f"{status.upper()}: {_counted(len({host for one in these for host in one.hosts}), 'host')}"
        for problem in these[:_MOST_REASONS]:
            views = ", ".join(map(one_line, problem.views))
            yield f"  {views}: {problem.reason}" if views else f"  {problem.reason}"
            yield from _with_hosts("    ", problem.hosts, width)
        more = these[_MOST_REASONS:]
        if more:
            hosts = len({host for one in more for host in one.hosts})
            yield f"  and {_counted(len(more), 'more reason')} on {_counted(hosts, 'host')}"
        yield ""


def _with_hosts(start: str, hosts: Sequence[str], width: int) -> list[str]:
    """Return lines that begin with ``start`` and list ``hosts`` as ranges, cut to a few lines."""
    room = max(width - len(start), 30)
    count = len(hosts)
    lines = _wrapped(hosts, room)
    while len(lines) > _MOST_LINES and count > 1:
        count //= 2
        lines = _wrapped(hosts[:count], room)
    if count < len(hosts):
        lines.append(f"and {len(hosts) - count} more")
    return [(start if number == 0 else " " * len(start)) + line for number, line in enumerate(lines)]


def _wrapped(hosts: Sequence[str], width: int) -> list[str]:
    """Return hosts as ranges in lines of at most ``width`` characters, broken behind commas."""
    lines = [""]
    for piece in re.findall(r"[^,]+,?|,", ", ".join(one_line(one) for one in fold_hosts(hosts))):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece if lines[-1] else piece.lstrip()
    return [line.rstrip() for line in lines]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# For other programs

_COLUMNS = (
    *("host", "view", "status", "generation", "declared_generation", "since", "mountpoint", "bytes_on_disk"),
    *("last_run", "hold_until", "hold_reason", "failure", "drift", "releases", "verified_at", "verified_problems"),
)


def csv_text(rows: Iterable[Row]) -> str:
    """Return rows as CSV with a line of headings. The column ``releases`` has the number of releases.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        values = {name: getattr(row, name) for name in _COLUMNS}
        values.update(drift="; ".join(row.drift), releases=len(row.releases))
        writer.writerow([cell(values[name]) for name in _COLUMNS])
    return text.getvalue()


def cell(value: Any) -> Any:
    """Return a value for a cell of CSV: one line, which no spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return "" if value is None else value
    line = one_line(value)
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def whole_report(rows: Sequence[Row], time: str = "") -> dict[str, Any]:
    """Return all rows, and the releases of each generation once."""
    lists: dict[tuple[str | None, str | None, tuple[str, ...]], None] = {}
    for row in rows:
        if row.view is not None and (row.generation or row.releases):
            lists[row.view, row.generation, row.releases] = None
    return {
        "time": time or None,
        "rows": [row.as_dict() for row in rows],
        "generations": [
            {"view": view, "generation": generation, "releases": list(releases)} for view, generation, releases in lists
        ],
    }


def summary(rows: Sequence[Row], time: str = "") -> dict[str, Any]:
    """Return a summary that is small enough for the artifacts of a job, or for the facts of a host if the rows are its own.

    ``status`` is the worst status of all rows.
    """
    counts = Counter(row.status for row in rows)
    problems = problems_of(rows)
    listed = [
        problem for status in STATUSES for problem in [one for one in problems if one.status == status][:_MOST_REASONS]
    ]
    return {
        "time": time or None,
        "status": next((status for status in STATUSES if counts[status]), "as declared"),
        "hosts": len({row.host for row in rows}),
        "views": list(dict.fromkeys(row.view for row in rows if row.view is not None)),
        "statuses": {status.replace(" ", "_"): counts[status] for status in STATUSES},
        "generations": [
            {
                "view": one.view,
                "generation": one.generation,
                "hosts": len(one.hosts),
                "host_ranges": ", ".join(fold_hosts(one.hosts)),
                "statuses": {status.replace(" ", "_"): count for status, count in one.statuses},
                "releases": len(one.releases),
            }
            for one in shown_generations(rows)
        ],
        "problems": [
            {
                "status": one.status,
                "views": list(one.views),
                "reason": one.reason,
                "hosts": len(one.hosts),
                "host_ranges": ", ".join(fold_hosts(one.hosts)),
            }
            for one in listed
        ],
        "unlisted_problems": len(problems) - len(listed),
        "verified": sum(row.verified_at is not None for row in rows),
        "verified_with_problems": sum(bool(row.verified_problems) for row in rows),
    }
