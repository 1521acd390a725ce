# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A layer or state directory that others than root can write to or replace is refused, also when there is nothing to do."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import support

NOBODY = 65534


@pytest.fixture
def state_dir(area: Path, tools: tuple[Placement, ...]) -> Path:
    """Provide a state directory with a view, as this collection makes it."""
    (area / "above").mkdir()
    support.build(area / "above" / "state", [tools[0]])
    return area / "above" / "state"


def layer_module(state_dir: Path, root: Path, **more: Any) -> Callable[[bool], support.Ran]:
    arguments = {"name": "view", "state_dir": str(state_dir), "store": str(root.parent / "store"), **more}
    return lambda check: support.module("metadata_layer", check=check, **arguments)


def modules(state_dir: Path, root: Path) -> dict[str, Callable[[bool], support.Ran]]:
    """Return the modules that read a state directory. None of them has anything to do."""
    return {
        "present": layer_module(state_dir, root, releases=[{"release": "tool/1.0"}], format="directory"),
        "generation": layer_module(state_dir, root, generation=os.listdir(state_dir / "views/view/generations")[0]),
        "absent": layer_module(state_dir, root, state="absent"),
        "prune": lambda check: support.module("overlay_prune", check=check, state_dir=str(state_dir)),
        "prune one": lambda check: support.module("overlay_prune", check=check, state_dir=str(state_dir), name="view"),
    }


MODULES = ["present", "generation", "absent", "prune", "prune one"]

#: Directories and files below the state directory. GENERATION stands for the name of the only generation.
PLACES = ["..", ".", "views", "views/view", "views/view/generations", "views/view/generations/GENERATION"]
FILES = ["views/view/generations/GENERATION/view.json", "views/view/lock"]


def place_of(state_dir: Path, name: str) -> Path:
    generation = os.listdir(state_dir / "views/view/generations")[0]
    return Path(os.path.normpath(state_dir / name.replace("GENERATION", generation)))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", [*PLACES, *FILES])
def test_what_others_can_write_to_is_refused(state_dir: Path, root: Path, name: str, module: str, check: bool) -> None:
    run = modules(state_dir, root)[module]
    place = place_of(state_dir, name)
    before = place.stat().st_mode
    for mode in (0o777, 0o775, 0o1777):
        place.chmod(mode)
        if (name, mode) == ("..", 0o1777):
            # As in /tmp, others can add names, but not replace those of root.
            continue
        assert f"{place} belongs to uid 0 and has mode {mode:04o}: only root" in run(check).message
    place.chmod(before)
    os.chown(place, NOBODY, NOBODY)
    assert f"{place} belongs to uid {NOBODY} and has mode" in run(check).message
    os.chown(place, 0, 0)
    assert run(True).ok["changed"] == (module == "absent")


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", PLACES[2:])
def test_a_directory_that_is_a_link_is_refused(state_dir: Path, root: Path, name: str, module: str) -> None:
    run = modules(state_dir, root)[module]
    place = place_of(state_dir, name)
    elsewhere = state_dir.parent / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    before = support.listing(elsewhere).keys()
    assert f"{place} is a symbolic link" in run(False).message
    assert support.listing(elsewhere).keys() == before


@pytest.mark.parametrize("name", ["staging", "incoming", "removing"])
def test_what_is_emptied_is_no_link(state_dir: Path, root: Path, name: str, area: Path) -> None:
    (area / "home").mkdir()
    support.write(area / "home" / "letter", b"dear")
    (state_dir / "views" / "view" / name).symlink_to(area / "home")
    for module in MODULES:
        assert f"{name} is a symbolic link" in modules(state_dir, root)[module](False).message
    assert (area / "home" / "letter").read_bytes() == b"dear"


