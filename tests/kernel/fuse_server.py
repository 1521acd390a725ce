"""A file server that can be made to hang: a directory, read-only, through FUSE.

It speaks just enough of the protocol (linux/fuse.h) to be the lower layer of an overlay.
"""

from __future__ import annotations

import contextlib
import errno
import os
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

#: The version of the protocol, and the flag for file handles. The overlay records them as the origins of its copies.
_MAJOR, _MINOR, _EXPORT_SUPPORT = 7, 31, 1 << 4
_LARGEST = 1 << 17
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


def _serve(device: int, top: bytes) -> None:
    """Answer requests until the file system is unmounted."""
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
    while True:
        request = os.read(device, _LARGEST)
        _length, operation, unique, node = struct.unpack_from("<2I2Q", request)
        if operation in _UNANSWERED:
            continue
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

    def hang(self) -> None:
        """Answer no more requests. Whoever waits for one can only be killed."""
        os.kill(self.pid, signal.SIGSTOP)


@contextlib.contextmanager
def served(directory: Path, place: Path) -> Iterator[Server]:
    """Serve ``directory`` at ``place`` from another process while the block runs."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device
    # Requests can be read once it is mounted.
    syscalls.mount(b"served", os.fsencode(place), b"fuse", 0, options)
    try:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                _serve(device, os.fsencode(directory))
            os._exit(0)
        os.close(device)
        try:
            yield Server(pid)
        finally:
            # This ends all requests that wait.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        syscalls.umount(os.fsencode(place), syscalls.MNT_DETACH)
