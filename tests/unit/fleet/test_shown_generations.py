"""Comparing what the hosts of a deployment show."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.filter import generation_notes as plugin
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.shown_generations import generation_notes

FIRST, SECOND = "0" * 16, "1" * 16


def view(generation: str | None, name: str = "software", **values: Any) -> dict[str, Any]:
    return {"name": name, "generation": generation, "failed": False, "held": None, **values}


def test_hosts_that_show_the_same_are_not_reported() -> None:
    assert generation_notes({"a": [view(FIRST)], "b": [view(FIRST)], "c": []}) == []


def test_views_are_compared_each_by_itself() -> None:
    assert generation_notes({"a": [view(FIRST), view(SECOND, "tools")], "b": [view(FIRST)]}) == []


def test_different_generations_are_one_line_however_many_hosts_there_are() -> None:
    hosts = {f"node{number:03}": [view(FIRST)] for number in range(500)}
    assert generation_notes({**hosts, "other": [view(SECOND)]}) == [
        f"view software: hosts show different generations: {FIRST} on node000, node001, node002 and 497 more; {SECOND} on other"
    ]


@pytest.mark.parametrize("left_out", [view(SECOND, failed=True), view(None), {"name": "software", "failed": True}])
def test_views_that_failed_or_are_not_shown_are_left_out(left_out: dict[str, Any]) -> None:
    assert generation_notes({"a": [view(FIRST)], "b": [left_out]}) == []


def test_a_hold_is_named_with_its_reason_also_if_all_hosts_have_it() -> None:
    held = view(FIRST, held={"generation": FIRST, "until": 0, "reason": "renders are black"})
    assert generation_notes({"a": [held], "b": [held]}) == [
        f"view software: a rollback holds generation {FIRST} on a, b (renders are black); overlay_lift_holds=true ends the hold"
    ]
    without = view(SECOND, held={"generation": SECOND, "until": 5, "reason": ""})
    assert len(generation_notes({"a": [held], "b": [without]})) == 3


def test_the_filter_refuses_what_the_module_does_not_return() -> None:
    assert plugin.FilterModule().filters()["generation_notes"]({}) == []
    with pytest.raises(AnsibleFilterError, match="works on the views that the module view returns"):
        plugin.generation_notes({"a": [{"name": "software"}]})
