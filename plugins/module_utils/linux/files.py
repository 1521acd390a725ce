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
from dataclasses import dataclass
from typing import IO, BinaryIO

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

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
    fd = os.open(here, syscalls.HOLD_DIRECTORY)
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
            return os.open(name, syscalls.HOLD_DIRECTORY, dir_fd=parent), False
        fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent)
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


def remove_abandoned(folder: str, prefix: str = ASIDE_PREFIX, uid: int | None = None) -> None:
    """Remove what killed runs have left aside in a directory that other hosts, and others than root, may be writing to as well.

    Of directories, which anybody may have moved here, only those go that are private and belong to ``uid``, the user that root's new files
    belong to there.
    """
    limit = time.time() - _ABANDONED_AFTER
    here = os.open(folder, syscalls.LIST_DIRECTORY)
    try:
        for name in os.listdir(here):
            # Another run may be removing it as well.
            with contextlib.suppress(FileNotFoundError):
                if not name.startswith(prefix) or os.stat(name, dir_fd=here, follow_symlinks=False).st_mtime >= limit:
                    continue
                if stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                    _remove_private(here, name, uid)
                else:
                    os.unlink(name, dir_fd=here)
    finally:
        os.close(here)


def _remove_private(parent: int, name: str, uid: int | None) -> None:
    """Remove a directory unless others than ``uid`` can enter it: what is in it cannot have been exchanged."""
    # A link that it has been exchanged for meanwhile is refused.
    fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent)
    try:
        if _is_private(fd, uid):
            _empty(fd, name, no_progress)
            os.rmdir(name, dir_fd=parent)
    finally:
        os.close(fd)


def _is_private(fd: int, uid: int | None) -> bool:
    status = os.fstat(fd)
    return status.st_uid == uid and not status.st_mode & 0o077


@dataclass(frozen=True)
class Aside:
    """A private directory among those of others."""

    #: Leads to it whatever becomes of its name, for this process and its children.
    path: str
    #: The user that it, and all that root makes there, belongs to: another one on an export with root_squash.
    uid: int


@contextlib.contextmanager
def made_aside(place: str) -> Iterator[Aside]:
    """Give a new directory in a place that others may write to. It is removed with all that is in it when the block ends.

    Others may rename it, and put another one in its place; so it is only reached by its descriptor. Raises OverlayError when that was
    done before it was open.
    """
    parent = os.open(place, syscalls.LIST_DIRECTORY)
    name = ASIDE_PREFIX + secrets.token_hex(8)
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent)
        try:
            uid = _own_uid(fd)
            if not _is_private(fd, uid):
                raise OverlayError(f"{os.path.join(place, name)} was exchanged by somebody else as soon as it was made")
            try:
                yield Aside(f"/proc/{os.getpid()}/fd/{fd}", uid)
            finally:
                _empty(fd, name, no_progress)
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=parent)
        finally:
            os.close(fd)
    finally:
        os.close(parent)


def _own_uid(fd: int) -> int:
    """Return the user that new files in a directory belong to."""
    name = secrets.token_hex(8)
    probe = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        return os.fstat(probe).st_uid
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=fd)


def _opened_or_made(parent: int, name: str, mode: int | None) -> int:
    made = False
    if mode is not None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent)
            made = True
    fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent)
    if made:
        os.fchmod(fd, (mode or 0) | os.fstat(fd).st_mode & stat.S_ISGID)
    return fd


@contextlib.contextmanager
def directory_within(top: str, path: str, mode: int | None) -> Iterator[str]:
    """Give a path to the directory ``path`` below ``top`` that leads to it whatever becomes of its names.

    What is missing of it is made with ``mode``, or raises FileNotFoundError without one. Raises OverlayError where a part of it is a
    symbolic link: whoever writes to a store could have files written elsewhere with it.
    """
    fd, here = os.open(top, syscalls.LIST_DIRECTORY), top
    try:
        for name in filter(None, path.split("/")):
            here = os.path.join(here, name)
            try:
                inner = _opened_or_made(fd, name, mode)
            except NotADirectoryError:
                raise OverlayError(
                    f"{here} is no directory, or a symbolic link to one, which is not followed in a store"
                ) from None
            except OSError as error:
                raise OSError(error.errno, error.strerror, here) from None
            os.close(fd)
            fd = inner
        try:
            yield f"/proc/self/fd/{fd}"
        except OSError as error:
            if isinstance(error.filename, str) and error.filename.startswith(f"/proc/self/fd/{fd}/"):
                raise OSError(
                    error.errno, error.strerror, os.path.join(here, os.path.basename(error.filename))
                ) from None
            raise
    finally:
        os.close(fd)


def remove_directories(made: Sequence[bytes]) -> None:
    """Remove the directories that ``make_directories`` has returned, but for those into which somebody else has put something."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def sync_directory(path: str) -> None:
    """Make sure that a name that was added to or removed from a directory is on the disk."""
    fd = os.open(path, syscalls.LIST_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: bytes) -> None:
    """Write the file system that a directory is on to its disk."""
    fd = os.open(path, syscalls.LIST_DIRECTORY)
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

    Unlike shutil.rmtree it tells its progress and does not recurse, since a layer may be a thousand levels deep. Raises OverlayError at a
    mountpoint: what is mounted is nothing of the tree's.
    """
    try:
        fd = os.open(path, syscalls.LIST_REAL_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _empty(fd, path, progress)
    finally:
        os.close(fd)
    os.rmdir(path)


def _empty(top: int, path: str, progress: Progress) -> None:
    """Remove all that is in the open directory ``top``; ``path`` is for messages."""
    _check_nothing_mounted(top)
    allow_deep_trees()
    #: Descriptor, name, and the directories in it that are still to be removed.
    stack: list[tuple[int, str, list[str]]] = [(top, path, _unlink_files(top))]
    try:
        while True:
            here, name, folders = stack[-1]
            progress()
            if folders:
                inner = folders.pop()
                stack.append((os.open(inner, syscalls.LIST_REAL_DIRECTORY, dir_fd=here), inner, []))
                stack[-1][2].extend(_unlink_files(stack[-1][0]))
                continue
            if len(stack) == 1:
                return
            stack.pop()
            os.close(here)
            os.rmdir(name, dir_fd=stack[-1][0])
    finally:
        for fd, _name, _folders in stack[1:]:
            os.close(fd)


def _check_nothing_mounted(top: int) -> None:
    """Raises OverlayError where something is mounted in an open directory, which would be emptied with it."""
    inside = os.readlink(b"/proc/self/fd/%d" % top) + b"/"
    with open("/proc/self/mountinfo", "rb") as stream:
        for mount in mountinfo.parse(stream.read()):
            if mount.path.startswith(inside):
                raise OverlayError(
                    f"something is mounted at {show(mount.path)}, which is to be removed: unmount it first"
                )


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
