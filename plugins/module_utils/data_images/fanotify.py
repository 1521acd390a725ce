# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count which files are opened on a mount or on a file system, with fanotify(7).

The kernel opens each file once more for the listener, and the path is read from /proc/self/fd. File handles (FAN_REPORT_FID) would avoid
that, but the kernel refuses them for overlays, which have no file system ID (ENODEV, Linux 6.18).

The queue keeps its limit (fs.fanotify.max_queued_events). If a file server does not answer, the listener waits while others go on opening
files, and an unlimited queue would fill the memory of the kernel. An overflow loses events, which is reported.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)

# linux/fanotify.h
_FAN_CLOEXEC = 0x01
_FAN_NONBLOCK = 0x02
#: An event for a file that cannot be opened has an error in place of a descriptor (Linux 6.13). Without it, the event is lost.
_FAN_REPORT_FD_ERROR = 0x2000
_FAN_MARK_ADD = 0x01
_FAN_MARK_MOUNT = 0x10
_FAN_MARK_FILESYSTEM = 0x100
#: Executing a file opens it, so this includes FAN_OPEN_EXEC. Directories would need FAN_ONDIR.
_FAN_OPEN = 0x20
_FAN_Q_OVERFLOW = 0x4000

#: How the kernel opens files for the listener. Reading would not change the atime.
_OPENED = os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOATIME

#: struct fanotify_event_metadata: length, version, reserved, length of the structure, mask, descriptor, PID.
_EVENT = struct.Struct("=IBBHQii")
#: Events that are read at once. Each has an open descriptor, and the usual limit of a process is 1,024.
_EVENTS_AT_ONCE = 512


@dataclass
class OpenedFile:
    """How often a file was opened, and the PIDs of the processes that opened it."""

    opens: int = 0
    processes: set[int] = field(default_factory=set)


@dataclass
class Opened:
    """The files that were opened, by path as this process sees it."""

    files: dict[bytes, OpenedFile] = field(default_factory=dict)
    #: Opens of files that could not be opened again to find their path.
    lost: int = 0
    #: Whether the queue of the kernel was full, so that events are missing.
    overflowed: bool = False


class OpenListener:
    """Listen to opens. The kernel may report several opens of one file by one process as one, if they have not been read yet."""

    def __init__(self) -> None:
        """Raises OverlayError if this process may not listen, or the kernel has no fanotify."""
        self.fd = _initialised(_FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_FD_ERROR)
        if self.fd < 0 and ctypes.get_errno() == errno.EINVAL:
            self.fd = _initialised(_FAN_CLOEXEC | _FAN_NONBLOCK)
        if self.fd < 0:
            reason = os.strerror(ctypes.get_errno())
            raise OverlayError(
                f"opens cannot be traced: fanotify_init failed: {reason}; it needs root, and a kernel with CONFIG_FANOTIFY"
            )
        self.opened = Opened()
        self._own = os.getpid()

    def mark(self, path: bytes, whole: bool) -> None:
        """Report opens on the mount at ``path``, or with ``whole`` on its file system, through any mount in any mount namespace.

        Raises OverlayError if the kernel cannot do that for this file system.
        """
        flags = _FAN_MARK_ADD | (_FAN_MARK_FILESYSTEM if whole else _FAN_MARK_MOUNT)
        if _libc.fanotify_mark(self.fd, flags, _FAN_OPEN, syscalls.AT_FDCWD, path):
            reason = os.strerror(ctypes.get_errno())
            raise OverlayError(f"opens below {show(path)} cannot be traced: fanotify_mark failed: {reason}")

    def read(self) -> None:
        """Count the opens that are waiting to be read."""
        while True:
            try:
                events = os.read(self.fd, _EVENTS_AT_ONCE * _EVENT.size)
            except BlockingIOError:
                return
            except OSError:  # Without FAN_REPORT_FD_ERROR: the first file cannot be opened.
                self.opened.lost += 1
                continue
            self._count(events)

    def _count(self, events: bytes) -> None:
        files = self.opened.files
        for _length, _version, _reserved, _structure, mask, fd, pid in _EVENT.iter_unpack(events):
            if fd < 0:
                self._count_without_file(mask)
                continue
            try:
                path = os.readlink(b"/proc/self/fd/%d" % fd)
            except OSError:  # The path is longer than a page.
                self.opened.lost += 1
                continue
            finally:
                os.close(fd)
            if pid == self._own:
                continue
            file = files.get(path)
            if file is None:
                file = files[path] = OpenedFile()
            file.opens += 1
            file.processes.add(pid)

    def _count_without_file(self, mask: int) -> None:
        if mask & _FAN_Q_OVERFLOW:
            self.opened.overflowed = True
        else:
            self.opened.lost += 1

    def close(self) -> None:
        """Stop listening."""
        os.close(self.fd)


def _initialised(flags: int) -> int:
    return int(_libc.fanotify_init(flags, _OPENED))
