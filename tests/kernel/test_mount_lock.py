"""Runs on the same mountpoint at the same time come one after the other."""

from __future__ import annotations

import os
import stat

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, mount_lock, syscalls
from ansible_collections.renderfarm.overlay.tests.kernel import support


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
    support.command("rm", "-rf", mount_lock.FOLDER)
    before = os.umask(umask)
    try:
        with mount_lock.held(b"/some/view", 1):
            assert stat.S_IMODE(os.stat(mount_lock.FOLDER).st_mode) == 0o700
            (name,) = os.listdir(mount_lock.FOLDER)
            assert stat.S_IMODE(os.stat(os.path.join(mount_lock.FOLDER, name)).st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_directory_that_others_can_enter_is_refused() -> None:
    support.command("rm", "-rf", mount_lock.FOLDER)
    os.makedirs(mount_lock.FOLDER)
    os.chmod(mount_lock.FOLDER, 0o755)
    try:
        with (
            pytest.raises(OverlayError, match=r"has mode 0755: only root may be able to enter it"),
            mount_lock.held(b"/v", 1),
        ):
            pass
    finally:
        os.rmdir(mount_lock.FOLDER)


def test_who_may_not_write_to_run_locks_the_mounts_of_a_namespace_of_its_own() -> None:
    support.command("rm", "-rf", mount_lock.FOLDER)

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
    # In the mount namespace of the host nobody but root takes a lock.
    with pytest.raises(PermissionError):
        deadline.run(lambda _progress: as_a_user(0), 30)
    assert not os.path.exists(mount_lock.FOLDER)
