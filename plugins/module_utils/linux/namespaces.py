# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount namespaces: create a private one, and read the mounts of all of them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount


@contextlib.contextmanager
def held(directories: Iterable[bytes]) -> Iterator[None]:
    """Hold directories open while the block runs, so that automounts there are mounted and do not expire. Missing ones are left out.

    The kernel takes an automount as a layer only while it is mounted, and mounts nothing on demand in a private mount namespace. So hold
    the directories before entering one.
    """
    with contextlib.ExitStack() as stack:
        for directory in directories:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                stack.callback(os.close, os.open(directory, syscalls.HOLD_DIRECTORY))
        yield


def make_private(flags: int = syscalls.CLONE_NEWNS, propagation: int = syscalls.MS_PRIVATE) -> None:
    """Move this process to a new mount namespace. What it mounts there is invisible to others and is unmounted when the process ends.

    With the propagation MS_SLAVE, what others mount and unmount later changes there too, for example by an automounter.
    """
    syscalls.unshare(flags)
    try:
        syscalls.mount(b"none", b"/", None, syscalls.MS_REC | propagation)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _set_propagation_from_above(propagation)


def _set_propagation_from_above(propagation: int) -> None:
    """Set the propagation of the mounts in a chroot whose root is not a mountpoint: enter the root of the namespace, and return."""
    # These are opened now, so that they belong to the new namespace.
    root, here = (os.open(path, syscalls.HOLD_DIRECTORY) for path in ("/", "."))
    process = os.pidfd_open(os.getpid())
    try:
        syscalls.setns(process, syscalls.CLONE_NEWNS)
        syscalls.mount(b"none", b"/", None, syscalls.MS_REC | propagation)
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(here)
    finally:
        for fd in (root, here, process):
            os.close(fd)


def everywhere() -> Iterator[tuple[int | None, list[Mount]]]:
    """Yield the mounts of each mount namespace that has a process: first of our own, with None, then of others, with a PID.

    The kernel shows a process only the mounts below its root directory. So a namespace is yielded again for a process that sees more.
    """
    own = mounts_of("self")
    yield None, own
    known_by_namespace = {os.readlink("/proc/self/ns/mnt"): {mount.id for mount in own}}
    seen = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            place = namespace, os.readlink(f"/proc/{name}/root")
            if place not in seen:
                live = mounts_of(name)
                known = known_by_namespace.setdefault(namespace, set())
                if not known.issuperset(mount.id for mount in live):
                    yield int(name), live
                known.update(mount.id for mount in live)
                seen.add(place)
        except OSError:  # it has ended, or may not be inspected; another process may be in the same namespace
            continue


def mounts_of(process: str = "self") -> list[Mount]:
    """Return the mounts that a process sees. ``process`` is its name below /proc."""
    with open(f"/proc/{process}/mountinfo", "rb") as stream:
        return list(mountinfo.parse(stream.read()))


def own_mounts() -> list[Mount]:
    """Return the mounts that this process sees."""
    return mounts_of()


def mounts_like(mount: Mount) -> set[int]:
    """Return the mount IDs of a mount and of all that show the same directory, at any path and in any mount namespace."""
    return mounts_like_each([mount])[mount]


def mounts_like_each(mounts: Sequence[Mount]) -> dict[Mount, set[int]]:
    """Return what ``mounts_like`` returns for each of several mounts."""
    found: dict[tuple[tuple[int, int], bytes], set[int]] = {(one.device, one.shown): set() for one in mounts}
    for _pid, live in everywhere():
        for other in live:
            if (other.device, other.shown) in found:
                found[other.device, other.shown].add(other.id)
    return {one: found[one.device, one.shown] for one in mounts}
