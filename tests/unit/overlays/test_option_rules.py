"""Option rules: what is filled in, and that each rule has a reason. What the kernel does, tests/kernel holds them against."""

from __future__ import annotations

import re

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.option_rules import RULES, pinned, refusal
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import SETTINGS

WRITABLE = {"index": "on", "metacopy": "on", "nfs_export": "off", "redirect_dir": "on", "xino": "off"}


@pytest.mark.parametrize(
    ("given", "upper", "data", "expected"),
    [
        ({}, False, False, {}),
        ({}, False, True, {"metacopy": "on", "redirect_dir": "on"}),
        ({}, True, False, WRITABLE),
        ({}, True, True, {**WRITABLE, "xino": "auto"}),
        ({"nfs_export": "on"}, True, False, {**WRITABLE, "nfs_export": "on", "metacopy": "off", "xino": "auto"}),
        ({"redirect_dir": "nofollow"}, True, False, {**WRITABLE, "redirect_dir": "nofollow", "metacopy": "off"}),
        ({"metacopy": "off", "index": "off"}, True, False, {**WRITABLE, "metacopy": "off", "index": "off"}),
        ({"userxattr": None}, False, True, {"userxattr": None}),
        (
            {"userxattr": None},
            True,
            True,
            {"userxattr": None, "index": "on", "nfs_export": "off", "xino": "auto"},
        ),
    ],
)
def test_what_is_left_open_is_filled_in(
    given: dict[str, str | None], upper: bool, data: bool, expected: dict[str, str | None]
) -> None:
    assert pinned(given, upper, data) == expected
    assert refusal(expected, upper, data) is None


def test_where_data_layers_are_ordinary_ones_listings_look_up_nothing_in_them() -> None:
    read_only = {"metacopy": "on", "redirect_dir": "on", "xino": "off"}
    assert pinned({}, upper=False, data=True, redirect=True) == read_only
    assert pinned({}, upper=True, data=True, redirect=True) == WRITABLE
    assert pinned({"xino": "auto"}, upper=False, data=True, redirect=True) == {**read_only, "xino": "auto"}


@pytest.mark.parametrize(
    ("given", "upper", "data", "reason"),
    [
        ({"nfs_export": "on"}, True, True, "option nfs_export=on cannot go with data layers: .*read zeros"),
        (
            {"nfs_export": "on", "metacopy": "on"},
            True,
            False,
            "options nfs_export=on and metacopy=on exclude each other",
        ),
        ({"nfs_export": "on", "index": "off"}, True, False, "options nfs_export=on and index=off exclude each other"),
        (
            {"metacopy": "on", "redirect_dir": "follow"},
            True,
            False,
            "options metacopy=on and redirect_dir=follow exclude",
        ),
        ({"userxattr": None, "redirect_dir": "on"}, False, False, "options userxattr and redirect_dir=on exclude"),
        ({"volatile": None}, False, True, "option volatile is for overlays with an upper layer"),
    ],
)
def test_the_reason_names_the_options(given: dict[str, str | None], upper: bool, data: bool, reason: str) -> None:
    found = refusal(pinned(given, upper, data), upper, data)
    assert found
    assert re.match(reason, found)


def test_rules_are_about_settings_that_there_are() -> None:
    for rule in RULES:
        for name, values in rule.given:
            choices = SETTINGS[name] or (None,)
            assert set(values) <= set(choices)
