"""Which software roots share an overlay, and which directories of a view have an overlay of their own."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import sharing


def patterns(**texts: str) -> dict[str, Pattern]:
    return {name: Pattern.parse(text, name) for name, text in texts.items()}


VOLUMES = patterns(houdini="{version}", maya="{version}", nuke="{version}")
PREFIXED = patterns(one="houdini/{version}", two="maya/{version}", three="{package}/{version}", four="nuke/{version}")


def test_roots_share_an_overlay_if_their_patterns_exclude_each_other() -> None:
    assert sharing.groups(VOLUMES) == [("houdini",), ("maya",), ("nuke",)]
    assert sharing.groups(PREFIXED) == [("one", "two", "four"), ("three",)]


def test_a_view_whose_roots_share_is_one_overlay() -> None:
    found = sharing.overlays([("houdini/20.5", "one"), ("maya/2025", "two")], PREFIXED)
    # All roots of the group are data layers, so that the overlay stays the same when another one gets a release.
    assert found == sharing.OverlayPlan(("one", "two", "four"), {})
    assert sharing.overlays([], VOLUMES) == sharing.OverlayPlan((), {})


@pytest.mark.parametrize(
    ("places", "parts"),
    [
        (
            [("houdini/20.5", "houdini"), ("houdini/21.0", "houdini"), ("maya/2025", "maya")],
            {"houdini": ("houdini",), "maya": ("maya",)},
        ),
        ([("apps/a/1", "houdini"), ("apps/b/1", "maya")], {"apps/a": ("houdini",), "apps/b": ("maya",)}),
        # Two roots with versions of one package.
        (
            [("a/1", "houdini"), ("a/2", "maya"), ("a/3", "maya")],
            {"a/1": ("houdini",), "a/2": ("maya",), "a/3": ("maya",)},
        ),
        # Releases of one root may be merged and inside each other.
        ([("a", "houdini"), ("a/x", "houdini"), ("b", "maya")], {"a": ("houdini",), "b": ("maya",)}),
    ],
)
def test_a_part_is_the_highest_directory_with_releases_of_one_root(
    places: list[tuple[str, str]], parts: dict[str, tuple[str, ...]]
) -> None:
    assert sharing.overlays(places, VOLUMES) == sharing.OverlayPlan((), parts)


@pytest.mark.parametrize(
    "places", [[("a", "houdini"), ("a", "maya")], [("a/b/c", "maya"), ("a", "nuke")], [("", "nuke"), ("a", "maya")]]
)
def test_releases_of_roots_that_may_have_the_same_paths_are_not_merged(places: list[tuple[str, str]]) -> None:
    with pytest.raises(OverlayError, match="may have the same paths") as caught:
        sharing.overlays(places, VOLUMES)
    assert all(f"software root {root}" in str(caught.value) for _place, root in places)


def test_releases_of_roots_that_share_an_overlay_are_merged() -> None:
    places = [("tools", "one"), ("tools", "two"), ("other", "three")]
    assert sharing.overlays(places, PREFIXED).parts == {"tools": ("one", "two", "four"), "other": ("three",)}


def test_a_root_that_is_not_declared_is_named() -> None:
    with pytest.raises(
        OverlayError, match="software root modo, which is not declared; the declared ones are houdini, maya, nuke"
    ):
        sharing.overlays([("modo/1", "modo")], VOLUMES)
