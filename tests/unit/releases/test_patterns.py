"""Patterns match the paths of releases."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern, Release


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{package}/{version}", "houdini/20.5", ("houdini", "20.5")),
        ("{package}/{version}", "houdini", None),
        ("{package}/{version}", "houdini/20.5/bin", None),
        ("{package}/{version}", ".snapshot/20.5", None),
        ("{package}/{version}", "houdini/.new", None),
        ("/{package}/{version}/", "a/1", ("a", "1")),
        ("{version}/{package}", "a/1", ("1", "a")),
        ("{package}-{version}", "usd-core-25.05", ("usd-core", "25.05")),
        ("{package}-{version}", "usd", None),
        ("{package}-{version}", "usd-", None),
        ("{package}/v{version}", "usd/v25", ("usd", "25")),
        ("{package}/v{version}", "usd/25", None),
        ("{package}/{version}/linux-*", "a/1/linux-x86_64", ("a", "1")),
        ("{package}/{version}/linux-*", "a/1/windows", None),
        ("*/{package}/{version}", "tools/a/1", ("a", "1")),
        (".sw/{package}/{version}", ".sw/a/1", ("a", "1")),
        ("sw.d/{package}/{version}", "swxd/a/1", None),
        ("{package}/{version}", "a\n/1 \udcff", ("a\n", "1 \udcff")),
    ],
)
def test_a_matching_path_gives_package_and_version(pattern: str, path: str, found: tuple[str, str] | None) -> None:
    release = Pattern.parse(pattern).release(path.split("/"))
    assert release == (Release(*found, path) if found else None)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "once each"),
        ("{package}", "once each"),
        ("{vendor}/{vendor}/{package}/{version}", "once each"),
        ("{variant}/{version}", "once each"),
        ("{version}", "once each"),
        ("{package}/{version}/{version}", "once each"),
        ("{package}/{version}/{platform}", "no other {field}"),
        ("{package}/{version}/{}", "no other {field}"),
        ("{package}//{version}", "empty parts"),
        ("../{package}/{version}", r"'\.\.'"),
        ("./{package}/{version}", r"'\.'"),
    ],
)
def test_an_invalid_pattern_is_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        Pattern.parse(pattern)


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("{version}", "20.5", ("houdini", "20.5", "")),
        ("releases/{version}/linux", "releases/20.5/linux", ("houdini", "20.5", "")),
        ("{package}/{version}", "usd/25", ("usd", "25", "")),
        ("{package}/{version}/{variant}", "usd/25/python-3.11", ("usd", "25", "python-3.11")),
        ("{vendor}/{package}/{version}", "sidefx/houdini/20.5", ("sidefx/houdini", "20.5", "")),
        ("{vendor}/{version}", "sidefx/20.5", ("sidefx/houdini", "20.5", "")),
    ],
)
def test_a_root_gives_the_package_and_patterns_have_vendors_and_variants(
    pattern: str, path: str, found: tuple[str, str, str]
) -> None:
    release = Pattern.parse(pattern, "houdini").release(path.split("/"))
    assert release
    assert (release.package, release.version, release.variant) == found


@pytest.mark.parametrize(
    ("one", "other", "excluded"),
    [
        ("{version}", "{version}", False),
        ("houdini/{version}", "maya/{version}", True),
        ("houdini/{version}", "{package}/{version}", False),
        ("houdini", "houdini/{version}", False),
        ("{package}/linux/{version}", "{package}/windows/{version}", True),
        ("a/{version}/x", "a/{version}/y", True),
    ],
)
def test_patterns_exclude_each_other_if_no_path_can_match_both(one: str, other: str, excluded: bool) -> None:
    first, second = (Pattern.parse(text if "{version}" in text else text + "/{version}", "p") for text in (one, other))
    assert first.excludes(second) is excluded
    assert second.excludes(first) is excluded


def test_releases_are_sorted_by_package_then_by_version() -> None:
    paths = ["b/1", "a/1.10", "a/1.9", "a/1.9rc1"]
    releases = []
    for path in paths:
        package, version = path.split("/")
        releases.append(Release(package, version, path))
    assert [release.path for release in sorted(releases, key=Release.sort_key)] == [
        "a/1.9rc1",
        "a/1.9",
        "a/1.10",
        "b/1",
    ]
