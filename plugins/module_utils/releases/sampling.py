# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a sample of the entries of a release with its manifest.

The mtime of a directory changes when a name in it is added, removed or replaced. The mtime and size of a file change when its content is
overwritten. Each run draws another sample.
"""

from __future__ import annotations

import errno
import os
import random
import re
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import IgnoredNames

_DIRECTORY = re.compile(rb"[^ ]* [0-9]+ 4[0-7]{4} ")

#: The number of differences of a release that are reported.
_REPORTED = 5

#: Errors for a path that no longer exists, or now has a symbolic link or a mount in it.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE)

_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link"}


def sample_differences(
    placement: Placement,
    root: str,
    count: int,
    marker: str = "",
    progress: Progress = no_progress,
    ignored: IgnoredNames | None = None,
) -> list[str]:
    """Compare the directory of a release and ``count`` entries in it with the manifest. Return descriptions of the first differences.

    Half of the entries are directories. If the mtime of a directory differs, all names in it are compared, so a directory that was only
    touched, for example by writing the ready ``marker``, is not a difference. Owners and modes are not compared, because a file server may
    show different ones to each host. Entries that this host may not read are skipped, and so are those with ``ignored`` names (by default
    the usual ones). Raises OverlayError if the release does not exist.
    """
    top = scan.open_release(os.fsencode(root), placement.source)
    try:
        leave_out = IgnoredNames() if ignored is None else ignored
        return _Comparison(top, placement, os.fsencode(marker), leave_out, progress).run(count)
    finally:
        os.close(top)


def changed_entries(top: int, placement: Placement, count: int, marker: str, progress: Progress) -> list[str]:
    """Compare the open directory of a release, and ``count`` entries in it, as ``sample_differences`` does. Added names are ignored."""
    return _Comparison(top, placement, os.fsencode(marker), IgnoredNames(), progress, with_added=False).run(count)


class _Comparison:
    """One comparison of a release, whose directory is open as ``top``, with its manifest."""

    def __init__(
        self,
        top: int,
        placement: Placement,
        marker: bytes,
        ignored: IgnoredNames,
        progress: Progress,
        with_added: bool = True,
    ) -> None:
        self._top = top
        self._placement = placement
        #: None if there is no ready marker: "/" is the directory of the release itself.
        self._marker = b"/" + marker.strip(b"/") if marker else None
        self._ignored = ignored
        self._progress = progress
        self._with_added = with_added
        self._found: list[str] = []
        #: Paths of the directories whose mtime differs, by the escaped path.
        self._touched: dict[bytes, bytes] = {}

    def run(self, count: int) -> list[str]:
        """Compare ``count`` entries and return descriptions of the first differences."""
        for line in _picked(self._placement, count):
            self._compare(line)
        if self._touched and len(self._found) < _REPORTED:
            self._compare_touched()
        return self._found[:_REPORTED]

    def _compare(self, line: bytes) -> None:
        """Compare the entry of a manifest line with the file on the software root, and remember a directory whose mtime differs."""
        entry = manifest.decode(line)
        if entry.path == self._marker or len(self._found) >= _REPORTED or self._ignored.in_path(entry.path):
            return
        self._progress()
        try:
            fd = beneath.hold_fresh(self._top, entry.path.lstrip(b"/"))
        except PermissionError:
            return
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._report(entry.path, "it is gone")
            return
        try:
            status = os.fstat(fd)
            changes = _changes(fd, status, entry)
            if changes:
                self._report(entry.path, changes)
            elif entry.is_directory and status.st_mtime_ns != entry.mtime_ns:
                self._touched[_field(line)] = entry.path
        finally:
            os.close(fd)

    def _compare_touched(self) -> None:
        """Compare all entries in the directories whose mtime differs."""
        recorded: dict[bytes, dict[bytes, bytes]] = {path: {} for path in self._touched}
        for line in _lines(self._placement):
            parent, _slash, name = _field(line).rpartition(b"/")
            inner = recorded.get(parent or b"/")
            if inner is not None and name:
                inner[manifest.unescape(name)] = line
        for escaped, inner in recorded.items():
            path = self._touched[escaped]
            try:
                names = self._names(path) if self._with_added else set()
            except OSError as error:
                # An NFS client mounts a nested export when it is listed, and not when it is held.
                if error.errno not in _GONE:
                    raise
                self._report(path, "it is gone")
                continue
            for name in sorted(names - set(inner)):
                self._report(os.path.join(path, name), "it has been added")
            for line in inner.values():
                # Entries further down are compared only if they are in the sample.
                self._compare(line)

    def _names(self, path: bytes) -> set[bytes]:
        """Return the names in a directory without the ready marker and ignored ones; none if this host may not list it."""
        try:
            fd = beneath.open_at(self._top, path.lstrip(b"/"), beneath.LISTING, same_mount=True)
        except PermissionError:
            return set()
        try:
            names = {os.fsencode(name) for name in os.listdir(fd)}
        finally:
            os.close(fd)
        return {name for name in names if os.path.join(path, name) != self._marker and name not in self._ignored}

    def _report(self, path: bytes, what: str) -> None:
        self._found.append(f"{show(path)}: {what}")


def _changes(fd: int, status: os.stat_result, entry: Entry) -> str:
    """Return a description of how the file ``fd`` differs from its entry, empty if it does not. The mtime of a directory is ignored."""
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
    """Return the first field of a line: the escaped path."""
    return line.partition(b" ")[0]


def _picked(placement: Placement, count: int) -> list[bytes]:
    """Return the manifest line of the release's own directory and ``count`` random others, in manifest order."""
    counts = placement.record.entries
    directories, others = max(counts.directories - 1, 0), counts.total - counts.directories
    of_directories = min(directories, max(count // 2, count - others))
    of_others = min(others, count - of_directories)
    # The first line is the release's own directory, which is always picked.
    wanted = {True: {0, *_drawn(1, directories, of_directories)}, False: _drawn(0, others, of_others)}
    seen = {True: 0, False: 0}
    picked = []
    for line in _lines(placement):
        is_directory = _DIRECTORY.match(line) is not None
        if seen[is_directory] in wanted[is_directory]:
            picked.append(line)
        seen[is_directory] += 1
    return picked


def _drawn(first: int, among: int, count: int) -> set[int]:
    """Return ``count`` random numbers of the ``among`` numbers from ``first`` on."""
    return set(random.sample(range(first, first + among), count))
