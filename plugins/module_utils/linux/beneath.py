# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work inside trees that other users may write to: by descriptor, never through a symbolic link, never out of the tree.

A path is resolved once, to a descriptor. That descriptor is checked and then changed, so renaming files in between has no effect.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import processes, syscalls, xattrs

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS

LISTING = syscalls.LIST_REAL_DIRECTORY
HOLD = syscalls.HOLD


def open_at(directory: int, path: bytes, flags: int = syscalls.LIST_REAL_DIRECTORY, same_mount: bool = False) -> int:
    """Open ``path`` relative to the open ``directory`` and return the descriptor.

    Raises OSError: ELOOP for a symbolic link anywhere in the path, EXDEV for a path that leads out of the directory and, with
    ``same_mount``, for one that leads to another mount.
    """
    resolve = _RESOLVE | (syscalls.RESOLVE_NO_XDEV if same_mount else 0)
    return syscalls.openat2(directory, path or b".", flags, resolve)


@contextlib.contextmanager
def opened(
    directory: int, path: bytes, flags: int = syscalls.LIST_REAL_DIRECTORY, same_mount: bool = False
) -> Iterator[int]:
    """Provide the descriptor of ``open_at`` while the block runs."""
    fd = open_at(directory, path, flags, same_mount)
    try:
        yield fd
    finally:
        os.close(fd)


