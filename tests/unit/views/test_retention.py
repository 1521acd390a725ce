"""Which generations are removed, and why the others are kept."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.views.retention import (
    Candidate,
    RetentionRules,
)

NOW = 10_000.0


def reasons(
    *ages: int,
    current: str | None = None,
    previous: str | None = None,
    used: str = "",
    keep: int = 0,
    min_age: float = 0,
) -> dict[str, str | None]:
    """Return why generations ``a``, ``b``, ... of these ages in seconds are kept, in the order in which they are decided."""
    candidates = [
        Candidate(name, NOW - age, 1, ("it is mounted at /v",) if name in used else ())
        for name, age in zip("abcdefgh", ages)
    ]
    decided = RetentionRules(current, previous, keep, min_age).decide(candidates, NOW)
    return {one.candidate.directory: one.reason for one in decided}


def test_a_generation_that_is_not_needed_is_removed() -> None:
    assert reasons(1, 2, 3) == {"a": None, "b": None, "c": None}


def test_the_newest_come_first_and_are_kept() -> None:
    found = reasons(30, 10, 20, keep=2)
    assert found == {"b": "it is among the 2 newest", "c": "it is among the 2 newest", "a": None}
    assert list(found) == ["b", "c", "a"]


def test_the_current_and_the_previous_generation_are_kept_and_count_among_the_newest() -> None:
    assert reasons(1, 2, 3, 4, current="b", previous="d", keep=2) == {
        "a": "it is among the 2 newest",
        "b": "it is the current generation",
        "c": None,
        "d": "it is the previous generation",
    }


def test_a_use_is_the_first_reason_that_is_given() -> None:
    assert reasons(1, 2, current="a", used="ab", keep=9) == {"a": "it is mounted at /v", "b": "it is mounted at /v"}


@pytest.mark.parametrize(("age", "kept"), [(59, True), (60, False), (61, False), (-5, True)])
def test_a_young_generation_is_kept(age: int, kept: bool) -> None:
    assert reasons(age, min_age=60) == {"a": "it is younger than 60 seconds" if kept else None}


def test_generations_of_the_same_age_are_ordered_by_name() -> None:
    assert reasons(5, 5, keep=1) == {"b": "it is among the 1 newest", "a": None}
