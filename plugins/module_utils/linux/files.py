# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write files so that a killed run leaves the old version or the new one, never a part; make and remove directories."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import resource
import secrets
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, BinaryIO

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

_LOCK_POLL_SECONDS = 0.1

#: linux/fsverity.h: FS_IOC_ENABLE_VERITY, and struct fsverity_enable_arg with version 1, SHA-256 and blocks of 4096 bytes.
_ENABLE_VERITY = 0x40806685
_VERITY_ARGUMENT = struct.pack("=4I112x", 1, 1, 4096, 0)
#: linux/fs.h: FS_IOC_GETFLAGS, and the flag of a file with fs-verity.
_GET_FLAGS = 0x80086601
_VERITY_FLAG = 0x00100000
#: Errors of a file system or kernel without fs-verity.
_NO_VERITY = frozenset((errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))

#: Prefix of the name of a file that is being written. Nothing refers to such a name.
ASIDE_PREFIX = ".new-"

#: Seconds after which a file with that prefix is a leftover of a killed run.
_ABANDONED_AFTER = 24 * 3600


@contextlib.contextmanager
def fresh_listing(directory: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Provide the listing of a directory while the block runs. An NFS client is made to ask its server, whatever it has cached.

    Raises OSError naming the directory if it cannot be listed.
    """
    fd = os.open(directory, syscalls.LIST_DIRECTORY)
    try:
        syscalls.refresh(fd)
        with os.scandir(fd) as listing:
            yield listing
    except OSError as error:
        raise OSError(error.errno, error.strerror, directory) from None
    finally:
        os.close(fd)


def open_or_make(path: str, mode: int) -> int:
    """Open a file for reading and appending and return the descriptor. A new file gets ``mode``.

    Nobody can write to a file with fs-verity, which a run that was killed may have left, so it is replaced by a new one. Raises OSError:
    ELOOP for a link.
    """
    # O_NONBLOCK keeps a named pipe from blocking the open.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags | os.O_EXCL, mode)
    except FileExistsError:
        try:
            return os.open(path, flags, mode)
        except PermissionError:
            if not has_verity(path):
                raise
            os.unlink(path)
            fd = os.open(path, flags | os.O_EXCL, mode)
    os.fchmod(fd, mode)
    return fd


def write(stream: IO[bytes], content: bytes, path: str) -> None:
    """Write all of ``content`` to an unbuffered file. Raises OSError naming ``path`` if there is no room."""
    left = memoryview(content)
    try:
        while left:
            left = left[stream.write(left) :]
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


@contextlib.contextmanager
def written_aside(path: str, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Provide a file to write. When the block ends without an exception, sync the file and rename it to ``path``."""
    parent, name = os.path.split(path)
    prefix = ASIDE_PREFIX + name[:200] + "."
    remove_abandoned(parent, prefix)
    # The name is unique, since two hosts may write the same file at the same time.
    aside = os.path.join(parent, prefix + secrets.token_hex(8))
    # Opened for writing only: for a file opened for both, an NFS server may grant a write delegation, which it must recall when another
    # host reads the file.
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
            # On a full disk, the failing system call takes a descriptor and no name.
            raise OSError(error.errno, error.strerror, path) from None
        raise
    sync_directory(parent)


def remove_abandoned(place: str, prefix: str = ASIDE_PREFIX, uid: int | None = None) -> None:
    """Remove leftovers of killed runs from a directory that other hosts and users may write to.

    A directory is only removed if it is private to ``uid``, the owner of files that root makes in ``place``: any user may have moved
    another one here.
    """
    limit = time.time() - _ABANDONED_AFTER
    here = os.open(place, syscalls.LIST_DIRECTORY)
    try:
        for name in os.listdir(here):
            # Another run may remove it at the same time.
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
    """Remove a directory if only ``uid`` can enter it, so that nobody else can have replaced its content."""
    # This fails if the directory has been replaced by a symbolic link meanwhile.
    fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent)
    try:
        if _is_private(fd, uid):
            empty(fd, name)
            os.rmdir(name, dir_fd=parent)
    finally:
        os.close(fd)


def _is_private(fd: int, uid: int | None) -> bool:
    status = os.fstat(fd)
    return status.st_uid == uid and not status.st_mode & 0o077


@dataclass(frozen=True)
class Aside:
    """A private directory in a place that others may write to."""

    #: A path that stays valid when the directory is renamed, for this process and its children.
    path: str
    #: The uid that owns it and the files that root makes there. It is not 0 on an export with root_squash.
    uid: int