def hold_fresh(directory: int, path: bytes) -> int:
    """Return an O_PATH descriptor of ``path``, on the same mount, whose attributes were just fetched from the file server.

    Raises OSError as ``open_at`` does, and if the server fails.
    """
    fd = open_at(directory, path, HOLD, same_mount=True)
    try:
        syscalls.refresh(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_root(path: bytes, flags: int = syscalls.LIST_REAL_DIRECTORY) -> int:
    """Open the root of a tree, given as an absolute path without symbolic links, and return the descriptor.

    Raises OSError: ELOOP if the path has a symbolic link now.
    """
    return syscalls.openat2(syscalls.AT_FDCWD, path, flags | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)


def open_layer(path: bytes) -> int:
    """Open the directory of a layer and return the descriptor. The kernel reports its path as given, so it may have symbolic links."""
    return open_root(os.path.realpath(path))


def hold(directory: int, name: bytes) -> int:
    """Return an O_PATH descriptor of ``name`` in an open directory. A symbolic link is not followed."""
    return os.open(name, syscalls.HOLD, dir_fd=directory)


@contextlib.contextmanager
def held(directory: int, name: bytes) -> Iterator[int]:
    """Provide the descriptor of ``hold`` while the block runs."""
    fd = hold(directory, name)
    try:
        yield fd
    finally:
        os.close(fd)


def enter(directory: int) -> None:
    """Make an open directory the working directory, in which the functions ending in ``_here`` look up names.

    They take half the time of those that take a descriptor, which matters for millions of files.
    """
    os.fchdir(directory)


@contextlib.contextmanager
def working_directory_kept() -> Iterator[None]:
    """Restore the working directory after the block. An overlay that contains a process's working directory cannot be unmounted."""
    fd = os.open(".", syscalls.HOLD_DIRECTORY)
    try:
        yield
    finally:
        os.fchdir(fd)
        os.close(fd)


def entries(directory: int) -> list[os.DirEntry[bytes]]:
    """Return the entries of an open directory, with names as bytes."""
    with os.scandir(name_of(directory)) as found:
        return list(found)


def names(directory: int) -> set[bytes]:
    """Return the names in an open directory."""
    return set(os.listdir(name_of(directory)))


def status(directory: int, name: bytes) -> os.stat_result:
    """Return the status of ``name`` in an open directory. A symbolic link is not followed. Raises FileNotFoundError."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def has(directory: int, name: bytes) -> bool:
    """Return whether an open directory contains ``name``."""
    try:
        status(directory, name)
    except FileNotFoundError:
        return False
    return True


def mount_of(fd: int) -> int:
    """Return the mount ID of a descriptor of this process. Unlike a device number, it tells bind mounts apart."""
    return processes.mount_of(b"/proc/self/fdinfo/%d" % fd)


def name_of(fd: int) -> bytes:
    """Return a path to the inode of ``fd``, for system calls that do not accept an O_PATH descriptor.

    It stays valid when the file is renamed. If the inode is a symbolic link, that is not followed.
    """
    return b"/proc/self/fd/%d" % fd


def change_mode(fd: int, mode: int) -> None:
    """Set the mode of the inode of ``fd``. Raises OSError: EOPNOTSUPP for a symbolic link, which has no mode."""
    os.chmod(name_of(fd), mode)


def change_owner(fd: int, uid: int, gid: int) -> None:
    """Set the uid and gid of the inode of ``fd``, also of a symbolic link. -1 keeps the uid or gid."""
    syscalls.change_owner(fd, uid, gid)


def set_times(fd: int, mtime_ns: int) -> None:
    """Set atime and mtime of an open directory or file, in nanoseconds."""
    os.utime(fd, ns=(mtime_ns, mtime_ns))


def keep_times(directory: int, name: bytes, atime_ns: int) -> None:
    """Set the atime of ``name`` to the value that it has, which copies up its metadata and changes nothing else."""
    syscalls.keep_times(directory, name, atime_ns)


def keep_held_times(fd: int, atime_ns: int) -> None:
    """Set the atime of the inode of ``fd`` to the value that it has. The inode may not be a symbolic link."""
    syscalls.keep_times(syscalls.AT_FDCWD, name_of(fd), atime_ns, follow=True)


def set_held_times(fd: int, atime_ns: int, mtime_ns: int) -> None:
    """Set atime and mtime of the inode of an O_PATH descriptor, in nanoseconds. The inode may not be a symbolic link."""
    os.utime(name_of(fd), ns=(atime_ns, mtime_ns))


def open_for_writing(fd: int) -> None:
    """Open the regular file of an O_PATH descriptor for writing, write nothing, and close it. An overlay copies its content up.

    Raises OSError: ETXTBSY for a program that is running, EWOULDBLOCK instead of waiting for the holder of a lease.
    """
    os.close(os.open(name_of(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))


def attribute(fd: int, name: bytes) -> bytes | None:
    """Return the value of an xattr of an open directory or file; None if it has none of that name."""
    return xattrs.read(fd, name)


def attribute_names(fd: int) -> list[str]:
    """Return the names of the xattrs of an open directory or file."""
    return os.listxattr(fd)


def set_attribute(fd: int, name: bytes, value: bytes) -> None:
    """Set an xattr of an open directory or file."""
    xattrs.write(fd, name, value)


def remove_attribute(fd: int, name: bytes) -> None:
    """Remove an xattr of an open directory or file, if it has it."""
    xattrs.remove(fd, name)


def held_attribute(fd: int, name: bytes) -> bytes | None:
    """Return the value of an xattr of the inode of an O_PATH descriptor; None if it has none of that name."""
    try:
        return os.getxattr(name_of(fd), name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def set_held_attribute(fd: int, name: bytes, value: bytes) -> None:
    """Set an xattr of the inode of an O_PATH descriptor."""
    os.setxattr(name_of(fd), name, value)


def remove_held_attribute(fd: int, name: bytes) -> None:
    """Remove an xattr of the inode of an O_PATH descriptor, if it has it."""
    try:
        os.removexattr(name_of(fd), name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def held_attribute_names(fd: int) -> list[str]:
    """Return the names of the xattrs of the inode of an O_PATH descriptor."""
    return os.listxattr(name_of(fd))


def has_attribute_here(name: bytes, attribute_name: str) -> bool:
    """Return whether ``name`` in the working directory has an xattr of this name."""
    return attribute_name in os.listxattr(name, follow_symlinks=False)


def attribute_here(name: bytes, attribute_name: bytes) -> bytes | None:
    """Return the value of an xattr of ``name`` in the working directory; None if it has none of that name."""
    # Called for each file of a layer, so it avoids the overhead of xattrs.read.
    try:
        return os.getxattr(name, attribute_name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def attribute_names_here(name: bytes) -> list[str]:
    """Return the names of the xattrs of ``name`` in the working directory; none if its file system does not support xattrs."""
    return xattrs.names(name)


def remove_attribute_here(name: bytes, attribute_name: bytes) -> None:
    """Remove an xattr of ``name`` in the working directory, if it has it."""
    xattrs.remove(name, attribute_name)


def create_attribute_here(name: bytes, attribute_name: bytes, value: bytes) -> bool:
    """Set an xattr of ``name`` in the working directory unless it exists, and return whether it was set."""
    try:
        os.setxattr(name, attribute_name, value, os.XATTR_CREATE, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def set_attribute_here(name: bytes, attribute_name: bytes, value: bytes) -> None:
    """Set an xattr of ``name`` in the working directory."""
    xattrs.write(name, attribute_name, value)


def make_directory(directory: int, name: bytes, mode: int) -> None:
    """Make a directory with exactly this mode, whatever the umask. Raises FileExistsError.

    The mode is not set afterwards, since the name might refer to another directory by then.
    """
    mask = os.umask(0)
    try:
        os.mkdir(name, mode, dir_fd=directory)
    finally:
        os.umask(mask)


def make_directories(directory: int, path: bytes, mode: int = 0o755) -> int:
    """Make the missing directories of a relative path and return a descriptor of the last one."""
    here = open_at(directory, b"")
    for name in filter(None, path.split(b"/")):
        try:
            with contextlib.suppress(FileExistsError):
                make_directory(here, name, mode)
            inner = open_at(here, name)
        finally:
            os.close(here)
        here = inner
    return here


def unlink(directory: int, name: bytes) -> None:
    """Remove a file or symbolic link from an open directory."""
    os.unlink(name, dir_fd=directory)


def remove_directory(directory: int, name: bytes) -> None:
    """Remove an empty directory from an open directory."""
    os.rmdir(name, dir_fd=directory)


def rename_new(directory: int, name: bytes, to_directory: int, to_name: bytes) -> None:
    """Rename ``name`` without replacing anything (RENAME_NOREPLACE). Raises OSError: EEXIST if the destination exists."""
    syscalls.rename_new(directory, name, to_directory, to_name)


def rename(directory: int, name: bytes, to_name: bytes) -> None:
    """Rename ``name`` within an open directory, also on NFS, which cannot refuse to replace. A directory replaces only an empty one."""
    os.rename(name, to_name, src_dir_fd=directory, dst_dir_fd=directory)


def is_directory_at(path: bytes) -> bool:
    """Return whether an absolute path leads to a directory. Only for an early message: open the directory before using it."""
    return os.path.isdir(path)


def is_at(path: bytes) -> bool:
    """Return whether an absolute path exists. A symbolic link at its end is not followed."""
    return os.path.lexists(path)


def status_at(path: bytes) -> os.stat_result:
    """Return the status of the target of an absolute path. Raises FileNotFoundError."""
    return os.stat(path)


def is_file_at(path: bytes) -> bool:
    """Return whether an absolute path leads to a regular file. Only for an early message: open the file before using it."""
    return os.path.isfile(path)
