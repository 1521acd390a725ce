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

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CHECKSUM_XATTR, Entry, Xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_check import (
    LARGEST_SIZE,
    LONGEST_DIRECTORY,
    SYMLINK_MODE,
    is_mtime,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_rights import RightsReader
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern, Release
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount

#: How many unreadable files and directories are kept by name; all are counted.
UNREADABLE_KEPT = 100

_READ_SIZE = 1 << 20

#: What a name is that is not there, or that nobody here may look at.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EACCES)

_REFUSED_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass
class ScanReport:
    """What a scan found besides the entries."""

    #: Files with content that not everybody may read, and directories that not everybody may enter, these with a slash at the end and
    #: without what is in them. Where the file server takes root for nobody, no view can read them, whoever scans them.
    unreadable: PathCount = field(default_factory=lambda: PathCount(kept=UNREADABLE_KEPT))
    #: Directories that are recorded without what is in them, which root of this host may not list or enter.
    unlisted: PathCount = field(default_factory=PathCount)
    #: Entries whose ACL is not carried.
    narrowed: PathCount = field(default_factory=PathCount)
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
    #: Not everybody may enter it, or a directory above it.
    closed: bool


@dataclass
class _Linked:
    """A file with several names: the entry of the first one met, and how many names were met."""

    first: Entry
    seen: int = 1


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
        self._rights: RightsReader
        #: By inode number: a release lies on one file system.
        self._linked: dict[int, _Linked] = {}

    def __iter__(self) -> Iterator[Entry]:
        files.allow_deep_trees()
        self._refuse_mounts_inside()
        stack: list[_Directory] = []
        try:
            fd = open_release(self._root, self._release)
            self._device = os.fstat(fd).st_dev
            self._rights = RightsReader(fd)
            self.report.narrowed = self._rights.narrowed
            yield self._enter(stack, fd, b"/", self._is_closed_above())
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

    def _is_closed_above(self) -> bool:
        """Tell whether there is a directory above the release, from the software root on, that not everybody may enter."""
        path = self._root
        for name in self._release.split(b"/"):
            if not os.stat(path).st_mode & stat.S_IXOTH:
                self.report.unreadable.add(b"/")
                return True
            path = os.path.join(path, name)
        return False

    def _refuse_mounts_inside(self) -> None:
        # The kernel lists mounts by their real paths, and a root may be given by another one.
        inside = os.path.realpath(self._top) + b"/"
        for mount in namespaces.own_mounts():
            if mount.path.startswith(inside):
                raise OverlayError(
                    f"{show(mount.path)} is a mount inside the release: a view cannot reach data across it; make it a"
                    " release of a software root of its own"
                )

    def _enter(self, stack: list[_Directory], fd: int, path: bytes, closed: bool) -> Entry:
        """Open a directory's listing, put it on the stack and return its entry. ``closed`` is what holds of its parent."""
        try:
            status = os.fstat(fd)
            names = []
            subdirectories = 0
            with os.scandir(fd) as listing:
                for item in listing:
                    names.append(os.fsencode(item.name))
                    subdirectories += item.is_dir(follow_symlinks=False)
            self._check_device(status, path)
            if not status.st_mode & stat.S_IXOTH and not _can_enter(fd, names):
                return self._shut(fd, status, path, closed)
            entry = self._directory(fd, status, path, 2 + subdirectories)
        except OSError as error:
            os.close(fd)
            raise self._at(error, path) from None
        except OverlayError:
            os.close(fd)
            raise
        names.sort(reverse=True)
        inside = path if path == b"/" else path + b"/"
        stack.append(_Directory(fd, inside, names, self._note_closed(entry, closed)))
        self._progress()
        return entry

    def _shut(self, directory: int | bytes, status: os.stat_result, path: bytes, closed: bool) -> Entry:
        """Return the entry of a directory that this process may not list or enter.

        Raises OverlayError where the readers of a view could: it would lack the files in the directory. Raises PermissionError for
        users other than root, whose views are read by root.
        """
        if os.geteuid() != 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        entry = self._directory(directory, status, path, 2)
        if not self._note_closed(entry, closed):
            raise OverlayError(
                f"{self._show(path)} has mode {stat.S_IMODE(entry.mode):04o}: everybody may enter it, and this host may not list it,"
                " so a view would lack what is in it; let everybody list it (chmod o+r), or scan the release on the file server"
            )
        self.report.unlisted.add(path)
        if isinstance(directory, int):
            os.close(directory)
        return entry

    def _note_closed(self, entry: Entry, closed: bool) -> bool:
        """Tell whether a directory is closed to somebody, and report the topmost one that is."""
        if not closed and not entry.mode & stat.S_IXOTH:
            self.report.unreadable.add(entry.path.rstrip(b"/") + b"/")
            return True
        return closed

    def _directory(self, target: int | bytes, status: os.stat_result, path: bytes, nlink: int) -> Entry:
        length = len(self._release) + len(path)
        if length > LONGEST_DIRECTORY:
            raise OverlayError(f"{self._show(path)} lies too deep: {length} bytes, {LONGEST_DIRECTORY} at most")
        mode, found = self._rights.read(target, status, path)
        mtime_ns = self._mtime(status, path)
        return Entry(path, mode, 0, nlink, status.st_uid, status.st_gid, mtime_ns, None, False, found)

    def _entry(self, stack: list[_Directory], here: _Directory, name: bytes) -> Entry:
        path = here.path + name
        try:
            status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
            self._check_device(status, path)
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                return self._leaf(here, name, path, status)
            if stat.S_ISDIR(status.st_mode):
                try:
                    fd = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=here.fd)
                except PermissionError:
                    return self._shut(_path_of(here, name), status, path, here.closed)
                return self._enter(stack, fd, path, here.closed)
        except OSError as error:
            raise self._at(error, path) from None
        kind = _REFUSED_KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown type")
        raise OverlayError(f"{self._show(path)} is {kind}: releases are made of directories, files and symbolic links")

    def _leaf(self, here: _Directory, name: bytes, path: bytes, status: os.stat_result) -> Entry:
        """Return the entry of a regular file or symbolic link, or of a further name of one."""
        linked = self._linked.get(status.st_ino) if status.st_nlink != 1 else None
        if linked:
            linked.seen += 1
            return linked.first._replace(path=path, target=linked.first.path, is_hardlink=True, xattrs=())
        target: bytes | None = None
        mode, size = status.st_mode, status.st_size
        found: Xattrs = ()
        if stat.S_ISLNK(mode):
            target = os.readlink(name, dir_fd=here.fd)
            # Other systems, as file servers, give links modes of their own, which mean nothing.
            mode, size = SYMLINK_MODE, len(target)
        else:
            if size > LARGEST_SIZE:
                raise OverlayError(f"{self._show(path)} has {size} bytes, and a layer shows {LARGEST_SIZE} at most")
            target = self._release + path if size else None
            mode, found = self._attributes(here, name, path, status)
        mtime_ns = self._mtime(status, path)
        entry = Entry(path, mode, size, status.st_nlink, status.st_uid, status.st_gid, mtime_ns, target, False, found)
        if status.st_nlink != 1:
            self._linked[status.st_ino] = _Linked(entry)
        return entry

    def _mtime(self, status: os.stat_result, path: bytes) -> int:
        if not is_mtime(status.st_mtime_ns):
            raise OverlayError(
                f"{self._show(path)} has an mtime of {status.st_mtime:.0f} seconds since 1970, which layers cannot hold: touch it"
            )
        return status.st_mtime_ns

    def _attributes(self, here: _Directory, name: bytes, path: bytes, status: os.stat_result) -> tuple[int, Xattrs]:
        mode, found = self._rights.read(_path_of(here, name), status, path)
        readable = bool(mode & stat.S_IROTH) or not status.st_size
        if self._checksum:
            digest = self._read(here, name)
            if digest is None:
                readable = False
            else:
                found += ((CHECKSUM_XATTR, digest),)
        if not readable and not here.closed:
            self.report.unreadable.add(path)
        return mode, found

    def _read(self, here: _Directory, name: bytes) -> bytes | None:
        """Return the SHA-256 of a file's content; None for a file that may not be read."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here.fd)
        except PermissionError:
            return None
        with open(fd, "rb", buffering=0) as stream:
            digest = hashlib.sha256()
            while True:
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
            if linked.seen != linked.first.nlink:
                self.report.link_counts[linked.first.path] = linked.seen

    def _show(self, path: bytes) -> str:
        return show(self._top + path)

    def _at(self, error: OSError, path: bytes) -> OSError:
        return OSError(error.errno, error.strerror, os.fsdecode(self._top + path))


def _path_of(here: _Directory, name: bytes) -> bytes:
    """Return a path of an entry: there is no call that takes a directory's descriptor and a name and reads attributes."""
    return b"/proc/self/fd/%d/%s" % (here.fd, name)


