"""Rows of a farm that does not exist: always the same ones for the same size."""

from __future__ import annotations

import hashlib
import random
from typing import Any

#: The time of the report.
NOW = "2026-11-27T15:00:00Z"
_PACKAGES = ("arnold", "blender", "houdini", "katana", "maya", "nuke", "openimageio", "rez", "usd", "vray")

#: Texts that try to leave the place that they are put into.
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "&lt;b&gt; \"quoted\" 'names'",
    "{{ 7 * 7 }}",
    "a[1-3],b",
    "[",
    "node(1",
)


def hostile_rows() -> list[dict[str, Any]]:
    """Return rows in which every field that takes text has a hostile one."""
    return [
        {
            "host": text,
            "view": text,
            "status": "held",
            "generation": "0" * 16,
            "mountpoint": text,
            "releases": [text, "not\udcffutf8/1"],
            "drift": [text],
            "failure": text,
            "hold": {"until": None, "reason": text},
        }
        for text in HOSTILE
    ]


def releases_of(count: int) -> list[str]:
    """Return the paths of ``count`` releases."""
    return [
        f"{_PACKAGES[number % 10]}/{18 + number // 100}.{number // 10 % 10}.{400 + number}" for number in range(count)
    ]


def farm_rows(hosts: int, views: int, releases: int) -> list[dict[str, Any]]:
    """Return a row for each view of each host, and one row for each host that was not reached.

    Each view is between two generations. Some hosts are drifted, held, failed or unreachable, and some views are not declared.
    """
    chance = random.Random(f"{hosts} {views} {releases}")
    paths = releases_of(releases)
    names = [f"render{number:0{len(str(hosts))}d}" for number in range(1, hosts + 1)]
    kept = {}
    for view in range(views):
        shown = sorted(chance.sample(paths, max(1, releases * 3 // 4)))
        kept[view] = [(_generation(view, age), shown[: len(shown) - age]) for age in range(3)]
    rows: list[dict[str, Any]] = []
    for number, host in enumerate(names):
        if number % 97 == 96:
            reason = f"Failed to connect to the host via ssh: connect to host {host} port 22: No route to host"
            rows.append({"host": host, "view": None, "status": "unreachable", "failure": reason})
            continue
        last_run = f"2026-11-27T14:{chance.randrange(60):02d}:{chance.randrange(60):02d}Z"
        rows += [_row(host, number, view, kept[view], last_run, chance) for view in range(views)]
    return rows


def _generation(view: int, age: int) -> str:
    return hashlib.sha256(f"{view} {age}".encode()).hexdigest()[:16]


def _row(
    host: str, number: int, view: int, kept: list[tuple[str, list[str]]], last_run: str, chance: random.Random
) -> dict[str, Any]:
    declared, previous, oldest = kept
    shown = declared
    row: dict[str, Any] = {"host": host, "view": f"view{view:02d}", "status": "as declared", "drift": [], "hold": None}
    if (number + view) % 41 == 3:
        shown, row["status"] = previous, "drifted"
        row["drift"] = [f"It shows generation {shown[0]} instead of {declared[0]}."]
    elif number % 53 == 2 and view == 0:
        shown, row["status"] = oldest, "held"
        row["hold"] = {"until": "2026-11-30T08:00:00Z", "reason": "the newest release crashes on exit"}
    elif (number * 7 + view) % 301 == 4:
        row["status"], row["failure"] = (
            "failed",
            "No space left on device: '/var/lib/renderfarm-overlay': remove old generations.",
        )
    elif number % 89 == 5 and view == 1:
        row["status"], row["drift"] = "not declared", ["It is mounted, and no such view is declared for this host."]
    day = chance.randrange(1, 27)
    return {
        **row,
        "generation": shown[0],
        "declared_generation": None if row["status"] == "not declared" else declared[0],
        "since": f"2026-11-{day:02d}T{chance.randrange(24):02d}:{chance.randrange(60):02d}:{chance.randrange(60):02d}Z",
        "mountpoint": f"/mnt/view{view:02d}",
        "releases": shown[1],
        "failure": row.get("failure", ""),
        "bytes_on_disk": 9_000_000 + chance.randrange(4_000_000),
        "last_run": last_run,
        **_verified(number + view, last_run),
    }


def _verified(number: int, time: str) -> dict[str, Any]:
    """Return when a view was verified; nothing for each third one, which never was."""
    return {"verified": {"time": time, "problems": max(0, number % 17 - 14), "level": "open"}} if number % 3 else {}
