"""Measured calls as tables for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

WORKS = {
    "missing": "missing names",
    "stat": "stats",
    "open": "opens",
    "later": "stats and opens 4 s later",
    "readdir": "readdir",
    "start-usd": "start USD",
    "start-qt": "start Qt",
    "start-numpy": "start NumPy",
}


def markdown(measured: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """For each machine a table: a line for each configuration, cold / warm calls for each piece of work."""
    parts = []
    for machine, configurations in measured.items():
        parts += [f"### {machine}", "", "NFS calls, cold / warm:", ""]
        parts += _table(configurations, lambda row: int(row["calls"]))
        starts = [work for work in _done(configurations) if work.startswith("start")]
        parts += ["", "Of the software starts, calls besides READs, cold / warm:", ""]
        parts += _table(configurations, _besides_reads, starts)
        parts += ["", "Of these, LOOKUPs and OPENs that ended in an error, cold / warm:", ""]
        parts += _table(configurations, _failed_lookups, starts)
        parts.append("")
    return "\n".join(parts)


def _done(configurations: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    done = {row["work"] for rows in configurations.values() for row in rows}
    return [work for work in WORKS if work in done]


def _besides_reads(row: Mapping[str, Any]) -> int:
    return int(row["calls"]) - sum(int(row["operations"].get(name, (0, 0))[0]) for name in ("READ", "READ_PLUS"))


def _failed_lookups(row: Mapping[str, Any]) -> int:
    return sum(int(row["operations"].get(name, (0, 0))[1]) for name in ("LOOKUP", "OPEN", "OPEN_NOATTR"))


def _table(
    configurations: Mapping[str, Sequence[Mapping[str, Any]]],
    count: Callable[[Mapping[str, Any]], int],
    works: Sequence[str] = (),
) -> list[str]:
    works = works or _done(configurations)
    lines = [
        "| configuration | " + " | ".join(WORKS[work] for work in works) + " |",
        "|---" * (len(works) + 1) + "|",
    ]
    for title, rows in configurations.items():
        by_key = {(row["work"], row["state"]): f"{count(row):,}" for row in rows}
        cells = [f"{by_key.get((work, 'cold'), '-')} / {by_key.get((work, 'warm'), '-')}" for work in works]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines
