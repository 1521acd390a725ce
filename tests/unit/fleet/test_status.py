"""ViewStatus records are read as they were written, and holds end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.status import (
    Hold,
    ViewStatus,
    mount_of,
    status_from_json,
    status_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError

MOUNT = {
    "options": {"nodev": True, "xino": "off", "metacopy": None},
    "data": ["/net/software"],
    "writable": "scratch",
    "scratch_size": 1 << 20,
}
STATUS = ViewStatus("software", "/software", "0123456789abcdef", "systemd", mount=MOUNT)


@pytest.mark.parametrize(
    "status",
    [
        STATUS,
        ViewStatus("a", "/a", None, "none", "it failed: \udce4", Hold("0123456789abcdef", 5, "why")),
        ViewStatus("a", "/\udcff", None, "fstab", "", Hold("0123456789abcdef", 0)),
        ViewStatus("a", "/a", "0" * 16, "none", "", Hold("1" * 16, 0, "why", "0" * 16), None, "2" * 16),
    ],
)
def test_a_status_is_read_as_it_was_written(status: ViewStatus) -> None:
    assert status_from_json(status_to_json(status)) == status


def test_a_status_of_an_earlier_version_has_no_mount() -> None:
    text = json.loads(status_to_json(STATUS))
    del text["mount"]
    assert status_from_json(json.dumps(text).encode()) == replace(STATUS, mount=None)


def test_what_the_declaration_decides_of_a_mount_is_kept() -> None:
    assert mount_of({**MOUNT, "name": "software", "persist": "none"}) == MOUNT


def test_a_long_failure_is_cut() -> None:
    found = status_from_json(status_to_json(ViewStatus("a", "/a", None, "none", "x" * 9000)))
    assert len(found.failure) == 4096


@pytest.mark.parametrize("reason", ["é" * 3000, "x" + "é" * 3000, "\0" * 3000, "\ud800", "\udcff" * 3000, "a\nb"])
def test_any_reason_is_recorded(reason: str) -> None:
    status = ViewStatus("a", "/a", None, "none", reason, Hold("0" * 16, 0, reason))
    found = status_from_json(status_to_json(status))
    assert found.hold
    assert found.failure == found.hold.reason
    assert 0 < len(found.failure.encode("utf-8", "surrogateescape")) <= 4096


def test_the_message_about_a_long_name_is_short() -> None:
    fields = json.loads(status_to_json(STATUS))
    fields["mount"]["options"] = {"x" * 100_000: True}
    with pytest.raises(RecordError) as raised:
        status_from_json(json.dumps(fields).encode())
    assert len(str(raised.value)) < 1000


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
        ("mount", {"options": {}}),
        ("mount", {**MOUNT, "data": ["net"]}),
        ("mount", {**MOUNT, "options": {"xino": []}}),
        ("mount", {**MOUNT, "options": {"": True}}),
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
