# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether nobody but root can exchange what a path leads to, as sshd asks with StrictModes.

A layer decides which files a view shows, so whoever can write to one, or rename one of the directories above it, becomes root. Every run
checks this, also one that changes nothing. Each directory on the way is opened below the one before, without following a link, and its
descriptor is what is looked at. Below a directory that has passed, paths are safe: only root can change them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

#: As many links as the kernel follows in a path.
_MOST_LINKS = 40


@dataclass(frozen=True)
class _Step:
    """Something on the way of a path."""

    path: bytes
    status: os.stat_result
    is_last: bool


def check_state_dir(state_dir: str) -> bool:
    """Return whether the state directory is there. Raises OverlayError when others than root can write to it, or exchange it."""
    return check_way(os.fsencode(state_dir))


def check_own(path: str, *kinds: int) -> bool:
    """Return whether there is something of the module's own, in a directory that was checked; it has to be of one of the kinds."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    kind = stat.S_IFMT(status.st_mode)
    if kind not in kinds:
        if kind == stat.S_IFLNK:
            raise linked(os.fsencode(path))
        raise OverlayError(f"{show(os.fsencode(path))} is in the way of what has to have this name: remove it")
    if status.st_uid != os.geteuid() or (kind != stat.S_IFLNK and status.st_mode & _OTHERS_WRITE):
        raise _writable(os.fsencode(path), status)
    return True


def check_way(path: bytes, unless_hidden: bool = False) -> bool:
    """Return whether there is something at a path. Raises OverlayError when others than root can exchange it, or write to it.

    With ``unless_hidden`` nothing matters that is below a directory which only root may enter.
    """
    reached = False
    for step in _steps(path):
        mode, uid = step.status.st_mode, step.status.st_uid
        owned = uid == os.geteuid() or (uid == 0 and not step.is_last)
        # In a sticky directory others may add names, and remove none.
        open_to_others = mode & _OTHERS_WRITE and not stat.S_ISLNK(mode) and (step.is_last or not mode & stat.S_ISVTX)
        if not owned or open_to_others:
            raise _writable(step.path, step.status)
        reached = step.is_last
        if unless_hidden and stat.S_ISDIR(mode) and not mode & 0o077:
            return True
    return reached


def _steps(path: bytes) -> Iterator[_Step]:
    """Yield what is on the way of a path, links as well as what they lead to, as far as there is anything."""
    left = [part for part in path.split(b"/") if part]
    links = 0
    #: Descriptors of the directories that lead to where the walk is, and their names.
    way = [(os.open(b"/", _HOLD), b"")]
    try:
        yield _Step(b"/", os.fstat(way[0][0]), not left)
        while left:
            part = left.pop(0)
            if part == b".." and len(way) > 1:
                os.close(way.pop()[0])
            if part in (b".", b".."):
                continue
            try:
                fd = os.open(part, _HOLD, dir_fd=way[-1][0])
            except (FileNotFoundError, NotADirectoryError):
                return
            here = b"/".join((*(name for _fd, name in way), part))
            status = os.fstat(fd)
            if not stat.S_ISLNK(status.st_mode):
                way.append((fd, part))
                yield _Step(here, status, not left)
                continue
            links += 1
            try:
                yield _Step(here, status, is_last=False)
                target = os.readlink(b"", dir_fd=fd)
            finally:
                os.close(fd)
            if links > _MOST_LINKS:
                raise OverlayError(f"{show(path)} leads through too many symbolic links")
            left = [part for part in target.split(b"/") if part] + left
            if target.startswith(b"/"):
                while len(way) > 1:
                    os.close(way.pop()[0])
    finally:
        for fd, _name in way:
            os.close(fd)


def _writable(path: bytes, status: os.stat_result) -> OverlayError:
    return OverlayError(
        f"{show(path)} belongs to user {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}: nobody but root may be able to"
        " write there, since a layer decides which files a view shows; chown it to root and chmod it to go-w, after you have looked at what"
        " is in it"
    )


def linked(path: bytes) -> OverlayError:
    return OverlayError(
        f"{show(path)} is a symbolic link, and nothing below a state directory may be one but 'current' and 'previous': remove it, and"
        " give another 'state_dir' where the files are to be elsewhere"
    )
