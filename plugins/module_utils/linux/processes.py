# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run programs, and find the processes that use a mount: by their working directory, their program, or an open or mapped file.

Mounts are identified by mount ID (proc_pid_mountinfo(5)). A file keeps its mount ID when its mount is covered, bound elsewhere or lazily
detached; a path does not stay the same. The files themselves are never looked up or read, since their file server may be unreachable.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import accounts, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress

#: Bytes of the end of a user's command's output that are kept.
_LONGEST_OUTPUT = 2000
#: Seconds between two looks at a running command.
_POLL_SECONDS = 0.1

#: A line of /proc/PID/maps of a file: the range, and device, inode and path. A range with inode 0 has no file.
_MAPPED_FILE = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+ [1-9][0-9]* .*)$", re.MULTILINE)
#: The flag of a kernel thread in /proc/PID/stat.
_PF_KTHREAD = 0x00200000
_MOUNT_ID = re.compile(rb"^mnt_id:\s*([0-9]+)$", re.MULTILINE)


def run(argv: list[str], seconds: float) -> tuple[int, bytes]:
    """Run a program without input; return its exit status and its output, standard error included.

    Raises FileNotFoundError if there is no such program. Kills it and its helpers after ``seconds``, and raises TimeoutError.
    """
    # The program gets its own session, so that its helpers can be killed as well. AnsibleModule.run_command has no time limit.
    process = subprocess.Popen(  # pylint: disable=ansible-bad-function
        argv,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with process:
        try:
            output, _none = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError from None
    return process.returncode, output


@dataclass(frozen=True)
class UserCommand:
    """A command of the user of the collection, and how to run it."""

    argv: Sequence[str]
    #: The user who runs it, by name or uid, and the option that names this user.
    user: str
    user_option: str
    #: Its working directory.
    directory: bytes
    #: Variables that are added to a small environment.
    environment: Mapping[str, str]
    #: Seconds after which it is given up.
    seconds: float


@dataclass(frozen=True)
class CommandResult:
    """How a command ended."""

    #: The exit status; negative if a signal ended the command, and None if it was given up.
    status: int | None
    #: The end of its output, standard error included.
    output: bytes


def run_as_user(command: UserCommand, progress: Progress) -> CommandResult:
    """Run a command without input, and return how it ended. A command that does not end in time is killed.

    Call this in a PID namespace that ends with the caller: what the command started may still run. Raises OverlayError if there is no such
    user, and OSError if there is no such program.
    """
    process = subprocess.Popen(  # pylint: disable=ansible-bad-function
        command.argv,
        cwd=command.directory,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **_credentials(command),
    )
    limit = time.monotonic() + command.seconds
    output = b""
    with process:
        stream = process.stdout.fileno()  # type: ignore[union-attr]
        os.set_blocking(stream, False)
        while True:
            ended = process.poll() is not None
            output = (output + _available(stream))[-_LONGEST_OUTPUT:]
            if ended:
                return CommandResult(process.returncode, output)
            if time.monotonic() > limit:
                process.send_signal(signal.SIGKILL)
                return CommandResult(None, output)
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


def _credentials(command: UserCommand) -> dict[str, Any]:
    """Return the arguments of Popen for the user of a command; empty where only the own user exists (user_namespaces(7)).

    Raises OverlayError if there is no such user.
    """
    uid = accounts.number(command.user, command.user_option, accounts.user)
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


@dataclass(frozen=True, order=True)
class Process:
    """A process, by its PID and its command name (proc_pid_comm(5))."""

    pid: int
    name: str

    def as_dict(self) -> dict[str, int | str]:
        """Return the process as modules return it."""
        return {"pid": self.pid, "name": self.name}


#: A file that a process uses: the link to it in /proc, and its path as the kernel knows it.
Use = tuple[bytes, bytes]


def of_mounts(mounts: Collection[int]) -> list[Process]:
    """Return the processes, except this one, that use a mount with one of these mount IDs."""
    return [Process(pid, name_of(pid)) for pid in _others() if not _mounts_used_by(pid).isdisjoint(mounts)]


def uses_by_mount(devices: Mapping[int, tuple[int, int]]) -> dict[int, dict[Process, list[Use]]]:
    """Map each mount ID to the processes, except this one, that use the mount, each with what it uses there.

    ``devices`` has the device of each known mount. Files without a path, such as pipes, are left out.
    """
    known = _KnownMounts(devices)
    found: dict[int, dict[Process, list[Use]]] = {}
    for pid in _others():
        status = _Status.of(pid)
        if status is None or status.is_kernel_thread:
            continue
        process = Process(pid, status.name)
        for mount_id, use in _uses(pid, status, known):
            found.setdefault(mount_id, {}).setdefault(process, []).append(use)
    return found


class _KnownMounts:
    """The mounts of mapped files, so that the kernel is asked once for a file that many processes have mapped."""

    def __init__(self, devices: Mapping[int, tuple[int, int]]) -> None:
        self._devices = {mount_id: b"%02x:%02x " % device for mount_id, device in devices.items()}
        #: By mount namespace, and by device, inode and path as in /proc/PID/maps.
        self._mounts: dict[tuple[str, bytes], int] = {}

    def mount_of(self, namespace: str | None, mapped: bytes, link: bytes) -> int | None:
        """Return the mount ID of a mapped file, None if it is unknown. ``namespace`` is None if that of the process is unknown."""
        if namespace is None:
            return _mount_at(link)
        key = namespace, mapped
        mount_id = self._mounts.get(key)
        if mount_id is None:
            mount_id = _mount_at(link)
            # Before Linux 6.8, a file of an overlay has the device of its layer here, and several overlays may show that file.
            if mount_id is not None and mapped.startswith(self._devices.get(mount_id, b"-")):
                self._mounts[key] = mount_id
        return mount_id


def _uses(pid: int, status: _Status, known: _KnownMounts) -> Iterator[tuple[int, Use]]:
    """Yield the mount ID of each file with a path that a process uses, and the file."""
    directory = b"%s/" % _directory_of(pid, status)
    with contextlib.suppress(OSError):
        for name in os.listdir(directory + b"fd"):
            with contextlib.suppress(OSError):
                link = directory + b"fd/" + name
                target = os.readlink(link)
                if target.startswith(b"/"):
                    yield mount_of(directory + b"fdinfo/" + name), (link, target)
    for link in (directory + b"cwd", directory + b"root", directory + b"exe"):
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            mount_id = _mount_at(link)
            if mount_id is not None:
                yield mount_id, (link, target)
    with contextlib.suppress(OSError):
        namespace = _namespace_of(directory)
        for name, mapped in _mapped(directory):
            link = directory + name
            path = mapped.split(None, 2)[2]
            if b"\\" in path:
                # The kernel writes a newline as \012, and a backslash as it is.
                path = os.readlink(link)
            if path.startswith(b"/"):
                mount_id = known.mount_of(namespace, mapped, link)
                if mount_id is not None:
                    yield mount_id, (link, path)


def _namespace_of(directory: bytes) -> str | None:
    try:
        return os.fsdecode(os.readlink(directory + b"ns/mnt"))
    except OSError:
        return None


def paths() -> Iterator[tuple[Process, bytes]]:
    """Yield the paths in use by each process, except this one: its working directory, root, program, and open and mapped files."""
    for pid in _others():
        process = Process(pid, name_of(pid))
        directory = b"%s/" % _directory_of(pid)
        names = [b"cwd", b"root", b"exe"]
        with contextlib.suppress(OSError):
            names += [b"fd/" + name for name in os.listdir(directory + b"fd")]
            names += [name for name, _file in _mapped(directory)]
        for link in names:
            with contextlib.suppress(OSError):
                yield process, os.readlink(directory + link)


def _others() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())


