# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scan a release: walk its tree once and yield its entries in manifest order. Find releases on the software root.

The walk uses directory descriptors and never follows a symbolic link, so it cannot leave the release. Memory is needed for the names in
open directories and for files with several names only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, did_you_mean, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CHECKSUM_XATTR, Entry, Xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_check import (
    LARGEST_SIZE,
    LONGEST_DIRECTORY,
    SYMLINK_MODE,
    is_mtime,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_rights import RightsReader
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import (
    NEGATIVE_MARKERS,
    PACKAGE_DEFINITIONS,
    IgnoredNames,
    Pattern,
    Release,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan_report import ScanReport

#: Errors for a path that does not exist or that this process may not access.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.EACCES)

_REFUSED_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass
class _Directory:
    """An open directory of the walk."""

    fd: int
    #: Path within the release, with a trailing slash.
    path: bytes
    #: Names that have not been visited yet, in reverse order.
    names: list[bytes]
    #: True if not everybody may enter this directory or one above it.
    closed: bool


@dataclass
class _Linked:
    """A file with several names: the entry of its first name, and the number of its names that were found."""

    first: Entry
    seen: int = 1


class Scan:
    """One walk of a release. Iterate over its entries, then read ``report``.

    ``root`` is the software root, ``release`` the path of the release below it. With ``checksum`` the content of every file is read and its
    SHA-256 recorded. ``ignored`` are names that are left out, by default the usual ones. ``name`` is that of the release in the manifest
    store, by default its path. Iterating raises OverlayError naming the path if a manifest cannot describe the release, and OSError if it
    cannot be read.
    """

    def __init__(
        self,
        root: bytes,
        release: bytes,
        checksum: bool = False,
        progress: Progress = no_progress,
        ignored: IgnoredNames | None = None,
        name: bytes | None = None,
    ) -> None:
        self.report = ScanReport()
        self._ignored = IgnoredNames() if ignored is None else ignored
        self._top = os.path.join(root, release)
        self._root = root
        self._release = release
        self._name = release if name is None else name
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
        """Return whether not everybody may enter the software root or a directory between it and the release."""
        path = self._root
        for name in self._release.split(b"/"):
            if not os.stat(path).st_mode & stat.S_IXOTH:
                self.report.unreadable.add(b"/")
                return True
            path = os.path.join(path, name)
        return False

    def _refuse_mounts_inside(self) -> None:
        """Raises OverlayError if anything is mounted inside the release."""
        # The kernel lists mounts by their real paths. The given path of the root may have symbolic links in it.
        inside = os.path.realpath(self._top) + b"/"
        for mount in namespaces.own_mounts():
            if mount.path.startswith(inside):
                raise OverlayError(
                    f"{show(mount.path)} is a mount inside the release: a view cannot read data across a mount; make it a"
                    " release of a separate software root"
                )

    def _enter(self, stack: list[_Directory], fd: int, path: bytes, closed: bool) -> Entry:
        """List the open directory ``fd``, push it onto the stack and return its entry. ``closed`` is that of its parent."""
        try:
            status = os.fstat(fd)
            names = []
            subdirectories = 0
            with os.scandir(fd) as listing:
                for item in listing:
                    name = os.fsencode(item.name)
                    if name in self._ignored:
                        self.report.ignored.add(os.path.join(path, name))
                        continue
                    names.append(name)
                    subdirectories += item.is_dir(follow_symlinks=False)
            self._check_device(status, path)
            if not status.st_mode & stat.S_IXOTH and not _can_enter(fd, names):
                return self._unlisted(fd, status, path, closed)
            entry = self._directory(fd, status, path, 2 + subdirectories)
        except OSError as error:
            os.close(fd)
            raise self._with_path(error, path) from None
        except OverlayError:
            os.close(fd)
            raise
        names.sort(reverse=True)
        inside = path if path == b"/" else path + b"/"
        stack.append(_Directory(fd, inside, names, self._note_closed(entry, closed)))
        self._progress()
        return entry

    def _unlisted(self, directory: int | bytes, status: os.stat_result, path: bytes, closed: bool) -> Entry:
        """Return the entry of a directory that this process may not list or enter, given its descriptor or a path.

        Raises OverlayError if the users of a view could enter the directory, since the files in it would be missing. Raises
        PermissionError if this process is not root, because root could list the directory.
        """
        if os.geteuid() != 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        entry = self._directory(directory, status, path, 2)
        if not self._note_closed(entry, closed):
            raise OverlayError(
                f"{self._show(path)} has mode {stat.S_IMODE(entry.mode):04o}: everybody may enter it, and this host may not list it,"
                " so its content would be missing in a view; let everybody list it (chmod o+r), or scan the release on the file server"
            )
        self.report.unlisted.add(path)
        if isinstance(directory, int):
            os.close(directory)
        return entry

    def _note_closed(self, entry: Entry, closed: bool) -> bool:
        """Return whether not everybody may enter a directory or one above it, and report the topmost such directory."""
        if not closed and not entry.mode & stat.S_IXOTH:
            self.report.unreadable.add(entry.path.rstrip(b"/") + b"/")
            return True
        return closed

    def _directory(self, target: int | bytes, status: os.stat_result, path: bytes, nlink: int) -> Entry:
        """Return the entry of a directory, given its descriptor or a path. Raises OverlayError if its path is too long."""
        length = len(self._name) + len(path)
        if length > LONGEST_DIRECTORY:
            raise OverlayError(
                f"{self._show(path)} is nested too deeply: {length} bytes, and at most {LONGEST_DIRECTORY} are allowed"
            )
        mode, found = self._rights.read(target, status, path)
        mtime_ns = self._mtime(status, path)
        return Entry(path, mode, 0, nlink, status.st_uid, status.st_gid, mtime_ns, None, False, found)

    def _entry(self, stack: list[_Directory], here: _Directory, name: bytes) -> Entry:
        """Return the entry of a name in the directory ``here``. A subdirectory is pushed onto the stack."""
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
                    return self._unlisted(_path_of(here, name), status, path, here.closed)
                return self._enter(stack, fd, path, here.closed)
        except OSError as error:
            raise self._with_path(error, path) from None
        kind = _REFUSED_KINDS.get(stat.S_IFMT(status.st_mode), "of an unknown type")
        raise OverlayError(
            f"{self._show(path)} is {kind}: a release may have only directories, regular files and symbolic links; remove it, or add its"
            " name to ignore_names"
        )

    def _leaf(self, here: _Directory, name: bytes, path: bytes, status: os.stat_result) -> Entry:
        """Return the entry of a regular file or symbolic link. Every name of a file but the first one is a hard link."""
        linked = self._linked.get(status.st_ino) if status.st_nlink != 1 else None
        if linked:
            linked.seen += 1
            return linked.first._replace(path=path, target=linked.first.path, is_hardlink=True, xattrs=())
        target: bytes | None = None
        mode, size = status.st_mode, status.st_size
        found: Xattrs = ()
        if stat.S_ISLNK(mode):
            target = os.readlink(name, dir_fd=here.fd)
            # File servers with other systems send modes of symbolic links, which have no meaning.
            mode, size = SYMLINK_MODE, len(target)
        else:
            if size > LARGEST_SIZE:
                raise OverlayError(f"{self._show(path)} has {size} bytes, and a layer can show at most {LARGEST_SIZE}")
            target = self._name + path if size else None
            mode, found = self._attributes(here, name, path, status)
        mtime_ns = self._mtime(status, path)
        entry = Entry(path, mode, size, status.st_nlink, status.st_uid, status.st_gid, mtime_ns, target, False, found)
        if status.st_nlink != 1:
            self._linked[status.st_ino] = _Linked(entry)
        return entry

    def _mtime(self, status: os.stat_result, path: bytes) -> int:
        """Return the mtime in nanoseconds since 1970. Raises OverlayError if layers cannot hold it."""
        if not is_mtime(status.st_mtime_ns):
            raise OverlayError(
                f"{self._show(path)} has an mtime of {status.st_mtime:.0f} seconds since 1970, which layers cannot hold: touch it"
            )
        return status.st_mtime_ns

    def _attributes(self, here: _Directory, name: bytes, path: bytes, status: os.stat_result) -> tuple[int, Xattrs]:
        """Return the mode and xattrs of a regular file for the manifest, and report the file if not everybody may read it."""
        mode, found = self._rights.read(_path_of(here, name), status, path)
        readable = bool(mode & stat.S_IROTH) or not status.st_size
        if self._checksum:
            digest = self._digest(here, name)
            if digest is None:
                readable = False
            else:
                found += ((CHECKSUM_XATTR, digest),)
        if not readable and not here.closed:
            self.report.unreadable.add(path)
        return mode, found

    def _digest(self, here: _Directory, name: bytes) -> bytes | None:
        """Return the SHA-256 of a file's content as hexadecimal text, or None if this process may not read the file."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here.fd)
        except PermissionError:
            return None
        try:
            return files.sha256(fd, self._progress).encode("ascii")
        finally:
            os.close(fd)

    def _check_device(self, status: os.stat_result, path: bytes) -> None:
        """Raises OverlayError if a file is on another file system than the release."""
        if status.st_dev != self._device:
            raise OverlayError(
                f"{self._show(path)} is on another file system than the release: a view cannot read data across a mount;"
                " make it a release of a separate software root"
            )

    def _settle_link_counts(self) -> None:
        """Report files with names outside of the release: only the names in the release are counted as links."""
        for linked in self._linked.values():
            if linked.seen != linked.first.nlink:
                self.report.link_counts[linked.first.path] = linked.seen

    def _show(self, path: bytes) -> str:
        return show(self._top + path)

    def _with_path(self, error: OSError, path: bytes) -> OSError:
        return OSError(error.errno, error.strerror, os.fsdecode(self._top + path))


def _path_of(here: _Directory, name: bytes) -> bytes:
    """Return a path of an entry for reading xattrs, since no system call for that takes a directory descriptor and a name."""
    return b"/proc/self/fd/%d/%s" % (here.fd, name)


def _can_enter(fd: int, names: list[bytes]) -> bool:
    """Return whether this process may enter a directory that it could list, by calling stat(2) for one name in it."""
    try:
        for name in names[:1]:
            os.stat(name, dir_fd=fd, follow_symlinks=False)
    except PermissionError:
        return False
    except FileNotFoundError:
        pass
    return True


def open_root(root: bytes) -> int:
    """Return an open descriptor of the software root. Raises OverlayError if it does not exist or is not a directory."""
    try:
        return os.open(root, syscalls.LIST_DIRECTORY)
    except FileNotFoundError:
        raise OverlayError(f"software root {show(root)} does not exist: is it mounted?") from None
    except NotADirectoryError:
        raise OverlayError(f"software root {show(root)} is not a directory") from None


def _like(directory: int, name: bytes) -> str:
    """Return the end of a message about a missing name: the name in an open directory that is most like it; empty if none is."""
    try:
        names = os.listdir(directory)
    except OSError:
        return ""
    return did_you_mean(os.fsdecode(name), [other for other in names if not other.startswith(".")])


def open_release(root: bytes, release: bytes) -> int:
    """Return an open descriptor of the directory of a release.

    Raises OverlayError if the release does not exist, or its path has a symbolic link or a mount in it: the kernel finds content by its
    path in the data layer and follows neither there.
    """
    fd = open_root(root)
    path = root
    mount = beneath.mount_of(fd)
    for name in release.split(b"/"):
        path = os.path.join(path, name)
        try:
            inner = os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            meant = _like(fd, name)
            raise OverlayError(f"release {show(release)} does not exist: there is no {show(path)}{meant}") from None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
            kind = "a symbolic link" if stat.S_ISLNK(os.lstat(path).st_mode) else "not a directory"
            raise OverlayError(f"{show(path)} is {kind}: give the path of the release itself") from None
        finally:
            os.close(fd)
        fd = inner
        if beneath.mount_of(fd) != mount:
            os.close(fd)
            raise OverlayError(
                f"{show(path)} is a mount below the software root, such as a nested export: a view cannot read data across a mount;"
                " make it a separate software root, with its own manifest store, view and mountpoint"
            )
    return fd


@dataclass(frozen=True)
class PassedOver:
    """What a search for releases leaves out."""

    #: Directories that this process may not list.
    unlisted: list[str] = field(default_factory=list)
    #: Symbolic links at places where a release or a directory of releases could be: the path below the root, and the target.
    links: list[tuple[str, str]] = field(default_factory=list)
    #: The path below the root of each rez package that has no version, and the name of the file that defines it.
    unversioned: list[tuple[str, str]] = field(default_factory=list)

    def unversioned_values(self, prefix: str) -> list[dict[str, str]]:
        """Return the packages without a version as release_info does, sorted by path. ``prefix`` is that of ``entries.below_root``."""
        return [
            {"path": f"{prefix}/{path}" if prefix else path, "definition": definition}
            for path, definition in sorted(self.unversioned)
        ]


@dataclass(frozen=True)
class _Search:
    """What a search for releases needs in each directory."""

    pattern: Pattern
    ignored: IgnoredNames
    passed_over: PassedOver
    progress: Progress


def find_releases(
    root: str,
    pattern: Pattern,
    passed_over: PassedOver,
    progress: Progress = no_progress,
    ignored: IgnoredNames | None = None,
) -> Iterator[Release]:
    """Yield the releases below a software root that match ``pattern``. Directories that cannot contain a release are not listed.

    Directories with ``ignored`` names, by default the usual ones, are skipped.

    A negative marker beside a version (``patterns.NEGATIVE_MARKERS``) is noted in its release.

    What is left out is added to ``passed_over``: directories that this process may not list, such as ``lost+found``, symbolic links, which
    are not followed, and rez packages without a version. Raises OSError if the root cannot be listed.
    """
    names = IgnoredNames() if ignored is None else ignored
    search = _Search(pattern, names, passed_over, progress)
    # Held, so that an automounter does not unmount the root in the meantime.
    with namespaces.held([os.fsencode(root)]):
        yield from _find(directory=root, names=[], held_back_by="", search=search)


def _find(directory: str, names: list[str], held_back_by: str, search: _Search) -> Iterator[Release]:
    level, pattern, passed_over = len(names), search.pattern, search.passed_over
    try:
        inside = _inside_of(directory, pattern.levels[level], search.ignored)
    except PermissionError:
        if not names:
            raise
        passed_over.unlisted.append(directory)
        return
    search.progress()
    passed_over.links.extend(("/".join((*names, name)), target) for name, target in inside.links)
    if inside.definition and pattern.is_beside_versions(level):
        passed_over.unversioned.append(("/".join(names), inside.definition))
    for name in inside.directories:
        here = [*names, name]
        held = held_back_by or next((one for one in pattern.markers(level, name) if one in inside.markers), "")
        if len(here) < len(pattern.levels):
            yield from _find(os.path.join(directory, name), here, held, search)
        else:
            release = pattern.release(here, held)
            if release:
                yield release


@dataclass(frozen=True)
class _Inside:
    """What is in a directory, as far as it matters for a level of a pattern."""

    directories: list[str]
    #: The negative markers.
    markers: set[str]
    #: The symbolic links that match, each with its target.
    links: list[tuple[str, str]]
    #: The name of the file that defines a rez package; empty if there is none.
    definition: str


def _inside_of(directory: str, level: re.Pattern[str], ignored: IgnoredNames) -> _Inside:
    found, markers, linked, definition = [], set(), [], ""
    # An NFS client keeps a listing as long as attributes, which is an hour on a software root.
    with files.fresh_listing(directory) as listing:
        for item in listing:
            if item.name.startswith(NEGATIVE_MARKERS):
                markers.add(item.name)
            elif item.name in PACKAGE_DEFINITIONS and not item.is_dir(follow_symlinks=False):
                definition = item.name
            elif level.fullmatch(item.name) and os.fsencode(item.name) not in ignored:
                if item.is_dir(follow_symlinks=False):
                    found.append(item.name)
                elif item.is_symlink():
                    linked.append(item.name)
    return _Inside(found, markers, _targets(directory, linked) if linked else [], definition)


def _targets(directory: str, names: list[str]) -> list[tuple[str, str]]:
    """Return the symbolic links of these names in a directory, each with its target. Those that have gone are left out."""
    found = []
    fd = os.open(directory, syscalls.HOLD_DIRECTORY)
    try:
        for name in names:
            with contextlib.suppress(OSError):
                found.append((name, os.readlink(name, dir_fd=fd)))
    finally:
        os.close(fd)
    return found


def negative_marker(root: bytes, release: bytes) -> str | None:
    """Return the name beside a directory on the path of a release that says it is being written or is to be ignored; None without one."""
    above = root
    for name in release.split(b"/"):
        for marker in NEGATIVE_MARKERS:
            for version in _possible_versions(name):
                beside = os.fsencode(marker) + version
                if os.path.lexists(os.path.join(above, beside)):
                    return os.fsdecode(beside)
        above = os.path.join(above, name)
    return None


def _possible_versions(name: bytes) -> list[bytes]:
    """Return the name of a directory, and the ends of it that may be a version alone: a manifest is not made by a pattern."""
    starts = (match.start() for match in re.finditer(rb"(?<![0-9.])[0-9]", name))
    return [name, *(name[start:] for start in starts if start)]


def last_change(root: str, release: str) -> str | None:
    """Return the mtime of the directory of a release in UTC, as ``2026-11-27T15:00:00Z``; None if it is gone."""
    try:
        seconds = os.stat(os.path.join(root, release)).st_mtime
    except OSError:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def is_shown_ready(root: str, release: Release, marker: str) -> bool:
    """Return whether a release that was found has its ready marker and no negative one."""
    return not release.held_back_by and is_ready(os.fsencode(root), os.fsencode(release.path), os.fsencode(marker))


def is_ready(root: bytes, release: bytes, marker: bytes) -> bool:
    """Return whether a release has its ready marker. With an empty ``marker`` every release is ready.

    An NFS client is made to ask its server, so that a marker that was just removed is noticed.
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
