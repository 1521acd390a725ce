"""How a view gets a generation, and loses all of them."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import (
    BuildGeneration,
    ViewState,
    plan_layer,
    plan_view_removal,
)


def state(*generations: str, current: str | None = None, previous: str | None = None) -> ViewState:
    return ViewState(True, frozenset(generations), current, previous)


@pytest.mark.parametrize(
    ("there", "actions"),
    [
        (state(), ["build generation g (erofs)", "make generation g current"]),
        (state("f-erofs", current="f-erofs"), ["build generation g (erofs)", "make generation g current"]),
        (state("f-erofs", "g-erofs", current="f-erofs"), ["make generation g current"]),
        (state("g-erofs"), ["make generation g current"]),
        (state("g-erofs", current="g-erofs"), []),
        # The same generation in another form.
        (state("g-directory", current="g-directory"), ["build generation g (erofs)", "make generation g current"]),
        # The link is there, but the generation has lost its record.
        (state(current="g-erofs"), ["build generation g (erofs)"]),
    ],
)
def test_a_generation_is_made_if_it_is_missing_and_becomes_current(there: ViewState, actions: list[str]) -> None:
    assert [str(action) for action in plan_layer("g-erofs", BuildGeneration("g", "erofs"), there)] == actions


def test_a_generation_that_has_to_be_there_is_not_made() -> None:
    there = state("f-erofs", "g-erofs", current="g-erofs")
    assert [str(action) for action in plan_layer("f-erofs", None, there)] == ["make generation f current"]
    with pytest.raises(OverlayError, match=r"generation h is no longer on this host: .*run the task again"):
        plan_layer("h-erofs", None, there)


def test_a_damaged_generation_fails_only_a_plan_that_needs_it() -> None:
    there = ViewState(True, frozenset(("f-erofs",)), "f-erofs", None, {"g-erofs": "g-erofs/view.json is damaged"})
    assert plan_layer("f-erofs", None, there) == ()
    assert len(plan_layer("h-erofs", BuildGeneration("h", "erofs"), there)) == 2
    assert plan_view_removal("v", there, {})
    for provide in (None, BuildGeneration("g", "erofs")):
        with pytest.raises(OverlayError, match=r"g-erofs/view\.json is damaged"):
            plan_layer("g-erofs", provide, there)


def test_a_view_is_removed_if_it_exists_and_is_not_in_use() -> None:
    assert [str(action) for action in plan_view_removal("v", state("g-erofs"), {})] == [
        "remove all generations of view v"
    ]
    assert plan_view_removal("v", ViewState(False, frozenset(), None, None), {}) == ()
    assert plan_view_removal("v", state("g-erofs"), {"g-directory": []})
    with pytest.raises(
        OverlayError, match=r"view v is in use .*\(generation g: it is mounted at /s, it is on loop0\): unmount it"
    ):
        plan_view_removal("v", state("g-erofs"), {"g-directory": ["it is mounted at /s", "it is on loop0"]})
