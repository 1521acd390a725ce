"""Make new file systems to measure on, in a private mount namespace: they vanish with the process, however it ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls


@dataclass(frozen=True)
class FileSystem:
    name: str
    #: The mkfs command and the size of its file; empty for tmpfs.
    mkfs: Sequence[str] = ()
    gigabytes: int = 0


# mkfs writes the inode tables, so that the kernel does not do so in the background while we measure.
_EXT4 = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-i", "8192")

FILE_SYSTEMS = (
    FileSystem("tmpfs"),
    FileSystem("XFS", ("mkfs.xfs", "-q", "-f"), 8),
    FileSystem("ext4, 512-byte inodes", (*_EXT4, "-I", "512"), 8),
    FileSystem("ext4, 256-byte inodes", (*_EXT4, "-I", "256"), 8),
)
#: Names for the command line.
BY_KEY = dict(zip(("tmpfs", "xfs", "ext4-512", "ext4-256"), FILE_SYSTEMS, strict=True))


def private_mounts() -> None:
    """Move this process to a private mount namespace."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(b"none", b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


@contextlib.contextmanager
def mounted(system: FileSystem, at: Path, backing: Path) -> Iterator[Path]:
    """Make a file system and mount it at ``at``. Unless it is a tmpfs, it is in a file in ``backing``."""
    at.mkdir(exist_ok=True)
    if system.mkfs:
        # Once unlinked, the file and its loop device vanish with the last mount, even if this process is killed.
        fd, path = tempfile.mkstemp(dir=backing)
        try:
            os.truncate(fd, system.gigabytes << 30)
            subprocess.run([*system.mkfs, path], check=True)
            subprocess.run(["mount", "-o", "loop", path, at], check=True)
        finally:
            os.close(fd)
            os.unlink(path)
    else:
        # By default a tmpfs on a small machine has fewer than a million inodes.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=0", "tmpfs", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
