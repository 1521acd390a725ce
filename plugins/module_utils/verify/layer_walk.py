# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the entries of a layer as lines of composefs-dump text, and check the xattrs of overlayfs on the way."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CARRIED_XATTRS,
    Entry,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.overlay_marks import (
    file_problem,
    redirect_problem,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import CODES, Findings

#: The xattrs of security modules and of file systems, which are no part of a layer.
_OF_THE_HOST = ("security.", "system.")
_BILLION = 1_000_000_000
_TYPE = 0o170000
#: A byte of a name that composefs-dump text escapes.
_AWKWARD = re.compile(rb"[^!-\[\]-~]")
#: The paths of the whiteouts in an image of mkcomposefs.
_OBJECTS = re.compile(rb"/[0-9a-f]{2}")
#: The lines that are compared at a time.
_LINES = 256
#: The errors of a path that a layer does not have.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass
class _Level:
    """An open directory, and the names in it that were not read yet."""

    fd: int
    #: Its path in the layer, escaped and without a trailing slash; empty for the root.
    path: bytes
    names: Iterator[bytes]
    opaque: bool
    #: Whether no name in it needs escapes.
    plain: bool
    #: The directory with the content of its files, as its redirects have it, and escaped without the first slash; both end with a slash.
    source: bytes = b""
    escaped_source: bytes = b""


class LayerWalk:
    """A walk of the layer whose root directory is open as ``root``. ``namespace`` is that of the overlay xattrs.

    ``opaque`` is whether each directory has to be opaque. ``composefs`` is whether it may be an image of mkcomposefs: its root is
    opaque and has a whiteout for each directory of objects. Problems with the xattrs are added to ``findings``.
    """

    def __init__(
        self, root: int, namespace: str, opaque: bool, composefs: bool, findings: Findings, progress: Progress
    ) -> None:
        self._root = root
        self._metacopy = f"{namespace}.overlay.metacopy"
        self._redirect = f"{namespace}.overlay.redirect"
        self._opaque = f"{namespace}.overlay.opaque"
        self._pairs = ([self._metacopy, self._redirect], [self._redirect, self._metacopy])
        self._wants_opaque = opaque
        self._composefs = composefs
        self._findings = findings
        self._progress = progress
        #: The paths of the files whose xattrs are wrong.
        self.flawed: set[bytes] = set()
        #: The first name of each file with several names, by device and inode number.
        self._first: dict[tuple[int, int], bytes] = {}

    def lines(self, top: bytes = b"/", without: Collection[bytes] = ()) -> Iterator[list[bytes]]:
        """Yield the entries at and below ``top`` in manifest order, without what is at and below the paths in ``without``.

        Each item has some lines, which have no newlines. The working directory changes, and is restored at the end.
        """
        files.allow_deep_trees()
        with beneath.working_directory_kept():
            stack: list[_Level] = []
            try:
                try:
                    fd = beneath.open_at(self._root, top.lstrip(b"/"), same_mount=True)
                except OSError as error:
                    if error.errno not in _NOT_THERE:
                        raise
                    return
                pending = [self._enter(stack, fd, top)]
                while stack:
                    pending += self._names(stack, without)
                    if len(pending) >= _LINES:
                        yield pending
                        pending = []
                yield pending
            finally:
                for level in stack:
                    os.close(level.fd)

    def line_of(self, entry: Entry) -> bytes | None:
        """Return the line of what is at the path of an entry; None if nothing is there."""
        parent, _slash, name = entry.path.rpartition(b"/")
        try:
            directory = beneath.open_at(self._root, parent.lstrip(b"/"), same_mount=True)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            return None
        stack: list[_Level] = []
        try:
            with beneath.working_directory_kept():
                beneath.enter(directory)
                if not name:
                    return self._enter(stack, beneath.open_at(directory, b""), b"/")
                if entry.is_hardlink:
                    self._remember_first(entry)
                return self._line_here(stack, directory, name, entry.path)
        finally:
            for level in stack:
                os.close(level.fd)
            os.close(directory)

    def _remember_first(self, entry: Entry) -> None:
        """Read which file the first name of a hard link is of."""
        with contextlib.suppress(OSError):
            first = entry.target or b""
            with beneath.opened(self._root, first.lstrip(b"/"), beneath.HOLD, same_mount=True) as fd:
                status = os.fstat(fd)
                self._first[status.st_dev, status.st_ino] = first

    def _line_here(self, stack: list[_Level], directory: int, name: bytes, path: bytes) -> bytes | None:
        try:
            status = os.lstat(name)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            return self._enter(stack, beneath.open_at(directory, name, same_mount=True), path)
        if stat.S_ISREG(status.st_mode):
            return self._file(name, manifest.escape(path), status)
        return self._link(name, manifest.escape(path), status) if stat.S_ISLNK(status.st_mode) else None

    def _names(self, stack: list[_Level], without: Collection[bytes]) -> list[bytes]:
        """Return the lines of the innermost directory up to its next subdirectory, which is entered, or to its end."""
        level = stack[-1]
        beneath.enter(level.fd)
        prefix = level.path + b"/"
        lines = []
        for name in level.names:
            status = os.lstat(name)
            mode = status.st_mode
            kind = mode & _TYPE
            escaped = name if level.plain else manifest.escape(b"/" + name)[1:]
            path = prefix + escaped
            if kind == stat.S_IFREG:
                target = self._plain_target(name, escaped, level) if status.st_size and status.st_nlink == 1 else None
                if target is None:
                    lines.append(self._file(name, path, status))
                    continue
                seconds, nanoseconds = divmod(status.st_mtime_ns, _BILLION)
                lines.append(
                    b"%s %d %o 1 %d %d 0 %d.%d %s - -"
                    % (path, status.st_size, mode, status.st_uid, status.st_gid, seconds, nanoseconds, target)
                )
            elif kind == stat.S_IFDIR:
                place = manifest.unescape(path)
                if place in without:
                    continue
                lines.append(self._enter(stack, beneath.open_at(level.fd, name, same_mount=True), place))
                return lines
            elif kind == stat.S_IFLNK:
                lines.append(self._link(name, path, status))
            else:
                self._other(manifest.unescape(path), status, level)
        stack.pop()
        os.close(level.fd)
        return lines

    def _plain_target(self, name: bytes, escaped: bytes, level: _Level) -> bytes | None:
        """Return the escaped path of the content of a file that has the usual two xattrs; None for any other file.

        The content of the files of a directory usually has the same names in one directory, so that is checked only once.
        """
        if os.listxattr(name, follow_symlinks=False) not in self._pairs:
            return None
        if os.getxattr(name, self._metacopy, follow_symlinks=False):
            return None
        redirect = os.getxattr(name, self._redirect, follow_symlinks=False)
        if redirect != level.source + name:
            source = redirect[: -len(name)]
            if not redirect.endswith(b"/" + name) or redirect_problem(source + b"name") is not None:
                return None
            level.source = source
            level.escaped_source = manifest.escape(source)[1:]
        return level.escaped_source + escaped

    def _file(self, name: bytes, path: bytes, status: os.stat_result) -> bytes:
        """Return the line of a regular file in the working directory. ``path`` is escaped."""
        found = os.listxattr(name, follow_symlinks=False)
        metacopy, redirect = (
            beneath.attribute_here(name, one.encode()) if one in found else None
            for one in (self._metacopy, self._redirect)
        )
        others = self._others(name, path, found, (self._metacopy, self._redirect)) if found else ()
        code = file_problem(metacopy, redirect)
        if code is not None or (status.st_size == 0) != (redirect is None):
            self._flaw(path, code, status, redirect)
        place = manifest.unescape(path)
        first = self._first.setdefault((status.st_dev, status.st_ino), place) if status.st_nlink > 1 else place
        if first != place:
            return _line(place, status, status.st_nlink, first, (), True)
        return _line(place, status, status.st_nlink, redirect[1:] if redirect else None, others, False)

    def _flaw(self, path: bytes, code: str | None, status: os.stat_result, redirect: bytes | None) -> None:
        place = manifest.unescape(path)
        self.flawed.add(place)
        if code is not None:
            detail = f": {show(redirect)}" if redirect is not None else ""
            self._findings.add(place, code, CODES[code].sentence + detail if detail else "")
        elif redirect is None:
            self._findings.add(
                place, "entry_differs", f"it has {status.st_size} bytes, and no xattr says where they are"
            )
        else:
            self._findings.add(place, "entry_differs", "it is empty, and has a redirect")

    def _link(self, name: bytes, path: bytes, status: os.stat_result) -> bytes:
        target = os.readlink(name)
        found = xattrs.names(name)
        if found:
            self._others(name, path, found, ())
        place = manifest.unescape(path)
        first = self._first.setdefault((status.st_dev, status.st_ino), place) if status.st_nlink > 1 else place
        return _line(place, status, status.st_nlink, target if first == place else first, (), first != place)

    def _enter(self, stack: list[_Level], fd: int, path: bytes) -> bytes:
        """Open a directory for reading, and return its line. ``path`` is not escaped."""
        self._progress()
        status = os.fstat(fd)
        found = xattrs.names(fd)
        opaque = self._opaque in found
        others: Xattrs = ()
        escaped = b"" if path == b"/" else manifest.escape(path)
        if found:
            known = (self._opaque,) if self._wants_opaque or (self._composefs and path == b"/") else ()
            others = self._others(fd, escaped, found, known)
        if self._wants_opaque and not opaque:
            self._findings.add(path, "missing_opaque")
        listed = beneath.entries(fd)
        subdirectories = sum(entry.is_dir(follow_symlinks=False) for entry in listed)
        names = sorted(entry.name for entry in listed)
        stack.append(_Level(fd, escaped, iter(names), opaque, _AWKWARD.search(b"".join(names)) is None))
        return _line(path, status, 2 + subdirectories, None, others, False, size=0)

    def _others(self, target: bytes | int, path: bytes, found: Collection[str], known: Collection[str]) -> Xattrs:
        """Return the xattrs that a view carries from its releases. Report those that it does not have."""
        carried = []
        for name in sorted(found):
            if name.encode() in CARRIED_XATTRS:
                carried.append((name.encode(), xattrs.read(target, name.encode()) or b""))
            elif name not in known and not name.startswith(_OF_THE_HOST):
                place = manifest.unescape(path) or b"/"
                self._findings.add(place, "entry_differs", f"it has the xattr {name}, which is not of a manifest")
        return tuple(carried)

    def _other(self, path: bytes, status: os.stat_result, level: _Level) -> None:
        is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        if is_whiteout and self._composefs and _OBJECTS.fullmatch(path):
            return
        if is_whiteout and level.opaque:
            self._findings.add(path, "whiteout_in_opaque")
        else:
            word = "a whiteout" if is_whiteout else "a device, pipe or socket"
            self._findings.add(path, "unknown_entry", f"it is {word}, and no manifest has it")


def _line(
    path: bytes,
    status: os.stat_result,
    nlink: int,
    target: bytes | None,
    others: Xattrs,
    is_hardlink: bool,
    size: int | None = None,
) -> bytes:
    """Return the line of an entry without its newline."""
    length = status.st_size if size is None else size
    entry = Entry(
        path,
        status.st_mode,
        length,
        nlink,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        target,
        is_hardlink,
        others,
    )
    return manifest.encode(entry)[:-1]
