# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work inside trees that other users may write to: by descriptor, never through a symbolic link, never out of the tree.

A path is resolved once, to a descriptor. What is checked and what is changed afterwards is that descriptor, so exchanging a name in
between changes nothing.
"""

from __future__ import annotations

import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS

#: Flags to open a directory in order to list it.
LISTING = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Flags to hold whatever has a name, a symbolic link itself too, without opening it.
HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_at(directory: int, path: bytes, flags: int = LISTING, same_mount: bool = False) -> int:
    """Open ``path``, relative to the open ``directory``, and return the descriptor.

    Raises OSError: ELOOP for a symbolic link anywhere in the path, EXDEV for a path that leads out of the directory, or to another
    mount with ``same_mount``.
    """
    resolve = _RESOLVE | (syscalls.RESOLVE_NO_XDEV if same_mount else 0)
    return syscalls.openat2(directory, path or b".", flags, resolve)


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
