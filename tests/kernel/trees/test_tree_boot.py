"""Trees of overlays that are mounted at boot: by units, by fstab, with a root that is missing, and after a run that was killed."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import (
    boot,
    boot_mounts,
    boot_paths,
    boot_plan,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_units import Unit, desired_units
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import plan_unmounted
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import NO_DATA, TreePart
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.at_boot.test_boot import (
    FSTAB,
    UNITS,
    Systemd,
    check_that_an_ended_run_is_completed,
    check_with_systemd_analyze,
    etc,
    generate_units,
    mount_units,
    own_units,
    settings,
    systemd,
)
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_view_of_roots import Studio
from ansible_collections.renderfarm.overlay.tests.kernel.trees.test_tree import ROOTS, shown, tree

__all__ = ["etc", "systemd"]


def content(number: int) -> dict[str, str]:
    return {root: f"{root} {number}" for root in ROOTS}


def planned(spec: MountSpec | None, path: bytes, persist: str) -> Plan:
    """Return the plan of a run that mounts the tree, or of one that unmounts it."""
    state = mounts.observe(path)
    mounting = support.planned(spec) if spec else plan_unmounted(path, state, absent=False)
    missing = boot.missing_places(spec) if spec else set()
    stored, live = boot.read(), namespaces.own_mounts()
    return (
        *boot_plan.plan_places(spec, persist, missing),
        *mounting,
        *boot_plan.plan_persistence(path, spec, persist, stored, live, append=True),
    )


def run(plan: Plan) -> list[str]:
    for action in plan:
        apply(action, boot.HANDLERS)
    return [str(action) for action in plan]


def shut_down(view: Path, spec: MountSpec) -> None:
    """Unmount the view and what was mounted for it, as a shutdown does; and lose what is in /run."""
    support.unmount_all(view)
    for place in reversed(boot_mounts.places(spec)):
        support.unmount_all(place)
    support.unmount_all(NO_DATA)
    shutil.rmtree(NO_DATA, ignore_errors=True)


def started(units: Sequence[Unit], view: bytes) -> list[Unit]:
    """Return what systemd starts with the view: the units that its unit requires and wants, in an order that their dependencies allow."""
    by_name = {unit.name: unit for unit in units}
    by_place = {settings(unit.text)["Where"]: unit for unit in units}
    found: list[Unit] = []

    def start(unit: Unit) -> None:
        said = settings(unit.text)
        required = [place.strip('"') for place in said.get("RequiresMountsFor", "").split(" ")]
        wanted = [by_name[name] for name in said.get("Wants", "").split(" ") if name in by_name]
        # A mount unit requires those of the directories above it.
        above = [one for place, one in by_place.items() if said["Where"].startswith(place + "/")]
        for one in (*above, *(by_place[place] for place in required if place in by_place), *wanted):
            start(one)
        found.extend([unit] if unit not in found else [])

    start(by_name[boot_paths.unit_name(view)])
    return found


def boot_from(persist: str, view: bytes) -> None:
    """Mount what is mounted at boot, and make mountpoints, as systemd does. A mount that fails does not keep others from being mounted."""
    if persist == "systemd":
        for unit in started(boot.read().units, view):
            with contextlib.suppress(AssertionError):
                mount_units((unit,))
        return
    for line in map(fstab_lines.read_line, fstab_lines.split(FSTAB.read_bytes())):
        if line and any(word.startswith(b"x-renderfarm.overlay=") for word in line.options):
            os.makedirs(line.path, exist_ok=True)
            subprocess.run(["mount", "-T", FSTAB, line.path], check=False, stderr=subprocess.DEVNULL)


def hidden(area: Path) -> list[str]:
    """Return the mounts beside the layers."""
    return [os.fsdecode(one.path) for one in namespaces.own_mounts() if one.path.startswith(os.fsencode(area) + b"/g")]


@pytest.mark.parametrize("image", [False, True], ids=["directory", "image"])
@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_a_tree_is_mounted_at_boot_and_its_mounts_follow_the_view(
    area: Path, view: Path, persist: str, image: bool
) -> None:
    before = FSTAB.read_bytes()
    specs = [replace(tree(area, view, number, image=image), flags=frozenset({"ro", "nodev"})) for number in range(2)]
    path = specs[0].path
    run(planned(specs[0], path, persist))
    assert shown(view) == content(0)
    assert planned(specs[0], path, persist) == ()
    shut_down(view, specs[0])
    boot_from(persist, path)
    assert shown(view) == content(0)
    # What is mounted at boot is what the module mounts: nothing is left to do.
    assert planned(specs[0], path, persist) == ()
    # Mounts of others are not seen a second time beside the layer.
    count = len(hidden(area))
    support.command("mount", "--bind", area, view / "maya" / "1.0")
    assert len(hidden(area)) == count
    support.command("umount", view / "maya" / "1.0")
    # A switch leaves nothing of the old generation mounted, and no unit or line of it.
    run(planned(specs[1], path, persist))
    assert shown(view) == content(1)
    assert hidden(area) == []
    assert sorted(os.listdir(area / "g0")) == ["layer.erofs" if image else "layer", "roots"]
    names = {os.fsdecode(one) for one in (b"g0", b"g1") if one in FSTAB.read_bytes() or _in_units(one)}
    assert names == {"g1"}
    assert planned(specs[1], path, persist) == ()
    # The view stays mounted when it is no longer mounted at boot.
    shut_down(view, specs[1])
    boot_from(persist, path)
    run(planned(specs[1], path, "none"))
    assert shown(view) == content(1)
    # The image of a view that is mounted stays.
    assert hidden(area) == [str(area / "g1" / "layer")] * image
    assert (own_units(), FSTAB.read_bytes()) == (set(), before)
    run(planned(specs[1], path, persist))
    shut_down(view, specs[1])
    boot_from(persist, path)
    run(planned(None, path, "none"))
    assert (support.live(view), hidden(area), own_units(), FSTAB.read_bytes()) == (None, [], set(), before)


def _in_units(word: bytes) -> bool:
    return any(word in (UNITS / name).read_bytes() for name in own_units())


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_a_root_that_is_missing_at_boot_shows_no_file_of_another(area: Path, view: Path, persist: str) -> None:
    spec = tree(area, view)
    run(planned(spec, spec.path, persist))
    shut_down(view, spec)
    (area / "g0" / "roots" / "maya").rename(area / "g0" / "roots" / "gone")
    boot_from(persist, spec.path)
    assert (view / "maya" / "1.0" / "app").stat().st_size == len("maya 0")
    with pytest.raises(FileNotFoundError):
        (view / "maya" / "1.0" / "app").read_text()
    others = tuple(root for root in ROOTS if root != "maya")
    assert shown(view, others) == {root: f"{root} 0" for root in others}
    # The next run mounts the part as soon as its root is there.
    (area / "g0" / "roots" / "gone").rename(area / "g0" / "roots" / "maya")
    assert run(planned(spec, spec.path, persist)) == [f"switch the overlay at {view} (beneath)"]
    assert shown(view) == content(0)


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_after_a_killed_run_a_boot_mounts_the_old_tree_or_the_new_one(area: Path, view: Path, persist: str) -> None:
    roots = ROOTS[:2]
    specs = [tree(area, view, number, roots) for number in range(2)]
    # The second declaration has other parts as well.
    specs[1] = replace(specs[1], parts=tuple(TreePart(one.place + b"/1.0", one.data) for one in specs[1].parts))
    for one in specs[1].parts:
        shutil.move(os.fsdecode(one.data[0]) + "/1.0", os.fsdecode(one.data[0]) + "/2.0")
        for name in ("app", "tool"):
            file = area / "g1/layer" / os.fsdecode(one.place) / name
            os.setxattr(file, "trusted.overlay.redirect", f"/2.0/{name}".encode())
    path = specs[0].path
    run(planned(specs[0], path, persist))
    # The step that decides which of the two is mounted, those around it, and some of the others.
    words = f"write unit {boot_paths.unit_name(path)}" if persist == "systemd" else "write the overlay"
    plan = planned(specs[1], path, persist)
    (step,) = (number for number, action in enumerate(plan) if str(action).startswith(words))
    ends = sorted({*range(1, len(plan), 4), step, step + 1, len(plan)})
    for turn, done in enumerate(ends):
        # What was the new tree is the old one of the next turn.
        old, new = turn % 2, (turn + 1) % 2
        plan = planned(specs[new], path, persist)
        assert (len(plan), str(plan[step])[: len(words)]) == (ends[-1], words)
        run(plan[:done])
        for spec in specs:
            shut_down(view, spec)
        boot_from(persist, path)
        expected = new if done > step else old
        assert shown(view, roots) == {root: f"{root} {expected}" for root in roots}, plan[:done]
        run(planned(specs[new], path, persist))
        assert shown(view, roots) == {root: f"{root} {new}" for root in roots}
        assert planned(specs[new], path, persist) == ()
        layer = b"/g%d/layer" % old
        assert not _in_units(layer)
        assert layer not in FSTAB.read_bytes()


def test_the_units_of_a_tree_are_read_after_a_run_that_ended_before_it(
    area: Path, view: Path, systemd: Systemd
) -> None:
    path = os.fsencode(view)
    runs = [(tree(area, view), path, "systemd"), (tree(area, view, 1), path, "systemd"), (None, path, "none")]
    check_that_an_ended_run_is_completed([functools.partial(planned, *one) for one in runs], systemd)


@pytest.mark.parametrize("image", [False, True], ids=["directory", "image"])
def test_units_that_systemd_generates_from_fstab_are_those_of_the_tree(area: Path, view: Path, image: bool) -> None:
    spec = tree(area, view, image=image)
    generate_units(area, spec)
    units = {one.name: settings(one.read_bytes()) for one in (area / "normal").glob("*.mount")}
    wanted = desired_units(spec, append=True)
    assert sorted(units) == sorted(unit.name for unit in wanted)
    name = boot_paths.unit_name(spec.path)
    assert units[name]["RequiresMountsFor"] == os.fsdecode(boot_mounts.tree_of(spec))
    assert "remote-fs.target" in units[name]["Before"].split(" ")
    parts = settings(wanted[-1].text)["Wants"].split(" ")
    assert len(parts) == len(ROOTS)
    for part in parts:
        # The view comes after its parts, and neither it nor a target requires one.
        assert name in units[part]["Before"].split(" ")
        assert (area / "normal" / "remote-fs.target.wants" / part).is_symlink()
    mount_units(tuple(Unit(one.name, (area / "normal" / one.name).read_bytes(), True) for one in wanted))
    assert shown(view) == content(0)
    assert support.planned(spec) == ()


def test_systemd_analyze_finds_no_fault_in_the_units_of_a_tree(area: Path) -> None:
    spec = tree(area / "a b,c\\e", area / "v %n ü '")
    check_with_systemd_analyze(area, spec)


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_what_two_trees_need_at_boot_stays_until_both_are_gone(area: Path, view: Path, persist: str) -> None:
    first = tree(area, view)
    second = tree(area, area / "second", 1)
    (area / "second").mkdir()
    for spec in (first, second):
        run(planned(spec, spec.path, persist))
        shut_down(Path(os.fsdecode(spec.path)), spec)
    boot_from(persist, first.path)
    if persist == "systemd":
        boot_from(persist, second.path)
    kept = len(hidden(area))
    run(planned(None, first.path, "none"))
    assert 0 < len(hidden(area)) < kept
    assert planned(second, second.path, persist) == ()
    shut_down(area / "second", second)
    boot_from(persist, second.path)
    assert shown(area / "second") == content(1)
    run(planned(None, second.path, "none"))
    assert (hidden(area), own_units()) == ([], set())
    assert b"renderfarm" not in FSTAB.read_bytes()


def test_the_module_view_mounts_a_tree_at_boot_and_removes_what_mounts_it(area: Path) -> None:
    studio = Studio(area)
    roots = studio.roots(maya={"at": "dcc/maya"})
    declared = studio.declared(roots=roots, persist="systemd", linger=60)
    lock = studio.resolved(declared)
    # What is mounted beside the layer is for root only.
    (area / "state").mkdir(0o755)
    refused = studio.bring(declared, lock).message
    assert "users other than root may enter that directory" in refused
    assert (support.live(studio.view), own_units()) == (None, set())
    (area / "state").chmod(0o700)
    assert studio.bring(declared, lock).ok["changed"]
    expected = {"houdini/2.0": "houdini 2.0", "dcc/maya/1.0": "maya 1.0", "nuke/1.1": "nuke 1.1"}
    (spec,) = (path.read_bytes() for path in UNITS.glob("*view.mount"))
    assert b"What=%s/state/views/software/generations/" % os.fsencode(area) in spec
    support.unmount_all(studio.view)
    shutil.rmtree(NO_DATA)
    boot_from("systemd", os.fsencode(studio.view))
    assert studio.shown() == expected
    assert not studio.bring(declared, lock).ok["changed"]
    state_dir = str(area / "state")
    (row,) = support.module("view_info", views=declared, state_dir=state_dir).ok["report"]
    assert (row["status"], row["drift"]) == ("as declared", [])
    # Without a record of the last run, the mountpoint is that of the view, and not a place beside its layer.
    (area / "state/views/software/status.json").unlink()
    (row,) = support.module("view_info", state_dir=state_dir).ok["report"]
    assert row["mountpoint"] == str(studio.view)
    # The old release lingers in the directory of its root, and the next boot mounts the new generation.
    studio.publish("maya", "2.0")
    later = studio.resolved(declared)
    assert [one["release"] for one in later["software"].leaving] == ["maya/1.0"]
    assert studio.bring(declared, later).ok["views"][0]["switched"]
    expected["dcc/maya/2.0"] = "maya 2.0"
    assert studio.shown() == expected
    assert [one.path for one in namespaces.own_mounts() if b"/generations/" in one.path] == []
    support.unmount_all(studio.view)
    boot_from("systemd", os.fsencode(studio.view))
    assert studio.shown() == expected
    assert studio.bring(studio.declared(roots=roots, state="absent"), {}).ok["changed"]
    assert own_units() == set()
    assert not (area / "state" / "views" / "software").exists()
    support.unmount_all(NO_DATA)
