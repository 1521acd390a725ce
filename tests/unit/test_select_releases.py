"""Tests of choosing releases by a query."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.filter import select_releases as plugin
from ansible_collections.renderfarm.overlay.plugins.filter.select_releases import (
    FilterModule,
    query_problem,
    select_releases,
)


def release(path: str, **more: Any) -> dict[str, Any]:
    package, version = path.split("/")
    return {"package": package, "version": version, "path": path, "ready": True, "manifest": None, **more}


RELEASES = [
    release("houdini/19.5.805"),
    release("houdini/20.5.332"),
    release("houdini/20.5.410", manifest="/m"),
    release("houdini/21.0.1", ready=False),
    release("nuke/15.1v3"),
    release("nuke/15.1v12", manifest="/m"),
    release("usd/25.05"),
]


def paths(query: str, ready_only: bool = True) -> list[str]:
    return [one["path"] for one in select_releases(RELEASES, query, ready_only)]


class Text(str):
    """Stand in for Ansible's subclasses of str, which record where a value comes from."""

    __slots__ = ()


def test_values_may_have_types_that_ansible_derives() -> None:
    derived = [
        {key: Text(value) if isinstance(value, str) else value for key, value in one.items()} for one in RELEASES
    ]
    assert select_releases(derived, "[?version_match(version, '>=25')]") == [RELEASES[-1]]


@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ("[]", [one["path"] for one in RELEASES if one["ready"]]),
        ("[?package == 'usd']", ["usd/25.05"]),
        ("[?package == 'none']", []),
        ("newest(@)", ["houdini/20.5.410", "nuke/15.1v12", "usd/25.05"]),
        ("newest(@, `1`)", ["houdini/20.5.410", "nuke/15.1v12", "usd/25.05"]),
        ("newest(@, `0`)", []),
        ("newest([?package == 'houdini'], `2`)", ["houdini/20.5.332", "houdini/20.5.410"]),
        ("newest([?manifest])", ["houdini/20.5.410", "nuke/15.1v12"]),
        ("[?version_match(version, '>=20.5, <21')]", ["houdini/20.5.332", "houdini/20.5.410", "usd/25.05"][:2]),
        ("[?package == 'nuke' && version_match(version, '>15.1v3')]", ["nuke/15.1v12"]),
        ("newest([?version_match(version, '!=20.5.410')])", ["houdini/20.5.332", "nuke/15.1v12", "usd/25.05"]),
    ],
)
def test_queries_choose(query: str, chosen: list[str]) -> None:
    assert paths(query) == chosen


def test_a_release_that_is_not_ready_is_chosen_only_without_ready_only() -> None:
    assert "houdini/21.0.1" not in paths("@")
    assert paths("newest([?package == 'houdini'])", ready_only=False) == ["houdini/21.0.1"]
    assert select_releases([{"path": "x/1", "package": "x", "version": "1"}]) == []


def test_chosen_releases_are_returned_unchanged() -> None:
    assert select_releases(RELEASES, "[?path == 'usd/25.05']") == [RELEASES[-1]]
    assert select_releases([], "newest(@)") == []


