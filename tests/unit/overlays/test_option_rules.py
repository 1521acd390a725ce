"""Rules about settings: the settings that are added, and the messages. tests/kernel tries each rule on real mounts."""

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
def test_missing_settings_are_added_and_no_rule_refuses_them(
    given: dict[str, str | None], upper: bool, data: bool, expected: dict[str, str | None]
) -> None:
    assert pinned(given, upper, data) == expected
    assert refusal(expected, upper, data) is None


def test_xino_is_off_with_strategy_redirect_unless_it_is_given() -> None:
    read_only = {"metacopy": "on", "redirect_dir": "on", "xino": "off"}
    assert pinned({}, upper=False, data=True, redirect=True) == read_only
    assert pinned({}, upper=True, data=True, redirect=True) == WRITABLE
    assert pinned({"xino": "auto"}, upper=False, data=True, redirect=True) == {**read_only, "xino": "auto"}


@pytest.mark.parametrize(
    ("given", "upper", "data", "reason"),
    [
        (
            {"nfs_export": "on"},
            True,
            True,
            "option nfs_export=on excludes data layers, .*read zeros: leave nfs_export out",
        ),
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
        ({"volatile": None}, False, True, "option volatile needs an upper layer: leave it out, or give 'upper'"),
    ],
)
def test_the_message_names_the_options(given: dict[str, str | None], upper: bool, data: bool, reason: str) -> None:
    found = refusal(pinned(given, upper, data), upper, data)
    assert found
    assert re.match(reason, found)


def test_rules_name_known_settings_and_values() -> None:
    for rule in RULES:
        for name, values in rule.given:
            choices = SETTINGS[name] or (None,)
            assert set(values) <= set(choices)


def test_every_message_says_what_to_do() -> None:
    for rule in RULES:
        assert ": " in rule.reason
        assert rule.reason.rpartition(": ")[2].split()[0] in ("give", "leave", "use")
