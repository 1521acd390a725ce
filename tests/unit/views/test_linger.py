"""Releases that leave a view linger at their place for a time, decided from the record of the view."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import linger
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.linger import Decision, Leaving, Placed, Record

NOW = 1_800_000_000
LINGER = 172_800


def at(release: str, place: str | None = None, **more: Any) -> Placed:
    return linger.placed(release, place, None, more.get("include", ()), more.get("exclude", ()))


def record(*declared: Placed, leaving: dict[str, int] | None = None) -> Record:
    return Record(tuple(sorted(declared)), tuple(Leaving(at(name), since) for name, since in (leaving or {}).items()))


def decide(
    declared: list[Placed],
    before: Record | None,
    *,
    links: tuple[str, ...] = (),
    now: int = NOW,
    seconds: int = LINGER,
    unusable: dict[str, str] | None = None,
) -> Decision:
    return linger.decide(declared, links, before, now, seconds, unusable or {})


def leaving(decision: Decision) -> dict[str, int]:
    return {one.placed.release: one.since for one in decision.record.leaving}


def left(decision: Decision) -> dict[str, str]:
    return {one.placed.release: one.reason for one in decision.left}


def test_the_first_declaration_is_recorded_and_no_release_lingers() -> None:
    decision = decide([at("usd/2"), at("usd/1")], None)
    assert decision == Decision(Record((at("usd/1"), at("usd/2"))))


def test_a_release_that_is_no_longer_declared_lingers_from_now() -> None:
    decision = decide([at("usd/2")], record(at("usd/1")))
    assert leaving(decision) == {"usd/1": NOW}
    assert left(decision) == {}


@pytest.mark.parametrize(("age", "stays"), [(0, True), (LINGER - 1, True), (LINGER, False), (10 * LINGER, False)])
def test_a_release_is_removed_after_it_lingered_long_enough(age: int, stays: bool) -> None:
    decision = decide([at("usd/2")], record(at("usd/2"), leaving={"usd/1": NOW - age}))
    assert leaving(decision) == ({"usd/1": NOW - age} if stays else {})
    assert bool(left(decision)) != stays


def test_a_later_decision_from_the_new_record_changes_nothing() -> None:
    first = decide([at("usd/2")], record(at("usd/1"), leaving={"usd/0": NOW - 5}))
    assert decide([at("usd/2")], first.record, now=NOW + 60).record == first.record


def test_a_release_that_is_declared_again_no_longer_lingers() -> None:
    decision = decide([at("usd/1")], record(at("usd/2"), leaving={"usd/1": NOW - 5}))
    assert leaving(decision) == {"usd/2": NOW}
    assert left(decision) == {}


def test_with_0_seconds_no_release_lingers() -> None:
    decision = decide([at("usd/3")], record(at("usd/2"), leaving={"usd/1": NOW - 5}), seconds=0)
    assert leaving(decision) == {}
    assert set(left(decision)) == {"usd/1", "usd/2"}


def test_a_recorded_time_in_the_future_counts_as_now() -> None:
    decision = decide([at("usd/2")], record(at("usd/2"), leaving={"usd/1": NOW + 10**6}))
    assert leaving(decision) == {"usd/1": NOW}


@pytest.mark.parametrize(
    ("before", "declared", "links"),
    [
        ([at("usd/1", "usd/current")], [at("usd/2", "usd/current")], ()),
        ([at("usd/1", "usd/current")], [at("lib/1")], ()),
        ([at("usd/1", "/")], [at("lib/1")], ()),
        ([at("usd/1")], [at("lib/1", "usd/1")], ()),
        ([at("usd/1")], [at("lib/1", "usd/1/plugin")], ()),
        ([at("usd/1")], [at("lib/1", "usd")], ()),
        ([at("usd/1")], [at("lib/1", "/")], ()),
        ([at("usd/1")], [at("lib/1")], ("usd/1",)),
        ([at("usd/1")], [at("lib/1")], ("usd",)),
        ([at("usd/1")], [at("lib/1")], ("usd/1/current",)),
        ([at("usd/1"), at("lib/1", "usd/1")], [at("lib/2")], ()),
        ([at("usd/1"), at("lib/1", "usd/1/plugin")], [at("lib/2")], ()),
    ],
)
def test_a_release_does_not_linger_at_another_place_or_one_that_it_shares(
    before: list[Placed], declared: list[Placed], links: tuple[str, ...]
) -> None:
    decision = decide(declared, record(*before), links=links)
    assert leaving(decision) == {}
    assert "usd/1" in left(decision)


@pytest.mark.parametrize(
    "declared", [at("usd/10"), at("usd/1.1"), at("usd/1", "usd/current"), at("us"), at("lib/usd/1")]
)
def test_a_release_beside_its_place_does_not_keep_it_from_lingering(declared: Placed) -> None:
    assert leaving(decide([declared], record(at("usd/1")), links=("usd/latest",))) == {"usd/1": NOW}


def of_root(release: str, directory: str) -> Placed:
    """Return a release of one of several software roots, which appear in directories of their own."""
    path = release.partition("/")[2]
    return linger.placed(release, f"{directory}/{path}", path, (), ())


@pytest.mark.parametrize("directory", ["", "maya", "dcc/maya"])
def test_a_release_of_one_of_several_roots_lingers_in_the_directory_of_its_root(directory: str) -> None:
    before = of_root("maya/2024", directory)
    decision = decide([of_root("maya/2025", directory)], record(before))
    assert [one.placed for one in decision.record.leaving] == [before]
    # Another root may have a release of the same path, at the same place.
    decision = decide([of_root("nuke/2024", directory)], record(before))
    assert leaving(decision) == {}


def test_a_release_of_one_of_several_roots_does_not_linger_at_a_place_of_the_current_one() -> None:
    (before, after) = (linger.placed(f"maya/{one}", "maya/current", one, (), ()) for one in ("2024", "2025"))
    assert left(decide([after], record(before))) == {
        "maya/2024": "its place in the view is not its own path, so the place changes at once"
    }


def test_an_unusable_release_does_not_linger() -> None:
    before = record(at("usd/2"), leaving={"usd/1": NOW - 5})
    decision = decide([at("usd/3")], before, unusable={"usd/1": "no .ready", "usd/2": "gone"})
    assert leaving(decision) == {}
    assert left(decision) == {"usd/1": "no .ready", "usd/2": "gone"}


def test_a_release_lingers_with_its_source_and_patterns() -> None:
    was = linger.placed("usd/1", None, "/mnt/usd/1", ["bin"], ["**/*.a"])
    decision = decide([at("usd/2")], record(was))
    assert [one.placed for one in decision.record.leaving] == [was]
    assert was.as_dict() == {
        "release": "usd/1",
        "at": "usd/1",
        "source": "mnt/usd/1",
        "include": ["bin"],
        "exclude": ["**/*.a"],
    }


def test_the_order_of_the_declaration_does_not_change_the_record() -> None:
    assert decide([at("b/1"), at("a/1")], None).record == decide([at("a/1"), at("b/1")], None).record


def test_twenty_thousand_releases_can_linger() -> None:
    before = record(*(at(f"many/{number}") for number in range(20_000)))
    assert len(leaving(decide([at("one/1")], before))) == 20_000


# ---- the record


def test_a_record_is_read_as_it_was_written() -> None:
    written = Record(
        (at("tool/1", "/"), linger.placed("usd/\udcff1", None, None, ["b*"], [])), (Leaving(at("usd/1"), NOW),)
    )
    assert linger.record_from_json("view", linger.record_to_json("view", written)) == written


GOOD: dict[str, Any] = json.loads(linger.record_to_json("view", record(at("usd/2"), leaving={"usd/1": NOW})))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        json.dumps({**GOOD, "view": "other"}).encode(),
        json.dumps({**GOOD, "view": "../other"}).encode(),
        json.dumps({**GOOD, "format": 2}).encode(),
        json.dumps({**GOOD, "format": True}).encode(),
        json.dumps({**GOOD, "more": 1}).encode(),
        json.dumps({**GOOD, "declared": {}}).encode(),
        json.dumps({**GOOD, "leaving": None}).encode(),
    ],
)
def test_an_invalid_record_is_refused(text: bytes) -> None:
    with pytest.raises(OverlayError):
        linger.record_from_json("view", text)


@pytest.mark.parametrize(
    "fields",
    [
        1,
        {},
        {"release": 1},
        {"release": ""},
        {"release": "/usd/1"},
        {"release": "usd//1"},
        {"release": "usd/../1"},
        {"release": "usd/\0"},
        {"release": "x" * 5000},
        {"release": "usd/\ud800"},
        {"release": "usd/1", "at": "../etc"},
        {"release": "usd/1", "at": ["etc"]},
        {"release": "usd/1", "source": "/etc"},
        {"release": "usd/1", "include": "bin"},
        {"release": "usd/1", "include": [1]},
        {"release": "usd/1", "exclude": [["bin"]]},
        {"release": "usd/1", "manifest": "/etc/passwd"},
    ],
)
def test_an_invalid_placement_in_a_record_is_refused(fields: object) -> None:
    for key, more in (("declared", {}), ("leaving", {"since": NOW})):
        placement = {**fields, **more} if isinstance(fields, dict) else fields
        with pytest.raises(OverlayError):
            linger.record_from_json("view", json.dumps({**GOOD, key: [placement]}).encode())


@pytest.mark.parametrize("since", [None, "now", -1, 0, 1.5, True, 10**12, [NOW]])
def test_an_invalid_time_in_a_record_is_refused(since: object) -> None:
    text = json.dumps({**GOOD, "leaving": [{"release": "usd/1", "since": since}]}).encode()
    with pytest.raises(OverlayError, match="since"):
        linger.record_from_json("view", text)


@pytest.mark.parametrize(
    ("release", "place"), [("", None), ("/", None), ("../a", None), ("a/1", "b/../../c"), ("a/1", "b\0")]
)
def test_a_placement_that_leads_out_of_its_root_is_refused(release: str, place: str | None) -> None:
    with pytest.raises(OverlayError):
        linger.placed(release, place, None, (), ())
