# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that finds no room on the disk leaves as much as it found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support

pytestmark = pytest.mark.usefixtures("with_programs")


def small(folder: Path, *options: str) -> Path:
    """Mount a file system that a layer of the odd release does not fit on, with a view in it that has no generation yet."""
    place = folder / "small"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "-o", ",".join(("mode=0755", *options)), "tmpfs", place)
    with generations.locked(ViewPaths.of(str(place / "state"), "view"), 1):
        pass
    (place / "images").mkdir()
    return place


def room(place: Path) -> tuple[int, int]:
    found = os.statvfs(place)
    return found.f_bfree, found.f_ffree


def built(place: Path, store: Path, **more: Any) -> support.Ran:
    arguments = {
        "name": "view",
        "state_dir": str(place / "state"),
        "store": str(store),
        "releases": [{"release": "odd/1"}],
    }
    return support.module("metadata_layer", **{**arguments, **more})


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("layer_format", ["directory", "erofs"])
def test_a_build(folder: Path, store: Path, layer_format: str) -> None:
    place = small(folder, "size=16m,nr_inodes=500" if layer_format == "directory" else "size=200k")
    before = room(place)
    assert built(place, store, format=layer_format).message
    assert room(place) == before
    assert os.listdir(place / "state/views/view") == ["lock"]


@pytest.mark.usefixtures("odd")
def test_an_image_for_a_store(folder: Path, store: Path) -> None:
    place = small(folder, "size=200k")
    before = room(place)
    assert built(place, store, image_store=str(place / "images")).message
    assert room(place) == before
    assert os.listdir(place / "images") == []


@pytest.mark.usefixtures("odd")
def test_an_installation(folder: Path, store: Path) -> None:
    (folder / "images").mkdir()
    image = built(folder, store, image_store=str(folder / "images")).ok
    place = small(folder, "size=200k")
    before = room(place)
    given = {"image": image["image"], "image_digest": image["image_digest"], "releases": []}
    message = built(place, store, **given).message
    assert "No space left on device" in message
    assert str(place / "state/views/view/incoming") in message
    assert room(place) == before
    assert os.listdir(place / "state/views/view") == ["lock"]


def test_a_scan(folder: Path, root: Path, odd: Placement) -> None:
    place = small(folder, "size=64k")
    before = room(place)
    message = support.module(
        "release_manifest", root=str(root), release=odd.record.release, store=str(place / "images")
    ).message
    assert "No space left on device" in message
    assert room(place) == before
    assert os.listdir(place / "images") == []
