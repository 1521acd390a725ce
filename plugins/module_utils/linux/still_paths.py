# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths as they are known without asking a file server, which may be gone and never answer."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount

#: File systems that answer by themselves. What is not known is taken for one that asks somebody else, as overlays may.
_LOCAL = frozenset(b"bcachefs btrfs devtmpfs erofs ext2 ext3 ext4 f2fs ramfs rootfs squashfs tmpfs xfs zfs".split())

#: How many symbolic links the kernel follows in one path (path_resolution(7)).
_MOST_LINKS = 40


def is_local(path: bytes, mounts: Sequence[Mount]) -> bool:
    """Tell whether a path without symbolic links is on a file system of this host, so that looking at it cannot hang."""
    mount = mountinfo.containing_mount(mounts, path)
    return mount is not None and mount.fstype in _LOCAL


def resolved(path: bytes, mounts: Sequence[Mount]) -> bytes:
    """Return an absolute path without symbolic links, as far as they are on file systems of this host.

    What is below a mountpoint of another file system is taken as it is written, and the mountpoint itself is not looked at.
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
        except OSError:  # no link, or nothing is there
            here = step
            continue
        links += 1
        here = b"/" if target.startswith(b"/") else here
        rest = [*target.split(b"/"), *rest]
    return here


def mountpoint(path: bytes, mounts: Sequence[Mount]) -> bytes:
    """Return an absolute path without symbolic links; what is mounted there is not looked at."""
    folder, name = posixpath.split(
        posixpath.normpath(path) if b".." not in path.split(b"/") else os.path.realpath(path)
    )
    place = posixpath.join(os.path.realpath(folder), name)
    return place if mountinfo.top_mount(mounts, place) else os.path.realpath(path)


#: File systems whose server or daemon may be gone, so that they are not asked for their type.
REMOTE = (b"nfs", b"cifs", b"smb", b"fuse", b"9p", b"ceph", b"lustre", b"afs", b"autofs", b"gpfs", b"beegfs")
