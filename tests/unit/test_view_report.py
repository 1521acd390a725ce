"""Making reports with the filter view_report."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.filter import view_report as plugin
from ansible_collections.renderfarm.overlay.plugins.filter.view_report import FilterModule, view_report
from ansible_collections.renderfarm.overlay.tests.unit.reports.farm_rows import NOW, farm_rows

ROWS = farm_rows(20, 2, 10)


class Text(str):
    """As Ansible's own kinds of text, which say where a value comes from."""

    __slots__ = ()


def test_the_formats_are_those_that_are_documented() -> None:
    options = yaml.safe_load(plugin.DOCUMENTATION)["options"]
    assert list(options["format"]["choices"]) == list(plugin._FORMATS)
    assert FilterModule().filters() == {"view_report": view_report}


def test_each_format_is_made() -> None:
    assert view_report(ROWS, time=NOW).startswith("20 hosts at 2026-11-27T15:00:00Z\n")
    assert view_report(ROWS, "csv").startswith("host,view,status,")
    assert view_report(ROWS, "json", time=NOW)["time"] == NOW
    assert view_report(ROWS, "summary", time=NOW)["hosts"] == 20
    assert len(json.loads(view_report(ROWS, "page", time=NOW))["hosts"]) == 20


def test_hosts_that_have_no_row_are_unreachable() -> None:
    assert view_report([], "summary", hosts=["a", "b"])["statuses"]["unreachable"] == 2
    assert view_report(ROWS, "summary", hosts=[ROWS[0]["host"]])["statuses"]["unreachable"] == 0


def test_the_width_is_that_of_the_terminal() -> None:
    hosts = [f"host-{name}" for name in ("one", "two", "three", "four", "five")]
    assert "host-five, host-four, host-one, host-three, host-two\n" in view_report([], hosts=hosts, width=100)
    assert "host-five, host-four, host-one,\n" in view_report([], hosts=hosts, width=40)


def test_values_may_be_of_types_that_ansible_derives() -> None:
    derived = tuple(
        {Text(key): Text(value) if isinstance(value, str) else value for key, value in row.items()} for row in ROWS
    )
    for name in plugin._FORMATS:
        assert view_report(derived, Text(name), time=Text(NOW)) == view_report(ROWS, name, time=NOW)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("text", {}, "it takes a list of rows"),
        ({"host": "a"}, {}, "it takes a list of rows"),
        (None, {}, "it takes a list of rows"),
        ([{"host": "a", "status": "fine"}], {}, "row 1 of the report, host a: status must be one of"),
        ([], {"format": "xml"}, "format must be one of table, csv, json, summary, page, not 'xml'"),
        ([], {"hosts": "a"}, "hosts must be a list of names"),
        ([], {"time": "now"}, "time must be a time in UTC such as 2026-11-27T15:00:00Z, not 'now'"),
        ([], {"width": "wide"}, "view_report: "),
    ],
)
def test_what_is_wrong_is_said(rows: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        view_report(rows, **options)
    assert str(caught.value).startswith("renderfarm.overlay.view_report: ")
    assert message in str(caught.value)
