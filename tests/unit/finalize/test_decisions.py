"""What copy-up does with an entry, decided from what was seen of it."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.decisions import (
    ChangeOwner,
    ChangeOwnerKeepingSetid,
    CopyUpRules,
    Decision,
    KeepOwner,
    LeaveAlone,
    carry_out,
    decide,
    leave_out,
)


@dataclass(frozen=True)
class Status:
    st_mode: int = stat.S_IFREG | 0o644
    st_nlink: int = 1
    st_uid: int = 1
    st_gid: int = 2
    st_size: int = 10
    st_mtime_ns: int = 5


FILE = Status()
PROGRAM = Status(stat.S_IFREG | 0o755)
SETUID = Status(stat.S_IFREG | 0o4755)
LINKED = Status(st_nlink=2)
DIRECTORY = Status(stat.S_IFDIR | 0o2755, 3)
LINK = Status(stat.S_IFLNK | 0o777)
RULES = CopyUpRules(
    owner=None, group=None, keep_setid=False, keeps_links=True, copies_content=False, copy_content=False
)


def rules(**changes: Any) -> CopyUpRules:
    return replace(RULES, **changes)


@pytest.mark.parametrize("status", [FILE, PROGRAM, SETUID, LINKED, DIRECTORY, LINK])
def test_without_an_owner_every_entry_is_copied_up_as_it_is(status: Status) -> None:
    assert decide(RULES, status) == KeepOwner()


@pytest.mark.parametrize("status", [FILE, SETUID, DIRECTORY])
def test_an_owner_that_stays_is_not_changed(status: Status) -> None:
    assert decide(rules(owner=1, group=2), status) == KeepOwner()


@pytest.mark.parametrize(
    ("status", "capable", "changes", "decision"),
    [
        (FILE, False, {"owner": 7}, ChangeOwner(7, 2)),
        (FILE, False, {"group": 7}, ChangeOwner(1, 7)),
        (LINK, False, {"owner": 7, "group": 8}, ChangeOwner(7, 8)),
        (DIRECTORY, False, {"owner": 7}, ChangeOwner(7, 2)),
        (DIRECTORY, False, {"owner": 7, "keep_setid": True}, ChangeOwner(7, 2)),
        (PROGRAM, False, {"owner": 7, "keep_setid": True}, ChangeOwner(7, 2)),
        (SETUID, False, {"owner": 7}, ChangeOwner(7, 2, strips=True)),
        (PROGRAM, True, {"owner": 7}, ChangeOwner(7, 2, strips=True)),
        (SETUID, False, {"owner": 7, "keep_setid": True}, ChangeOwnerKeepingSetid(7, 2)),
        (PROGRAM, True, {"group": 7, "keep_setid": True}, ChangeOwnerKeepingSetid(1, 7)),
    ],
)
def test_the_owner_of_an_entry_from_the_lower_layers_is_changed(
    status: Status, capable: bool, changes: dict[str, Any], decision: Decision
) -> None:
    assert decide(rules(**changes), status, status, capable) == decision


@pytest.mark.parametrize(
    "lower",
    [
        None,
        Status(st_mode=stat.S_IFREG | 0o600),
        Status(st_mode=stat.S_IFLNK | 0o644),
        Status(st_uid=0),
        Status(st_gid=0),
        Status(st_size=11),
        Status(st_mtime_ns=6),
    ],
)
def test_the_owner_of_an_entry_that_differs_from_the_lower_layers_is_not_changed(lower: Status | None) -> None:
    decision = decide(rules(owner=7), FILE, lower)
    assert isinstance(decision, LeaveAlone)
    assert "differs from the lower layers" in decision.reason


def test_the_size_and_link_count_of_a_directory_do_not_matter() -> None:
    lower = replace(DIRECTORY, st_size=4096, st_nlink=1)
    assert decide(rules(owner=7), DIRECTORY, lower) == ChangeOwner(7, 2)


@pytest.mark.parametrize(("status", "left"), [(FILE, False), (LINKED, True), (DIRECTORY, False)])
def test_names_of_one_file_are_left_alone_unless_they_stay_so(status: Status, left: bool) -> None:
    decision = decide(rules(keeps_links=False), status)
    assert isinstance(decision, LeaveAlone) is left
    assert not left or "index=on" in str(decision)


@pytest.mark.parametrize(
    ("status", "left"),
    [(FILE, True), (replace(FILE, st_size=0), False), (DIRECTORY, False), (LINK, False)],
)
def test_content_is_not_copied_unless_that_is_allowed(status: Status, left: bool) -> None:
    decision = decide(rules(copies_content=True), status)
    assert isinstance(decision, LeaveAlone) is left
    assert not left or "copy_content" in str(decision)
    assert decide(rules(copies_content=True, copy_content=True), status) == KeepOwner()


@pytest.mark.parametrize(("status", "size"), [(FILE, 10), (replace(FILE, st_size=0), 0), (DIRECTORY, 0), (LINK, 0)])
def test_the_content_of_files_alone_counts(status: Status, size: int) -> None:
    assert rules(copies_content=True).content_of(status) == size
    assert RULES.content_of(status) == 0


@pytest.mark.parametrize(
    ("status", "keep_setid", "looked_for"),
    [
        (FILE, False, False),
        (FILE, True, True),
        (PROGRAM, False, True),
        # It loses attributes in any case.
        (SETUID, False, False),
        (LINK, True, False),
        (DIRECTORY, True, False),
    ],
)
def test_a_capability_is_looked_for_where_it_has_an_effect(status: Status, keep_setid: bool, looked_for: bool) -> None:
    assert rules(keep_setid=keep_setid).may_have_capability(status) is looked_for


def test_changes_are_carried_out_or_left_out() -> None:
    made: list[int] = []
    assert carry_out(made.append, 1)
    assert not leave_out(made.append, 2)
    assert made == [1]
