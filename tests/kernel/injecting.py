"""Make system calls of a process and of its children fail, or be their last one, with seccomp(2).

The kernel reports only the chosen calls, so all others run at full speed. strace(1) stops a process that it attaches to at each call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

#: Numbers of system calls on x86_64 (asm/unistd_64.h).
NUMBERS = {
    "sendfile": 40,
    "execve": 59,
    "fsync": 74,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "unlink": 87,
    "symlink": 88,
    "chmod": 90,
    "fchmod": 91,
    "fchown": 93,
    "lchown": 94,
    "mount": 165,
    "umount2": 166,
    "setxattr": 188,
    "lsetxattr": 189,
    "fsetxattr": 190,
    "removexattr": 197,
    "lremovexattr": 198,
    "fremovexattr": 199,
    "mkdirat": 258,
    "fchownat": 260,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "unshare": 272,
    "utimensat": 280,
    "syncfs": 306,
    "renameat2": 316,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "openat2": 437,
}
_NAMES = {number: name for name, number in NUMBERS.items()}

# linux/seccomp.h, linux/filter.h
_SYS_SECCOMP = 317
_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 1 << 3
_RET_USER_NOTIF = 0x7FC00000
_RET_ALLOW = 0x7FFF0000
_CONTINUE = 1
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
#: struct seccomp_notif: id, pid, flags, and of struct seccomp_data the number of the call.
_NOTIFICATION = struct.Struct("=QIIi60x")
#: struct seccomp_notif_resp: id, value, error, flags.
_RESPONSE = struct.Struct("=QqiI")
_RECEIVE = 0xC0002100 | _NOTIFICATION.size << 16
_SEND = 0xC0002101 | _RESPONSE.size << 16

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _instructions(calls: Collection[str]) -> bytes:
    """Return the BPF program that reports ``calls``, and allows all others."""
    numbers = [NUMBERS[call] for call in calls]
    lines = [(_LOAD_WORD, 0, 0, 0)]
    # Each comparison jumps to the last instruction.
    lines += [(_JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    lines += [(_RETURN, 0, 0, _RET_ALLOW), (_RETURN, 0, 0, _RET_USER_NOTIF)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


@dataclass(frozen=True)
class Fault:
    """What happens at the ``number``-th ``call`` of each process: it fails with ``error``, or the process is killed if that is empty."""

    call: str
    number: int
    error: str = ""


class Injector:
    """Report ``calls`` of a process and of its children, and inject a fault."""

    def __init__(self, calls: Collection[str], fault: Fault | None = None) -> None:
        self._calls = calls
        self._fault = fault
        self._counts: Counter[tuple[int, str]] = Counter()
        self._here, self._there = socket.socketpair()
        self.injected = False

    def enter(self) -> None:
        """Put this process, which has been forked, under the control of the injector."""
        instructions = _instructions(self._calls)
        program = _Program(len(instructions) // 8, instructions)
        fd = _libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, ctypes.byref(program))
        if fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), "seccomp")
        socket.send_fds(self._there, [b"."], [fd])
        os.close(fd)
        self._here.close()
        self._there.close()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Decide about the calls of the process while the block runs, which must end the process, and until its children have ended."""
        self._there.close()
        thread = threading.Thread(target=self._serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def counted(self, call: str) -> int:
        """Return how many calls of this name the process has made that made most of them."""
        return max((count for (_pid, name), count in self._counts.items() if name == call), default=0)

    def _serve(self) -> None:
        with self._here:
            _data, fds, _flags, _address = socket.recv_fds(self._here, 1, 1)
        # Nothing comes from a process that ended before it was under control.
        for listener in fds:
            with open(listener, "rb", closefd=True, buffering=0):
                self._answer_all(listener)

    def _answer_all(self, listener: int) -> None:
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        while True:
            [(_fd, events)] = waiting.poll()
            if not events & select.POLLIN:
                return
            # A process that was killed in its call is no longer there to be answered.
            with _gone_is_fine():
                self._answer(listener)

    def _answer(self, listener: int) -> None:
        buffer = bytearray(_NOTIFICATION.size)
        fcntl.ioctl(listener, _RECEIVE, buffer)
        identity, pid, _flags, number = _NOTIFICATION.unpack(buffer)
        call = _NAMES[number]
        self._counts[pid, call] += 1
        error, flags = 0, _CONTINUE
        fault = self._fault
        if fault and (fault.call, fault.number) == (call, self._counts[pid, call]):
            self.injected = True
            if not fault.error:
                os.kill(pid, signal.SIGKILL)
                return
            error, flags = -getattr(errno, fault.error), 0
        fcntl.ioctl(listener, _SEND, _RESPONSE.pack(identity, 0, error, flags))


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        return