@pytest.mark.parametrize(
    ("releases", "query", "reason"),
    [
        (RELEASES, "[?", "query"),
        (RELEASES, "nosuch(@)", "nosuch"),
        (RELEASES, "newest()", "newest"),
        (RELEASES, "newest('x')", "array"),
        (RELEASES, "newest(@, 'two')", "whole number"),
        (RELEASES, "newest(@, `1.5`)", "whole number"),
        (RELEASES, "newest(@, `-1`)", "whole number"),
        (RELEASES, "newest(@, `1`, `2`)", "whole number"),
        (RELEASES, "[?version_match(version, '20.5')]", "'20.5' is not a comparison"),
        (RELEASES, "[?version_match(version, '>=20.5,')]", "'' is not a comparison"),
        (RELEASES, "[?version_match(version, `20`)]", "string"),
        (RELEASES, "[].path", "does not return a list of releases"),
        (RELEASES, "[0]", "does not return a list of releases"),
        (RELEASES, "length(@)", "does not return a list of releases"),
        (RELEASES, "[].{path: `null`}", "does not return a list of releases"),
        (RELEASES, "nothing", "does not return a list of releases"),
        (RELEASES, "newest([].path)", "newest.*list of releases"),
        (RELEASES, "newest([].{path: path})", "newest.*list of releases"),
        ({"releases": RELEASES}, "@", "the list that release_info returns"),
        ("houdini/20.5", "@", "the list that release_info returns"),
        (None, "@", "the list that release_info returns"),
        (["houdini/20.5"], "@", "the list that release_info returns"),
    ],
)
def test_a_query_that_returns_no_list_of_releases_is_refused_with_the_reason(
    releases: Any, query: str, reason: str
) -> None:
    with pytest.raises(AnsibleFilterError, match=rf"(?s)^renderfarm\.overlay\.select_releases.*{reason}"):
        select_releases(releases, query)


EARLY = [
    release(f"usd/{version}")
    for version in ("26.05", "26.08", "26.08+local", "26.08-beta", "26.11-wip", "26.11rc1", "26.05_old", "26.05.bak")
]


@pytest.mark.parametrize(
    ("order", "prereleases", "query", "chosen"),
    [
        ("vendor", False, "newest(@)", ["26.08+local"]),
        ("vendor", True, "newest(@)", ["26.11rc1"]),
        ("vendor", False, "@", ["26.05", "26.08", "26.08+local"]),
        ("vendor", True, "newest([?!is_prerelease(version)])", ["26.08+local"]),
        ("vendor", True, "newest([?version_match(version, '<26.08')])", ["26.08-beta"]),
        ("pep440", False, "newest(@)", ["26.08+local"]),
        ("pep440", True, "newest(@)", ["26.11rc1"]),
        ("rez", False, "newest(@)", ["26.08+local"]),
        ("rez", True, "newest(@)", ["26.11rc1"]),
        ("rez", True, "newest([?version_match(version, '<26.08+local')])", ["26.08-beta"]),
    ],
)
def test_pre_releases_are_chosen_only_when_asked_for(
    order: str, prereleases: bool, query: str, chosen: list[str]
) -> None:
    found = select_releases(EARLY, query, prereleases=prereleases, order=order)
    assert [one["version"] for one in found] == chosen


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="no order 'semver' of versions; use one of vendor, pep440, rez"):
        select_releases(RELEASES, order="semver")


def test_the_message_says_how_to_install_jmespath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "HAS_JMESPATH", False)
    with pytest.raises(AnsibleFilterError, match="pip install jmespath"):
        select_releases(RELEASES)


def test_the_filter_has_its_name() -> None:
    assert FilterModule().filters() == {"select_releases": select_releases}


def test_all_variants_of_a_version_are_chosen_together() -> None:
    releases = [
        {"package": "usd", "version": version, "variant": variant, "path": f"usd/{version}/{variant}", "ready": True}
        for version, variant in (("1", "a"), ("1", "b"), ("2", "b"), ("2", "c"), ("3", "c"))
    ]

    def chosen(query: str) -> list[str]:
        return [one["path"] for one in select_releases(releases, query)]

    assert chosen("newest(@)") == ["usd/3/c"]
    assert chosen("newest(@, `2`)") == ["usd/2/b", "usd/2/c", "usd/3/c"]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("newest(@", "Incomplete expression"),
        ("newst(@)", "Unknown function: newst()"),
        ("[?version = '1']", "Unknown token '='"),
        ("newest(@)", ""),
        ("[newest([?package == 'houdini'])[0]]", ""),
        ("[?version_match(version, '>=20')] | [0].path", ""),
    ],
)
def test_what_is_wrong_with_a_query_is_known_without_releases(query: str, problem: str) -> None:
    found = query_problem(query)
    assert problem in found
    assert bool(found) == bool(problem)
