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


def test_a_dead_file_system_does_not_answer(area: Path) -> None:
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            os.lstat(area)
        answered.set()

    asking = threading.Thread(target=ask)
    with dead(area):
        asking.start()
        assert not answered.wait(0.3)
    asking.join(30)
    assert answered.is_set()


@contextlib.contextmanager
def etc_of_its_own(area: Path) -> Iterator[None]:
    """Mount a private /etc without units over that of the machine, while the block runs."""
    for name in ("etc", "etc-work"):
        (area / name).mkdir()
    support.command(
        "mount", "-t", "overlay", "etc", "-o", f"lowerdir=/etc,upperdir={area}/etc,workdir={area}/etc-work", "/etc"
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
def test_a_view_that_is_as_declared_needs_no_server(area: Path, persist: str, written: str, image: bool) -> None:
    with etc_of_its_own(area):
        spec = generation(area, 0, area / "view", image=image)
        arguments = arguments_of(spec, persist=persist, timeout=LIMIT)
        data = arguments["data"][0]
        (area / "link").symlink_to("g0/data")
        (area / "above").symlink_to(area / "g0")
        arguments["data"] = [
            {
                "plain": data,
                "slashes": f"{data}//.",
                "link": str(area / "link"),
                "link above": f"{area}/above/./data",
            }[written]
        ]
        assert support.module("overlay_mount", **arguments).ok["changed"]
        with dead(Path(data)):
            for check in (True, False):
                done = support.module("overlay_mount", True, check, **arguments).ok
                assert (done["changed"], "warnings" in done) == (False, False)
            # Neither do reporting it and unmounting it.
            reported = support.module("overlay_info", probe=False, timeout=LIMIT).ok
            assert str(area / "view") in [one["path"] for one in reported["mounts"]]
            assert support.module("overlay_mount", path=str(area / "view"), state="absent", timeout=LIMIT).ok["changed"]


def test_a_dead_server_above_the_data_layer_is_not_asked(area: Path) -> None:
    spec = generation(area, 0, area / "view")
    support.carried_out(spec)
    arguments = arguments_of(spec, timeout=LIMIT)
    with dead(area / "g0"):
        assert not support.module("overlay_mount", **arguments).ok["changed"]


def test_a_writable_overlay_over_a_dead_server_is_as_declared(area: Path) -> None:
    for name in ("net", "upper", "work"):
        (area / name).mkdir()
    arguments: dict[str, Any] = {
        "path": str(area / "view"),
        "lower": [str(area / "net")],
        "upper": str(area / "upper"),
        "work": str(area / "work"),
        "timeout": LIMIT,
    }
    assert support.module("overlay_mount", **arguments).ok["changed"]
    with dead(area / "net"):
        assert not support.module("overlay_mount", **arguments).ok["changed"]


def test_a_data_layer_given_by_a_link_is_compared_by_its_target(area: Path) -> None:
    spec = generation(area, 0, area / "view")
    generation(area, 1, area / "view")
    support.carried_out(spec)
    (area / "link").symlink_to("g0/data")
    arguments = {**arguments_of(spec), "data": [str(area / "link")]}
    assert not support.module("overlay_mount", **arguments).ok["changed"]
    (area / "link").unlink()
    (area / "link").symlink_to("g1/data")
    assert support.module("overlay_mount", **arguments).ok["changed"]


def test_a_switch_to_a_dead_server_fails_within_the_time_limit(area: Path) -> None:
    specs = [generation(area, number, area / "view") for number in range(2)]
    support.carried_out(specs[0])
    with dead(area / "g1" / "data"):
        message = support.module("overlay_mount", **arguments_of(specs[1], timeout=1.0)).message
        assert f"gave up: no progress for 1 seconds. No answer from the file server of {area}/g1/data (dead)" in message
    assert (area / "view" / "bin" / "file0").read_text() == "generation 0"


def test_paths_are_resolved_as_the_kernel_does(area: Path) -> None:
    for name in ("a/b/c", "d"):
        (area / name).mkdir(parents=True)
    for name, target in (
        ("up", "a/b/.."),
        ("a/abs", f"{area}/d"),
        ("a/b/rel", "../../d"),
        ("loop", "loop"),
        ("a/twice", "b/rel/../a/./abs"),
        ("gone", "nowhere/at/all"),
    ):
        (area / name).symlink_to(target)
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
        given = os.fsencode(area) + b"/" + path.encode()
        assert still_paths.resolved(given, live) == os.path.realpath(given), path


def test_the_mountpoint_of_a_dead_software_root_is_not_looked_up(area: Path) -> None:
    (area / "software").mkdir()
    (area / "link").symlink_to(area)
    with dead(area / "software"):
        place = os.fsencode(area / "software")
        live = namespaces.own_mounts()
        for written in (place, os.fsencode(area / "link" / "software"), place + b"/"):
            assert still_paths.mountpoint(written, live) == place
        mount = mountinfo.top_mount(live, place)
        assert mount
        arguments: dict[str, Any] = {"path": str(area / "software"), "state": "absent", "timeout": LIMIT}
        # The mount is not NFS, so the module refuses it, and does so at once.
        assert "a mount of type fuse" in support.module("software_root", **arguments).message
