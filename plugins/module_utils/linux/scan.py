# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scanning a release: one walk of its tree, entry by entry, in the order of a manifest.

The walk uses descriptors of directories and never follows a symbolic link, so it cannot be led out of the release. It remembers
the names of the directories it is in, and files that have more than one name; nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import (
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    Entry,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.releases import Pattern, Release
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mounts, xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

#: The kernel looks a redirect up as one path (PATH_MAX, with its slash and its NUL), so content cannot lie deeper.
LONGEST_SOURCE = 4094

_READ_SIZE = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_REFUSED_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass
class ScanReport:
    """What a scan found besides the entries."""

    #: Files that this process may not read: no view on any host could read them with the same rights either.
    unreadable: list[bytes] = field(default_factory=list)
    #: Link counts to be put right: path of the file, and how many names it has within the release, where that differs
    #: from the link count that the file system reports.
    link_counts: dict[bytes, int] = field(default_factory=dict)


@dataclass
class _Directory:
    fd: int
    #: Path within the release with a slash at its end.
    path: bytes
    #: Names still to come, last one first.
    names: list[bytes]


@dataclass
class _Linked:
    """A file with several names: the first one met, the link count it reports, and how many names were met."""

    first: bytes
    reported: int
    seen: int = 0


class Scan:
    """One walk of a release. Iterate over it, then read ``report``.

    ``root`` is the software root and ``release`` the path of the release below it. Raises OverlayError for what a manifest cannot
    describe, and OSError where something cannot be read; both name the path.
    """

    def __init__(self, root: bytes, release: bytes, checksum: bool = False, progress: Progress = no_progress) -> None:
        self.report = ScanReport()
        self._top = os.path.join(root, release)
        self._root = root
        self._release = release
        self._checksum = checksum
        self._progress = progress
        self._device = 0
        #: By inode number: a release lies on one file system.
        self._linked: dict[int, _Linked] = {}

    def __iter__(self) -> Iterator[Entry]:
        files.allow_deep_trees()
        self._refuse_mounts_inside()
        stack: list[_Directory] = []
        try:
            fd = open_release(self._root, self._release)
            self._device = os.fstat(fd).st_dev
            yield self._enter(stack, fd, b"/")
            while stack:
                here = stack[-1]
                if not here.names:
                    os.close(stack.pop().fd)
                    continue
                yield self._entry(stack, here, here.names.pop())
        finally:
            for directory in stack:
                os.close(directory.fd)
        self._settle_link_counts()

    def _refuse_mounts_inside(self) -> None:
        # The kernel lists mounts by their real paths, and a root may be given by another one.
        inside = os.path.realpath(self._top) + b"/"
        for mount in mounts.read_mounts():
            if mount.path.startswith(inside):
                raise OverlayError(
                    f"{show(mount.path)} is a mount inside the release: a view cannot reach data across it; make it a"
                    " release of a software root of its own"
                )

    def _enter(self, stack: list[_Directory], fd: int, path: bytes) -> Entry:
        """Open a directory's listing, put it on the stack and return its entry."""
        try:
            status = os.fstat(fd)
            names = []
            subdirectories = 0
            with os.scandir(fd) as listing:
                for item in listing:
                    names.append(os.fsencode(item.name))
                    subdirectories += item.is_dir(follow_symlinks=False)
        except OSError as error:
            os.close(fd)
            raise self._at(error, path) from None
        names.sort(reverse=True)
        stack.append(_Directory(fd, path if path == b"/" else path + b"/", names))
        self._progress()
        self._check_device(status, path)
        return Entry(
            path,
            status.st_mode,
            0,
            2 + subdirectories,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            None,
            False,
            (),
        )

    def _entry(self, stack: list[_Directory], here: _Directory, name: bytes) -> Entry:
        path = here.path + name
        try:
            status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
            self._check_device(status, path)
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                return self._leaf(here, name, path, status)
            if stat.S_ISDIR(status.st_mode):
                return self._enter(stack, os.open(name, _DIRECTORY, dir_fd=here.fd), path)
        except OSError as error:
            raise self._at(error, path) from None
        kind = _REFUSED_KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown type")
        raise OverlayError(f"{self._show(path)} is {kind}: releases are made of directories, files and symbolic links")

    def _leaf(self, here: _Directory, name: bytes, path: bytes, status: os.stat_result) -> Entry:
        """Return the entry of a regular file or symbolic link, or of a further name of one."""
        target: bytes | None = None
        size = status.st_size
        found: Xattrs = ()
        first = self._first_name(path, status)
        if first != path:
            target = first
        elif stat.S_ISLNK(status.st_mode):
            target = os.readlink(name, dir_fd=here.fd)
            size = len(target)
        else:
            if size:
                target = self._release + path
                if len(target) > LONGEST_SOURCE:
                    raise OverlayError(
                        f"{self._show(path)} lies too deep: {len(target)} bytes, {LONGEST_SOURCE} at most"
                    )
            found = self._attributes(here, name, path, status)
        return Entry(
            path,
            status.st_mode,
            size,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            target,
            first != path,
            found,
        )

    def _first_name(self, path: bytes, status: os.stat_result) -> bytes:
        """Return under which path a file was first met, and remember this meeting if the file has more names."""
        if status.st_nlink == 1:
            return path
        linked = self._linked.setdefault(status.st_ino, _Linked(path, status.st_nlink))
        linked.seen += 1
        return linked.first

    def _attributes(self, here: _Directory, name: bytes, path: bytes, status: os.stat_result) -> Xattrs:
        found = []
        # Through /proc, since there is no call that takes a directory's descriptor and a name and opens nothing.
        capability = xattrs.read(b"/proc/self/fd/%d/%s" % (here.fd, name), CAPABILITY_XATTR)
        if capability is not None:
            found.append((CAPABILITY_XATTR, capability))
        if self._checksum or not status.st_mode & stat.S_IROTH:
            digest = self._read(here, name, path)
            if digest is not None and self._checksum:
                found.append((CHECKSUM_XATTR, digest))
        return tuple(found)

    def _read(self, here: _Directory, name: bytes, path: bytes) -> bytes | None:
        """Return the SHA-256 of a file's content, or just try to open it; None for a file that may not be read."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here.fd)
        except PermissionError:
            self.report.unreadable.append(path)
            return None
        with open(fd, "rb", buffering=0) as stream:
            digest = hashlib.sha256()
            while self._checksum:
                block = stream.read(_READ_SIZE)
                if not block:
                    break
                digest.update(block)
                self._progress()
        return digest.hexdigest().encode("ascii")

    def _check_device(self, status: os.stat_result, path: bytes) -> None:
        if status.st_dev != self._device:
            raise OverlayError(
                f"{self._show(path)} is on another file system than the release: a view cannot reach data across a mount;"
                " make it a release of a software root of its own"
            )

    def _settle_link_counts(self) -> None:
        """Find the files with names outside of the release: their link count is that of their names inside."""
        for linked in self._linked.values():
            if linked.seen != linked.reported:
                self.report.link_counts[linked.first] = linked.seen

    def _show(self, path: bytes) -> str:
        return show(self._top + path)

    def _at(self, error: OSError, path: bytes) -> OSError:
        return OSError(error.errno, error.strerror, os.fsdecode(self._top + path))


def open_root(root: bytes) -> int:
    """Return a descriptor of the software root's directory. Raises OverlayError when there is none."""
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OverlayError(f"software root {show(root)} does not exist: is it mounted?") from None
    except NotADirectoryError:
        raise OverlayError(f"software root {show(root)} is not a directory") from None


def open_release(root: bytes, release: bytes) -> int:
    """Return a descriptor of a release's directory.

    Raises OverlayError when there is none, or a symbolic link or a mount on the way: a view finds content by a path in its data
    layer, and the kernel follows neither there.
    """
    fd = open_root(root)
    path = root
    mount = _mount_id(fd)
    for name in release.split(b"/"):
        path = os.path.join(path, name)
        try:
            inner = os.open(name, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            raise OverlayError(f"release {show(release)} does not exist: there is no {show(path)}") from None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
            kind = "a symbolic link" if stat.S_ISLNK(os.lstat(path).st_mode) else "not a directory"
            raise OverlayError(f"{show(path)} is {kind}: name the release by its own path") from None
        finally:
            os.close(fd)
        fd = inner
        if _mount_id(fd) != mount:
            os.close(fd)
            raise OverlayError(
                f"{show(path)} is a mount below the software root, such as a nested export: a view cannot reach data across"
                " it; make it a software root of its own, with a manifest store, a view and a mountpoint of its own"
            )
    return fd


def _mount_id(fd: int) -> bytes:
    """Return the number of the mount that a descriptor was opened through. A bind mount has its own, unlike its device."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as stream:
        return next(line for line in stream if line.startswith(b"mnt_id:"))


def find_releases(
    root: str, pattern: Pattern, unlisted: list[str], progress: Progress = no_progress
) -> Iterator[Release]:
    """Yield the releases below a software root, listing only the directories that can lead to one.

    Directories below the root that may not be listed, as ``lost+found``, are passed over and added to ``unlisted``.
    """
    yield from _find(root, [], pattern, unlisted, progress)


def _find(
    folder: str, names: list[str], pattern: Pattern, unlisted: list[str], progress: Progress
) -> Iterator[Release]:
    level = pattern.levels[len(names)]
    try:
        with os.scandir(folder) as listing:
            inner = [item.name for item in listing if level.fullmatch(item.name) and item.is_dir(follow_symlinks=False)]
    except PermissionError:
        if not names:
            raise
        unlisted.append(folder)
        return
    progress()
    for name in inner:
        here = [*names, name]
        if len(here) < len(pattern.levels):
            yield from _find(os.path.join(folder, name), here, pattern, unlisted, progress)
        else:
            release = pattern.release(here)
            if release:
                yield release


def is_ready(root: bytes, release: bytes, marker: bytes) -> bool:
    """Tell whether the file that marks a finished release is there; an empty ``marker`` means that all are finished."""
    return not marker or os.path.lexists(os.path.join(root, release, marker))
