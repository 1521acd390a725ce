# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics of the views of one host, in the text format of Prometheus (version 0.0.4).

Times are timestamps and never ages, since the file is read long after it was written.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.mountstats import NfsCalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import STATUSES, Row

PREFIX = "renderfarm_overlay_"
#: A host never reports itself as unreachable.
SHOWN_STATUSES = tuple(status for status in STATUSES if status != "unreachable")
#: The operations that have metrics before their first call, so that Prometheus also sees the increase from 0.
ALWAYS_SHOWN = frozenset(("ACCESS", "GETATTR", "LOOKUP", "OPEN", "READ", "READDIR", "READDIRPLUS"))


@dataclass(frozen=True)
class Metric:
    """A metric: its type and help text, and the labels of its samples."""

    type: str
    help: str
    labels: tuple[str, ...]


#: Every metric by its name without PREFIX, in the order of the file.
METRICS = {
    "written_timestamp_seconds": Metric("gauge", "When this file was written, in seconds since 1970.", ()),
    "view_info": Metric(
        "gauge",
        "The generations that a view shows and should show. The value is 1.",
        ("view", "mountpoint", "generation", "declared_generation"),
    ),
    "view_status": Metric("gauge", "Whether a view has this status.", ("view", "status")),
    "view_generation_timestamp_seconds": Metric(
        "gauge", "When a view began to show its generation, in seconds since 1970.", ("view",)
    ),
    "view_releases": Metric("gauge", "Number of releases that a view shows.", ("view",)),
    "view_disk_bytes": Metric("gauge", "Disk usage of all generations of a view on this host.", ("view",)),
    "view_differences": Metric("gauge", "Number of differences between a view and its declaration.", ("view",)),
    "view_problems": Metric("gauge", "Number of reasons why a view is not as declared, besides a hold.", ("view",)),
    "view_held": Metric("gauge", "Whether a hold keeps a view at its generation.", ("view",)),
    "view_hold_end_timestamp_seconds": Metric(
        "gauge", "When the hold of a view ends, in seconds since 1970. Missing if it has no end.", ("view",)
    ),
    "view_last_run_timestamp_seconds": Metric(
        "gauge", "When a run last brought a view to its state, or tried to, in seconds since 1970.", ("view",)
    ),
    "view_last_run_success": Metric("gauge", "Whether the last run brought a view to its state.", ("view",)),
    "view_verified_timestamp_seconds": Metric(
        "gauge", "When a view was last verified, in seconds since 1970. Missing if it never was.", ("view",)
    ),
    "view_verification_problems": Metric("gauge", "Number of problems that the last verification found.", ("view",)),
    "nfs_calls_total": Metric(
        "counter",
        "NFS calls below views since the file system was mounted, by operation.",
        ("mountpoint", "operation"),
    ),
    "nfs_errors_total": Metric(
        "counter",
        "NFS calls below views that ended in an error, by operation. A LOOKUP of a missing name is one.",
        ("mountpoint", "operation"),
    ),
}

#: A name without PREFIX, the values of the labels in their order, and the value.
_Sample = tuple[str, tuple[str, ...], int]

_TIME_FIELDS = re.compile(r"\d+")


def metrics_text(rows: Iterable[Row], calls: Mapping[bytes, Mapping[str, NfsCalls]], now: int) -> str:
    """Return the metrics of a host for the textfile collector of node_exporter.

    ``rows`` are those of one host; rows without a view are ignored. ``calls`` has the NFS calls of each operation by mountpoint. ``now`` is
    in seconds since 1970. Equal arguments give equal text. Raises OverlayError if two rows have the same view, or a time is impossible.
    """
    lines: dict[str, list[str]] = {name: [] for name in METRICS}
    for name, values, value in _samples(rows, calls, now):
        lines[name].append(_line(name, values, value))
    text = []
    for name, metric in METRICS.items():
        if lines[name]:
            text += [f"# HELP {PREFIX}{name} {metric.help}", f"# TYPE {PREFIX}{name} {metric.type}", *lines[name]]
    return "\n".join(text) + "\n"


def _samples(rows: Iterable[Row], calls: Mapping[bytes, Mapping[str, NfsCalls]], now: int) -> Iterator[_Sample]:
    yield "written_timestamp_seconds", (), now
    known: set[str] = set()
    for row in sorted(rows, key=lambda row: row.view or ""):
        if row.view is None:
            continue
        if row.view in known:
            raise OverlayError(
                f"view {row.view} has two rows, so its metrics would be ambiguous: give each view a name of its own"
            )
        known.add(row.view)
        yield from _of_view(row, row.view)
    for path, operations in sorted(calls.items()):
        for operation, found in sorted(operations.items()):
            if found.calls or operation in ALWAYS_SHOWN:
                yield "nfs_calls_total", (show(path), operation), found.calls
                if found.errors is not None:
                    yield "nfs_errors_total", (show(path), operation), found.errors


def _of_view(row: Row, view: str) -> Iterator[_Sample]:
    generations = (row.generation or "", row.declared_generation or "")
    yield "view_info", (view, row.mountpoint or "", *generations), 1
    for status in SHOWN_STATUSES:
        yield "view_status", (view, status.replace(" ", "_")), int(row.status == status)
    yield "view_releases", (view,), len(row.releases)
    yield "view_disk_bytes", (view,), row.bytes_on_disk
    yield "view_differences", (view,), len(row.drift)
    is_failed = bool(row.failure) or row.status == "failed"
    problems = len(row.drift) + is_failed
    yield "view_problems", (view,), problems or int(row.status not in ("as declared", "held"))
    yield "view_held", (view,), int(row.is_held)
    if row.last_run is not None or is_failed:
        yield "view_last_run_success", (view,), int(not is_failed)
    if row.verified_problems is not None:
        yield "view_verification_problems", (view,), row.verified_problems
    times = {
        "view_generation_timestamp_seconds": row.since,
        "view_hold_end_timestamp_seconds": row.hold_until,
        "view_last_run_timestamp_seconds": row.last_run,
        "view_verified_timestamp_seconds": row.verified_at,
    }
    for name, time in times.items():
        if time is not None:
            yield name, (view,), _seconds(time)


def _seconds(time: str) -> int:
    """Return a time such as ``2026-11-27T15:00:00Z`` in seconds since 1970. Raises OverlayError if there is no such day."""
    fields = [int(field) for field in _TIME_FIELDS.findall(time)]
    try:
        return calendar.timegm((*fields, 0, 0, 0))
    except ValueError:
        raise OverlayError(f"{time} is no time: the day does not exist") from None


def _line(name: str, values: Iterable[str], value: int) -> str:
    pairs = [f'{label}="{_escaped(text)}"' for label, text in zip(METRICS[name].labels, values)]
    return f"{PREFIX}{name}{{{','.join(pairs)}}} {value}" if pairs else f"{PREFIX}{name} {value}"


def _escaped(value: str) -> str:
    """Return the value of a label, escaped. What is not UTF-8 becomes escapes such as ``\\xff`` in the value."""
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