@contextlib.contextmanager
def made_aside(place: str) -> Iterator[Aside]:
    """Provide a new directory in a place that others may write to. It is removed with its content when the block ends.

    Others may rename it and put another one in its place, so it is used by its descriptor only. Raises OverlayError if somebody replaced it
    before it was opened.
    """
    parent = os.open(place, syscalls.LIST_DIRECTORY)
    name = ASIDE_PREFIX + secrets.token_hex(8)
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent)
        try:
            uid = _own_uid(fd)
            if not _is_private(fd, uid):
                raise OverlayError(
                    f"{os.path.join(place, name)} was replaced by another user as soon as it was made: check who can write to {place}"
                )
            try:
                yield Aside(f"/proc/{os.getpid()}/fd/{fd}", uid)
            finally:
                empty(fd, name)
                with contextlib.suppress(OSError):
                    os.rmdir(name, dir_fd=parent)
        finally:
            os.close(fd)
    finally:
        os.close(parent)


def _own_uid(fd: int) -> int:
    """Return the uid that owns new files in an open directory."""
    name = secrets.token_hex(8)
    probe = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        return os.fstat(probe).st_uid
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=fd)


def wait_for_lock(fd: int, what: str, seconds: float, progress: Progress) -> None:
    """Lock ``fd``, waiting up to ``seconds``. Raises OverlayError naming ``what`` on timeout."""
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
    """Provide a temporary copy, without a name, of the file that ``stream`` writes."""
    stream.flush()
    with tempfile.TemporaryFile() as copy:
        with open(f"/proc/self/fd/{stream.fileno()}", "rb") as written:
            shutil.copyfileobj(written, copy)
        copy.seek(0)
        yield copy


def replace_link(path: str, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, atomically."""
    parent, name = os.path.split(path)
    aside = os.path.join(parent, ASIDE_PREFIX + name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)
    os.symlink(target, aside)
    os.rename(aside, path)
    sync_directory(parent)


# Directories


def make_directories(path: str | bytes, mode: int) -> list[bytes]:
    """Make a directory and its missing parents; return the paths of those made, outermost first.

    Each new directory gets ``mode``, whatever the umask and default ACLs are, plus the set-group-ID bit if it inherits that. A directory
    that exists, or that another process makes meanwhile, is left unchanged. Raises OSError: ENOTDIR if something else has the name.
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
            inner, is_new = _made_or_held(fd, name, here, mode)
            os.close(fd)
            fd = inner
            made += [here] if is_new else []
    finally:
        os.close(fd)
    return made


def _made_or_held(parent: int, name: bytes, path: bytes, mode: int) -> tuple[int, bool]:
    """Return a descriptor of the directory ``name``, and whether it is new; ``path`` is for messages."""
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
    """Return the mode for new directories in ``place``: its group may write to them if it may write to ``place``."""
    return 0o755 | os.stat(place).st_mode & stat.S_IWGRP


@contextlib.contextmanager
def directory_within(top: str, path: str, mode: int | None) -> Iterator[str]:
    """Provide a path to the directory ``path`` below ``top`` that stays valid when the directory is renamed.

    Missing directories are made with ``mode``. Raises FileNotFoundError for a missing one if ``mode`` is None. Raises OverlayError if a
    component is a symbolic link: a user who can write to the store could redirect files with it.
    """
    fd, here = os.open(top, syscalls.LIST_DIRECTORY), top
    try:
        for name in filter(None, path.split("/")):
            here = os.path.join(here, name)
            try:
                inner = _made_or_listed(fd, name, mode)
            except NotADirectoryError:
                raise OverlayError(
                    f"{here} is no directory, or a symbolic link to one: links in a store are not followed; remove it"
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


def _made_or_listed(parent: int, name: str, mode: int | None) -> int:
    """Return a descriptor for listing the directory ``name``, which is made if it is missing and there is a mode."""
    made = False
    if mode is not None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent)
            made = True
    fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent)
    if made:
        os.fchmod(fd, (mode or 0) | os.fstat(fd).st_mode & stat.S_ISGID)
    return fd


