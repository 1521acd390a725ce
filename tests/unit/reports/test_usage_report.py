"""What uses releases on a farm, and what is in the way of retiring one."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.usage_report import (
    farm_usage,
    table_lines,
    usage_csv,
)

NOW = "2026-11-27T15:00:00Z"
VIEW = {"view": "software", "generation": "0123456789abcdef", "state": "current", "mountpoints": ["/software"]}


def process(name: str, **more: Any) -> dict[str, Any]:
    return {
        "pid": 7,
        "name": name,
        "view": "software",
        "generation": "0123456789abcdef",
        "how": ["mapped"],
        "paths": ["bin/x"],
        **more,
    }


def answer(release: str, processes: list[dict[str, Any]], mounted: bool, unknown: tuple[str, ...] = ()) -> Any:
    views = [{**VIEW, "mounted": mounted}]
    return [{"releases": [{"release": release, "processes": processes, "views": views}], "unknown": list(unknown)}]


RESULTS: dict[str, Any] = {
    "render2": answer("houdini/19", [process("hython"), process("mplay", view=None, pid=8)], True),
    "render10": answer("houdini/19", [], True),
    "render1": answer("houdini/19", [], False),
    "gone": [{"unreachable": True, "msg": "no\nroute"}],
    "odd": answer("houdini/19", [], False, ("bash (9) has files of an overlay",)),
    "silent": [],
}


def test_everything_that_is_in_the_way_is_named() -> None:
    assert farm_usage(RESULTS, ["houdini/19"]).obstacles("houdini/19") == [
        "2 processes on render2 use it (hython (7), mplay (8))",
        "view software shows it on render[2,10]",
        "it is unknown whether gone uses it: unreachable: no route",
        "it is unknown whether odd uses it: bash (9) has files of an overlay",
        "it is unknown whether silent uses it: it was not asked: see the output of the run",
    ]


@pytest.mark.parametrize(
    ("hosts", "counts", "obstacles"),
    [
        (["render1"], True, 0),
        (["render10"], True, 1),
        (["gone"], True, 1),
        (["gone"], False, 0),
        (["odd", "silent"], False, 0),
        ([], True, 0),
    ],
)
def test_a_release_can_be_retired_if_nothing_uses_it(hosts: list[str], counts: bool, obstacles: int) -> None:
    usage = farm_usage({host: RESULTS[host] for host in hosts}, ["houdini/19"])
    assert len(usage.obstacles("houdini/19", counts)) == obstacles


def test_the_generations_of_all_hosts_are_gathered() -> None:
    one = {"releases": [], "generations": [{"generation": "a"}, {"generation": "b"}]}
    usage = farm_usage({"x": [one], "y": [{"releases": [], "generations": [{"generation": "b"}]}]}, [])
    assert usage.as_dict()["generations"] == ["a", "b"]


def test_a_host_that_has_waited_in_vain_says_what_is_left() -> None:
    waited = [{**RESULTS["render2"][0], "failed": True, "attempts": 3}]
    usage = farm_usage({"render2": waited}, ["houdini/19"])
    assert usage.unknown == {}
    assert usage.obstacles("houdini/19")[0] == "2 processes on render2 use it (hython (7), mplay (8))"


def test_the_table_names_hosts_and_processes() -> None:
    assert table_lines(farm_usage(RESULTS, []), NOW) == [
        f"6 hosts at {NOW}",
        "houdini/19: used on 1 host, shown on 2 hosts",
        "  shown: render[2,10]",
        "  in generations that are not mounted: odd, render1",
        "  render2: hython (7) uses bin/x (mapped) in view software",
        "  render2: mplay (8) uses bin/x (mapped) in the software root",
        "UNKNOWN: 1 host (gone): unreachable: no route",
        "UNKNOWN: 1 host (odd): bash (9) has files of an overlay",
        "UNKNOWN: 1 host (silent): it was not asked: see the output of the run",
    ]
    assert table_lines(farm_usage({"a": RESULTS["render1"]}, ["houdini/19", "maya/1"]), NOW)[1:] == [
        "houdini/19: not in use",
        "  in generations that are not mounted: a",
        "maya/1: not in use",
    ]


def test_the_csv_has_every_process_view_and_unknown_host() -> None:
    rows = list(csv.DictReader(io.StringIO(usage_csv(farm_usage(RESULTS, [])))))
    assert [(row["host"], row["state"].partition(":")[0], row["name"]) for row in rows] == [
        ("odd", "current", ""),
        ("render1", "current", ""),
        ("render2", "mounted", ""),
        ("render10", "mounted", ""),
        ("render2", "used", "hython"),
        ("render2", "used", "mplay"),
        ("gone", "unknown", ""),
        ("odd", "unknown", ""),
        ("silent", "unknown", ""),
    ]
    assert all(len(row) == 10 and None not in row.values() for row in rows)
