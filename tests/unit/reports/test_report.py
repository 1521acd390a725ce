"""Reports: everything that rows say is in them, and they stay short for many hosts."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import (
    STATUSES,
    Row,
    csv_text,
    problems_of,
    rows_of,
    shown_generations,
    summary,
    table_text,
    time_text,
    whole_report,
)
from ansible_collections.renderfarm.overlay.tests.unit.reports.farm_rows import HOSTILE, NOW, farm_rows, hostile_rows

OLD, NEW = "0" * 16, "f" * 16


def row(host: str, status: str = "as declared", view: str | None = "software", **more: Any) -> dict[str, Any]:
    return {"host": host, "status": status, "view": view, **more}


def problems(*rows: dict[str, Any]) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    return [(one.status, one.reason, one.views, one.hosts) for one in problems_of(rows_of(rows))]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "row 1 of the report must be a mapping that names its host"),
        ({"status": "held"}, "must be a mapping that names its host"),
        (row("h", "broken"), "row 1 of the report, host h: status must be one of failed, unreachable"),
        ({**row("h"), "view": 3}, "view must be text"),
        (row("h", generation="../x"), "generation has to be of the form"),
        (row("h", since="yesterday"), "since has to be of the form"),
        (row("h", releases="usd/1"), "releases must be a list of texts"),
        (row("h", drift=[1]), "drift must be a list of texts"),
        (row("h", hold="yes"), "hold must be null, or a mapping"),
        (row("h", hold={"until": "later"}), "hold must be null, or a mapping"),
        (row("h", hold={"until": -1}), "hold must be null, or a mapping"),
        (row("h", hold={"until": True}), "hold must be null, or a mapping"),
        (row("h", bytes_on_disk=-1), "bytes_on_disk has to be a whole number"),
    ],
)
def test_a_wrong_row_is_named(values: Any, message: str) -> None:
    with pytest.raises(OverlayError, match=message.replace(".", r"\.")):
        rows_of([values])


def test_fields_that_are_missing_or_null_have_defaults() -> None:
    null: dict[str, Any] = dict.fromkeys(
        ("generation", "since", "mountpoint", "releases", "drift", "failure", "hold", "bytes_on_disk")
    )
    assert rows_of([row("h")]) == rows_of([{**row("h"), **null}]) == [Row("h", "as declared", "software")]


def test_rows_are_sorted_and_hosts_without_rows_are_unreachable() -> None:
    rows = rows_of([row("n10"), row("n9", view="b"), row("n9", view="a")], ["n9", "n10", "n11"])
    assert [(one.host, one.view, one.status) for one in rows] == [
        ("n9", "a", "as declared"),
        ("n9", "b", "as declared"),
        ("n10", "software", "as declared"),
        ("n11", None, "unreachable"),
    ]
    assert rows[-1].reasons() == ["the host did not answer"]


def test_releases_are_taken_from_another_row_of_the_generation() -> None:
    given = [row("a", generation=NEW, releases=["usd/1"]), row("b", generation=NEW), row("c", generation=OLD), row("d")]
    assert [one.releases for one in rows_of(given)] == [("usd/1",), ("usd/1",), (), ()]


def test_hosts_are_counted_by_generation() -> None:
    rows = [
        row("a", generation=OLD, releases=["x"]),
        *(row(host, generation=NEW) for host in "bcd"),
        row("e", "drifted", generation=NEW),
        row("f", "failed"),
        row("g", "unreachable", view=None),
    ]
    assert [(one.generation, one.hosts, one.statuses) for one in shown_generations(rows_of(rows))] == [
        (NEW, ("b", "c", "d", "e"), (("drifted", 1), ("as declared", 3))),
        (None, ("f",), (("failed", 1),)),
        (OLD, ("a",), (("as declared", 1),)),
    ]


def test_what_is_as_declared_is_no_problem() -> None:
    assert problems(row("a"), row("b", drift=[], failure="")) == []


def test_each_reason_is_a_problem_of_its_own() -> None:
    both = row("a", "drifted", drift=["one.", "two."], failure="three", hold={"until": NOW, "reason": "four"})
    assert [problem[1] for problem in problems(both)] == [f"held until {NOW}: four", "one.", "three", "two."]


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "as declared"])
def test_a_problem_without_a_reason_has_one_all_the_same(status: str) -> None:
    [problem] = problems(row("a", status))
    assert problem[0] == status
    assert problem[1]


def test_a_hold_says_until_when() -> None:
    assert Row("a", "held", is_held=True, hold_reason="bad").reasons() == ["held until the hold is lifted: bad"]
    assert Row("a", "held", is_held=True, hold_until=NOW).reasons() == [f"held until {NOW}"]


@pytest.mark.parametrize(("until", "text"), [(None, None), (0, None), (1795791600, NOW), (NOW, NOW)])
def test_the_end_of_a_hold_may_be_given_in_seconds(until: Any, text: str | None) -> None:
    [held] = rows_of([row("a", "held", hold={"generation": OLD, "until": until, "reason": "bad"})])
    assert (held.is_held, held.hold_until, held.hold_reason) == (True, text, "bad")


@given(st.integers(0, 253_402_300_799))
@example(951_782_400)
@example(4_107_542_400)
def test_seconds_are_written_as_the_standard_library_does(seconds: int) -> None:
    assert time_text(seconds) == datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_the_same_reason_on_many_hosts_is_one_problem() -> None:
    rows = [
        row(f"n{number}.lan", "unreachable", None, failure=f"ssh: connect to n{number} (10.0.0.{number}): timed out")
        for number in range(3)
    ]
    hosts = ("n0.lan", "n1.lan", "n2.lan")
    assert problems(*rows) == [("unreachable", "ssh: connect to HOST (ADDRESS): timed out", (), hosts)]


def test_holds_that_end_at_different_times_are_one_problem() -> None:
    rows = [
        row(f"n{number}", "held", hold={"until": f"2026-11-28T12:0{number}:00Z", "reason": "it crashes"})
        for number in (3, 1, 2)
    ]
    until = "2026-11-28T12:01:00Z to 2026-11-28T12:03:00Z"
    assert [(one[1], len(one[3])) for one in problems(*rows)] == [(f"held until {until}: it crashes", 3)]
    assert [one[1] for one in problems(rows[0])] == ["held until 2026-11-28T12:03:00Z: it crashes"]
    rows[0]["hold"] = {"until": None, "reason": "it crashes"}
    assert len(problems(*rows)) == 2


def test_a_number_in_a_reason_is_not_taken_for_a_host() -> None:
    rows = [
        row(f"10.0.0.{number}", "failed", failure=f"10.0.0.{number} did not answer for 10 seconds") for number in (1, 2)
    ]
    assert [problem[1] for problem in problems(*rows)] == ["HOST did not answer for 10 seconds"]


def test_what_is_the_same_for_all_hosts_is_shown_as_it_is() -> None:
    rows = [row(host, "failed", failure="the server 10.0.0.1 does not answer") for host in "ab"]
    assert problems(*rows) == [("failed", "the server 10.0.0.1 does not answer", ("software",), ("a", "b"))]


def test_views_are_put_together_if_they_have_the_same_hosts() -> None:
    rows = [
        *(row(host, "failed", view, failure="x") for host in "ab" for view in ("one", "two")),
        row("a", "failed", "three", failure="x"),
    ]
    assert [problem[2:] for problem in problems(*rows)] == [
        (("one", "two"), ("a", "b")),
        (("three",), ("a",)),
    ]


def test_the_table_is_what_a_person_reads() -> None:
    rows = [
        *(row(f"render{number:03d}", generation=NEW) for number in (*range(1, 121), 130)),
        row("render121", "drifted", generation=OLD, drift=["It shows an older generation."]),
        row("render122", "unreachable", None, failure="no route"),
        row("render123", "held", "tools", generation=OLD, hold={"until": NOW, "reason": "a crash"}),
    ]
    assert table_text(rows_of(rows), NOW) == (
        """124 hosts at 2026-11-27T15:00:00Z

