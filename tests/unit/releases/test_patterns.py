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
        # A version may have dashes in it, and a package a number at its end.
        ("{package}-{version}", "tool-2.0-rc1", ("tool", "2.0-rc1")),
        ("{package}-{version}", "tool-v2.0-studio", ("tool", "v2.0-studio")),
        ("{package}-{version}", "ld_impl_linux-64-2.40", ("ld_impl_linux-64", "2.40")),
        ("{package}-{version}", "ca-certificates-2024-03-11", ("ca-certificates", "2024-03-11")),
        ("{package}-{version}", "ca-certificates-2024-03", ("ca-certificates-2024", "03")),
        ("{package}-{version}", "llvm-main", ("llvm", "main")),
        ("{package}-{version}", "tool-2.0-", ("tool", "2.0-")),
        ("{package}_{version}", "my_tool_1.0_wip", ("my_tool", "1.0_wip")),
        ("{version}-{package}", "1.0-2-tool", ("tool", "1.0-2")),
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
    ("name", "found"),
    [
        ("zlib-ng-2.2.4-6xzyx5s4", ("zlib-ng", "2.2.4", "6xzyx5s4")),
        ("boost-1.87.0-beta1-uxvsbbpw", ("boost", "1.87.0-beta1", "uxvsbbpw")),
        ("ca-certificates-mozilla-2024-03-11-2zdtgd4w", ("ca-certificates-mozilla", "2024-03-11", "2zdtgd4w")),
        ("llvm-main-3bmovyrj", ("llvm", "main", "3bmovyrj")),
        ("7zip-24.08-g2j7yhxf", ("7zip", "24.08", "g2j7yhxf")),
        ("ld_impl_linux-64-2.40-h41732ed_0", ("ld_impl_linux-64", "2.40", "h41732ed_0")),
        ("libblas-3.9.0-20_linux64_openblas", ("libblas", "3.9.0", "20_linux64_openblas")),
        ("_libgcc_mutex-0.1-conda_forge", ("_libgcc_mutex", "0.1", "conda_forge")),
        ("tzdata-2024a-h04d1e81_0", ("tzdata", "2024a", "h04d1e81_0")),
    ],
)
def test_names_of_spack_and_conda_have_package_version_and_variant(name: str, found: tuple[str, str, str]) -> None:
    release = Pattern.parse("{package}-{version}-{variant}").release([name])
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
