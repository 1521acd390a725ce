# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out whether the xattrs of a layer fit into the inodes of a file system.

Otherwise the file system uses a block of its own for each file of the layer, which takes ten times the space and the time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount

#: What to do if the inodes of a file system are too small.
SPILL_ADVICE = (
    "put the state directory on a file system with inodes of 512 bytes or more (mkfs.ext4 -I 512, XFS) or on tmpfs"
)


def existing_parent(path: str) -> str:
    """Return a path if it is a directory, else the closest directory above it."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def filesystem_of(path: str, live: Sequence[Mount]) -> Mount | None:
    """Return the mount that holds a path, which need not exist yet; None if ``live`` does not have it."""
    return containing_mount(live, os.fsencode(os.path.realpath(path)))


def attributes_fit(path: str, namespace: str, redirect_length: int = 120) -> bool | None:
    """Return whether the xattrs of a layer fit into the inodes of the file system at the directory ``path``; None if unknown.

    The xattrs are set on a file without a name, which leaves no trace. ``redirect_length`` is the length of the redirect in bytes; the
    default is that of a usual path.
    """
    try:
        fd = os.open(path, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        os.setxattr(fd, f"{namespace}.overlay.metacopy", b"")
        os.setxattr(fd, f"{namespace}.overlay.redirect", b"/" + b"x" * redirect_length)
        os.fsync(fd)
        return os.fstat(fd).st_blocks == 0
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return None
        raise
    finally:
        os.close(fd)


def spill_warning(path: str, files: int, spilled: int, bytes_on_disk: int) -> list[str]:
    """Return a warning if the xattrs of most files of a layer below ``path`` did not fit into their inodes; else an empty list.

    ``spilled`` of ``files`` files did not fit. The layer uses ``bytes_on_disk`` bytes.
    """
    if spilled * 2 <= files:
        return []
    mount = filesystem_of(path, namespaces.own_mounts())
    kind = show(mount.fstype) if mount else "the file system"
    megabytes = bytes_on_disk / 1_000_000
    return [
        (
            f"the xattrs of {spilled} of {files} files do not fit into the inodes of {kind} at {path}: each file uses a block of its own"
            f" ({megabytes:.0f} MB in all); {SPILL_ADVICE}"
        )
    ]
