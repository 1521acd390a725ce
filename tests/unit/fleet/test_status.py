"""ViewStatus records are read as they were written, and holds end."""

from __future__ import annotations

import json

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.status import (
    Hold,
    ViewStatus,
    status_from_json,
    status_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError

STATUS = ViewStatus("software", "/software", "0123456789abcdef", "systemd")


@pytest.mark.parametrize(
    "status",
    [
        STATUS,
        ViewStatus("a", "/a", None, "none", "it failed: \udce4", Hold("0123456789abcdef", 5, "why")),
        ViewStatus("a", "/\udcff", None, "fstab", "", Hold("0123456789abcdef", 0)),
        ViewStatus("a", "/a", "0" * 16, "none", "", Hold("1" * 16, 0, "why", "0" * 16), "2" * 16),
    ],
)
def test_a_status_is_read_as_it_was_written(status: ViewStatus) -> None:
    assert status_from_json(status_to_json(status)) == status


def test_a_long_failure_is_cut() -> None:
    found = status_from_json(status_to_json(ViewStatus("a", "/a", None, "none", "x" * 9000)))
    assert len(found.failure) == 4096


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("view", "../x"),
        ("generation", "x"),
        ("mountpoint", "x"),
        ("hold", {}),
        ("last_run", -1),
        ("other", 1),
        ("persist", ""),
    ],
)
def test_what_is_no_status_is_refused(field: str, value: object) -> None:
    text = json.dumps({**json.loads(status_to_json(STATUS)), field: value})
    with pytest.raises(RecordError, match=field):
        status_from_json(text.encode())


def test_a_hold_ends_at_its_time_or_when_it_is_lifted() -> None:
    assert Hold("g", 10).holds(9)
    assert not Hold("g", 10).holds(10)
    assert Hold("g", 0).holds(1 << 40)


def test_a_hold_against_one_generation_ends_when_another_one_is_declared() -> None:
    hold = Hold("old", 0, "no licence", "bad")
    assert hold.holds(5, "bad")
    assert not hold.holds(5, "good")
    assert not hold.holds(5)
    assert not Hold("old", 4, "", "bad").holds(5, "bad")


def test_a_record_of_an_older_version_keeps_its_hold() -> None:
    values = json.loads(status_to_json(ViewStatus("a", "/a", "0" * 16, "none", "", Hold("1" * 16, 9, "why"))))
    del values["switched_from"]
    found = status_from_json(json.dumps(values).encode())
    assert found.hold == Hold("1" * 16, 9, "why")
    assert found.switched_from is None
