# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes use a mount: they stand in it, run a program of it, or have a file of it open or mapped.

Mounts are told apart by their numbers (proc_pid_mountinfo(5)), which files keep when their mount is covered, bound elsewhere, or
lazily detached, and paths do not. Nothing is ever looked up in, or read from, the files themselves: a file server may be gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_NUMBER = re.compile(rb"^mnt_id:\s*([0-9]+)$", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Process:
    pid: int
    name: str

    def as_dict(self) -> dict[str, int | str]:
        return {"pid": self.pid, "name": self.name}


def of_mounts(mounts: Collection[int]) -> list[Process]:
    """Return the processes, but for this one, that use one of the mounts with these numbers."""
    return [Process(pid, _name_of(pid)) for pid in _others() if not _held_by(pid).isdisjoint(mounts)]


def by_mount() -> dict[int, list[Process]]:
    """Return for each mount number the processes, but for this one, that use it."""
    found: dict[int, list[Process]] = {}
    for pid in _others():
        process = Process(pid, _name_of(pid))
        for number in _held_by(pid):
            found.setdefault(number, []).append(process)
    return found


def paths() -> Iterator[tuple[Process, bytes]]:
    """Yield the paths that processes, but for this one, hold: where they stand, what they run, and what they have open or mapped."""
    for pid in _others():
        process = Process(pid, _name_of(pid))
        folder = b"%s/" % _folder_of(pid)
        names = [b"cwd", b"root", b"exe"]
        with contextlib.suppress(OSError):
            names += [b"fd/" + name for name in os.listdir(folder + b"fd")]
            names += _mapped(folder)
        for link in names:
            with contextlib.suppress(OSError):
                yield process, os.readlink(folder + link)


def _others() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())


def _held_by(pid: int) -> set[int]:
    """Return the numbers of the mounts that a process uses; of one that has ended, or is not ours to look into, what is known."""
    return {number for number, _link in links(pid)}


def links(pid: int) -> Iterator[tuple[int, bytes]]:
    """Yield a link in /proc to each file that a process uses, after the number of the mount that the file is on."""
    folder = b"%s/" % _folder_of(pid)
    with contextlib.suppress(OSError):
        for name in os.listdir(folder + b"fdinfo"):
            with contextlib.suppress(OSError):
                yield mount_of(folder + b"fdinfo/" + name), folder + b"fd/" + name
    others = [b"cwd", b"root", b"exe"]
    with contextlib.suppress(OSError):
        others.extend(_mapped(folder))
    for name in others:
        with contextlib.suppress(OSError):
            # The link leads to the file without a path being walked, and with O_PATH the file itself is not opened.
            fd = os.open(folder + name, os.O_PATH | os.O_CLOEXEC)
            try:
                yield mount_of(b"/proc/self/fdinfo/%d" % fd), folder + name
            finally:
                os.close(fd)


def _folder_of(pid: int) -> bytes:
    """Return the folder in /proc that tells what a process holds: where its first thread has ended, that of another thread."""
    folder = b"/proc/%d" % pid
    with contextlib.suppress(OSError):
        with open(folder + b"/stat", "rb") as stream:
            state = stream.read().rpartition(b") ")[2][:1]
        if state == b"Z":
            others = [name for name in os.listdir(folder + b"/task") if int(name) != pid]
            # Links to mapped files are there only under the number of a process, and a thread has that too, though it is not listed.
            return b"/proc/" + others[0] if others else folder
    return folder


def _mapped(folder: bytes) -> Iterator[bytes]:
    """Yield a link for each file that a process has mapped."""
    with open(folder + b"maps", "rb") as stream:
        lines = stream.read().split(b"\n")
    seen = set()
    for line in lines:
        fields = line.split(None, 5)
        # Device, inode and path. Several ranges are usually of one file; those without an inode are of none.
        if len(fields) == 6 and fields[4] != b"0" and tuple(fields[3:]) not in seen:
            seen.add(tuple(fields[3:]))
            start, end = (int(address, 16) for address in fields[0].split(b"-"))
            yield b"map_files/%x-%x" % (start, end)


def mount_of(fdinfo: bytes) -> int:
    """Return the number of the mount that an open file is on."""
    fd = os.open(fdinfo, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    found = _NUMBER.search(text)
    # A process that ends may have no text any more, and no mount has this number.
    return int(found.group(1)) if found else -1


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return "?"
