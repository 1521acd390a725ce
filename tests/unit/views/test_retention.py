"""Which generations may be removed."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.views.retention import Candidate, judge

NOW = 10_000.0


def judged(
    *ages: int,
    current: str | None = None,
    previous: str | None = None,
    used: str = "",
    keep: int = 0,
    min_age: float = 0,
) -> dict[str, str | None]:
    """Return the verdicts of generations ``a``, ``b``, ... of the ages given, in the order in which they come."""
    candidates = [
        Candidate(name, NOW - age, 1, ("it is mounted at /v",) if name in used else ())
        for name, age in zip("abcdefgh", ages)
    ]
    return {
        verdict.candidate.folder: verdict.reason for verdict in judge(candidates, current, previous, keep, min_age, NOW)
    }


def test_what_nobody_needs_is_removed() -> None:
    assert judged(1, 2, 3) == {"a": None, "b": None, "c": None}


def test_the_newest_come_first_and_stay() -> None:
    found = judged(30, 10, 20, keep=2)
    assert found == {"b": "it is among the 2 newest", "c": "it is among the 2 newest", "a": None}
    assert list(found) == ["b", "c", "a"]


def test_the_current_and_the_previous_one_stay_and_count() -> None:
    assert judged(1, 2, 3, 4, current="b", previous="d", keep=2) == {
        "a": "it is among the 2 newest",
        "b": "it is the current generation",
        "c": None,
        "d": "it is the previous generation",
    }


def test_who_needs_a_generation_is_said_before_anything_else() -> None:
    assert judged(1, 2, current="a", used="ab", keep=9) == {"a": "it is mounted at /v", "b": "it is mounted at /v"}


@pytest.mark.parametrize(("age", "stays"), [(59, True), (60, False), (61, False), (-5, True)])
def test_a_young_one_stays(age: int, stays: bool) -> None:
    assert judged(age, min_age=60) == {"a": "it is younger than 60 seconds" if stays else None}


def test_the_same_age_is_decided_by_name() -> None:
    assert judged(5, 5, keep=1) == {"b": "it is among the 1 newest", "a": None}
