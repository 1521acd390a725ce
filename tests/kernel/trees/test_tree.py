"""Trees of overlays: what each root shows, switching under readers, what others have mounted inside, and unmounting."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    SwitchOverlay,
    UnmountOverlay,
    plan_unmounted,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import NO_DATA, TreePart
from ansible_collections.renderfarm.overlay.tests.kernel import automounter, fuse_server, support

ROOTS = ("houdini", "maya", "nuke")


def tree(area: Path, view: Path, number: int = 0, roots: tuple[str, ...] = ROOTS, image: bool = False) -> MountSpec:
    """Make roots that all have a release 1.0 with files of the same names, and the layer of a view of them; return the declaration."""
    top = area / f"g{number}"
    layer = top / "layer"
    for root in roots:
        text = f"{root} {number}".encode()
        for name in (b"app", b"tool"):
            data = top / "roots" / root / "1.0" / os.fsdecode(name)
            data.parent.mkdir(parents=True, exist_ok=True)
            support.write(data, text)
            shown = layer / root / "1.0" / os.fsdecode(name)
            shown.parent.mkdir(parents=True, exist_ok=True)
            support.write(shown)
            os.setxattr(shown, "trusted.overlay.metacopy", b"")
            os.setxattr(shown, "trusted.overlay.redirect", b"/1.0/" + name)
            os.truncate(shown, len(text))
    if image:
        support.image_of(layer, top / "layer.erofs")
        support.command("rm", "-r", layer)
        layer = top / "layer.erofs"
    spec = support.declared(view, [layer], [NO_DATA])
    parts = (TreePart(os.fsencode(root), (os.fsencode(top / "roots" / root),)) for root in roots)
    return replace(spec, parts=tuple(sorted(parts)))


def shown(view: Path, roots: tuple[str, ...] = ROOTS) -> dict[str, str]:
    """Return the content of a file of each root, as the view shows it."""
    return {root: (view / root / "1.0" / "app").read_text() for root in roots}


def perform(plan: Plan) -> None:
    for action in plan:
        apply(action, mounts.HANDLERS)


@pytest.mark.parametrize("image", [False, True], ids=["directory", "image"])
def test_each_root_shows_its_own_files_at_equal_paths(area: Path, view: Path, image: bool) -> None:
    spec = tree(area, view, image=image)
    assert support.carried_out(spec) == ["MountOverlay"]
    assert shown(view) == {root: f"{root} 0" for root in ROOTS}
    # The roots are merged in the listing, and a missing name is answered by the layer.
    assert sorted(os.listdir(view)) == sorted(ROOTS)
    assert not (view / "maya" / "2.0").exists()
    assert support.planned(spec) == ()


def test_a_part_that_is_missing_or_has_another_root_is_switched(area: Path, view: Path) -> None:
    spec = tree(area, view)
    support.carried_out(spec)
    maya = {"path": str(view / "maya"), "data": [str(area / "g0" / "roots" / "maya")]}
    assert maya in tree_parts.described(mounts.observe(spec.path).parts)
    support.command("umount", view / "maya")
    assert maya not in tree_parts.described(mounts.observe(spec.path).parts)
    # No other root answers for its files.
    assert (view / "maya" / "1.0" / "app").stat().st_size == len("maya 0")
    with pytest.raises(FileNotFoundError):
        (view / "maya" / "1.0" / "app").read_text()
    assert support.carried_out(spec) == ["SwitchOverlay"]
    assert shown(view) == {root: f"{root} 0" for root in ROOTS}
    fewer = replace(spec, parts=spec.parts[:1])
    assert support.carried_out(fewer) == ["SwitchOverlay"]
    assert len(mounts.observe(spec.path).parts) == 1


READER = """
import os, sys
view, stop, *roots = sys.argv[1:]
held = [open(os.path.join(view, root, "1.0", "app")) for root in roots]
first = [one.read() for one in held]
reads = 0
print("ready", flush=True)
while not os.path.exists(stop):
    for root in roots:
        for name in os.listdir(os.path.join(view, root, "1.0")):
            with open(os.path.join(view, root, "1.0", name)) as stream:
                text = stream.read()
            assert text.split()[0] == root, (root, text)
            reads += 1
for one, text in zip(held, first):
    one.seek(0)
    assert one.read() == text
