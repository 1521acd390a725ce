# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls that Python's os module lacks. Each raises OSError with the path concerned.

The mount calls belong to the 'new mount API' (Linux 5.2: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2)). Their
numbers are the same on all architectures.
"""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_libc.name_to_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_libc.fchownat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int)

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437

#: Stands for the working directory in calls that take the descriptor of a directory.
AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_AT_NO_AUTOMOUNT = 0x800
_OPEN_TREE_CLONE = 1
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x004
_MOVE_MOUNT_T_EMPTY_PATH = 0x040
_MOVE_MOUNT_SET_GROUP = 0x100
_MOVE_MOUNT_BENEATH = 0x200

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_RENAME_NOREPLACE = 1

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

_PR_SET_PDEATHSIG = 1

_AT_SYMLINK_NOFOLLOW = 0x100
_AT_SYMLINK_FOLLOW = 0x400
_AT_HANDLE_FID = 0x200
_AT_EMPTY_PATH = 0x1000
_AT_STATX_FORCE_SYNC = 0x2000
_AT_STATX_DONT_SYNC = 0x4000
_UTIME_OMIT = (1 << 30) - 2
_STATX_BASIC_STATS = 0x7FF
#: Bytes of struct statx.
_STATX_SIZE = 256

_OVERLAYFS_SUPER_MAGIC = 0x794C7630

#: Limits of openat2(2) on resolving a path: no other mount, no magic links (as in /proc), no symbolic links, and nothing above the
#: starting directory.
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08

#: Two struct timespec: atime, and mtime, which is left as it is.
_times = (ctypes.c_long * 4)(0, 0, 0, _UTIME_OMIT)

#: Numbers of ustat(2). Newer architectures lack the call.
_SYS_USTAT = {"x86_64": 136, "s390x": 62, "ppc64le": 62}

#: Flags of open(2) for a directory: to list it, to list it unless it is a symbolic link, and to hold it without reading it.
LIST_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
LIST_REAL_DIRECTORY = LIST_DIRECTORY | os.O_NOFOLLOW
HOLD_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
#: Flags of open(2) to hold an inode of any type without opening it. A symbolic link is not followed.
HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def _checked(result: int, what: bytes | None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(what) if what is not None else None)
    return result


def _call(number: int, what: bytes | None, *arguments: int | bytes | None) -> int:
    typed = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *typed), what)


def fsopen(fstype: bytes) -> int:
    """Return a descriptor for configuring a new file system. Raises OSError: ENODEV if the kernel has no such type."""
    return _call(_SYS_FSOPEN, fstype, fstype, _FSOPEN_CLOEXEC)


def fsconfig_flag(context: int, name: bytes) -> None:
    """Set an option without a value."""
    _call(_SYS_FSCONFIG, name, context, _FSCONFIG_SET_FLAG, name, None, 0)


def fsconfig_string(context: int, name: bytes, value: bytes) -> None:
    """Set an option to a string. Raises OSError: EINVAL if the kernel does not know the option, or the value has 256 bytes or more."""
    _call(_SYS_FSCONFIG, name + b"=" + value, context, _FSCONFIG_SET_STRING, name, value, 0)


def fsconfig_fd(context: int, name: bytes, fd: int) -> None:
    """Set an option to an open file. Raises OSError: EINVAL if the kernel does not take one (layers of overlays: Linux 6.13)."""
    _call(_SYS_FSCONFIG, name, context, _FSCONFIG_SET_FD, name, None, fd)


def fsconfig_create(context: int) -> None:
    """Create the file system that was configured."""
    _call(_SYS_FSCONFIG, None, context, _FSCONFIG_CMD_CREATE, None, None, 0)


def fsmount(context: int, attributes: int) -> int:
    """Return a descriptor of a new detached mount with ``attributes`` (MOUNT_ATTR_*). It ends with the descriptor unless it is attached."""
    return _call(_SYS_FSMOUNT, None, context, _FSMOUNT_CLOEXEC, attributes)


def clone_tree(mount: int, path: bytes) -> int:
    """Return a descriptor of a new detached mount that shows the directory ``path`` of ``mount``, an attached mount."""
    return _call(_SYS_OPEN_TREE, path, mount, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)


def clone_mounts(mount: int, inner: bool = True) -> int:
    """Return a descriptor of a detached copy of an attached mount, including the mounts inside it if ``inner``.

    ``mount`` is a descriptor of its root. Each copy has the propagation of its original (mount_namespaces(7)). Unbindable mounts inside it
    are left out. Raises OSError: EINVAL if the mount is unbindable, or belongs to another mount namespace.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if inner else 0)
    return _call(_SYS_OPEN_TREE, None, mount, b"", flags)


