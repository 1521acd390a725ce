"""A run that has nothing to do succeeds even if a file server does not answer."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    mountinfo,
    namespaces,
    still_paths,
    syscalls,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.overlays.test_switch import arguments_of, generation

#: The time limit of the modules in seconds. A module that asked the server would reach it.
LIMIT = 30.0


@contextlib.contextmanager
def dead(place: Path) -> Iterator[None]:
    """Mount a file system that never answers, while the block runs: a FUSE mount whose requests nobody reads."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
        syscalls.mount(b"dead", os.fsencode(place), b"fuse", 0, options)
        try:
            yield
        finally:
            syscalls.umount(os.fsencode(place), syscalls.MNT_DETACH)
    finally:
        # Closing the device ends all waiting requests.
        os.close(device)


def test_a_dead_file_system_does_not_answer(folder: Path) -> None:
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            os.lstat(folder)
        answered.set()

    asking = threading.Thread(target=ask)
    with dead(folder):
        asking.start()
        assert not answered.wait(0.3)
    asking.join(30)
    assert answered.is_set()


@contextlib.contextmanager
def etc_of_its_own(folder: Path) -> Iterator[None]:
    """Mount a private /etc without units over that of the machine, while the block runs."""
    for name in ("etc", "etc-work"):
        (folder / name).mkdir()
    support.command(
        "mount", "-t", "overlay", "etc", "-o", f"lowerdir=/etc,upperdir={folder}/etc,workdir={folder}/etc-work", "/etc"
    )
    try:
        Path("/etc/fstab").write_text("")
        os.makedirs("/etc/systemd/system", exist_ok=True)
        support.command("mount", "-t", "tmpfs", "tmpfs", "/etc/systemd/system")
        yield
    finally:
        support.command("umount", "--lazy", "/etc")


@pytest.mark.parametrize("persist", ["none", "fstab", "systemd"])
@pytest.mark.parametrize("written", ["plain", "slashes", "link", "link above"])
@pytest.mark.parametrize("image", [False, True])
def test_a_view_that_is_as_declared_needs_no_server(folder: Path, persist: str, written: str, image: bool) -> None:
    with etc_of_its_own(folder):
        spec = generation(folder, 0, folder / "view", image=image)
        arguments = arguments_of(spec, persist=persist, timeout=LIMIT)
        data = arguments["data"][0]
        (folder / "link").symlink_to("g0/data")
        (folder / "above").symlink_to(folder / "g0")
        arguments["data"] = [
            {
                "plain": data,
                "slashes": f"{data}//.",
                "link": str(folder / "link"),
                "link above": f"{folder}/above/./data",
            }[written]
        ]
        assert support.module("overlay_mount", **arguments).ok["changed"]
        with dead(Path(data)):
            for check in (True, False):
                done = support.module("overlay_mount", True, check, **arguments).ok
                assert (done["changed"], "warnings" in done) == (False, False)
            # Neither do reporting it and unmounting it.
            reported = support.module("overlay_info", probe=False, timeout=LIMIT).ok
            assert str(folder / "view") in [one["path"] for one in reported["mounts"]]
            assert support.module("overlay_mount", path=str(folder / "view"), state="absent", timeout=LIMIT).ok[
                "changed"
            ]


def test_a_dead_server_above_the_data_layer_is_not_asked(folder: Path) -> None:
    spec = generation(folder, 0, folder / "view")
    support.carried_out(spec)
    arguments = arguments_of(spec, timeout=LIMIT)
    with dead(folder / "g0"):
        assert not support.module("overlay_mount", **arguments).ok["changed"]


def test_a_writable_overlay_over_a_dead_server_is_as_declared(folder: Path) -> None:
    for name in ("net", "upper", "work"):
        (folder / name).mkdir()
    arguments: dict[str, Any] = {
        "path": str(folder / "view"),
        "lower": [str(folder / "net")],
        "upper": str(folder / "upper"),
        "work": str(folder / "work"),
        "timeout": LIMIT,
    }
    assert support.module("overlay_mount", **arguments).ok["changed"]
    with dead(folder / "net"):
        assert not support.module("overlay_mount", **arguments).ok["changed"]


def test_a_data_layer_given_by_a_link_is_compared_by_its_target(folder: Path) -> None:
    spec = generation(folder, 0, folder / "view")
    generation(folder, 1, folder / "view")
    support.carried_out(spec)
    (folder / "link").symlink_to("g0/data")
    arguments = {**arguments_of(spec), "data": [str(folder / "link")]}
    assert not support.module("overlay_mount", **arguments).ok["changed"]
    (folder / "link").unlink()
    (folder / "link").symlink_to("g1/data")
    assert support.module("overlay_mount", **arguments).ok["changed"]


def test_a_switch_to_a_dead_server_fails_within_the_time_limit(folder: Path) -> None:
    specs = [generation(folder, number, folder / "view") for number in range(2)]
    support.carried_out(specs[0])
    with dead(folder / "g1" / "data"):
        message = support.module("overlay_mount", **arguments_of(specs[1], timeout=1.0)).message
        assert "gave up: no progress for 1 seconds" in message
    assert (folder / "view" / "bin" / "file0").read_text() == "generation 0"


def test_paths_are_resolved_as_the_kernel_does(folder: Path) -> None:
    for name in ("a/b/c", "d"):
        (folder / name).mkdir(parents=True)
    for name, target in (
        ("up", "a/b/.."),
        ("a/abs", f"{folder}/d"),
        ("a/b/rel", "../../d"),
        ("loop", "loop"),
        ("a/twice", "b/rel/../a/./abs"),
        ("gone", "nowhere/at/all"),
    ):
        (folder / name).symlink_to(target)
    live = namespaces.own_mounts()
    for path in (
        *(
            "",
            "/",
            "a/b/c",
            "up",
            "up/b",
            "a/abs",
            "a/b/rel",
            "a/b/rel/../a",
            "loop/x",
            "a/twice",
            "gone",
            "gone/..",
            "a//b/./c/",
        ),
        *("../..", "nothing/../a", "a/b/rel/nothing"),
    ):
        given = os.fsencode(folder) + b"/" + path.encode()
        assert still_paths.resolved(given, live) == os.path.realpath(given), path


def test_the_mountpoint_of_a_dead_software_root_is_not_looked_up(folder: Path) -> None:
    (folder / "software").mkdir()
    (folder / "link").symlink_to(folder)
    with dead(folder / "software"):
        place = os.fsencode(folder / "software")
        live = namespaces.own_mounts()
        for written in (place, os.fsencode(folder / "link" / "software"), place + b"/"):
            assert still_paths.mountpoint(written, live) == place
        mount = mountinfo.top_mount(live, place)
        assert mount
        arguments: dict[str, Any] = {"path": str(folder / "software"), "state": "absent", "timeout": LIMIT}
        # The mount is not NFS, so the module refuses it, and does so at once.
        assert "a mount of type fuse" in support.module("software_root", **arguments).message
