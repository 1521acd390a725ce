"""Each file of a view is looked up in the data layers of the overlay that shows it, and belongs to the root of its release."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlaces


def roots(**patterns: str) -> list[dict[str, str]]:
    return [{"name": name, "path": f"/net/{name}", "pattern": pattern} for name, pattern in patterns.items()]


def release(root: str, source: str, at: str) -> dict[str, str]:
    return {"root": root, "source": source, "at": at}


def test_one_overlay_has_its_layers_everywhere() -> None:
    places = DataPlaces.of_one_overlay([b"/image", b"/net"])
    assert places.layers == (b"/image", b"/net")
    assert places.of(b"/any/where").layers == (b"/image", b"/net")
    assert places.of(b"/any/where").root_for(b"any/where") is None


def test_each_part_of_a_tree_has_the_layers_of_its_roots() -> None:
    places = DataPlaces.of_roots(
        roots(maya="{version}", nuke="{version}"),
        [release("maya", "1.0", "apps/maya/1.0"), release("nuke", "1.0", "apps/nuke"), release("nuke", "2.0", "n")],
    )
    assert sorted(places.layers) == [b"/net/maya", b"/net/nuke"]
    for path, root in (
        (b"/apps/maya/1.0/bin/app", b"/net/maya"),
        (b"/apps/nuke/app", b"/net/nuke"),
        (b"/n", b"/net/nuke"),
    ):
        assert places.of(path).layers == (root,)
    assert places.of(b"/apps/maya/1.0/bin/app").root_for(b"1.0/bin/app") == b"/net/maya"
    # A redirect to no release of the root, and a file in no part, as in a damaged layer.
    assert places.of(b"/apps/maya/1.0/bin/app").root_for(b"2.0/app") is None
    assert places.of(b"/apps/other").layers == ()


def test_roots_that_share_an_overlay_have_releases_of_their_own() -> None:
    places = DataPlaces.of_roots(
        roots(one="maya/{version}", two="nuke/{version}"),
        [release("one", "maya/1.0", "maya/1.0"), release("two", "nuke/1.0", "")],
    )
    place = places.of(b"/maya/1.0/app")
    assert place.layers == (b"/net/one", b"/net/two")
    assert [place.root_for(path) for path in (b"maya/1.0/app", b"nuke/1.0/app", b"maya/1.00/app")] == [
        b"/net/one",
        b"/net/two",
        None,
    ]


def test_a_root_that_is_not_known_is_named() -> None:
    with pytest.raises(OverlayError, match="software root nuke, which is not declared"):
        DataPlaces.of_roots(roots(maya="{version}"), [release("nuke", "1.0", "nuke/1.0")])
