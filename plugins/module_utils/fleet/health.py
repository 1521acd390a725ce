# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check whether a view works before a host switches to it.

A child process mounts the new overlay at the mountpoint in a private mount namespace, where no other process sees it, and checks it
there. Until then everybody else sees what was there before. So a view that fails takes nothing away.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    deadline,
    files,
    mountpoints,
    namespaces,
    processes,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import UserCommand
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, inner_mounts, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

#: Turns the check off.
NONE = "none"

#: Files of a release that are tried, and entries of a release that are looked at to find them.
_MOST_FILES = 5
_MOST_ENTRIES = 2000


@dataclass(frozen=True)
class HealthCheck:
    """How a view is checked. Its releases are always opened; a command is run as well if there is one."""

    #: A command for the shell; empty if there is none.
    command: str
    #: The user who runs it, by name or uid.
    user: str
    #: Seconds after which it is given up.
    seconds: float
    #: Variables of its environment.
    environment: Mapping[str, str]


class _CommandTimeoutError(OverlayError):
    """The command of a view did not end in time."""


def try_unseen(
    spec: MountSpec,
    inner: str,
    releases: Sequence[Mapping[str, Any]],
    check: HealthCheck,
    seconds: float,
    progress: Progress,
) -> None:
    """Check a view where no other process sees it.

    ``spec`` declares its overlay, without an upper layer, and ``inner`` says what happens to mounts inside of the overlay that it replaces.
    ``releases`` are those to open, as in its record. Gives up after ``seconds`` without progress.

    Raises OverlayError with the reason if the overlay cannot be mounted, cannot be listed, does not have the content of a release, or if
    the command fails.
    """

    def attempt(tick: Progress) -> None:
        with namespaces.held(spec.places):
            # What is mounted on demand meanwhile, for example for the command, is seen here too.
            namespaces.make_private(propagation=syscalls.MS_SLAVE)
        state = mounts.observe(spec.path)
        if state.mount:
            with inner_mounts.new_tree(spec, state.mount, state.inner, inner) as (mount, _problems):
                creating.attach(mount, spec.path)
        else:
            mount = creating.new_overlay(spec)
            creating.attach(mount, spec.path)
            os.close(mount)
        open_each(spec.path, releases, tick)
        if check.command:
            _run_command(check, spec.path, seconds, tick)

    made = files.make_directories(spec.path, 0o755)
    try:
        deadline.run(attempt, seconds, progress)
    except _CommandTimeoutError as error:
        # Asked in this process, since no process can be started in the PID namespace of a command that has ended.
        silent = mountpoints.silent(progress)
        raise OverlayError(f"{error}; no answer from the file server of {silent}" if silent else str(error)) from None
    finally:
        files.remove_directories(made)


# What is there by default: the view can be listed, and a file of each release can be opened.


def open_each(path: bytes, releases: Sequence[Mapping[str, Any]], progress: Progress) -> None:
    """List the view at ``path``, and open and read one file at the place of each release.

    Files that the file server may refuse to root are passed over, since their permissions are no fault of the view. Raises OverlayError
    that names the release and the file if its content is not there.
    """
    os.listdir(path)
    for release in releases:
        progress()
        place = os.path.join(path, os.fsencode(release["at"]))
        for number, file in enumerate(_files_with_content(place)):
            if number == _MOST_FILES or _has_content(file, release["release"]):
                break


def _has_content(file: bytes, release: str) -> bool:
    """Return whether a file can be read; False if that is forbidden. Raises OverlayError if its content is missing."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.read(fd, 1)
        finally:
            os.close(fd)
    except PermissionError:
        return False
    except OSError as error:
        raise OverlayError(f"release {release}: {show(file)} cannot be opened: {error.strerror}") from None
    return True


def _files_with_content(top: bytes) -> Iterator[bytes]:
    """Yield regular files below ``top`` that are not empty and that everybody may read, among its first entries."""
    directories = [top]
    left = _MOST_ENTRIES
    while directories and left > 0:
        directory = directories.pop()
        try:
            with os.scandir(directory) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):  # the view leaves all of the release out
            continue
        for entry in listed:
            left -= 1
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_size and status.st_mode & stat.S_IROTH:
                    yield entry.path


# The command of the view.


def _run_command(check: HealthCheck, path: bytes, seconds: float, progress: Progress) -> None:
    """Run the command in a PID namespace of its own, so that nothing of it is left when it has ended or was given up."""
    argv = ("/bin/sh", "-c", check.command)
    command = UserCommand(argv, check.user, "health_user", path, check.environment, check.seconds)
    syscalls.unshare(syscalls.CLONE_NEWPID)
    result = deadline.run(lambda tick: processes.run_as_user(command, tick), seconds, progress)
    said = show(result.output.strip())
    if result.status is None:
        raise _CommandTimeoutError(
            f"the command {check.command!r} did not end within {check.seconds:g} seconds{'; it printed: ' + said if said else ''}"
        )
    if result.status:
        how = f"failed with status {result.status}" if result.status > 0 else f"was ended by signal {-result.status}"
        raise OverlayError(f"the command {check.command!r} {how}{': ' + said if said else ', and printed nothing'}")