def _mounts_used_by(pid: int) -> set[int]:
    """Return the mount IDs of what a process uses. For a process that has ended or may not be inspected, return what is known."""
    return {mount_id for mount_id, _link in links(pid)}


def links(pid: int) -> Iterator[tuple[int, bytes]]:
    """Yield the mount ID of each file that a process uses, and the link to it in /proc."""
    directory = b"%s/" % _directory_of(pid)
    with contextlib.suppress(OSError):
        for name in os.listdir(directory + b"fdinfo"):
            with contextlib.suppress(OSError):
                yield mount_of(directory + b"fdinfo/" + name), directory + b"fd/" + name
    others = [b"cwd", b"root", b"exe"]
    with contextlib.suppress(OSError):
        others.extend(name for name, _file in _mapped(directory))
    for name in others:
        mount_id = _mount_at(directory + name)
        if mount_id is not None:
            yield mount_id, directory + name


def _mount_at(link: bytes) -> int | None:
    """Return the mount ID of the target of a link in /proc, None if it is unknown. The kernel follows the link without walking a path."""
    mount_id = syscalls.mount_at(link)
    if mount_id is not None:
        return mount_id
    with contextlib.suppress(OSError):
        # O_PATH does not open the file itself.
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
        try:
            return mount_of(b"/proc/self/fdinfo/%d" % fd)
        finally:
            os.close(fd)
    return None