def test_a_planted_generation_is_not_made_current(state_dir: Path, root: Path) -> None:
    """In a state directory of mode 1777, a user can copy the declared generation, so that a run finds nothing to do."""
    shutil.copytree(state_dir / "views", state_dir.parent / "copy", symlinks=True)
    shutil.rmtree(state_dir / "views")
    (state_dir.parent / "copy").rename(state_dir / "views")
    for path in (state_dir / "views", *(state_dir / "views").rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    state_dir.chmod(0o1777)
    for place in (state_dir, state_dir / "views"):
        for module in MODULES:
            assert f"{place} belongs to uid" in modules(state_dir, root)[module](False).message
        os.chown(place, 0, 0)
        place.chmod(0o700)
    assert f"{state_dir}/views/view belongs to uid {NOBODY}" in modules(state_dir, root)["present"](False).message


@pytest.mark.usefixtures("state_dir")
def test_a_state_directory_may_be_reached_through_links_that_root_made(root: Path, area: Path) -> None:
    (area / "link").symlink_to("above/../above")
    assert not modules(area / "link" / "state", root)["present"](False).ok["changed"]
    os.chown(area / "link", NOBODY, NOBODY, follow_symlinks=False)
    assert f"{area}/link belongs to uid {NOBODY}" in modules(area / "link" / "state", root)["present"](False).message
    (area / "circle").symlink_to("circle")
    assert "too many symbolic links" in layer_module(area / "circle", root, state="absent")(False).message


@pytest.fixture
def layers(area: Path) -> dict[str, Path]:
    """Provide the directories of an overlay, all owned by root."""
    found = {name: area / "place" / name for name in ("lower", "data", "upper", "work")}
    for path in (area / "place", *found.values()):
        path.mkdir()
    return found


def mount(area: Path, **options: Any) -> support.Ran:
    return support.module("overlay_mount", path=str(area / "view"), **options)


@pytest.mark.parametrize("mounted", [True, False])
def test_a_layer_over_data_that_others_can_write_to_is_refused(
    area: Path, layers: dict[str, Path], mounted: bool
) -> None:
    """A layer over data layers decides with an xattr which data users can read."""
    options = {"lower": [str(layers["lower"])], "data": [str(layers["data"])]}
    if mounted:
        assert mount(area, **options).ok["changed"]
    for place in (layers["lower"], area / "place"):
        place.chmod(0o777)
        assert f"{place} belongs to uid 0 and has mode 0777" in mount(area, **options).message
        place.chmod(0o755)
    # The data layer is the software itself, which its publishers may write to.
    layers["data"].chmod(0o2775)
    assert mount(area, **options).ok["changed"] is not mounted


def test_the_directories_of_an_upper_layer_are_checked_also_when_it_is_mounted(
    area: Path, layers: dict[str, Path]
) -> None:
    options: dict[str, Any] = {name: str(layers[name]) for name in ("upper", "work")}
    options["lower"] = [str(layers["lower"])]
    layers["lower"].chmod(0o777)  # without data layers, a lower layer cannot redirect anywhere
    assert mount(area, **options).ok["changed"]
    for place in (area / "place", layers["upper"], layers["work"]):
        before = place.stat().st_mode
        place.chmod(0o777)
        assert f"{place} belongs to uid 0 and has mode 0777" in mount(area, **options).message
        place.chmod(before)
    (area / "place").chmod(0o1777)
    assert not mount(area, **options).ok["changed"]


def test_an_image_that_others_can_write_to_is_refused(area: Path, layers: dict[str, Path]) -> None:
    image = support.image_of(layers["lower"], area / "images" / "one.erofs")
    options: dict[str, Any] = {"lower": [str(image)], "data": [str(layers["data"])]}
    for mode, uid in ((0o664, 0), (0o644, NOBODY)):
        image.chmod(mode)
        os.chown(image, uid, 0)
        assert re.search(f"{image} belongs to uid {uid} and has mode {mode:04o}", mount(area, **options).message)
    os.chown(image, 0, 0)
    assert mount(area, **options).ok["changed"]


def test_the_layer_of_a_generation_may_have_the_owner_of_the_view(area: Path, state_dir: Path, root: Path) -> None:
    layer = place_of(state_dir, "views/view/generations/GENERATION/layer")
    os.chown(layer, 1234, 1234)
    layer.chmod(0o775)
    state_dir.chmod(0o755)
    assert mount(area, lower=[str(layer)], data=[str(root)]).ok["changed"]
