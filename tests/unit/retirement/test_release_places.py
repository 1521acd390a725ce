"""A path in a view leads to a release, and a path on the software root to places in views."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_places import (
    placed_releases,
    releases_at,
    within,
)


def listed(release: str, at: str, source: str | None = None) -> dict[str, str]:
    return {"release": release, "root": "/net/software", "at": at, "source": release if source is None else source}


PLACED = placed_releases(
    [
        listed("houdini/20.5", "houdini/20.5"),
        listed("houdini/20.5", "apps/houdini", "vol/houdini/20.5"),
        listed("plug/1", "apps/houdini/plug"),
        listed("base/1", ""),
    ]
)


@pytest.mark.parametrize(
    ("path", "redirect", "expected"),
    [
        (b"houdini/20.5/bin/x", None, ["houdini/20.5", "base/1"]),
        (b"houdini/20.5/bin/x", b"houdini/20.5/bin/x", ["houdini/20.5"]),
        (b"houdini/20.5/bin/x", b"base/1/houdini/20.5/bin/x", ["base/1"]),
        (b"houdini/20.55/bin/x", None, ["base/1"]),
        (b"apps/houdini/plug/y", b"plug/1/y", ["plug/1"]),
        # A redirect that leads to none of them decides nothing.
        (b"apps/houdini/plug/y", b"other/1/y", ["houdini/20.5", "plug/1", "base/1"]),
        (b"", None, ["base/1"]),
    ],
)
def test_a_path_leads_to_the_releases_that_may_have_it(
    path: bytes, redirect: bytes | None, expected: list[str]
) -> None:
    assert [one.release for one in releases_at(PLACED, path, redirect)] == expected


@pytest.mark.parametrize(
    ("source", "places"),
    [
        (b"houdini/20.5/bin/x", [b"houdini/20.5/bin/x"]),
        (b"vol/houdini/20.5/bin/x", [b"apps/houdini/bin/x"]),
        (b"base/1/lib/y", [b"lib/y"]),
        (b"base/1", [b""]),
        (b"base/10", []),
        (b"houdini", []),
    ],
)
def test_a_path_on_the_software_root_leads_to_its_places_and_back(source: bytes, places: list[bytes]) -> None:
    found = [(one, place) for one in PLACED for place in [one.place_of(source)] if place is not None]
    assert [place for _one, place in found] == places
    assert [one.source_of(place) for one, place in found] == [source] * len(places)


@pytest.mark.parametrize(
    ("path", "directory", "rest"),
    [
        (b"a/b", b"a", b"b"),
        (b"a", b"a", b""),
        (b"ab", b"a", None),
        (b"a/b", b"", b"a/b"),
        (b"", b"a", None),
    ],
)
def test_a_path_is_inside_of_a_directory_as_a_whole(path: bytes, directory: bytes, rest: bytes | None) -> None:
    assert within(path, directory) == rest
