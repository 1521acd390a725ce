"""Serve files with NFSv4 ACLs, as an NFS 4 client shows them.

No local file system has such ACLs, so a small FUSE server provides them (include/uapi/linux/fuse.h).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.tests.kernel import support

_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS, _RELEASE = 1, 2, 3, 14, 15, 17, 18
_GETXATTR, _LISTXATTR, _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _BATCH_FORGET = 22, 23, 25, 26, 27, 28, 29, 42
_XATTR = b"system.nfs4_acl"
_HEADER = struct.Struct("<IIQQIIIHH")
_ROOT = 1


@dataclass
class Node:
    """A file, or a directory with its children."""

    mode: int
    #: The value of system.nfs4_acl; None if the server denies reading it.
    acl: bytes | None
    uid: int = 0
    gid: int = 0
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@contextlib.contextmanager
def mounted(path: Path, root: Node) -> Iterator[None]:
    """Mount a tree at an empty directory while the block runs."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions" % fd
    server = 0
    try:
        syscalls.mount(b"nfs4-files", os.fsencode(path), b"fuse", 0, options)
        server = os.fork()
        if server == 0:
            try:
                _Server(fd, root).run()
            finally:
                os._exit(0)
        yield
    finally:
        if server:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
        os.close(fd)
        support.unmount_all(path)


class _Server:
    """Answers the requests of the kernel."""

    def __init__(self, fd: int, root: Node) -> None:
        self._fd = fd
        self._nodes = [root]
        for node in self._nodes:
            self._nodes += node.children.values()

    def run(self) -> None:
        """Answer requests until the process is killed."""
        while True:
            request = os.read(self._fd, 1 << 20)
            _length, opcode, unique, node_id, *_rest = _HEADER.unpack_from(request)
            if opcode in (_FORGET, _BATCH_FORGET):
                continue
            try:
                answer = self._answer(opcode, node_id, request[_HEADER.size :])
                error = 0
            except OSError as refused:
                answer, error = b"", -(refused.errno or errno.EIO)
            os.write(self._fd, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)

    def _answer(self, opcode: int, node_id: int, body: bytes) -> bytes:
        """Return the answer to a request. Raises OSError with the error to report to the kernel."""
        node = self._nodes[node_id - _ROOT] if node_id else self._nodes[0]
        if opcode == _INIT:
            return struct.pack("<II", 7, 31) + bytes(56)
        if opcode == _LOOKUP:
            child = node.children.get(os.fsdecode(body.rstrip(b"\0")))
            if child is None:
                raise FileNotFoundError(errno.ENOENT, "")
            return struct.pack("<QQQQII", self._id_of(child), 0, 0, 0, 0, 0) + self._attributes(child)
        if opcode == _GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attributes(node)
        if opcode in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 0, 0, 0)
        if opcode == _READ:
            return b"x" if struct.unpack_from("<Q", body, 8)[0] == 0 else b""
        if opcode == _READDIR:
            return self._listing(node) if struct.unpack_from("<Q", body, 8)[0] == 0 else b""
        if opcode in (_GETXATTR, _LISTXATTR):
            return self._xattr(opcode, node, body)
        if opcode in (_RELEASE, _RELEASEDIR, _FLUSH):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _xattr(self, opcode: int, node: Node, body: bytes) -> bytes:
        size = struct.unpack_from("<I", body)[0]
        if opcode == _LISTXATTR:
            value = _XATTR + b"\0"
        elif body[8:].rstrip(b"\0") != _XATTR:
            raise OSError(errno.EOPNOTSUPP, "")
        elif node.acl is None:
            raise PermissionError(errno.EACCES, "")
        else:
            value = node.acl
        return value if size else struct.pack("<II", len(value), 0)

    def _id_of(self, node: Node) -> int:
        return next(node_id for node_id, one in enumerate(self._nodes, _ROOT) if one is node)

    def _attributes(self, node: Node) -> bytes:
        inside = sum(child.is_directory for child in node.children.values())
        nlink = 2 + inside if node.is_directory else 1
        size = 0 if node.is_directory else 1
        return struct.pack(
            "<6Q10I", self._id_of(node), size, 0, 10**9, 10**9, 10**9, 0, 0, 0, node.mode, nlink, node.uid, node.gid, 0, 4096, 0
        )  # fmt: skip

    def _listing(self, node: Node) -> bytes:
        found = b""
        for number, (name, child) in enumerate(node.children.items(), 1):
            text = os.fsencode(name)
            found += struct.pack("<QQII", self._id_of(child), number, len(text), stat.S_IFMT(child.mode) >> 12) + text
            found += bytes(-len(found) % 8)
        return found
