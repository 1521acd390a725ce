"""Simultaneous runs on the same mountpoint wait for each other."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    boot_files,
    deadline,
    mount_lock,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.overlays.test_switch import (
    arguments_of,
    generation,
    overlays_at,
)


def test_a_run_that_waits_too_long_names_the_mountpoint() -> None:
    with (
        mount_lock.held(b"/some/view", 1),
        pytest.raises(
            OverlayError, match=r"another run has been at work on the mountpoint /some/view for 0\.2 seconds"
        ),
        mount_lock.held(b"/some/view", 0.2),
    ):
        pass


def test_runs_at_other_mountpoints_do_not_wait() -> None:
    with mount_lock.held(b"/some/view", 1), mount_lock.held(b"/some/views", 0), mount_lock.held(b"/some/\xff", 0):
        pass


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_root_can_reach_the_locks(umask: int) -> None:
    support.command("rm", "-rf", mount_lock.DIRECTORY)
    before = os.umask(umask)
    try:
        with mount_lock.held(b"/some/view", 1):
            assert stat.S_IMODE(os.stat(mount_lock.DIRECTORY).st_mode) == 0o700
            (name,) = os.listdir(mount_lock.DIRECTORY)
            assert stat.S_IMODE(os.stat(os.path.join(mount_lock.DIRECTORY, name)).st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_directory_that_others_can_enter_is_refused() -> None:
    support.command("rm", "-rf", mount_lock.DIRECTORY)
    os.makedirs(mount_lock.DIRECTORY)
    os.chmod(mount_lock.DIRECTORY, 0o755)
    try:
        with (
            pytest.raises(OverlayError, match=r"has mode 0755: only root may be able to enter it"),
            mount_lock.held(b"/v", 1),
        ):
            pass
    finally:
        os.rmdir(mount_lock.DIRECTORY)


def test_root_of_a_user_namespace_locks_its_own_mount_namespace() -> None:
    support.command("rm", "-rf", mount_lock.DIRECTORY)

    def as_a_user(unshared: int) -> None:
        os.setresuid(65534, 65534, 65534)
        if unshared:
            syscalls.unshare(unshared)
        with (
            mount_lock.held(b"/some/view", 1),
            pytest.raises(OverlayError, match="another run has been at work on the mountpoint /some/view"),
            mount_lock.held(b"/some/view", 0.2),
        ):
            pass

    deadline.run(lambda _progress: as_a_user(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS), 30)
    # In the mount namespace of the host, only root can take a lock.
    with pytest.raises(PermissionError):
        deadline.run(lambda _progress: as_a_user(0), 30)
    assert not os.path.exists(mount_lock.DIRECTORY)


# ---- the race, made certain: one run is stopped between observing and mounting


@contextlib.contextmanager
def stopped_before_attaching(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[support.ForkedModule]:
    """Start a run of overlay_mount that stops before it attaches its overlay."""
    move = syscalls.move_mount
    place = os.fsencode(arguments["path"])

    def stops_first(mount: int, path: bytes, beneath: bool = False) -> None:
        if path == place:
            os.kill(os.getpid(), signal.SIGSTOP)
        move(mount, path, beneath)

    monkeypatch.setattr(syscalls, "move_mount", stops_first)
    with support.forked_module("overlay_mount", arguments) as run:
        monkeypatch.undo()
        run.go()
        yield run


def the_stopped_child(run: support.ForkedModule) -> int:
    """Wait until the worker process of a module has stopped, and return its PID."""
    for _try in range(600):
        with contextlib.suppress(OSError, IndexError):
            child = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0])
            if "T (stopped)" in Path(f"/proc/{child}/status").read_text():
                return child
        time.sleep(0.05)
    raise AssertionError("the run has not stopped")


@pytest.mark.parametrize("second", ["the same", "another one", "none"])
@pytest.mark.parametrize("there", [False, True])
def test_two_runs_at_once_on_one_mountpoint_leave_one_overlay(
    area: Path, monkeypatch: pytest.MonkeyPatch, second: str, there: bool
) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(3)]
    if there:
        support.carried_out(specs[0])
    wanted: dict[str, Any] = arguments_of(specs[1 if second == "the same" else 2])
    if second == "none":
        wanted = {"path": str(view), "state": "absent"}
    with stopped_before_attaching(arguments_of(specs[1]), monkeypatch) as first:
        child = the_stopped_child(first)
        with support.forked_module("overlay_mount", wanted) as other:
            other.go()
            # Wait until the other run has observed, and waits for the lock.
            for _try in range(600):
                if str(child) in locked_by(other):
                    break
                time.sleep(0.05)
            os.kill(child, signal.SIGCONT)
            done = first.finish().ok
            late = other.finish().ok
    assert done["changed"]
    if second == "none":
        assert late["actions"][0] == f"unmount the overlay at {view}"
        assert not view.exists()
        return
    assert (late["changed"], late["switched"]) == ((False, False) if second == "the same" else (True, True))
    assert overlays_at(view) == [specs[1 if second == "the same" else 2].lower[0]]


def locked_by(run: support.ForkedModule) -> str:
    """Return /proc/locks if the worker process of a module has a lock file open; else an empty text."""
    with contextlib.suppress(OSError, IndexError):
        child = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0]
        links = f"/proc/{child}/fd"
        if any(os.readlink(os.path.join(links, name)).startswith(mount_lock.DIRECTORY) for name in os.listdir(links)):
            return Path("/proc/locks").read_text()
    return ""


def test_a_run_that_does_not_get_the_lock_names_the_mountpoint_and_changes_nothing(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(3)]
    support.carried_out(specs[0])
    with stopped_before_attaching(arguments_of(specs[1]), monkeypatch) as first:
        child = the_stopped_child(first)
        message = support.module("overlay_mount", timeout=6, **arguments_of(specs[2])).message
        assert f"another run has been at work on the mountpoint {view} for 6 seconds" in message
        # A run without changes does not wait, and neither does check mode.
        assert not support.module("overlay_mount", timeout=6, **arguments_of(specs[0])).ok["changed"]
        assert support.module("overlay_mount", True, True, timeout=6, **arguments_of(specs[2])).ok["changed"]
        os.kill(child, signal.SIGCONT)
        first.finish().ok  # noqa: B018
    assert overlays_at(view) == [specs[1].lower[0]]


def test_simultaneous_edits_of_fstab_are_all_kept(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_files, "FSTAB", str(area / "fstab"))
    both_have_read = threading.Barrier(2, timeout=1)

    def add(line: bytes) -> None:
        def added(text: bytes) -> bytes:
            # Without a lock, both threads read before either writes.
            with contextlib.suppress(threading.BrokenBarrierError):
                both_have_read.wait()
            return text + line

        boot_files.edit_fstab(added)

    writing = [threading.Thread(target=add, args=(line,)) for line in (b"one\n", b"two\n")]
    for thread in writing:
        thread.start()
    for thread in writing:
        thread.join(30)
    assert sorted((area / "fstab").read_bytes().splitlines()) == [b"one", b"two"]