def hold_mount(directory: int, path: bytes) -> int:
    """Return a descriptor of the topmost mount at ``path`` below an open directory, without triggering an automount."""
    flags = os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
    return _call(_SYS_OPEN_TREE, path, directory, path, flags)


def move_mount(mount: int, path: bytes, beneath: bool = False) -> None:
    """Attach a detached mount at ``path``, on top of the mount there, or with ``beneath`` below it (Linux 6.5)."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_BENEATH if beneath else 0)
    _call(_SYS_MOVE_MOUNT, path, mount, b"", AT_FDCWD, path, flags)


def move_mount_to(mount: int, place: int) -> None:
    """Move a mount, attached or not, to the inode of the descriptor ``place``. Raises OSError: EINVAL if only one is a directory."""
    _call(_SYS_MOVE_MOUNT, None, mount, b"", place, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)


def share_like(mount: int, other: int) -> None:
    """Give the private mount ``other`` the propagation of ``mount`` (Linux 5.15). Both are descriptors of roots.

    Both must be mounts of one file system, and ``mount`` must show all that ``other`` shows.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH | _MOVE_MOUNT_SET_GROUP
    _call(_SYS_MOVE_MOUNT, None, mount, b"", other, b"", flags)


def set_propagation(mount: int, flags: int) -> None:
    """Set the propagation of a mount, given a descriptor of its root: MS_SHARED, MS_SLAVE or MS_PRIVATE; with MS_REC also inside it."""
    path = b"/proc/self/fd/%d" % mount
    _checked(_libc.mount(b"none", path, None, flags, None), path)


def detach_mount(mount: int) -> None:
    """Detach a mount, given a descriptor of its root."""
    path = b"/proc/self/fd/%d" % mount
    # The path itself is a magic link, so UMOUNT_NOFOLLOW would fail.
    _checked(_libc.umount2(path, MNT_DETACH), path)


def knows_mount_beneath() -> bool:
    """Return whether move_mount(2) can mount beneath another mount (Linux 6.5)."""
    return _knows_flag(_MOVE_MOUNT_BENEATH)


def knows_share_like() -> bool:
    """Return whether move_mount(2) has the flag of ``share_like`` (Linux 5.15)."""
    return _knows_flag(_MOVE_MOUNT_SET_GROUP)


def _knows_flag(flag: int) -> bool:
    """Return whether move_mount(2) knows a flag: it checks the flags (EINVAL) before the descriptors (EBADF)."""
    try:
        _call(_SYS_MOVE_MOUNT, None, -1, b"", -1, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH | flag)
    except OSError as error:
        return error.errno == errno.EBADF
    return False


def context_messages(context: int) -> str:
    """Return the messages of the kernel about the last failure on a file system context; empty if there are none."""
    messages = []
    while True:
        try:
            messages.append(os.read(context, 4096).decode("utf-8", "backslashreplace").strip())
        except OSError:  # ENODATA: no further message
            return "; ".join(message.partition(" ")[2] or message for message in messages)


def mount(source: bytes, path: bytes, fstype: bytes | None, flags: int, options: bytes | None = None) -> None:
    """Mount a file system, or change a mount, with mount(2). The kernel cuts ``options`` at one page: check the length first."""
    _checked(_libc.mount(source, path, fstype, flags, options), path)


def umount(path: bytes, flags: int = 0) -> None:
    """Unmount the topmost mount at ``path``. A symbolic link is not followed."""
    _checked(_libc.umount2(path, flags | UMOUNT_NOFOLLOW), path)


def unshare(flags: int) -> None:
    """Move this process to new namespaces (CLONE_NEW*)."""
    _checked(_libc.unshare(flags), None)


def setns(fd: int, flags: int) -> None:
    """Enter namespaces of the process of the pidfd ``fd`` (Linux 5.8). With CLONE_NEWNS, the root becomes that of the namespace."""
    _checked(_libc.setns(fd, flags), None)