def _can_enter(fd: int, names: list[bytes]) -> bool:
    """Tell whether what is in a directory that was listed can be looked at, by trying it with one name."""
    try:
        for name in names[:1]:
            os.stat(name, dir_fd=fd, follow_symlinks=False)
    except PermissionError:
        return False
    except FileNotFoundError:
        pass
    return True


def open_root(root: bytes) -> int:
    """Return a descriptor of the software root's directory. Raises OverlayError when there is none."""
    try:
        return os.open(root, syscalls.LIST_DIRECTORY)
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
    mount = beneath.mount_of(fd)
    for name in release.split(b"/"):
        path = os.path.join(path, name)
        try:
            inner = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=fd)
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
        if beneath.mount_of(fd) != mount:
            os.close(fd)
            raise OverlayError(
                f"{show(path)} is a mount below the software root, such as a nested export: a view cannot reach data across"
                " it; make it a software root of its own, with a manifest store, a view and a mountpoint of its own"
            )
    return fd


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
    """Tell whether the file that marks a finished release is there; an empty ``marker`` means that all are finished.

    An NFS client asks its server, so that a release whose marker was removed a moment ago is not taken for finished.
    """
    if not marker:
        return True
    try:
        fd = os.open(os.path.join(root, release), syscalls.HOLD_DIRECTORY | os.O_NOFOLLOW)
        try:
            syscalls.refresh(fd)
            os.stat(marker, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        return False
    return True