VIEW      GENERATION        HOSTS  STATUS       SHOWN ON
software  ffffffffffffffff    121  as declared  render[001-120,130]
          0000000000000000      1  drifted      render121
tools     0000000000000000      1  held         render123

UNREACHABLE: 1 host
  no route
    render122

DRIFTED: 1 host
  software: It shows an older generation.
    render121

HELD: 1 host
  tools: held until 2026-11-27T15:00:00Z: a crash
    render123

121 as declared, 1 held, 0 not declared, 1 drifted, 1 unreachable, 0 failed
"""
    )


def test_a_table_of_nothing_says_where_views_were_looked_for() -> None:
    assert table_text([]).startswith("no views: the hosts have none in their state directories. ")
    assert "overlay_state_dir" in table_text([])


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_table_of_500_hosts_fits_the_terminal_and_a_page_or_two(width: int) -> None:
    lines = table_text(rows_of(farm_rows(500, 2, 50)), NOW, width).splitlines()
    assert len(lines) < 60
    ranges = [line for line in lines if "render" in line and "HOST" not in line]
    assert len(ranges) > 5
    # Beside the generation there are always 30 columns for hosts.
    assert max(map(len, ranges)) <= max(width, 100)


def test_the_table_of_500_hosts_with_names_and_reasons_of_their_own_stays_short() -> None:
    rows = [
        row(
            "-".join("abcdefghij"[int(digit)] for digit in f"{number:03d}"),
            "failed",
            failure=f"error {number} occurred",
        )
        for number in range(500)
    ]
    lines = table_text(rows_of(rows), width=80).splitlines()
    assert len(lines) < 60
    assert "  and 480 more reasons on 480 hosts" in lines
    assert any(line.strip().startswith("and ") and line.endswith(" more") for line in lines)


def test_a_long_reason_is_cut_in_the_table_and_whole_in_the_csv() -> None:
    rows = rows_of([row("a", "failed", failure="x" * 5000)])
    assert max(map(len, table_text(rows).splitlines())) < 500
    assert "x" * 5000 in csv_text(rows)


def test_nothing_in_a_table_controls_the_terminal() -> None:
    rows = rows_of([*hostile_rows(), row("a\x1b[2Jb", "failed", "v\r\nw", failure="\x1b]0;t\x07\n\u202ex")])
    text = table_text(rows)
    assert all(char.isprintable() or char == "\n" for char in text)
    text.encode()


def test_the_csv_has_every_row() -> None:
    given = farm_rows(50, 3, 20)
    rows = rows_of(given)
    found = list(csv.DictReader(io.StringIO(csv_text(rows))))
    assert len(found) == len(given)
    for one, line in zip(rows, found):
        assert (line["host"], line["view"], line["status"]) == (one.host, one.view or "", one.status)
        assert (line["generation"], line["since"]) == (one.generation or "", one.since or "")
        assert (line["releases"], line["bytes_on_disk"]) == (str(len(one.releases)), str(one.bytes_on_disk))
        assert line["drift"] == "; ".join(one.drift)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", " \t=1"])
def test_no_cell_of_the_csv_is_a_formula(text: str) -> None:
    [line] = csv.DictReader(io.StringIO(csv_text(rows_of([row(text, "failed", text, failure=text)]))))
    assert {line["host"], line["view"], line["failure"]} == {"'" + text.strip()}


def test_the_whole_report_has_the_releases_of_each_generation_once() -> None:
    given = farm_rows(60, 2, 20)
    report = json.loads(json.dumps(whole_report(rows_of(given), NOW)))
    assert report["time"] == NOW
    assert len(report["rows"]) == len(given)
    releases = {(one["view"], one["generation"]): one["releases"] for one in report["generations"]}
    assert len(releases) == len(report["generations"]) <= 6
    for before, after in zip(given, report["rows"]):
        if before["view"] is not None:
            assert releases[after["view"], after["generation"]] == before.pop("releases")
            assert after == before


def test_the_summary_counts_and_names_the_worst_status() -> None:
    rows = rows_of(
        [row("a", generation=NEW), row("b", "held", generation=NEW), row("c", "unreachable", None, failure="gone")]
    )
    found = json.loads(json.dumps(summary(rows, NOW)))
    assert found["status"] == "unreachable"
    counts = {"failed": 0, "unreachable": 1, "drifted": 0, "not_declared": 0, "held": 1, "as_declared": 1}
    assert found["statuses"] == counts
    assert (found["hosts"], found["views"], found["time"]) == (3, ["software"], NOW)
    assert found["generations"] == [
        {
            "view": "software",
            "generation": NEW,
            "hosts": 2,
            "host_ranges": "a, b",
            "statuses": {"held": 1, "as_declared": 1},
            "releases": 0,
        }
    ]
    problem = {"status": "unreachable", "views": [], "reason": "gone", "hosts": 1, "host_ranges": "c"}
    assert found["problems"][0] == problem
    assert summary([])["status"] == "as declared"


def test_the_summary_of_a_large_farm_is_small() -> None:
    assert len(json.dumps(summary(rows_of(farm_rows(1000, 5, 50))))) < 40_000
    many = rows_of([row(f"n{number}", "failed", failure=f"error {number} occurred") for number in range(300)])
    assert len(summary(many)["problems"]) == 20
    assert summary(many)["unlisted_problems"] == 280


def test_hostile_texts_are_taken_as_texts() -> None:
    rows = rows_of(hostile_rows())
    assert {one.host for one in rows} == set(HOSTILE)
    assert summary(rows)["statuses"]["held"] == len(HOSTILE)