print(reads, flush=True)
"""


def test_no_open_fails_and_no_root_answers_for_another_while_a_tree_is_switched(area: Path, view: Path) -> None:
    specs = [tree(area, view, number) for number in range(2)]
    support.carried_out(specs[0])
    stop = area / "stop"
    with support.background(READER, view, stop, *ROOTS) as process:
        for number in range(1, 51):
            plan = support.planned(specs[number % 2])
            assert [type(action) for action in plan] == [SwitchOverlay]
            perform(plan)
        assert shown(view) == {root: f"{root} 0" for root in ROOTS}
        stop.touch()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert int(output.splitlines()[-1]) > 100
    # Only the last tree is mounted.
    live = namespaces.own_mounts()
    assert len([one for one in live if one.path == specs[0].path or one.path.startswith(specs[0].path + b"/")]) == 4


def test_mounts_of_others_are_carried_over_from_every_part(area: Path, view: Path) -> None:
    specs = [tree(area, view, number) for number in range(2)]
    support.carried_out(specs[0])
    site = area / "site"
    site.mkdir()
    support.write(site / "plugin", b"site")
    for place in (view / "houdini" / "1.0", view / "maya" / "1.0"):
        support.command("mount", "--bind", site, place)
    support.command("mount", "--bind", site / "plugin", view / "nuke" / "1.0" / "tool")
    before = [one.path for one in mounts.observe(specs[0].path).inner]
    assert len(before) == 3
    assert support.carried_out(specs[1]) == ["SwitchOverlay"]
    assert [one.path for one in mounts.observe(specs[1].path).inner] == before
    assert (view / "maya" / "1.0" / "plugin").read_text() == "site"
    assert (view / "nuke" / "1.0" / "app").read_text() == "nuke 1"
    with pytest.raises(OverlayError, match="has mounts inside of it"):
        plan_unmounted(specs[1].path, mounts.observe(specs[1].path), absent=False)
    for mounted in ("houdini/1.0", "maya/1.0", "nuke/1.0/tool"):
        support.command("umount", view / mounted)


@pytest.mark.parametrize("switch", ["auto", "over"])
@pytest.mark.parametrize("outside", ["shared", "slave"])
def test_a_switch_propagates_to_namespaces_that_follow(area: Path, outside: str, switch: str) -> None:
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", "--make-shared", place)
    view = place / "view"
    specs = [tree(area, view, number) for number in range(2)]
    support.carried_out(specs[0])
    with support.namespace(outside) as pid:
        for turn in range(1, 4):
            perform(support.planned(specs[turn % 2], switch))
        for live in (namespaces.own_mounts(), namespaces.mounts_of(str(pid))):
            found = mountinfo.stack(live, specs[0].path)
            parts = mountinfo.inside(live, found[0])
            assert {mountinfo.overlay_layers(one).lower for one in (found[0], *parts)} == {specs[1].lower}
            assert [os.fsdecode(os.path.basename(one.path)) for one in parts] == list(ROOTS)
            if switch == "auto":
                assert len([one for one in live if one.path.startswith(specs[0].path)]) == 4
        perform(plan_unmounted(specs[0].path, mounts.observe(specs[0].path), absent=False))
        for live in (namespaces.own_mounts(), namespaces.mounts_of(str(pid))):
            assert not [one for one in live if one.path.startswith(specs[0].path)]
    support.command("umount", place)


def test_a_tree_over_idle_automounts_is_mounted_and_switched_and_stays_when_they_expire(area: Path, view: Path) -> None:
    specs = [tree(area, view, number) for number in range(2)]
    place = area / "net"
    place.mkdir()
    sources = {f"{root}-{number}": area / f"g{number}" / "roots" / root for root in ROOTS for number in range(2)}
    with automounter.automount(place, sources) as automount:
        for number, spec in enumerate(specs):
            parts = (
                replace(part, data=(os.fsencode(place / f"{os.fsdecode(part.place)}-{number}"),)) for part in spec.parts
            )
            specs[number] = replace(spec, parts=tuple(parts))
        for number, action in enumerate(("MountOverlay", "SwitchOverlay")):
            automount.expire()
            assert os.listdir(place) == []
            assert support.carried_out(specs[number]) == [action]
            assert automount.expire()
            served = automount.served()
            assert shown(view) == {root: f"{root} {number}" for root in ROOTS}
            assert support.planned(specs[number]) == ()
            # The overlays hold the mounts.
            assert automount.served() == served


HOLDING = f"import sys\nheld = open(sys.argv[1])\n{support.WAIT}"


def test_a_tree_in_use_is_not_unmounted_and_its_users_are_named(area: Path, view: Path) -> None:
    spec = tree(area, view)
    support.carried_out(spec)
    plan = plan_unmounted(spec.path, mounts.observe(spec.path), absent=False)
    assert [type(action) for action in plan] == [UnmountOverlay]
    with (
        support.background(HOLDING, view / "maya" / "1.0" / "app") as process,
        pytest.raises(OverlayError, match=rf"in use by .*\({process.pid}\); nothing was unmounted"),
    ):
        perform(plan)
    assert shown(view) == {root: f"{root} 0" for root in ROOTS}
    perform(plan)
    assert os.listdir(view) == []


def test_a_detached_part_that_a_process_uses_is_recorded(area: Path, view: Path) -> None:
    specs = [tree(area, view, number) for number in range(2)]
    support.carried_out(specs[0])
    with support.background(HOLDING, view / "nuke" / "1.0" / "app") as process:
        support.carried_out(specs[1])
        users = [entry for entry, found in detached.in_use() if any(one.pid == process.pid for one in found)]
        assert [entry.data for entry in users] == [(os.fsencode(area / "g0" / "roots" / "nuke"),)]
    assert [entry for entry, _users in detached.in_use() if specs[0].lower[0] in entry.lower] == []


def test_a_killed_run_leaves_the_old_tree_or_the_new_one(area: Path, view: Path) -> None:
    specs = [tree(area, view, number) for number in range(2)]
    support.carried_out(specs[0])
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):
        number = 1 if shown(view)["maya"] == "maya 0" else 0
        child = os.fork()
        if child == 0:
            perform(support.planned(specs[number]))
            os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = shown(view)
        assert found in ({root: f"{root} {one}" for root in ROOTS} for one in (0, 1))
        for _round in range(2):
            perform(support.planned(specs[number]))
        assert support.planned(specs[number]) == ()
        live = namespaces.own_mounts()
        assert len(mountinfo.stack(live, specs[0].path)) == 1
        assert len(mountinfo.inside(live, mountinfo.stack(live, specs[0].path)[0])) == len(ROOTS)


def seconds(spec: MountSpec) -> tuple[float, float]:
    """Carry out the plan of a declaration; return the wall time, and the processor time of this process and its children, in seconds."""
    before = os.times()
    perform(support.planned(spec))
    after = os.times()
    return after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])


def test_a_view_of_100_roots_is_mounted_in_two_seconds_and_asks_no_server_for_names(area: Path, view: Path) -> None:
    roots = tuple(f"root{number:03d}" for number in range(100))
    specs = [tree(area, view, number, roots) for number in range(2)]
    served = area / "served"
    served.mkdir()
    with fuse_server.served(area / "g0" / "roots", served) as server:
        parts = (replace(part, data=(os.fsencode(served / os.fsdecode(part.place)),)) for part in specs[0].parts)
        specs[0] = replace(specs[0], parts=tuple(parts))
        mounted = seconds(specs[0])

        def search() -> None:
            for root in roots:
                for name in (f"{root}/2.0", f"{root}/1.0/missing", f"{root}/1.0/app/missing", f"missing-{root}"):
                    assert not os.path.lexists(view / name)
                (view / root / "1.0" / "app").stat()
                assert sorted(os.listdir(view / root / "1.0")) == ["app", "tool"]

        assert server.requests(search) == 0
        assert server.requests(lambda: shown(view, roots[:1])) > 0
        assert shown(view, roots) == {root: f"{root} 0" for root in roots}
        switched = seconds(specs[1])
        assert shown(view, roots) == {root: f"{root} 1" for root in roots}
        for what, (wall, processor) in (("mounted", mounted), ("switched", switched)):
            print(f"100 roots: {what} in {wall:.3f} s, with {processor:.3f} s of a processor")
        # The wall time also depends on what else the machine does.
        assert mounted[1] < 2
        assert support.planned(specs[1]) == ()
