# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve paths without asking a file server, which may be unreachable and never answer."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount

#: Types of file systems that answer without a server. Any other type may ask one, as an overlay over NFS does.
_LOCAL = frozenset(b"bcachefs btrfs devtmpfs erofs ext2 ext3 ext4 f2fs ramfs rootfs squashfs tmpfs xfs zfs".split())

#: The most symbolic links that the kernel follows in one path (path_resolution(7)).
_MOST_LINKS = 40


def is_local(path: bytes, mounts: Sequence[Mount]) -> bool:
    """Return whether a path without symbolic links is on a local file system, so that looking it up cannot hang."""
    mount = mountinfo.containing_mount(mounts, path)
    return mount is not None and mount.fstype in _LOCAL


def resolved(path: bytes, mounts: Sequence[Mount]) -> bytes:
    """Return an absolute path with the symbolic links on local file systems resolved.

    The rest of the path below the mountpoint of another file system is kept as it is written. The mountpoint itself is not looked up.
    """
    rest = path.split(b"/")
    here = b"/"
    links = 0
    while rest:
        name = rest.pop(0)
        step = posixpath.normpath(posixpath.join(here, name or b"."))
        if step == here or name == b"..":
            here = step
            continue
        if links > _MOST_LINKS or not is_local(step, mounts):
            return posixpath.normpath(posixpath.join(step, *rest))
        try:
            target = os.readlink(step)
        except OSError:  # it is not a link, or does not exist
            here = step
            continue
        links += 1
        here = b"/" if target.startswith(b"/") else here
        rest = [*target.split(b"/"), *rest]
    return here


def mountpoint(path: bytes, mounts: Sequence[Mount]) -> bytes:
    """Return the path of a mountpoint without symbolic links. If something is mounted there, it is not looked up."""
    parent, name = posixpath.split(
        posixpath.normpath(path) if b".." not in path.split(b"/") else os.path.realpath(path)
    )
    place = posixpath.join(os.path.realpath(parent), name)
    return place if mountinfo.top_mount(mounts, place) else os.path.realpath(path)


#: Prefixes of the types of file systems whose server or daemon may be unreachable, so that nothing on them may be looked up.
REMOTE = (b"nfs", b"cifs", b"smb", b"fuse", b"9p", b"ceph", b"lustre", b"afs", b"autofs", b"gpfs", b"beegfs")
