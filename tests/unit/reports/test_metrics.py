"""Metrics say what the rows of a host say, in the text format of Prometheus."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import metrics, mountstats, report
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.mountstats import NfsCalls
from ansible_collections.renderfarm.overlay.tests.unit.reports.farm_rows import farm_rows, hostile_rows
from ansible_collections.renderfarm.overlay.tests.unit.reports.nfs_host import MOUNTSTATS

NOW = 1_795_791_600
GENERATION, OTHER = "0123456789abcdef", "fedcba9876543210"
ROW = {
    "view": "software",
    "status": "as declared",
    "generation": GENERATION,
    "declared_generation": GENERATION,
    "since": "2026-11-27T14:00:00Z",
    "mountpoint": "/software",
    "releases": ["houdini/20.5.410", "usd/25.05"],
    "drift": [],
    "failure": "",
    "hold": None,
    "bytes_on_disk": 9_000_000,
    "last_run": "2026-11-27T14:30:00Z",
}


def text_of(*rows: dict[str, Any], calls: Any = None, now: int = NOW) -> str:
    return metrics.metrics_text(report.rows_of({"host": "render001", **row} for row in rows), calls or {}, now)


def samples(text: str) -> dict[str, str]:
    """Return the samples without the prefix of their names."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line[len(metrics.PREFIX) :].rsplit(" ", 1) for line in lines)


def of_view(**changes: Any) -> dict[str, str]:
    """Return the samples of one view, without the label of its name where it is the only label."""
    return {
        name.replace('{view="software"}', ""): value for name, value in samples(text_of({**ROW, **changes})).items()
    }


def test_a_view_as_declared_has_these_metrics() -> None:
    assert of_view() == {
        "written_timestamp_seconds": "1795791600",
        f'view_info{{view="software",mountpoint="/software",generation="{GENERATION}",declared_generation="{GENERATION}"}}': "1",
        'view_status{view="software",status="failed"}': "0",
        'view_status{view="software",status="drifted"}': "0",
        'view_status{view="software",status="not_declared"}': "0",
        'view_status{view="software",status="held"}': "0",
        'view_status{view="software",status="as_declared"}': "1",
        "view_generation_timestamp_seconds": "1795788000",
        "view_releases": "2",
        "view_disk_bytes": "9000000",
        "view_differences": "0",
        "view_problems": "0",
        "view_held": "0",
        "view_last_run_timestamp_seconds": "1795789800",
        "view_last_run_success": "1",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"status": "drifted", "drift": ["It shows another generation.", "It is mounted without nodev."]},
            {"view_differences": "2", "view_problems": "2", "view_last_run_success": "1"},
        ),
        (
            {"status": "failed", "failure": "no space", "drift": ["It shows another generation."]},
            {"view_differences": "1", "view_problems": "2", "view_last_run_success": "0"},
        ),
        ({"status": "failed", "last_run": None}, {"view_problems": "1", "view_last_run_success": "0"}),
        ({"status": "not declared", "declared_generation": None}, {"view_differences": "0", "view_problems": "1"}),
        (
            {"status": "held", "hold": {"until": 1_796_025_600, "reason": "crashes"}},
            {"view_held": "1", "view_hold_end_timestamp_seconds": "1796025600", "view_problems": "0"},
        ),
        (
            {"status": "held", "hold": {"until": "2026-11-30T08:00:00Z", "reason": ""}},
            {"view_held": "1", "view_hold_end_timestamp_seconds": "1796025600"},
        ),
        ({"status": "held", "hold": {"until": 0, "reason": ""}}, {"view_held": "1"}),
    ],
)
def test_a_state_of_a_view_has_these_metrics(changes: dict[str, Any], expected: dict[str, str]) -> None:
    found = of_view(**changes)
    assert found == {**found, **expected}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"hold": {"until": 0, "reason": ""}}, "view_hold_end_timestamp_seconds"),
        ({"since": None}, "view_generation_timestamp_seconds"),
        ({"last_run": None}, "view_last_run_timestamp_seconds"),
        ({"last_run": None}, "view_last_run_success"),
    ],
)
def test_what_is_not_known_has_no_sample(changes: dict[str, Any], missing: str) -> None:
    assert missing not in of_view(**changes)


def test_a_view_that_is_not_mounted_has_an_empty_generation() -> None:
    text = text_of({**ROW, "generation": None, "status": "failed", "failure": "no space"})
    assert f'mountpoint="/software",generation="",declared_generation="{GENERATION}"}} 1' in text


def test_each_status_but_unreachable_is_shown() -> None:
    for status in metrics.SHOWN_STATUSES:
        found = samples(text_of({**ROW, "status": status}))
        shown = [name for name, value in found.items() if name.startswith("view_status{") and value == "1"]
        assert shown == [f'view_status{{view="software",status="{status.replace(" ", "_")}"}}']