def die_with_parent(signal: int) -> None:
    """Request that the kernel sends this process ``signal`` when its parent ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), None)


class _OpenHow(ctypes.Structure):
    """struct open_how of linux/openat2.h."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open ``path`` relative to an open directory, within the limits ``resolve`` (RESOLVE_*), and return the descriptor (Linux 5.6).

    Raises OSError: ELOOP for a symbolic link that ``resolve`` forbids, EXDEV for a path that leads out.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    result = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_long(directory),
        ctypes.c_char_p(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    return _checked(result, path)


def change_owner(fd: int, uid: int, gid: int) -> None:
    """Set the uid and gid of the inode of ``fd``, also of a symbolic link opened with O_PATH. -1 keeps the uid or gid."""
    if _libc.fchownat(fd, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, _AT_EMPTY_PATH):
        _checked(-1, None)


def refresh(fd: int) -> None:
    """Revalidate the inode of ``fd`` with its file server, whatever is cached. Does nothing on a local file system.

    Afterwards fstat(2) is up to date, and names in a directory that has changed are looked up again. Raises OSError: ESTALE if the inode
    no longer exists.
    """
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    _checked(_libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, answer), None)


def rename_new(directory: int, source: bytes, to_directory: int, destination: bytes) -> None:
    """Rename a file without replacing another (RENAME_NOREPLACE of renameat2(2)). Raises OSError: EEXIST if the destination exists."""
    result = _libc.renameat2(directory, source, to_directory, destination, _RENAME_NOREPLACE)
    _checked(result, destination if ctypes.get_errno() == errno.EEXIST else source)


def syncfs(fd: int, path: bytes) -> None:
    """Write the file system of ``fd`` to its disk, as ``sync -f`` does."""
    _checked(_libc.syncfs(fd), path)


def keep_times(directory: int, name: bytes, atime_ns: int, follow: bool = False) -> None:
    """Set the atime of ``name`` in an open directory to the value that it has. A symbolic link is followed only with ``follow``.

    The mtime is omitted, so that a simultaneous write keeps its own.
    """
    _times[0], _times[1] = divmod(atime_ns, 1_000_000_000)
    if _libc.utimensat(directory, name, _times, 0 if follow else _AT_SYMLINK_NOFOLLOW):
        _checked(-1, name)


def has_superblock(device: tuple[int, int]) -> bool | None:
    """Return whether a superblock with this device number is alive, mounted or not (ustat(2)); None if the kernel lacks the call."""
    number = _SYS_USTAT.get(os.uname().machine)
    if number is None:
        return None
    major, minor = device
    encoded = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    try:
        _checked(_libc.syscall(ctypes.c_long(number), ctypes.c_ulong(encoded), ctypes.create_string_buffer(64)), None)
    except OSError:
        return False
    return True


def device_of(fd: int) -> tuple[int, int]:
    """Return the device number of the inode of ``fd``, also with O_PATH, without asking a file server (statx(2))."""
    status = (ctypes.c_uint32 * 64)()
    _checked(_libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, status), None)
    # stx_dev_major and stx_dev_minor are at byte 136 of struct statx.
    return status[34], status[35]


def is_on_overlay(fd: int) -> bool:
    """Return whether the inode of ``fd`` is on an overlay (fstatfs(2)). This asks the topmost layer, so it hangs if its server is dead."""
    status = (ctypes.c_uint32 * 64)()
    _checked(_libc.fstatfs(fd, status), None)
    return status[0] == _OVERLAYFS_SUPER_MAGIC


#: A struct file_handle without room for a handle, and the mount ID.
_no_handle = (ctypes.c_uint32 * 2)()
_handle_mount = ctypes.c_int()


def mount_at(path: bytes) -> int | None:
    """Return the mount ID of the inode at a path, following a symbolic link at its end (name_to_handle_at(2)).

    Nothing is opened, so this takes a third of the time of O_PATH and fdinfo. Return None if the kernel or the file system cannot answer,
    or if there is nothing at the path.
    """
    _no_handle[0] = 0
    # The kernel sets the mount ID although there is no room for the handle. Linux 6.5 makes handles for every file system.
    result = _libc.name_to_handle_at(
        AT_FDCWD, path, _no_handle, ctypes.byref(_handle_mount), _AT_SYMLINK_FOLLOW | _AT_HANDLE_FID
    )
    return _handle_mount.value if result < 0 and ctypes.get_errno() == errno.EOVERFLOW else None
