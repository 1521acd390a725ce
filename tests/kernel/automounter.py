"""An automount daemon for tests: it mounts directories on demand and unmounts them when the test says so.

It speaks the protocol of the kernel (Documentation/filesystems/autofs.rst), in a process group of its own: the kernel mounts nothing on
demand for the group of the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls

# linux/auto_fs.h
_READY = 0x9360
_FAIL = 0x9361
_EXPIRE_MULTI = 0x40049366
_EXPIRE_NOW = 1
_MISSING = (3, 5)
_PACKET = 300


@dataclass(frozen=True)
class Automount:
    """A running automount."""

    control: socket.socket

    def expire(self) -> bool:
        """Unmount what is not in use; return whether anything was unmounted."""
        self.control.send(b"x")
        return self.control.recv(1) == b"1"

    def served(self) -> int:
        """Return how often something was mounted."""
        self.control.send(b"?")
        return int(self.control.recv(16))


@contextlib.contextmanager
def automount(path: Path, sources: Mapping[str, Path] | Path, answers: bool = True) -> Iterator[Automount]:
    """Mount an automount at ``path`` while the block runs: a direct one of one directory, or an indirect one of several by their names.

    It has short-lived mounts: ``Automount.expire`` unmounts those that are not in use. Unless it ``answers``, those who need a mount wait.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            syscalls.die_with_parent(signal.SIGKILL)
            os.setpgid(0, 0)
            _serve(path, sources, theirs, answers)
        finally:
            os._exit(1)
    theirs.close()
    try:
        assert ours.recv(1) == b"r", "the automount could not be mounted"
        yield Automount(ours)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ours.close()
        # Without its daemon, the automount mounts nothing any more.
        syscalls.umount(os.fsencode(path), syscalls.MNT_DETACH)


def _serve(path: Path, sources: Mapping[str, Path] | Path, control: socket.socket, answers: bool) -> None:
    requests, sender = os.pipe()
    kind = b"direct" if isinstance(sources, Path) else b"indirect"
    options = b"fd=%d,pgrp=%d,minproto=5,maxproto=5,%s" % (sender, os.getpid(), kind)
    syscalls.mount(b"/etc/auto.test", os.fsencode(path), b"autofs", 0, options)
    root = os.open(path, syscalls.LIST_DIRECTORY)
    served = [0]
    threading.Thread(target=_obey, args=(root, control, served), daemon=True).start()
    control.send(b"r")
    while True:
        packet = os.read(requests, _PACKET)
        if not answers:
            continue
        _version, event, token = struct.unpack_from("=iiI", packet)
        (length,) = struct.unpack_from("=I", packet, 40)
        place = path if isinstance(sources, Path) else path / os.fsdecode(packet[44 : 44 + length])
        try:
            if event in _MISSING:
                _mount(place, sources if isinstance(sources, Path) else sources[place.name])
                served[0] += 1
            else:
                syscalls.umount(os.fsencode(place))
                if place != path:
                    place.rmdir()
            answer = _READY
        except (OSError, KeyError):
            answer = _FAIL
        fcntl.ioctl(root, answer, token)


def _mount(place: Path, source: Path) -> None:
    place.mkdir(exist_ok=True)
    syscalls.mount(os.fsencode(source), os.fsencode(place), None, syscalls.MS_BIND)


def _obey(root: int, control: socket.socket, served: list[int]) -> None:
    while True:
        order = control.recv(1)
        if order == b"?":
            control.send(b"%d" % served[0])
            continue
        done = 0
        with contextlib.suppress(OSError):
            # The kernel returns when the main thread has answered.
            while not fcntl.ioctl(root, _EXPIRE_MULTI, bytearray(struct.pack("=i", _EXPIRE_NOW))):
                done = 1
        control.send(b"%d" % done)
