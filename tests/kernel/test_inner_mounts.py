"""What is mounted inside of a view stays there when the view is switched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.core import mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mounts
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.test_switch import arguments_of, generation, overlays_at


def switched(spec: MountSpec, **more: Any) -> dict[str, Any]:
    """Switch to a declaration, after check mode has said the same; a second run changes nothing."""
    arguments = arguments_of(spec, **more)
    before = [mount.id for mount in mounts.read_mounts()]
    checked = support.module("overlay_mount", True, True, **arguments).ok
    assert [mount.id for mount in mounts.read_mounts()] == before
    done = support.module("overlay_mount", **arguments).ok
    assert done["switched"]
    assert checked["actions"] == done["actions"]
    again = support.module("overlay_mount", **arguments).ok
    assert (again["changed"], again["carried"]) == (False, [])
    return done


def inside(view: Path) -> list[tuple[str, bytes]]:
    live = mounts.read_mounts()
    top = mountinfo.top_mount(live, os.fsencode(view))
    assert top
    return [(os.fsdecode(one.path[len(top.path) :]), one.source) for one in mountinfo.inside(live, top)]


@pytest.fixture
def view(folder: Path) -> Path:
    return folder / "view"


@pytest.fixture
def specs(folder: Path, view: Path) -> list[MountSpec]:
    """Two generations with places for mounts, and the first one mounted."""
    for number in range(2):
        for name in ("a/b/c", "empty"):
            (folder / f"g{number}" / "layer" / name).mkdir(parents=True)
        (folder / f"g{number}" / "layer" / "licence").touch()
        for name in ("only0", "only1") if number == 0 else ("only1",):
            (folder / f"g{number}" / "layer" / name).mkdir()
    found = [generation(folder, number, view) for number in range(2)]
    support.carried_out(found[0])
    return found


def mount_inside(folder: Path, view: Path) -> None:
    """Mount what sites mount: a file system in memory, bind mounts of a directory and of a file, an overlay, and something in these."""
    site = folder / "site"
    (site / "plugins" / "deep").mkdir(parents=True)
    support.write(site / "plugins" / "plugin", b"plugin")
    support.write(site / "licence", b"licence")
    support.command("mount", "-t", "tmpfs", "-o", "nosuid,ro", "memory", view / "empty")
    support.command("mount", "--bind", site / "plugins", view / "a")
    support.command("mount", "-t", "tmpfs", "deep", view / "a" / "deep")
    support.write(view / "a" / "deep" / "file", b"deep")
    support.command("mount", "--bind", site / "licence", view / "licence")
    lower = folder / "inner-lower"
    lower.mkdir()
    support.write(lower / "inner", b"inner")
    support.command("mount", "-t", "overlay", "inner", "-o", f"lowerdir={lower}:{site}", view / "only1")


@pytest.mark.parametrize("propagation", ["private", "shared"])
@pytest.mark.parametrize("switch", ["beneath", "over"])
def test_a_switch_carries_over_what_is_mounted_inside(
    folder: Path, view: Path, specs: list[MountSpec], switch: str, propagation: str
) -> None:
    support.command("mount", f"--make-{propagation}", view)
    mount_inside(folder, view)
    before = inside(view)
    assert len(before) == 5
    with open(view / "a" / "deep" / "file", "rb") as held:
        done = switched(specs[1], switch=switch)
        assert held.read() == b"deep"
    assert done["carried"] == [str(view) + path for path, _source in before]
    assert inside(view) == before
    assert overlays_at(view)[0] == specs[1].lower[0]
    assert (view / "a" / "plugin").read_bytes() == b"plugin"
    assert (view / "a" / "deep" / "file").read_bytes() == b"deep"
    assert (view / "licence").read_bytes() == b"licence"
    assert (view / "only1" / "inner").read_bytes() == b"inner"
    live = support.live(view / "empty")
    assert live
    assert {b"ro", b"nosuid"} <= set(live.flags)
    # Back again, as often as one likes.
    for turn in (0, 1, 0):
        switched(specs[turn], switch=switch)
        assert inside(view) == before
    # Nothing of it is anywhere else.
    assert len([one for one in mounts.read_mounts() if one.source in (b"deep", b"memory")]) == 2
