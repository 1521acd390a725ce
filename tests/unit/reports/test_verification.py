"""What verifications found on many hosts becomes one summary."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.filter.verification_report import verification_report
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import report

PROBLEM = {"path": "/a", "code": "missing_target", "detail": "gone", "remedy": "restore it"}
FINE = {"view": "software", "ok": True, "complete": True, "checked": 5, "counts": {}, "problems": [], "failed": False}
DAMAGED = {**FINE, "ok": False, "counts": {"missing_target": 2}, "problems": [PROBLEM]}
REPAIRED = {**FINE, "repaired": [PROBLEM, {**PROBLEM, "path": "/b"}]}
FAILED = {"item": "software", "failed": True, "msg": "gave up:\nno progress"}


def test_hosts_with_problems_and_failures_are_named() -> None:
    results: dict[str, Any] = {
        "r01": {"results": [FINE]},
        "r02": [DAMAGED, {"skipped": True}],
        "r03": [DAMAGED],
        "r04": FAILED,
        "r05": "",
        "r06": [REPAIRED],
    }
    assert verification_report(results) == [
        "5 views on 6 hosts, 20 entries verified",
        "software: missing_target on r[02-03]",
        "software: repaired missing_target on r06",
        "not verified on r04: gave up: no progress",
        "not verified on r05: no view was verified: the host failed before, or did not answer",
        "  r02: software: /a: missing_target: gone",
        "  r03: software: /a: missing_target: gone",
    ]
    summary = verification_report(results, "summary")
    assert not summary["ok"]
    assert summary["counts"] == {"missing_target": 4}
    assert (summary["damaged_hosts"], summary["failed_hosts"]) == (["r02", "r03"], ["r04", "r05"])
    assert [row["ok"] for row in verification_report(results, "rows")] == [True, False, False, False, False, True]
    assert summary["repaired_hosts"] == ["r06"]
    assert verification_report(results, "rows")[5]["repaired"] == {"missing_target": 2}


def test_a_farm_without_problems_is_ok() -> None:
    assert verification_report({"r01": [FINE], "r02": []}) == ["1 view on 1 host, 5 entries verified", "no problems"]
    assert verification_report({"r01": [FINE]}, "summary")["ok"]
    lines = verification_report({"r01": [{**FINE, "complete": False, "left": 3}]})
    assert lines[1:] == ["software: not finished within the time limit on r01", "no problems"]


@pytest.mark.parametrize(("results", "format"), [([], "table"), ({"r01": 5}, "table"), ({}, "page")])
def test_wrong_results_are_refused(results: Any, format: str) -> None:  # noqa: A002
    with pytest.raises(AnsibleFilterError, match="verification_report"):
        verification_report(results, format)


def test_the_report_says_when_views_were_verified() -> None:
    row = {"view": "software", "status": "as declared", "generation": "0123456789abcdef"}
    verified = {"time": "2026-11-27T03:00:00Z", "problems": 0, "level": "open"}
    rows = report.rows_of([{**row, "host": "r01", "verified": verified}, {**row, "host": "r02"}])
    assert "VERIFIED: 1 of 2 views since 2026-11-27T03:00:00Z, no problems" in report.table_text(rows)
    assert report.whole_report(rows)["rows"][0]["verified"] == verified
    rows = report.rows_of([{**row, "host": "r01", "verified": {**verified, "problems": 2}}])
    assert "problems on 1 host:\n  r01\n" in report.table_text(rows)
    assert report.summary(rows)["verified_with_problems"] == 1
