"""Mounts inside a view are carried over when the view is switched."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.overlays.test_switch import (
    arguments_of,
    generation,
    overlays_at,
    switch_and_kill,
    watched,
)


def switched(spec: MountSpec, **more: Any) -> dict[str, Any]:
    """Switch to a declaration; return the result. Check that check mode plans the same, and that a second run changes nothing."""
    arguments = arguments_of(spec, **more)
    before = [mount.id for mount in namespaces.own_mounts()]
    checked = support.module("overlay_mount", True, True, **arguments).ok
    assert [mount.id for mount in namespaces.own_mounts()] == before
    done = support.module("overlay_mount", **arguments).ok
    assert done["switched"]
    assert checked["actions"] == done["actions"]
    again = support.module("overlay_mount", **arguments).ok
    assert (again["changed"], again["carried"]) == (False, [])
    return done


def inside(view: Path) -> list[tuple[str, bytes]]:
    """Return the mounts inside a view: their paths below it and their sources."""
    live = namespaces.own_mounts()
    top = mountinfo.top_mount(live, os.fsencode(view))
    assert top
    return [(os.fsdecode(one.path[len(top.path) :]), one.source) for one in mountinfo.inside(live, top)]


@pytest.fixture
def view(area: Path) -> Path:
    """Provide the mountpoint of the view."""
    return area / "view"


@pytest.fixture
def specs(area: Path, view: Path) -> list[MountSpec]:
    """Provide two generations with mountpoints inside. The first one is mounted."""
    for number in range(2):
        for name in ("a/b/c", "empty"):
            (area / f"g{number}" / "layer" / name).mkdir(parents=True)
        (area / f"g{number}" / "layer" / "licence").touch()
        for name in ("only0", "only1") if number == 0 else ("only1",):
            (area / f"g{number}" / "layer" / name).mkdir()
    found = [generation(area, number, view) for number in range(2)]
    support.carried_out(found[0])
    return found


def mount_inside(area: Path, view: Path) -> None:
    """Mount inside a view what sites do: a tmpfs, bind mounts of a directory and a file, an overlay, and a mount inside a mount."""
    site = area / "site"
    (site / "plugins" / "deep").mkdir(parents=True)
    support.write(site / "plugins" / "plugin", b"plugin")
    support.write(site / "licence", b"licence")
    support.command("mount", "-t", "tmpfs", "-o", "nosuid,ro", "memory", view / "empty")
    support.command("mount", "--bind", site / "plugins", view / "a")
    support.command("mount", "-t", "tmpfs", "deep", view / "a" / "deep")
    support.write(view / "a" / "deep" / "file", b"deep")
    support.command("mount", "--bind", site / "licence", view / "licence")
    lower = area / "inner-lower"
    lower.mkdir()
    support.write(lower / "inner", b"inner")
    support.command("mount", "-t", "overlay", "inner", "-o", f"lowerdir={lower}:{site}", view / "only1")


@pytest.mark.parametrize("propagation", ["private", "shared"])
@pytest.mark.parametrize("switch", ["beneath", "over"])
def test_a_switch_carries_over_the_mounts_inside(
    area: Path, view: Path, specs: list[MountSpec], switch: str, propagation: str
) -> None:
    support.command("mount", f"--make-{propagation}", view)
    mount_inside(area, view)
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
    # Also on further switches.
    for turn in (0, 1, 0):
        switched(specs[turn], switch=switch)
        assert inside(view) == before
    # No copy is left anywhere else.
    assert len([one for one in namespaces.own_mounts() if one.source in (b"deep", b"memory")]) == 2


def refused(spec: MountSpec, **more: Any) -> str:
    """Check that a switch fails and changes nothing, also in check mode; return the message."""
    before = [(mount.id, mount.parent, mount.propagation) for mount in namespaces.own_mounts()]
    message = support.module("overlay_mount", **arguments_of(spec, **more)).message
    assert support.module("overlay_mount", True, True, **arguments_of(spec, **more)).message == message
    assert [(mount.id, mount.parent, mount.propagation) for mount in namespaces.own_mounts()] == before
    return message


@pytest.mark.parametrize("switch", ["beneath", "over"])
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("only0", "has no place in the new overlay, which has nothing of that name"),
        ("link", "has a symbolic link on its path in the new overlay"),
        ("other", "has no place in the new overlay, which has a file of that name, and the mount is of a directory"),
        ("unbound", "is unbindable, so the kernel does not copy it"),
    ],
)
def test_what_has_no_place_in_the_new_view_is_refused_by_name(
    area: Path, view: Path, specs: list[MountSpec], place: str, reason: str, switch: str
) -> None:
    support.unmount_all(view)
    for name in ("link", "other", "unbound"):
        (area / "g0" / "layer" / name).mkdir()
    (area / "g1" / "layer" / "link").symlink_to("empty")
    (area / "g1" / "layer" / "other").touch()
    (area / "g1" / "layer" / "unbound").mkdir()
    support.carried_out(specs[0])
    mount_inside(area, view)
    support.command("mount", "-t", "tmpfs", "mine", view / place)
    if place == "unbound":
        support.command("mount", "--make-unbindable", view / place)
    message = refused(specs[1], switch=switch)
    assert f"{view}/{place} {reason}" in message
    assert "'inner_mounts: drop' to switch without them" in message
    # With drop, the other mounts are carried over, and this one is named.
    done = switched(specs[1], switch=switch, inner_mounts="drop")
    assert f"{view}/{place} has no place" in str(done["warnings"])
    assert len(done["carried"]) == 5
    assert f"/{place}" not in [path for path, _source in inside(view)]


@pytest.mark.parametrize("switch", ["beneath", "over"])
def test_mounts_that_cover_each_other_keep_their_order(view: Path, specs: list[MountSpec], switch: str) -> None:
    for source, place in (("one", "a/b"), ("two", "a/b"), ("three", "a"), ("four", "a"), ("five", "empty")):
        support.command("mount", "-t", "tmpfs", source, view / place)
    before = inside(view)
    for turn in (1, 0, 1):
        switched(specs[turn], switch=switch)
        assert inside(view) == before
    for expected in ("four", "three", "two", "one"):
        covered = view / ("a" if expected in ("four", "three") else "a/b")
        live = support.live(covered)
        assert live
        assert live.source == expected.encode()
        support.command("umount", covered)
    assert os.listdir(view / "a" / "b") == ["c"]


def test_a_carried_mount_keeps_following_its_master(area: Path, view: Path, specs: list[MountSpec]) -> None:
    site = area / "site"
    site.mkdir()
    support.command("mount", "-t", "tmpfs", "site", site)
    support.command("mount", "--make-shared", site)
    (site / "here").mkdir()
    (site / "later").mkdir()
    support.command("mount", "-t", "tmpfs", "here", site / "here")
    support.command("mount", "--rbind", site, view / "a")
    switched(specs[1])
    # Detaching the old view has not unmounted the mounts of the site.
    assert support.live(site / "here")
    assert support.live(view / "a" / "here")
    support.command("mount", "-t", "tmpfs", "later", site / "later")
    assert support.live(view / "a" / "later")
    support.command("umount", site / "later")
    assert not support.live(view / "a" / "later")


@pytest.mark.parametrize("switch", ["beneath", "over"])
def test_each_carried_mount_keeps_its_propagation(area: Path, switch: str) -> None:
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", "--make-shared", place)
    view = place / "view"
    there = [generation(area, number, view) for number in range(2)]
    names = ("private", "shared", "slave")
    for name in names:
        for number in range(2):
            (area / f"g{number}" / "layer" / name).mkdir()
    support.carried_out(there[0])
    leader = area / "leader"
    leader.mkdir()
    support.command("mount", "-t", "tmpfs", "slave", leader)
    support.command("mount", "--make-shared", leader)
    for name in names:
        support.command("mount", *(("--bind", leader) if name == "slave" else ("-t", "tmpfs", name)), view / name)
        support.command("mount", f"--make-{name}", view / name)

    def kinds() -> dict[str, set[bytes]]:
        live = {name: support.live(view / name) for name in names}
        return {name: {word.split(b":")[0] for word in one.propagation} for name, one in live.items() if one}

    for turn in (1, 0):
        switched(there[turn], switch=switch)
        assert kinds()["private"] == set()
        assert kinds()["shared"] == {b"shared"}
        # The kernel also makes it shared, since it is attached to a shared mount.
        assert kinds()["slave"] >= {b"master"}
        (leader / f"new{turn}").mkdir()
        support.command("mount", "-t", "tmpfs", "new", leader / f"new{turn}")
        assert support.live(view / "slave" / f"new{turn}")


@pytest.mark.parametrize("outside", ["unchanged", "slave"])
@pytest.mark.parametrize("switch", ["beneath", "over"])
def test_inner_mounts_are_carried_wherever_the_switch_propagates(area: Path, outside: str, switch: str) -> None:
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", "--make-shared", place)
    there = [generation(area / "other", number, place / "view") for number in range(2)]
    for number in range(2):
        (area / "other" / f"g{number}" / "layer" / "plugins").mkdir()
    support.carried_out(there[0])
    support.command("mount", "-t", "tmpfs", "plugins", place / "view" / "plugins")
    support.write(place / "view" / "plugins" / "file", b"plugin")
    with support.namespace(outside) as pid:
        done = support.module("overlay_mount", **arguments_of(there[1], switch=switch)).ok
        assert done["elsewhere"] == []
        assert overlays_at(place / "view", pid)[0] == there[1].lower[0]
        for one in ("self", pid):
            text = support.command(
                "nsenter",
                "--mount",
                f"--target={pid if one == pid else os.getpid()}",
                "cat",
                place / "view/plugins/file",
            )
            assert text == "plugin"


@pytest.mark.parametrize("outside", ["unchanged", "slave"])
@pytest.mark.parametrize("switch", ["beneath", "over"])
def test_a_namespace_that_follows_loses_no_mount_in_a_mount(area: Path, outside: str, switch: str) -> None:
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", "--make-shared", place)
    there = [generation(area, number, place / "view") for number in range(2)]
    for number in range(2):
        (area / f"g{number}" / "layer" / "plugins").mkdir()
    support.carried_out(there[0])
    support.command("mount", "-t", "tmpfs", "plugins", place / "view" / "plugins")
    (place / "view" / "plugins" / "deep").mkdir()
    support.command("mount", "-t", "tmpfs", "deep", place / "view" / "plugins" / "deep")
    support.write(place / "view" / "plugins" / "deep" / "file", b"deep")
    with support.namespace(outside) as pid:
        enter = ("nsenter", "--mount", f"--target={pid}", "cat")
        for turn in (1, 0):
            done = support.module("overlay_mount", **arguments_of(there[turn], switch=switch)).ok
            assert support.command(*enter, place / "view/plugins/deep/file") == "deep"
            assert (place / "view" / "plugins" / "deep" / "file").read_text() == "deep"
            assert len(overlays_at(place / "view")) == (1 if switch == "beneath" else 1 + turn)
            shown = support.command(*enter, place / "view/bin/file0")
            # If the namespace keeps the old view, the result names it.
            kept = [one["pid"] for one in done["elsewhere"]]
            assert shown == f"generation {turn}" or kept == [pid]


def test_users_of_an_inner_overlay_are_known_after_it_was_carried_and_switched(
    area: Path, view: Path, specs: list[MountSpec]
) -> None:
    inner = [generation(area / "inner", number, view / "empty") for number in range(2)]
    support.carried_out(inner[0])
    code = f"import os, sys\nos.chdir(sys.argv[1])\n{support.WAIT}"
    with support.background(code, view / "empty" / "bin") as process:
        switched(specs[1])
        assert overlays_at(view / "empty") == [inner[0].lower[0]]
        done = support.module("overlay_mount", **arguments_of(inner[1])).ok
        assert overlays_at(view / "empty") == [inner[1].lower[0]]
        assert done["switched"]
        used = {record.lower: [user.pid for user in found] for record, found in detached.in_use()}
        assert used[inner[0].lower] == [process.pid]


@pytest.mark.parametrize("state", ["unmounted", "absent", "replaced"])
def test_unmounting_names_the_mounts_inside(view: Path, specs: list[MountSpec], state: str) -> None:
    support.command("mount", "-t", "tmpfs", "memory", view / "empty")
    if state == "replaced":
        message = refused(specs[1], switch="replace")
    else:
        before = [mount.id for mount in namespaces.own_mounts()]
        message = support.module("overlay_mount", path=str(view), state=state).message
        assert [mount.id for mount in namespaces.own_mounts()] == before
    assert f"{view} has mounts inside of it, so it cannot be unmounted: unmount {view}/empty (tmpfs) first" in message


def test_a_mount_that_appears_during_a_switch_is_not_lost(
    view: Path, specs: list[MountSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    move = syscalls.move_mount

    def mounts_first(mount: int, path: bytes, beneath: bool = False) -> None:
        if beneath:
            support.command("mount", "-t", "tmpfs", "late", view / "empty")
        move(mount, path, beneath)

    with monkeypatch.context() as patched:
        patched.setattr(syscalls, "move_mount", mounts_first)
        with pytest.raises(
            OverlayError, match=r"view/empty \(tmpfs\) was mounted while the overlay .* run the task again"
        ):
            apply(support.planned(specs[1])[0], mounts.HANDLERS)
    assert inside(view) == [("/empty", b"late")]
    done = switched(specs[1])
    assert done["carried"] == [f"{view}/empty"]
    assert overlays_at(view) == [specs[1].lower[0]]


def test_readers_of_an_inner_mount_do_not_notice_switches(area: Path, view: Path, specs: list[MountSpec]) -> None:
    mount_inside(area, view)
    found: list[str] = []
    support.write(view / "a" / "deep" / "file", b"5")
    with watched(view / "a" / "deep" / "file", area / "stop", found):
        for turn in range(1, 31):
            support.carried_out(specs[turn % 2])
    assert int(found[0]) > 10
    assert found[1:] == ["0", "5"]


def test_a_switch_killed_at_any_moment_loses_no_inner_mount(area: Path, view: Path, specs: list[MountSpec]) -> None:
    mount_inside(area, view)
    before, others = inside(view), len(namespaces.own_mounts())
    started = time.monotonic()
    support.carried_out(specs[1])
    longest = time.monotonic() - started
    generator = random.Random(7)
    for turn in range(40):
        switch_and_kill(specs[turn % 2], generator.uniform(0, longest))
        assert inside(view) == before
        support.carried_out(specs[turn % 2])
        assert inside(view) == before
        assert len(overlays_at(view)) == 1
        assert len(namespaces.own_mounts()) == others


def test_a_carried_autofs_still_mounts_on_demand(view: Path, specs: list[MountSpec]) -> None:
    requests, sender = os.pipe()
    # The process group that mounts autofs is that of the daemon, which gets no mount on demand.
    options = b"fd=%d,minproto=5,maxproto=5,indirect" % sender
    syscalls.mount(b"demand", os.fsencode(view / "empty"), b"autofs", 0, options)
    control = os.open(view / "empty", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.close(sender)
    try:
        switched(specs[1])
        assert inside(view) == [("/empty", b"demand")]
        # A process of another group requests a mount; this process is the daemon.
        client = subprocess.Popen(
            ["ls", view / "empty" / "show"], start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        packet = os.read(requests, 4096)
        (token,) = struct.unpack_from("=I", packet, 8)
        assert b"show\0" in packet
        (view / "empty" / "show").mkdir()
        support.command("mount", "-t", "tmpfs", "show", view / "empty" / "show")
        (view / "empty" / "show" / "asset").touch()
        fcntl.ioctl(control, 0x9360, token)  # AUTOFS_IOC_READY
        assert client.communicate(timeout=30)[0] == "asset\n"
        # Also with a mount inside it.
        switched(specs[0])
        assert inside(view) == [("/empty", b"demand"), ("/empty/show", b"show")]
    finally:
        os.close(control)
        os.close(requests)
