# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work inside trees that other users may write to: by descriptor, never through a symbolic link, never out of the tree.

A path is resolved once, to a descriptor. What is checked and what is changed afterwards is that descriptor, so exchanging a name in
between changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import processes, syscalls, xattrs

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS

#: Flags to open a directory in order to list it.
LISTING = syscalls.LIST_REAL_DIRECTORY
#: Flags to hold whatever has a name, a symbolic link itself too, without opening it.
HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_at(directory: int, path: bytes, flags: int = LISTING, same_mount: bool = False) -> int:
    """Open ``path``, relative to the open ``directory``, and return the descriptor.

    Raises OSError: ELOOP for a symbolic link anywhere in the path, EXDEV for a path that leads out of the directory, or to another
    mount with ``same_mount``.
    """
    resolve = _RESOLVE | (syscalls.RESOLVE_NO_XDEV if same_mount else 0)
    return syscalls.openat2(directory, path or b".", flags, resolve)


@contextlib.contextmanager
def opened(directory: int, path: bytes, flags: int = LISTING, same_mount: bool = False) -> Iterator[int]:
    """Give the descriptor that ``open_at`` returns while the block runs."""
    fd = open_at(directory, path, flags, same_mount)
    try:
        yield fd
    finally:
        os.close(fd)


def open_root(path: bytes, flags: int = LISTING) -> int:
    """Open the directory at an absolute path without symbolic links, in which a tree begins; return the descriptor.

    Raises OSError: ELOOP where a link is in the path now.
    """
    return syscalls.openat2(syscalls.AT_FDCWD, path, flags | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)


def open_layer(path: bytes) -> int:
    """Open the directory of a layer, whose path the kernel reports as it was given, links included; return the descriptor."""
    return open_root(os.path.realpath(path))


def hold(directory: int, name: bytes) -> int:
    """Return a descriptor of whatever ``name`` is in an open directory, a symbolic link itself too, without opening it."""
    return os.open(name, HOLD, dir_fd=directory)


@contextlib.contextmanager
def held(directory: int, name: bytes) -> Iterator[int]:
    """Give the descriptor that ``hold`` returns while the block runs."""
    fd = hold(directory, name)
    try:
        yield fd
    finally:
        os.close(fd)


def enter(directory: int) -> None:
    """Make an open directory the working directory, so that the functions ending in ``_here`` find names in it.

    These take half the time of the same by descriptor, which counts with millions of files.
    """
    os.fchdir(directory)


@contextlib.contextmanager
def working_directory_kept() -> Iterator[None]:
    """Return to the working directory afterwards: an overlay that a process stands in cannot be unmounted."""
    fd = os.open(".", syscalls.HOLD_DIRECTORY)
    try:
        yield
    finally:
        os.fchdir(fd)
        os.close(fd)


def entries(directory: int) -> list[os.DirEntry[bytes]]:
    """Return what is in an open directory, with names as bytes."""
    with os.scandir(name_of(directory)) as found:
        return list(found)


def names(directory: int) -> set[bytes]:
    """Return the names in an open directory."""
    return set(os.listdir(name_of(directory)))


