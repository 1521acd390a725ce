"""Write measured calls as tables for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from farmlib import host

WORKS = {
    "missing": "missing names",
    "stat": "stats",
    "open": "opens",
    "later": "opens, and again 4 s later",
    "readdir": "readdir",
    "start-usd": "start USD",
    "start-qt": "start Qt",
    "start-numpy": "start NumPy",
}
QUIET_WORKS = ("missing", "stat", "readdir")

#: The measured rows of count.py, for each line of a table.
Lines = Mapping[str, Sequence[Mapping[str, Any]]]


def calls(machine: str, lines: Lines, view: str) -> str:
    """Return the tables of one machine: all calls, and details of the software starts. `view` is the line that has bars."""
    starts = [work for work in _done(lines) if work.startswith("start")]
    parts = [f"### {machine}", "", "NFS calls, cold / warm:", "", *_table(lines, lambda row: int(row["calls"]))]
    if starts:
        parts += ["", "Software starts, calls other than READs, cold / warm:", ""]
        parts += _table(lines, _besides_reads, starts)
        parts += ["", "Software starts, LOOKUPs and OPENs that ended in an error, cold / warm:", ""]
        parts += _table(lines, _failed_lookups, starts)
    if view in lines:
        parts += ["", *_bars(lines[view])]
    return "\n".join([*parts, ""])


def options(machine: str, lines: Lines) -> str:
    """Return the table of mount options."""
    return "\n".join([f"### {machine}", "", "NFS calls, cold / warm:", "", *_options_table(lines), ""])


def replace(path: Path, name: str, text: str) -> None:
    """Replace the text between the begin and end lines of `name` in a document. Raises FarmError if it lacks these lines."""
    content = path.read_text(encoding="utf-8")
    before, begin, rest = content.partition(f"<!-- {name}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->\n")
    if not begin or not end:
        raise host.FarmError(
            f"{host.shown(path)} lacks the lines <!-- {name}: begin --> and <!-- {name}: end -->: add them where the tables belong"
        )
    path.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def _done(lines: Lines) -> list[str]:
    done = {row["work"] for rows in lines.values() for row in rows}
    return [work for work in WORKS if work in done]


def _besides_reads(row: Mapping[str, Any]) -> int:
    return int(row["calls"]) - _sent(row, "READ", "READ_PLUS")


def _sent(row: Mapping[str, Any], *operations: str) -> int:
    return sum(int(row["operations"].get(name, (0, 0))[0]) for name in operations)


def _failed_lookups(row: Mapping[str, Any]) -> int:
    return sum(int(row["operations"].get(name, (0, 0))[1]) for name in ("LOOKUP", "OPEN", "OPEN_NOATTR"))


def _bars(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    quiet = sum(int(row["calls"]) for row in rows if row["work"] in QUIET_WORKS)
    failed = sum(_failed_lookups(row) for row in rows if row["work"].startswith("start"))
    return [
        "| the collection's view, cold and warm | bar | measured | |",
        "|---|---|---|---|",
        f"| calls for missing names, stats and readdir | 0 | {quiet:,} | {_met(quiet == 0)} |",
        f"| LOOKUPs and OPENs of software starts that ended in an error | 0 | {failed:,} | {_met(failed == 0)} |",
    ]


def _met(yes: bool) -> str:
    return "met" if yes else "NOT MET"


def _table(lines: Lines, count: Callable[[Mapping[str, Any]], int], works: Sequence[str] = ()) -> list[str]:
    works = works or _done(lines)
    table = [
        "| configuration | " + " | ".join(WORKS[work] for work in works) + " |",
        "|---" * (len(works) + 1) + "|",
    ]
    for title, rows in lines.items():
        by_key = {(row["work"], row["state"]): f"{count(row):,}" for row in rows}
        cells = [f"{by_key.get((work, 'cold'), '-')} / {by_key.get((work, 'warm'), '-')}" for work in works]
        table.append(f"| {title} | " + " | ".join(cells) + " |")
    return table


def _options_table(lines: Lines) -> list[str]:
    """Return the table of calls, with columns for the cold READs, which read-ahead affects."""
    reads = ("later", "start-usd")
    table = _table(lines, lambda row: int(row["calls"]))
    heads = [f"READs of {WORKS[work]}, cold" for work in reads]
    found = [f"{table[0]} {' | '.join(heads)} |", table[1] + "---|" * len(heads)]
    for line, rows in zip(table[2:], lines.values()):
        cold = {row["work"]: row for row in rows if row["state"] == "cold"}
        cells = [f"{_sent(cold[work], 'READ', 'READ_PLUS'):,}" if work in cold else "-" for work in reads]
        found.append(f"{line} {' | '.join(cells)} |")
    return found
