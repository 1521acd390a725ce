# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing files so that a killed run leaves the old version or the new one, never a part."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, BinaryIO

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_LOCK_POLL_SECONDS = 0.1

#: What is being written has this in front of its name; it counts for nobody.
ASIDE_PREFIX = ".new-"

#: Seconds after which what is still aside is taken for the remains of a killed run.
_ABANDONED_AFTER = 24 * 3600


def make_directories(path: str | bytes, mode: int) -> list[bytes]:
    """Make a directory and those above it that are missing; return the paths of those made, outermost first.

    Each has ``mode``, whatever the umask and default ACLs are, and the set-group-ID bit where it inherits that. One that exists, or that
    another process makes meanwhile, is left as it is. Raises NotADirectoryError where something else has the name.
    """
    here, missing = os.fsencode(path), []
    while not os.path.isdir(here):
        here, name = os.path.split(here)
        missing += [name] if name else []
        here = here or b"."
    made = []
    fd = os.open(here, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in reversed(missing):
            here = os.path.join(here, name)
            inner, is_new = _made_or_opened(fd, name, here, mode)
            os.close(fd)
            fd = inner
            made += [here] if is_new else []
    finally:
        os.close(fd)
    return made


def _made_or_opened(parent: int, name: bytes, path: bytes, mode: int) -> tuple[int, bool]:
    """Return a descriptor of the directory ``name``, and whether it was made now; ``path`` is for messages."""
    try:
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent), False
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            os.fchmod(fd, mode | os.fstat(fd).st_mode & stat.S_ISGID)
        except OSError:
            os.close(fd)
            raise
        return fd, True
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None


def mode_within(place: str) -> int:
    """Return the mode for new directories in a place that may be shared: its group may write to them where it may write to that."""
    return 0o755 | os.stat(place).st_mode & stat.S_IWGRP


def open_or_make(path: str, mode: int) -> int:
    """Open a file for reading and appending, and return the descriptor; a new one has ``mode``, and a link is refused (ELOOP)."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # Not to be hung up by a named pipe.
        fd = os.open(path, flags | os.O_EXCL | os.O_NONBLOCK, mode)
    except FileExistsError:
        return os.open(path, flags | os.O_NONBLOCK, mode)
    os.fchmod(fd, mode)
    return fd


def write(stream: IO[bytes], content: bytes, path: str) -> None:
    """Write all of ``content`` to an unbuffered file. Raises OSError, naming ``path``, where there is no room."""
    left = memoryview(content)
    try:
        while left:
            left = left[stream.write(left) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


@contextlib.contextmanager
def written_aside(path: str, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Give a file to write; when the block ends without an exception it is synced and takes the place of ``path``."""
    folder, name = os.path.split(path)
    prefix = ASIDE_PREFIX + name[:200] + "."
    remove_abandoned(folder, prefix)
    # The name is unique, so that two hosts may write the same file at the same time.
    aside = os.path.join(folder, prefix + secrets.token_hex(8))
    # For writing alone: who opens a file for both may be lent it by an NFS server (a write delegation), which then has to ask for it
    # back when another host reads the file.
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as stream:
            yield stream
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(aside, path)
    except BaseException as error:
        os.unlink(aside)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            # Writing to a full disk fails in a call that knows no name.
            raise OSError(error.errno, error.strerror, path) from None
        raise
    sync_directory(folder)


def remove_abandoned(folder: str, prefix: str = ASIDE_PREFIX) -> None:
    """Remove the files and folders that killed runs have left aside in a folder which other hosts may be writing to as well."""
    limit = time.time() - _ABANDONED_AFTER
    for name in os.listdir(folder):
        if name.startswith(prefix):
            path = os.path.join(folder, name)
            # Another run may be removing it as well.
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(path).st_mtime < limit:
                    remove(path)


def remove_directories(made: Sequence[bytes]) -> None:
    """Remove the directories that ``make_directories`` has returned, but for those into which somebody else has put something."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def sync_directory(path: str) -> None:
    """Make sure that a name that was added to or removed from a directory is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: bytes) -> None:
    """Write the file system that a directory is on to its disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd, path)
    finally:
        os.close(fd)


def wait_for_lock(fd: int, what: str, seconds: float, progress: Progress) -> None:
    """Take the lock of an open file, which another run may have for so long. Raises OverlayError, which says of ``what``, after that."""
    limit = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > limit:
                raise OverlayError(
                    f"another run has been at work on {what} for {seconds:g} seconds; try again later"
                ) from None
        progress()
        time.sleep(_LOCK_POLL_SECONDS)


@contextlib.contextmanager
def unnamed_copy(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Give a copy, without a name, of the file that ``stream`` writes."""
    stream.flush()
    with tempfile.TemporaryFile() as copy:
        with open(f"/proc/self/fd/{stream.fileno()}", "rb") as written:
            shutil.copyfileobj(written, copy)
        copy.seek(0)
        yield copy


def replace_link(path: str, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, at no moment missing."""
    folder, name = os.path.split(path)
    aside = os.path.join(folder, ASIDE_PREFIX + name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)
    os.symlink(target, aside)
    os.rename(aside, path)
    sync_directory(folder)


def remove(path: str, progress: Progress = no_progress) -> None:
    """Remove a file, a link, or a directory with all that is in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path, progress)
    else:
        os.unlink(path)


def remove_tree(path: str, progress: Progress = no_progress) -> None:
    """Remove a directory and all that is in it, however deep; nothing happens where there is none.

    Unlike shutil.rmtree it tells its progress and does not recurse, since a layer may be a thousand levels deep.
    """
    allow_deep_trees()
    try:
        #: Descriptor, name, and the directories in it that are still to be removed.
        stack: list[tuple[int, str, list[str]]] = [(os.open(path, _DIRECTORY), path, [])]
    except FileNotFoundError:
        return
    try:
        stack[0][2].extend(_unlink_files(stack[0][0]))
        while stack:
            here, name, folders = stack[-1]
            progress()
            if folders:
                inner = folders.pop()
                stack.append((os.open(inner, _DIRECTORY, dir_fd=here), inner, []))
                stack[-1][2].extend(_unlink_files(stack[-1][0]))
                continue
            stack.pop()
            os.close(here)
            os.rmdir(name, dir_fd=stack[-1][0] if stack else None)
    finally:
        for fd, _name, _folders in stack:
            os.close(fd)


def _unlink_files(fd: int) -> list[str]:
    """Remove what is not a directory, and return the names of the directories that are left."""
    folders = []
    with os.scandir(fd) as listing:
        for item in listing:
            if item.is_dir(follow_symlinks=False):
                folders.append(item.name)
            else:
                os.unlink(item.name, dir_fd=fd)
    return folders


def allow_deep_trees() -> None:
    """Raise the limit of open files as far as this process may: each level of a tree that is walked keeps one open."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