def has_verity(path: str) -> bool:
    """Return whether a file has fs-verity. The kernel then compares what it reads with hashes, and a wrong byte is an error (EIO)."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags: bytes = fcntl.ioctl(fd, _GET_FLAGS, bytes(8))
    except OSError as error:
        if error.errno in _NO_VERITY:
            return False
        raise
    finally:
        os.close(fd)
    return bool(struct.unpack("=I4x", flags)[0] & _VERITY_FLAG)


def enable_verity(path: str, required: bool) -> bool:
    """Give a file fs-verity if its file system has it, and return whether the file has it now. Its content cannot change afterwards.

    The file may not be open for writing. Raises OverlayError if fs-verity is ``required`` and the file system or the kernel lacks it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _ENABLE_VERITY, _VERITY_ARGUMENT)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in _NO_VERITY:
            raise OSError(error.errno, error.strerror, path) from None
        if required:
            raise OverlayError(
                f"{show(os.fsencode(path))} cannot have fs-verity, which require_verity asks for: {error.strerror}. The kernel needs"
                " CONFIG_FS_VERITY, and the file system has to be btrfs, or ext4 or f2fs with the feature verity (tune2fs -O verity)"
            ) from None
        return False
    finally:
        os.close(fd)
    return True


def sync_directory(path: str) -> None:
    """Write a directory to its disk, so that added and removed names last."""
    fd = os.open(path, syscalls.LIST_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: bytes) -> None:
    """Write the file system of a directory to its disk."""
    fd = os.open(path, syscalls.LIST_DIRECTORY)
    try:
        syscalls.syncfs(fd, path)
    finally:
        os.close(fd)


def remove_directories(made: Sequence[bytes]) -> None:
    """Remove the directories that ``make_directories`` returned, except those that are no longer empty."""
    for path in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def remove(path: str, progress: Progress = no_progress) -> None:
    """Remove a file, a symbolic link, or a directory with its content."""
    if os.path.isdir(path) and not os.path.islink(path):
        remove_tree(path, progress)
    else:
        os.unlink(path)


def remove_tree(path: str, progress: Progress = no_progress) -> None:
    """Remove a directory with its content, however deep; do nothing if it does not exist.

    Unlike shutil.rmtree this calls ``progress`` and does not recurse, since a layer may have a thousand levels. Raises OverlayError if
    something is mounted inside the directory, since its content would be removed too.
    """
    try:
        fd = os.open(path, syscalls.LIST_REAL_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        empty(fd, path, progress)
    finally:
        os.close(fd)
    os.rmdir(path)


def empty(top: int, path: str, progress: Progress = no_progress) -> None:
    """Remove the content of the open directory ``top``; ``path`` is for messages. Raises OverlayError if something is mounted inside."""
    check_nothing_mounted(top)
    allow_deep_trees()
    #: For each level: its descriptor, its name, and the directories in it that are still to be removed.
    stack: list[tuple[int, str, list[str]]] = [(top, path, _unlink_files(top))]
    try:
        while True:
            here, name, directories = stack[-1]
            progress()
            if directories:
                inner = directories.pop()
                stack.append((_open_on_same_mount(here, inner), inner, []))
                stack[-1][2].extend(_unlink_files(stack[-1][0]))
                continue
            if len(stack) == 1:
                return
            stack.pop()
            os.close(here)
            os.rmdir(name, dir_fd=stack[-1][0])
    finally:
        for fd, _name, _directories in stack[1:]:
            os.close(fd)


def sha256(fd: int, progress: Progress = no_progress) -> str:
    """Return the SHA-256 of the rest of an open file as hexadecimal text."""
    digest = hashlib.sha256()
    while True:
        chunk = os.read(fd, 1 << 20)
        if not chunk:
            return digest.hexdigest()
        digest.update(chunk)
        progress()


def check_nothing_mounted(top: int) -> None:
    """Check that nothing is mounted inside the open directory ``top``. Raises OverlayError naming the mountpoint if something is."""
    inside = os.readlink(b"/proc/self/fd/%d" % top) + b"/"
    for mount in namespaces.own_mounts():
        if mount.path.startswith(inside):
            raise OverlayError(f"something is mounted at {show(mount.path)}, which is to be removed: unmount it first")


def _open_on_same_mount(directory: int, name: str) -> int:
    """Return a descriptor of the directory ``name``. Raises OverlayError if it is on another mount, as an automount may be by now."""
    try:
        return beneath.open_at(directory, os.fsencode(name), same_mount=True)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        place = os.readlink(b"/proc/self/fd/%d" % directory) + b"/" + os.fsencode(name)
        raise OverlayError(f"something is mounted at {show(place)}, which is to be removed: unmount it first") from None


def _unlink_files(fd: int) -> list[str]:
    """Remove everything but directories from an open directory, and return the names of the directories."""
    directories = []
    with os.scandir(fd) as listing:
        for item in listing:
            if item.is_dir(follow_symlinks=False):
                directories.append(item.name)
            else:
                os.unlink(item.name, dir_fd=fd)
    return directories


def allow_deep_trees() -> None:
    """Raise the limit of open files to the hard limit: walking a tree keeps one descriptor open for each level."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
