"""A file server that can be made to hang: a directory, read-only, through FUSE.

It speaks just enough of the protocol (linux/fuse.h) to be the lower layer of an overlay.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls

_LOOKUP, _FORGET, _GETATTR, _READLINK, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
_LISTXATTR = 23
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 26, 27, 28, 29, 36, 42
_UNANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)
#: What the kernel sends by itself, at any time after a file was closed.
_UNASKED = (_RELEASE, _RELEASEDIR)

#: The version of the protocol, and the flag for file handles. The overlay records them as the origins of its copies.
_MAJOR, _MINOR, _EXPORT_SUPPORT = 7, 31, 1 << 4
_LARGEST = 1 << 17
#: More requests than any test makes.
_MANY = 1 << 40
_ROOT = 1
#: Seconds for which the kernel keeps names and attributes. With none it asks each time.
_VALID = 0


@dataclass
class _Tree:
    """The directory that is served. The kernel names each path by a number."""

    top: bytes
    paths: dict[int, bytes] = field(default_factory=lambda: {_ROOT: b""})
    numbers: dict[bytes, int] = field(default_factory=lambda: {b"": _ROOT})

    def at(self, node: int) -> bytes:
        return self.top + self.paths[node]

    def node(self, path: bytes) -> int:
        number = self.numbers.setdefault(path, len(self.numbers) + 1)
        self.paths[number] = path
        return number

    def attributes(self, node: int) -> bytes:
        found = os.lstat(self.at(node))
        times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
        return struct.pack(
            "<6Q10I",
            *(node, found.st_size, found.st_blocks),
            *(time // 1_000_000_000 for time in times),
            *(time % 1_000_000_000 for time in times),
            *(found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0),
        )

    def lookup(self, node: int, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        # A file handle is looked up as "." of the file.
        child = node if name == b"." else self.node(self.paths[node] + b"/" + name)
        return struct.pack("<4Q2I", child, 0, _VALID, _VALID, 0, 0) + self.attributes(child)

    def status(self, node: int, _body: bytes) -> bytes:
        return struct.pack("<Q2I", _VALID, 0, 0) + self.attributes(node)

    def target(self, node: int, _body: bytes) -> bytes:
        return os.readlink(self.at(node))

    def content(self, node: int, body: bytes) -> bytes:
        _handle, offset, size = struct.unpack_from("<2QI", body)
        with open(self.at(node), "rb") as stream:
            return os.pread(stream.fileno(), size, offset)

    def names(self, node: int, body: bytes) -> bytes:
        _handle, offset, size = struct.unpack_from("<2QI", body)
        found = b""
        for number, name in enumerate(sorted(os.listdir(self.at(node))), 1):
            entry = struct.pack("<2Q2I", self.node(self.paths[node] + b"/" + name), number, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if number > offset and len(found) + len(entry) <= size:
                found += entry
        return found


def _no_xattrs(_node: int, body: bytes) -> bytes:
    """Return an empty list, or its length if the kernel asks for that."""
    (size,) = struct.unpack_from("<I", body)
    return b"" if size else struct.pack("<2I", 0, 0)


def _opened(_node: int, _body: bytes) -> bytes:
    return struct.pack("<Q2I", 0, 0, 0)


class Patience:
    """How many more requests a server answers, in memory that it shares with the test. It is not limited at first."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.set(-1)

    def set(self, requests: int) -> None:
        self._memory[:8] = struct.pack("<q", requests)

    @property
    def left(self) -> int:
        found: int = struct.unpack("<q", self._memory[:8])[0]
        return found

    def count(self) -> None:
        """Count a request."""
        if self.left > 0:
            self.set(self.left - 1)


def _serve(device: int, top: bytes, patience: Patience) -> None:
    """Answer requests until the file system is unmounted, or until no patience is left."""
    tree = _Tree(top)
    answers: dict[int, Callable[[int, bytes], bytes]] = {
        _LOOKUP: tree.lookup,
        _GETATTR: tree.status,
        _READLINK: tree.target,
        _OPEN: _opened,
        _OPENDIR: _opened,
        _READ: tree.content,
        _LISTXATTR: _no_xattrs,
        _READDIR: tree.names,
        _RELEASE: lambda _node, _body: b"",
        _RELEASEDIR: lambda _node, _body: b"",
        _STATFS: lambda _node, _body: struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),
        _INIT: lambda _node, _body: struct.pack(
            "<4I2H2I2H8I", _MAJOR, _MINOR, 1 << 16, _EXPORT_SUPPORT, 8, 8, 1 << 16, 1, 0, 0, *([0] * 8)
        ),
    }
    poll = select.poll()
    poll.register(device, select.POLLIN)
    while True:
        poll.poll()
        if not patience.left:
            # A process whose request was not read yet can be killed, as one that waits for NFS.
            os.kill(os.getpid(), signal.SIGSTOP)
        request = os.read(device, _LARGEST)
        _length, operation, unique, node = struct.unpack_from("<2I2Q", request)
        if operation in _UNANSWERED:
            continue
        if operation not in _UNASKED:
            patience.count()
        error, answer = 0, b""
        try:
            answer = answers[operation](node, request[40:])
        except KeyError:
            error = errno.ENOSYS
        except OSError as problem:
            error = problem.errno or errno.EIO
        os.write(device, struct.pack("<IiQ", 16 + len(answer), -error, unique) + answer)


@dataclass(frozen=True)
class Server:
    pid: int
    patience: Patience

    def hang_after(self, requests: int) -> None:
        """Answer this many more requests, then hang."""
        self.patience.set(requests)

    @property
    def has_hung(self) -> bool:
        """Return whether the server has answered all requests that ``hang_after`` left it, and got another one."""
        return self.patience.left == 0 and _is_stopped(self.pid)

    def requests(self, work: Callable[[], object]) -> int:
        """Return how many requests the server answers during some work."""
        self.patience.set(_MANY)
        work()
        return _MANY - self.patience.left

    def recover(self) -> None:
        """Answer all requests again."""
        self.patience.set(-1)
        os.kill(self.pid, signal.SIGCONT)

    def hang(self) -> None:
        """Answer no more requests. Whoever waits for one can only be killed."""
        os.kill(self.pid, signal.SIGSTOP)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
        return stream.read().rsplit(")", 1)[1].split()[0] == "T"


@contextlib.contextmanager
def served(directory: Path, place: Path) -> Iterator[Server]:
    """Serve ``directory`` at ``place`` from another process while the block runs."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device
    # Requests can be read once it is mounted.
    syscalls.mount(b"served", os.fsencode(place), b"fuse", 0, options)
    try:
        patience = Patience()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                _serve(device, os.fsencode(directory), patience)
            os._exit(0)
        os.close(device)
        try:
            yield Server(pid, patience)
        finally:
            # This ends all requests that wait.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        syscalls.umount(os.fsencode(place), syscalls.MNT_DETACH)