def status(directory: int, name: bytes) -> os.stat_result:
    """Return the status of ``name`` in an open directory, of a symbolic link itself. Raises FileNotFoundError."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def has(directory: int, name: bytes) -> bool:
    """Tell whether ``name`` is in an open directory."""
    try:
        status(directory, name)
    except FileNotFoundError:
        return False
    return True


def mount_of(fd: int) -> int:
    """Return the ID of the mount that a descriptor of this process was opened through. A bind mount has its own, unlike its device."""
    return processes.mount_of(b"/proc/self/fdinfo/%d" % fd)


def name_of(fd: int) -> bytes:
    """Return a path that leads to what ``fd`` holds, whatever has become of its name, for calls that take no O_PATH descriptor.

    The kernel follows it straight to the inode, and through no symbolic link that this may be.
    """
    return b"/proc/self/fd/%d" % fd


def change_mode(fd: int, mode: int) -> None:
    """Set the mode of what ``fd`` holds; a symbolic link has none (EOPNOTSUPP)."""
    os.chmod(name_of(fd), mode)


def change_owner(fd: int, uid: int, gid: int) -> None:
    """Set the owner and group of what ``fd`` holds, a symbolic link too; -1 leaves one as it is."""
    syscalls.change_owner(fd, uid, gid)


def set_times(fd: int, mtime_ns: int) -> None:
    """Set the times of the last access and of the last change of an open directory or file."""
    os.utime(fd, ns=(mtime_ns, mtime_ns))


def keep_times(directory: int, name: bytes, atime_ns: int) -> None:
    """Set the time of the last access of ``name`` to what it is: a change of metadata that changes nothing, of whichever file it is."""
    syscalls.keep_times(directory, name, atime_ns)


def keep_held_times(fd: int, atime_ns: int) -> None:
    """Do the same for the file that ``fd`` holds, which may not be a symbolic link."""
    syscalls.keep_times(syscalls.AT_FDCWD, name_of(fd), atime_ns, follow=True)


def attribute(fd: int, name: bytes) -> bytes | None:
    """Return one xattr of an open directory or file; None where there is none of that name."""
    return xattrs.read(fd, name)


def attribute_names(fd: int) -> list[str]:
    """Return the names of the xattrs of an open directory or file."""
    return os.listxattr(fd)


def set_attribute(fd: int, name: bytes, value: bytes) -> None:
    """Set one xattr of an open directory or file."""
    xattrs.write(fd, name, value)


def remove_attribute(fd: int, name: bytes) -> None:
    """Remove one xattr of an open directory or file, if it is there."""
    xattrs.remove(fd, name)


def held_attribute(fd: int, name: bytes) -> bytes | None:
    """Return one xattr of what a descriptor of ``hold`` stands for; None where there is none of that name."""
    try:
        return os.getxattr(name_of(fd), name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def set_held_attribute(fd: int, name: bytes, value: bytes) -> None:
    """Set one xattr of what a descriptor of ``hold`` stands for."""
    os.setxattr(name_of(fd), name, value)


def remove_held_attribute(fd: int, name: bytes) -> None:
    """Remove one xattr of what a descriptor of ``hold`` stands for, if it is there."""
    try:
        os.removexattr(name_of(fd), name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def has_attribute_here(name: bytes, attribute_name: str) -> bool:
    """Tell whether ``name`` in the directory that was entered has an xattr."""
    return attribute_name in os.listxattr(name, follow_symlinks=False)


def attribute_here(name: bytes, attribute_name: bytes) -> bytes | None:
    """Return one xattr of ``name`` in the directory that was entered; None where there is none."""
    # Called for each file of a layer, so without what xattrs.read does around it.
    try:
        return os.getxattr(name, attribute_name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return None
        raise


def create_attribute_here(name: bytes, attribute_name: bytes, value: bytes) -> bool:
    """Set one xattr of ``name`` in the directory that was entered, unless it is there; tell whether that is so."""
    try:
        os.setxattr(name, attribute_name, value, os.XATTR_CREATE, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def set_attribute_here(name: bytes, attribute_name: bytes, value: bytes) -> None:
    """Set one xattr of ``name`` in the directory that was entered."""
    xattrs.write(name, attribute_name, value)


def make_directory(directory: int, name: bytes, mode: int) -> None:
    """Make a directory with exactly this mode, whatever the umask. Raises FileExistsError.

    The mode cannot be set afterwards: the name might be that of another directory by then.
    """
    mask = os.umask(0)
    try:
        os.mkdir(name, mode, dir_fd=directory)
    finally:
        os.umask(mask)


def make_directories(directory: int, path: bytes, mode: int = 0o755) -> int:
    """Make the directories of a relative path that are missing; return a descriptor of the last one."""
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
    """Remove a file, or a symbolic link itself, from an open directory."""
    os.unlink(name, dir_fd=directory)


def remove_directory(directory: int, name: bytes) -> None:
    """Remove an empty directory from an open one."""
    os.rmdir(name, dir_fd=directory)


def rename_new(directory: int, name: bytes, to_directory: int, to_name: bytes) -> None:
    """Rename ``name`` to where nothing is (RENAME_NOREPLACE). EEXIST: there is something at the destination."""
    syscalls.rename_new(directory, name, to_directory, to_name)


def is_directory_at(path: bytes) -> bool:
    """Tell whether there is a directory at an absolute path, for a message that says so early: what is used is opened."""
    return os.path.isdir(path)


def is_at(path: bytes) -> bool:
    """Tell whether there is anything at an absolute path, a link itself too."""
    return os.path.lexists(path)


def status_at(path: bytes) -> os.stat_result:
    """Return the status of what an absolute path leads to. Raises FileNotFoundError."""
    return os.stat(path)


def is_file_at(path: bytes) -> bool:
    """Tell the same of a file."""
    return os.path.isfile(path)
