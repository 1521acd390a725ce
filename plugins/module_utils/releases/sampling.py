# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking whether a release is still what its manifest says, by a sample of its entries.

A directory's mtime tells of names that were added, removed or replaced in it, a file's mtime and size of content that was
overwritten. Which entries are looked at is drawn anew in each run.
"""

from __future__ import annotations

import errno
import os
import random
import re
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, Placement

_DIRECTORY = re.compile(rb"[^ ]* [0-9]+ 4[0-7]{4} ")

#: Differences of a release that are told.
_TOLD = 5

#: A name that is no longer there, or no longer reached without a symbolic link or a mount on the way.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE)

_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link"}


def differences(
    placement: Placement, root: str, count: int, marker: str = "", progress: Progress = no_progress
) -> list[str]:
    """Compare ``count`` entries of a release, and its own directory, with its manifest; return the first differences as sentences.

    Half of the entries are directories. One whose mtime differs is listed and all names in it are compared, so that a directory that was
    only touched, as by ``marker``, is no difference. Owners and modes are not compared: a file server may show them to each host in
    another way. What this host may not look at is passed over.
    """
    top = scan.open_release(os.fsencode(root), os.fsencode(placement.record.release))
    try:
        return _Comparison(top, placement, os.fsencode(marker), progress).run(count)
    finally:
        os.close(top)


class _Comparison:
    def __init__(self, top: int, placement: Placement, marker: bytes, progress: Progress) -> None:
        self._top = top
        self._placement = placement
        self._marker = b"/" + marker.strip(b"/")
        self._progress = progress
        self._found: list[str] = []
        #: Directories whose mtime differs, by their escaped paths.
        self._touched: dict[bytes, bytes] = {}

    def run(self, count: int) -> list[str]:
        for line in _picked(self._placement, count):
            self._compare(line)
        if self._touched and len(self._found) < _TOLD:
            self._compare_touched()
        return self._found[:_TOLD]

    def _compare(self, line: bytes) -> None:
        entry = manifest.decode(line)
        if entry.path == self._marker or len(self._found) >= _TOLD:
            return
        self._progress()
        try:
            fd = self._held(entry.path)
        except PermissionError:
            return
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._tell(entry.path, "it is gone")
            return
        try:
            status = os.fstat(fd)
            changes = _changes(fd, status, entry)
            if changes:
                self._tell(entry.path, changes)
            elif entry.is_directory and status.st_mtime_ns != entry.mtime_ns:
                self._touched[_field(line)] = entry.path
        finally:
            os.close(fd)

    def _held(self, path: bytes) -> int:
        """Return a descriptor of an entry, with attributes that are fresh from the file server."""
        fd = beneath.open_at(self._top, path.lstrip(b"/"), beneath.HOLD, same_mount=True)
        try:
            syscalls.refresh(fd)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _compare_touched(self) -> None:
        """Compare all that is in the directories whose mtime differs."""
        recorded: dict[bytes, dict[bytes, bytes]] = {path: {} for path in self._touched}
        for line in _lines(self._placement):
            parent, _slash, name = _field(line).rpartition(b"/")
            inner = recorded.get(parent or b"/")
            if inner is not None and name:
                inner[manifest.unescape(name)] = line
        for escaped, inner in recorded.items():
            path = self._touched[escaped]
            for name in sorted(self._names(path) - set(inner)):
                self._tell(os.path.join(path, name), "it has been added")
            for line in inner.values():
                # What is deeper is for the sample to find.
                self._compare(line)

    def _names(self, path: bytes) -> set[bytes]:
        try:
            fd = beneath.open_at(self._top, path.lstrip(b"/"), beneath.LISTING, same_mount=True)
        except PermissionError:
            return set()
        try:
            names = {os.fsencode(name) for name in os.listdir(fd)}
        finally:
            os.close(fd)
        return {name for name in names if os.path.join(path, name) != self._marker}

    def _tell(self, path: bytes, what: str) -> None:
        self._found.append(f"{show(path)}: {what}")


def _changes(fd: int, status: os.stat_result, entry: Entry) -> str:
    """Return in words how what ``fd`` holds differs from its entry, but for the mtime of a directory; empty when it does not."""
    kind, recorded = stat.S_IFMT(status.st_mode), stat.S_IFMT(entry.mode)
    if kind != recorded:
        return f"it is {_KINDS.get(kind, 'something else')} and was {_KINDS.get(recorded, 'something else')}"
    if kind == stat.S_IFDIR:
        return ""
    changes = []
    if kind == stat.S_IFLNK and not entry.is_hardlink and os.readlink(b"", dir_fd=fd) != entry.target:
        changes.append("another target")
    if kind == stat.S_IFREG and status.st_size != entry.size:
        changes.append(f"size {entry.size} -> {status.st_size}")
    if status.st_mtime_ns != entry.mtime_ns:
        changes.append(
            "mtime {}.{:09} -> {}.{:09}".format(*divmod(entry.mtime_ns, 10**9), *divmod(status.st_mtime_ns, 10**9))
        )
    return ", ".join(changes)


def _lines(placement: Placement) -> Iterator[bytes]:
    return (line for part in manifest_store.text(placement) for line in manifest.lines(part))


def _field(line: bytes) -> bytes:
    """Return the path of a line as it stands there, escaped."""
    return line.partition(b" ")[0]


def _picked(placement: Placement, count: int) -> list[bytes]:
    """Return the line of the release's own directory, and ``count`` others at random, in their order."""
    counts = placement.record.entries
    directories, others = max(counts.directories - 1, 0), counts.total - counts.directories
    of_directories = min(directories, max(count // 2, count - others))
    of_others = min(others, count - of_directories)
    # The first line is a directory, and always taken.
    wanted = {True: {0, *_drawn(1, directories, of_directories)}, False: _drawn(0, others, of_others)}
    passed = {True: 0, False: 0}
    picked = []
    for line in _lines(placement):
        is_directory = _DIRECTORY.match(line) is not None
        if passed[is_directory] in wanted[is_directory]:
            picked.append(line)
        passed[is_directory] += 1
    return picked


def _drawn(first: int, among: int, count: int) -> set[int]:
    return set(random.sample(range(first, first + among), count))
