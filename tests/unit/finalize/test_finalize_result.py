"""What a run reports."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import (
    FinalizeCounts,
    FinalizeResult,
    Pending,
    content_refusal,
    first_pending,
    pending_by_reason,
)


def test_pending_entries_are_distinct_and_sorted_and_at_most_a_hundred() -> None:
    pending = [Pending(b"%04d" % number, "why") for number in reversed(range(300))] * 2 + [Pending(b"", "root")]
    named = first_pending(pending)
    assert named[0] == {"path": ".", "reason": "root"}
    assert [one["path"] for one in named[1:]] == [f"{number:04d}" for number in range(99)]


def test_pending_entries_are_grouped_by_reason() -> None:
    pending = [Pending(b"%02d" % number, "why") for number in reversed(range(12))] * 2 + [Pending(b"", "root")]
    assert pending_by_reason(pending) == [
        {"reason": "why", "total": 12, "paths": [f"{number:02d}" for number in range(10)]},
        {"reason": "root", "total": 1, "paths": ["."]},
    ]
    assert pending_by_reason([]) == []


def test_the_plan_is_empty_if_nothing_is_changed() -> None:
    result = FinalizeResult(FinalizeCounts(already=5, directories_read=7, warmed=2))
    assert result.plan == ()
    assert {**result.before} == {**result.after}


def test_the_plan_has_an_action_for_each_change() -> None:
    counts = FinalizeCounts(copied_up=3, content_files=2, content_bytes=9, sealed=2, restored=1)
    result = FinalizeResult(counts, removed=[b"b", b"a"], mounted_again=b"/v")
    assert [str(action) for action in result.plan] == [
        "mount the overlay at /v again, which a killed run had unmounted",
        "finish changing the owner of 1 files, which a killed run began",
        "copy up the metadata of 3 entries",
        "copy the content of 2 files, 9 bytes, to the upper layer",
        "remove the copy of a, which is gone from the lower layers",
        "remove the copy of b, which is gone from the lower layers",
        "seal 2 directories",
    ]


def test_detaching_is_the_last_action_and_names_the_new_lower_layer() -> None:
    result = FinalizeResult(FinalizeCounts(sealed=2), lower=(b"/net/a", b"/net/b"), detached_over=b"/u.detached")
    assert [str(action) for action in result.plan] == [
        "seal 2 directories",
        "detach the overlay from /net/a, /net/b, and mount it over the empty directory /u.detached",
    ]
    assert result.values["detached"]
    assert result.values["lower"] == result.after["lower layers"] == ["/u.detached"]
    assert result.before["lower layers"] == ["/net/a", "/net/b"]
    assert "/u.detached" in result.warnings[0]


def test_an_overlay_that_was_detached_before_is_returned_as_detached() -> None:
    result = FinalizeResult(lower=(b"/u.detached",), was_detached=True)
    assert result.plan == ()
    assert result.values["detached"]
    assert result.values["lower"] == ["/u.detached"]
    assert result.warnings == []


def test_a_refused_run_changes_nothing() -> None:
    result = FinalizeResult(FinalizeCounts(content_files=2, content_bytes=9), refusal="no")
    assert result.plan == ()
    assert result.before == result.after == {}
    assert not result.values["finalized"]
    assert result.values["content_files"] == 2


def test_the_diff_shows_what_changes() -> None:
    result = FinalizeResult(FinalizeCounts(already=4, copied_up=3, sealed=2), removed=[b"a\n"], mounted_again=b"/v")
    changes = {name: (value, result.after[name]) for name, value in result.before.items()}
    assert changes == {
        "mounted": (False, True),
        "in upper": (4, 7),
        "owners half changed": (0, 0),
        "sealed by this run": (0, 2),
        "lower layers": ([], []),
        "gone from the lower layers": (["a\\n"], []),
    }


@pytest.mark.parametrize(("pending", "finalized"), [([], True), ([Pending(b"a", "why")], False)])
def test_a_run_with_pending_entries_has_not_finalized(pending: list[Pending], finalized: bool) -> None:
    values = FinalizeResult(pending=pending * 2).values
    assert values["finalized"] is finalized
    assert values["pending_total"] == len(pending)


def test_the_first_ten_stripped_files_are_named_in_a_warning() -> None:
    assert FinalizeResult().warnings == []
    (warning,) = FinalizeResult(stripped=[b"%02d" % number for number in reversed(range(12))]).warnings
    assert warning.startswith("12 files lost")
    assert "00, 01, 02, 03, 04, 05, 06, 07, 08, 09 and 2 more" in warning
    assert "keep_setid" in warning


@pytest.mark.parametrize(("size", "expected"), [(5, "3 files with 5 bytes from"), (3 << 30, "bytes (3.0 GiB) from")])
def test_the_refusal_names_the_size_of_the_content(size: int, expected: str) -> None:
    assert expected in content_refusal(b"/v", 3, size)


def test_counts_are_added_by_name() -> None:
    counts = FinalizeCounts(copied_up=1)
    counts.add(FinalizeCounts(copied_up=2, sealed=3))
    assert counts == FinalizeCounts(copied_up=3, sealed=3)
