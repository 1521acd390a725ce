"""Every host of a play is in the report, whatever happened to it."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.gathering import (
    HostResults,
    rows_of_results,
    run_ends,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import rows_of

GENERATION = "0123456789abcdef"
LOCK = {"software": LockedView("software", GENERATION, ({"release": "usd/1", "digest": ""}, {"release": "usd/1"}))}
ROW = {"view": "software", "status": "as declared", "generation": GENERATION}


def of(host: str = "one", *results: dict[str, Any], is_left: bool = True) -> HostResults:
    return HostResults(host, results, {"software", "tools"}, is_left)


def rows(*hosts: HostResults, unresolved: dict[str, str] | None = None) -> list[dict[str, Any]]:
    found, _left = rows_of_results(hosts, LOCK, unresolved or {})
    # They are rows.
    assert len(rows_of(found)) == len(found)
    return found


def test_rows_get_the_name_of_their_host_and_the_releases_of_the_lock() -> None:
    other = {"view": "tools", "status": "held", "generation": GENERATION, "releases": ["qt/1"]}
    assert rows(of("one", {"report": [ROW, other]}), of("two", {"report": [{**ROW, "generation": "f" * 16}]})) == [
        {**ROW, "host": "one", "releases": ["usd/1"]},
        {**other, "host": "one"},
        {**ROW, "host": "two", "generation": "f" * 16},
    ]


@pytest.mark.parametrize(
    ("host", "status", "failure"),
    [
        (of("one", {"unreachable": True, "msg": "no route"}), "unreachable", "no route"),
        (of("one", {"failed": True, "msg": "no room"}), "failed", "no room"),
        # A task before the one that returns rows.
        (of("one", {"changed": False}, {"failed": True, "msg": "no root"}, is_left=False), "failed", "no root"),
    ],
)
def test_a_host_that_failed_or_did_not_answer_has_a_row(host: HostResults, status: str, failure: str) -> None:
    assert rows(host) == [{"host": "one", "status": status, "failure": failure}]


def test_a_host_that_is_lost_without_a_result_has_failed() -> None:
    (row,) = rows(of(is_left=False))
    assert row["status"] == "failed"
    assert "see the output of the run" in row["failure"]


def test_a_failed_module_with_rows_keeps_them() -> None:
    assert len(rows(of("one", {"failed": True, "msg": "x", "report": [{**ROW, "status": "failed"}]}))) == 1


def test_hosts_that_the_run_has_not_come_to_are_named() -> None:
    found, left = rows_of_results([of("one", {"report": []}), of("two")], LOCK, {})
    assert (found, left) == ([], ["two"])


def test_views_that_could_not_be_resolved_have_failed_where_they_are_declared() -> None:
    found = rows(
        of("one", {"report": [ROW]}),
        HostResults("two", [{"report": [ROW]}], {"software"}, True),
        of("three", {"unreachable": True}),
        unresolved={"tools": "there is no release qt/9", "software": "it stays at what it showed last"},
    )
    assert [(row["host"], row.get("view"), row["status"]) for row in found] == [
        ("one", "software", "failed"),
        ("one", "tools", "failed"),
        ("two", "software", "failed"),
        ("three", None, "unreachable"),
    ]


FAILED, FINE = of("f", {"failed": True}), of("o", {"report": []})


@pytest.mark.parametrize(
    ("batch", "percentage", "ends"),
    [
        ([FAILED], 100, True),
        ([of("u", {"unreachable": True})], 100, True),
        ([FAILED, FINE], 100, False),
        ([FAILED, FINE], 50, False),
        ([FAILED, FINE], 49, True),
        ([FAILED, FINE], 0, True),
        ([FINE], 0, False),
    ],
)
def test_a_run_ends_as_ansible_ends_it(batch: list[HostResults], percentage: float, ends: bool) -> None:
    assert run_ends(batch, percentage) is ends
