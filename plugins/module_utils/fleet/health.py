# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check whether a view works before a host switches to it.

A child process mounts the new overlay at the mountpoint in a private mount namespace, where no other process sees it, and checks it
there. Until then everybody else sees what was there before. So a view that fails takes nothing away.
"""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    accounts,
    deadline,
    files,
    namespaces,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, inner_mounts, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

#: Turns the check off.
NONE = "none"

#: Bytes of the end of a command's output that are kept.
_LONGEST_OUTPUT = 2000
#: Files of a release that are tried, and entries of a release that are looked at to find them.
_MOST_FILES = 5
_MOST_ENTRIES = 2000
#: Seconds between two looks at a running command.
_POLL_SECONDS = 0.1


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
        namespaces.make_private()
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
    syscalls.unshare(syscalls.CLONE_NEWPID)
    status, output = deadline.run(lambda tick: _command_result(check, path, tick), seconds, progress)
    if status:
        how = f"failed with status {status}" if status > 0 else f"was ended by signal {-status}"
        said = show(output.strip())
        raise OverlayError(f"the command {check.command!r} {how}{': ' + said if said else ', and printed nothing'}")


def _command_result(check: HealthCheck, path: bytes, progress: Progress) -> tuple[int, bytes]:
    """Return the exit status of the command, and the end of its output. Raises OverlayError if it does not end in time."""
    process = subprocess.Popen(  # pylint: disable=ansible-bad-function
        ["/bin/sh", "-c", check.command],
        cwd=path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", **check.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **_credentials(check.user),
    )
    limit = time.monotonic() + check.seconds
    output = b""
    with process:
        stream = process.stdout.fileno()  # type: ignore[union-attr]
        os.set_blocking(stream, False)
        while True:
            ended = process.poll() is not None
            output = (output + _available(stream))[-_LONGEST_OUTPUT:]
            if ended:
                return process.returncode, output
            if time.monotonic() > limit:
                process.send_signal(signal.SIGKILL)
                said = f"; it printed: {show(output.strip())}" if output.strip() else ""
                raise OverlayError(f"the command {check.command!r} did not end within {check.seconds:g} seconds{said}")
            progress()
            time.sleep(_POLL_SECONDS)


def _available(stream: int) -> bytes:
    """Return the last of what can be read from a pipe now."""
    output = b""
    while True:
        try:
            chunk = os.read(stream, 1 << 16)
        except BlockingIOError:
            return output
        if not chunk:
            return output
        output = (output + chunk)[-_LONGEST_OUTPUT:]


def _credentials(user: str) -> dict[str, Any]:
    """Return the arguments of Popen that make a process one of ``user``; empty where only the own user exists (user_namespaces(7)).

    Raises OverlayError if there is no such user.
    """
    uid = accounts.number(user, "health_user", accounts.user)
    if not _is_mapped(uid):
        return {}
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return {"user": uid, "group": uid, "extra_groups": []}
    return {
        "user": uid,
        "group": account.pw_gid,
        "extra_groups": os.getgrouplist(account.pw_name, account.pw_gid),
    }


def _is_mapped(uid: int) -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as stream:
        for line in stream:
            first, _outside, count = map(int, line.split())
            if first <= uid < first + count:
                return True
    return False
