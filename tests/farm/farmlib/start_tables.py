"""Write measured starts of software as tables for the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
#: Rows by way of one latency.
Ways = Mapping[str, Sequence[Row]]


def median(rows: Iterable[Row], start: str, state: str) -> Row | None:
    """Return one row for all rows of a start in a state: the medians of its times, and its most calls and bytes."""
    found = [row for row in rows if (row["start"], row["state"]) == (start, state)]
    if not found:
        return None
    times = {
        "seconds": statistics.median(row["seconds"] for row in found),
        "processor": statistics.median(row["processor"] for row in found),
        "waiting": statistics.median(map(_waiting, found)),
    }
    return {**found[0], **times, **{key: max(row[key] for row in found) for key in ("calls", "bytes")}}


def _waiting(row: Row) -> float:
    """Return the seconds in which the process of a start did not run: it waited for a server, a disk or the kernel's threads."""
    return max(0.0, float(row["seconds"]) - float(row["processor"]))


def table(ways: Ways, titles: Mapping[str, str], starts: Mapping[str, str], cell: Callable[[Row], str]) -> list[str]:
    """Return a table with a line for each way, a column for each start, and a cell for cold and warm."""
    lines = ["| | " + " | ".join(starts.values()) + " |", "|---" + "|---" * len(starts) + "|"]
    for way, title in titles.items():
        if way in ways:
            cells = []
            for start in starts:
                rows = [median(ways[way], start, state) for state in ("cold", "warm")]
                cells.append(" / ".join("-" if row is None else cell(row) for row in rows))
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def total(ways: Ways, way: str, starts: Iterable[str], state: str, value: Callable[[Row], float]) -> float:
    rows = [median(ways[way], start, state) for start in starts]
    return sum(value(row) for row in rows if row is not None)


def costs(
    measured: Mapping[str, Mapping[str, Any]], ways: Ways, titles: Mapping[str, str], starts: Sequence[str]
) -> list[str]:
    """Return a table of what each way costs: the six starts together, the disk, and one more release."""
    heads = (
        "first starts: calls",
        "MB",
        "seconds",
        "second starts: seconds",
        "preparing: calls",
        "MB",
        "seconds",
        "MB on the disk",
        "one more release: seconds",
        "calls",
        "MB",
    )
    lines = [f"| | {' | '.join(heads)} |", "|---" + "|--:" * len(heads) + "|"]
    for way, title in titles.items():
        if way not in ways:
            continue
        cost = measured.get(way, {})
        more = cost.get("one more", {})
        lines.append(
            f"| {title} | {total(ways, way, starts, 'cold', lambda row: row['calls']):,.0f} "
            f"| {_megabytes(total(ways, way, starts, 'cold', lambda row: row['bytes']))} "
            f"| {total(ways, way, starts, 'cold', lambda row: row['seconds']):.1f} "
            f"| {total(ways, way, starts, 'warm', lambda row: row['seconds']):.1f} "
            f"| {_count(cost)} | {_megabytes(cost.get('bytes'))} | {_seconds(cost)} | {_megabytes(cost.get('disk'))} "
            f"| {_seconds(more)} | {_count(more)} | {_megabytes(more.get('bytes'))} |"
        )
    return lines


def _count(cost: Mapping[str, Any]) -> str:
    return f"{cost['calls']:,}" if "calls" in cost else "-"


def _seconds(cost: Mapping[str, Any]) -> str:
    return f"{cost['seconds']:.0f}" if "seconds" in cost else "-"


def _megabytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.1f}"
