"""The users of a mount are found wherever it is mounted, and also after it was detached."""

from __future__ import annotations

import glob
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces, processes, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached
from ansible_collections.renderfarm.overlay.tests.kernel import support

HOLDING = {
    "cwd": "os.chdir(sys.argv[1])",
    "root": "os.chroot(sys.argv[1])",
    "file": "held = open(sys.argv[1] + '/file')",
    "directory": "held = os.open(sys.argv[1], os.O_PATH)",
    "map": "f = open(sys.argv[1] + '/file', 'rb'); held = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()",
}


@contextmanager
def holding(what: str, view: Path) -> Iterator[int]:
    """Provide the PID of a process that uses a view in one of the ways of HOLDING."""
    # In the chroot Python cannot load encodings, so the program writes bytes.
    code = f"import mmap, os, sys\n{HOLDING[what]}\nos.write(1, b'ready\\n')\nos.read(0, 1)"
    with support.background(code, view) as process:
        yield process.pid


def view_of(area: Path, number: int) -> Path:
    """Declare a generation, mount or switch to it, and return the mountpoint."""
    layer = area / f"layer{number}"
    if not layer.exists():
        (area / "data").mkdir(exist_ok=True)
        layer.mkdir()
        support.write(layer / "file", b"generation %d" % number)
    support.carried_out(support.declared(area / "view", [layer], [area / "data"]))
    return area / "view"


def pids_in_use() -> dict[bytes, list[int]]:
    """Return the processes of each detached overlay, by its uppermost layer."""
    return {record.lower[0]: [process.pid for process in found] for record, found in detached.in_use()}


@pytest.mark.parametrize("what", list(HOLDING))
def test_a_user_is_found_before_and_after_the_mount_was_detached(area: Path, what: str) -> None:
    view = view_of(area, 1)
    live = support.live(view)
    assert live
    layer = os.fsencode(area / "layer1")
    with holding(what, view) as pid:
        assert [one.pid for one in processes.of_mounts([live.id])] == [pid]
        view_of(area, 2)
        assert [one.pid for one in processes.of_mounts([live.id])] == [pid]
        assert pids_in_use()[layer] == [pid]
    assert layer not in pids_in_use()
    # Its note is removed. Notes of other tests may remain.
    assert not any(layer in Path(note).read_bytes() for note in glob.glob(f"{detached.DIRECTORY}/*.json"))


def test_a_process_whose_program_is_on_the_mount_is_a_user(area: Path) -> None:
    view = view_of(area, 1)
    support.command("umount", view)
    support.command("cp", "/bin/sleep", area / "layer1" / "sleep")
    view_of(area, 1)
    with subprocess.Popen([view / "sleep", "60"]) as process:
        live = support.live(view)
        assert live
        assert [(one.pid, one.name) for one in processes.of_mounts([live.id])] == [(process.pid, "sleep")]
        process.kill()


def test_users_of_a_bind_mount_are_told_apart_by_mount_id(area: Path) -> None:
    view = view_of(area, 1)
    (area / "bound").mkdir()
    support.command("mount", "--bind", view, area / "bound")
    here, there = support.live(view), support.live(area / "bound")
    assert here
    assert there
    with holding("cwd", area / "bound") as pid:
        assert processes.of_mounts([here.id]) == []
        assert [one.pid for one in processes.of_mounts([there.id])] == [pid]
        assert namespaces.mounts_like(here) == {here.id, there.id}


def test_a_mount_that_another_namespace_shows_is_in_use(area: Path) -> None:
    view = view_of(area, 1)
    layer = os.fsencode(area / "layer1")
    with support.namespace("private"):
        view_of(area, 2)
        assert pids_in_use()[layer] == []
        with support.namespace("private", f"os.chdir({str(view)!r})") as pid:
            # This process has the new generation as its working directory.
            assert pid not in pids_in_use()[layer]
    assert layer not in pids_in_use()


def test_only_root_can_reach_the_notes_of_detached_overlays(area: Path) -> None:
    view_of(area, 1)
    view_of(area, 2)
    assert os.stat(detached.DIRECTORY).st_mode & 0o777 == 0o700


def test_the_module_names_the_users_of_the_old_overlay(area: Path) -> None:
    view = view_of(area, 1)
    (area / "layer2").mkdir()
    arguments: dict[str, Any] = {"path": str(view), "lower": [str(area / "layer2")], "data": [str(area / "data")]}
    with holding("file", view) as pid:
        expected = [{"pid": pid, "name": Path(f"/proc/{pid}/comm").read_text().strip()}]
        assert support.module("overlay_mount", True, True, **arguments).ok["users"] == expected
        assert support.module("overlay_mount", **arguments).ok["users"] == expected
        assert support.module("overlay_mount", **arguments).ok["users"] == []


def test_a_kernel_that_makes_no_handles_gives_the_same_mounts(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(area, 1)
    with holding("map", view) as pid:
        found = set(processes.links(pid))
        monkeypatch.setattr(syscalls, "mount_at", lambda _path: None)
        assert set(processes.links(pid)) == found
    live = support.live(view)
    assert live
    assert live.id in {mount_id for mount_id, _link in found}


def test_processes_that_map_one_file_of_several_detached_overlays_are_told_apart(area: Path) -> None:
    view = view_of(area, 1)
    with holding("map", view) as first, holding("map", view) as second:
        view_of(area, 2)
        with holding("map", view) as third:
            view_of(area, 3)
            found = pids_in_use()
            assert found[os.fsencode(area / "layer1")] == sorted([first, second])
            assert found[os.fsencode(area / "layer2")] == [third]


def test_a_file_that_has_the_device_of_another_mount_is_asked_for_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.8, a mapped file of an overlay has the device of its layer."""
    answers = iter([7, 8, 9])
    monkeypatch.setattr(processes, "_mount_at", lambda _link: next(answers))
    known = processes._KnownMounts({7: (0, 50), 8: (0, 51), 9: (0, 51)})
    assert [known.mount_of("mnt:[1]", b"00:33 12 /x", b"") for _turn in range(3)] == [7, 8, 8]
    assert known.mount_of("mnt:[2]", b"00:33 12 /x", b"") == 9


def test_paths_are_those_of_the_links(area: Path) -> None:
    path = area / "odd \n \\012"
    path.mkdir()
    support.write(path / "file", b"x")
    with holding("map", path) as pid:
        devices = {mount.id: mount.device for mount in namespaces.own_mounts()}
        uses = [
            (mount_id, use)
            for mount_id, users in processes.uses_by_mount(devices).items()
            for process, found in users.items()
            if process.pid == pid
            for use in found
        ]
        assert os.fsencode(path / "file") in {target for _mount_id, (_link, target) in uses}
        assert {(mount_id, link, os.readlink(link)) for mount_id, (link, _target) in uses} == {
            (mount_id, link, target) for mount_id, (link, target) in uses
        }
        assert {(mount_id, link) for mount_id, (link, _target) in uses} <= set(processes.links(pid))


def test_the_mount_of_a_path_is_that_of_an_open_file(area: Path) -> None:
    for path in (view_of(area, 1) / "file", area, Path("/proc/self/exe"), Path("/proc/self/ns/mnt")):
        fd = os.open(path, os.O_PATH)
        assert syscalls.mount_at(os.fsencode(path)) == processes.mount_of(b"/proc/self/fdinfo/%d" % fd)
        os.close(fd)
    assert syscalls.mount_at(os.fsencode(area / "missing")) is None