def test_nfs_calls_are_shown_by_mountpoint_and_operation() -> None:
    calls = mountstats.parse_mountstats(MOUNTSTATS)
    assert {name: value for name, value in samples(text_of(calls=calls)).items() if name.startswith("nfs_")} == {
        'nfs_calls_total{mountpoint="/mnt/old release",operation="GETATTR"}': "3",
        'nfs_calls_total{mountpoint="/mnt/old release",operation="READDIRPLUS"}': "1",
        'nfs_calls_total{mountpoint="/net/software",operation="ACCESS"}': "121",
        'nfs_calls_total{mountpoint="/net/software",operation="GETATTR"}': "2",
        'nfs_calls_total{mountpoint="/net/software",operation="LOOKUP"}': "2241",
        'nfs_calls_total{mountpoint="/net/software",operation="NULL"}': "1",
        'nfs_calls_total{mountpoint="/net/software",operation="READ"}': "0",
        'nfs_calls_total{mountpoint="/net/software",operation="SEQUENCE"}': "4",
        'nfs_errors_total{mountpoint="/net/software",operation="ACCESS"}': "0",
        'nfs_errors_total{mountpoint="/net/software",operation="GETATTR"}': "0",
        'nfs_errors_total{mountpoint="/net/software",operation="LOOKUP"}': "1361",
        'nfs_errors_total{mountpoint="/net/software",operation="NULL"}': "0",
        'nfs_errors_total{mountpoint="/net/software",operation="READ"}': "0",
        'nfs_errors_total{mountpoint="/net/software",operation="SEQUENCE"}': "0",
    }


def test_each_metric_has_one_block_with_help_and_type() -> None:
    calls = {b"/net/software": {"LOOKUP": NfsCalls(2, 1)}}
    more = {
        "hold": {"until": NOW, "reason": ""},
        "verified": {"time": "2026-11-27T03:00:00Z", "problems": 2, "level": "open"},
    }
    text = text_of({**ROW, **more}, {**ROW, "view": "tools", **more}, calls=calls)
    names: list[str] = []
    for line in text.splitlines():
        name = re.sub(r"^# (?:HELP|TYPE) ", "", line).split(" ")[0].split("{")[0]
        if name not in names[-1:]:
            names.append(name)
    assert names == [metrics.PREFIX + name for name in metrics.METRICS]
    for name, metric in metrics.METRICS.items():
        before = f"# HELP {metrics.PREFIX}{name} {metric.help}\n# TYPE {metrics.PREFIX}{name} {metric.type}\n"
        assert text.count(before) == 1


def test_a_host_without_views_says_when_the_file_was_written() -> None:
    assert samples(text_of()) == {"written_timestamp_seconds": str(NOW)}
    assert samples(text_of({"view": None, "status": "failed"})) == {"written_timestamp_seconds": str(NOW)}


def test_the_order_of_views_and_mounts_does_not_matter() -> None:
    rows = [{**ROW, "view": name} for name in ("b", "a10", "a9")]
    calls = {b"/b": {"READ": NfsCalls(1, 0), "LOOKUP": NfsCalls(2, 1)}, b"/a": {"OPEN": NfsCalls(3, 0)}}
    backwards = {b"/a": calls[b"/a"], b"/b": dict(reversed(calls[b"/b"].items()))}
    assert text_of(*rows, calls=calls) == text_of(*reversed(rows), calls=backwards)


@pytest.mark.parametrize(
    ("view", "label"),
    [
        ('a "quoted" name', r"a \"quoted\" name"),
        ("two\nlines", r"two\nlines"),
        ("back\\slash", r"back\\slash"),
        ("not\udcffutf8", r"not\\xffutf8"),
        ("größer", "größer"),
    ],
)
def test_the_values_of_labels_are_escaped(view: str, label: str) -> None:
    text = text_of({**ROW, "view": view, "mountpoint": view})
    assert f'view_releases{{view="{label}"}} 2\n' in text
    assert f'view_info{{view="{label}",mountpoint="{label}",generation=' in text
    assert text.encode()


def test_any_text_stays_in_its_label() -> None:
    rows = [{key: value for key, value in row.items() if key != "host"} for row in hostile_rows()]
    text = text_of(*rows)
    line = re.compile(r'\w+(\{\w+="(?:[^"\\\n]|\\["\\n])*"(?:,\w+="(?:[^"\\\n]|\\["\\n])*")*\})? \d+')
    assert [one for one in text.splitlines() if not one.startswith("# ") and not line.fullmatch(one)] == []


def test_rows_of_reports_are_taken() -> None:
    rows = [row for row in farm_rows(60, 20, 500) if row["host"] == "render05"]
    assert len(rows) == 20
    assert sum(name.startswith("view_info{") for name in samples(text_of(*rows))) == 20


def test_two_rows_of_one_view_are_refused() -> None:
    with pytest.raises(OverlayError, match="view software has two rows"):
        text_of(ROW, {**ROW, "mountpoint": "/elsewhere"})


def test_a_day_that_does_not_exist_is_refused() -> None:
    with pytest.raises(OverlayError, match=r"2026-13-01T00:00:00Z is no time"):
        text_of({**ROW, "since": "2026-13-01T00:00:00Z"})


@pytest.mark.parametrize("seconds", [0, 951_782_399, 951_782_400, NOW, 253_402_300_799])
def test_times_are_those_that_reports_show(seconds: int) -> None:
    found = of_view(since=report.time_text(seconds))
    assert found["view_generation_timestamp_seconds"] == str(seconds)


def test_names_and_types_follow_the_conventions_of_prometheus() -> None:
    for name, metric in metrics.METRICS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert (metric.type == "counter") == name.endswith("_total")
        assert metric.help.endswith(".")
        assert "timestamp" not in name or name.endswith("_timestamp_seconds")


def test_the_last_verification_has_its_time_and_its_problems() -> None:
    found = of_view(verified={"time": "2026-11-27T14:30:00Z", "problems": 7, "level": "open"})
    assert found["view_verified_timestamp_seconds"] == "1795789800"
    assert found["view_verification_problems"] == "7"
    assert not [name for name in of_view() if "verif" in name]
