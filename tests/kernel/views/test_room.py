# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that fails because the disk is full leaves as much free space as it found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support

pytestmark = pytest.mark.usefixtures("with_programs")


def small(area: Path, *options: str) -> Path:
    """Mount a file system that is too small for a layer of the odd release. It has a view without a generation."""
    place = area / "small"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "-o", ",".join(("mode=0755", *options)), "tmpfs", place)
    with view_state.locked(ViewPaths.of(str(place / "state"), "view"), 1):
        pass
    (place / "images").mkdir()
    return place


def free_space(place: Path) -> tuple[int, int]:
    """Return the numbers of free blocks and inodes."""
    status = os.statvfs(place)
    return status.f_bfree, status.f_ffree


def build(place: Path, store: Path, **more: Any) -> support.Ran:
    arguments = {
        "name": "view",
        "state_dir": str(place / "state"),
        "store": str(store),
        "releases": [{"release": "odd/1"}],
    }
    return support.module("metadata_layer", **{**arguments, **more})


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("layer_format", ["directory", "erofs"])
def test_a_build_without_space_leaves_nothing(area: Path, store: Path, layer_format: str) -> None:
    place = small(area, "size=16m,nr_inodes=500" if layer_format == "directory" else "size=200k")
    before = free_space(place)
    assert build(place, store, format=layer_format).message
    assert free_space(place) == before
    assert os.listdir(place / "state/views/view") == ["lock"]


@pytest.mark.usefixtures("odd")
def test_a_published_image_without_space_leaves_nothing(area: Path, store: Path) -> None:
    place = small(area, "size=200k")
    before = free_space(place)
    assert build(place, store, image_store=str(place / "images")).message
    assert free_space(place) == before
    assert os.listdir(place / "images") == []


@pytest.mark.usefixtures("odd")
def test_an_installation_without_space_leaves_nothing(area: Path, store: Path) -> None:
    (area / "images").mkdir()
    image = build(area, store, image_store=str(area / "images")).ok
    place = small(area, "size=200k")
    before = free_space(place)
    given = {"image": image["image"], "image_digest": image["image_digest"], "releases": []}
    message = build(place, store, **given).message
    assert "No space left on device" in message
    assert str(place / "state/views/view/incoming") in message
    assert free_space(place) == before
    assert os.listdir(place / "state/views/view") == ["lock"]


def test_a_scan_without_space_leaves_nothing(area: Path, root: Path, odd: Placement) -> None:
    place = small(area, "size=64k")
    before = free_space(place)
    message = support.module(
        "release_manifest", root=str(root), release=odd.record.release, store=str(place / "images")
    ).message
    assert "No space left on device" in message
    assert free_space(place) == before
    assert os.listdir(place / "images") == []