@dataclass(frozen=True)
class _Status:
    """What /proc/PID/stat has of a process (proc_pid_stat(5))."""

    name: str
    #: Whether its first thread has ended.
    is_zombie: bool
    is_kernel_thread: bool

    @classmethod
    def of(cls, pid: int) -> _Status | None:
        """Return the status of a process; None if it has ended."""
        try:
            text = _read(b"/proc/%d/stat" % pid)
            # The name may have brackets and spaces.
            start, _bracket, rest = text.rpartition(b") ")
            fields = rest.split(None, 7)
            name = start.partition(b"(")[2].decode("utf-8", "replace")
            return cls(name, fields[0] == b"Z", bool(int(fields[6]) & _PF_KTHREAD))
        except (OSError, IndexError, ValueError):
            return None


def _directory_of(pid: int, status: _Status | None = None) -> bytes:
    """Return the directory in /proc with the links of a process. If its first thread has ended, this is that of another thread."""
    directory = b"/proc/%d" % pid
    status = status or _Status.of(pid)
    if status and status.is_zombie:
        with contextlib.suppress(OSError):
            others = [name for name in os.listdir(directory + b"/task") if int(name) != pid]
            # Only directories of /proc itself have map_files. /proc/TID exists for each thread, although it is not listed.
            return b"/proc/" + others[0] if others else directory
    return directory


def _mapped(directory: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a link for each file that a process has mapped, and the device, inode and path of the file as in /proc/PID/maps."""
    # A file usually has several ranges.
    first: dict[bytes, tuple[bytes, bytes]] = {}
    for start, end, mapped in _MAPPED_FILE.findall(_read(directory + b"maps")):
        first.setdefault(mapped, (start, end))
    for mapped, (start, end) in first.items():
        # The names in map_files have no zeros at the beginning.
        yield b"map_files/%s-%s" % (start.lstrip(b"0") or b"0", end.lstrip(b"0")), mapped


def _read(path: bytes) -> bytes:
    """Return the content of a file in /proc."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts: list[bytes] = []
        while True:
            # The kernel returns at most a page of maps.
            part = os.read(fd, 1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


def mount_of(fdinfo: bytes) -> int:
    """Return the mount ID in a file below /proc/PID/fdinfo; -1 if it has none, as when the process is ending."""
    fd = os.open(fdinfo, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    found = _MOUNT_ID.search(text)
    return int(found.group(1)) if found else -1


def name_of(pid: int) -> str:
    """Return the command name of a process; a question mark if it has ended."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return "?"
