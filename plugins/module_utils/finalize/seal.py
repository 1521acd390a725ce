# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seal directories of an upper layer whose overlay is unmounted.

A sealed directory is opaque: the kernel does not look up names in the lower layers that the directory does not have. The kernel finds the
content of a metadata-only copy by its name in the lower layers, which an opaque directory ends, so each copy gets a redirect first. All
redirects are on the disk before the first directory is marked, and the deepest directories are marked first. So the overlay reads as
before whenever a run is killed.

Users may have renamed directories until the overlay was unmounted, so the lower directory of each one is determined again.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.directories import (
    OverlayDirectory,
    depth,
    with_parents,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import Pending
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.live_overlay import Overlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    LONGEST_REDIRECT,
    OPAQUE,
    SEALED,
    WITH_WHITEOUT_FILES,
    Marks,
    lower_path,
    needed_redirect,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show


@dataclass
class Sealing:
    """The number of directories that were sealed, and why others were not."""

    sealed: int = 0
    pending: list[Pending] = field(default_factory=list)


def seal(
    overlay: Overlay,
    lowers: Lowers,
    directories: Sequence[OverlayDirectory],
    settled: Collection[bytes],
    workers: int,
    progress: Progress = no_progress,
) -> Sealing:
    """Seal merged directories that are still copied up completely. The overlay must not be mounted.

    ``settled`` are the paths of directories that need no mark, since a run has sealed them or they are in the upper layer alone. A
    directory that the kernel has sealed needs one if the directory above it gets one: the kernel finds the content of its files in its
    lower directory, with which it would no longer be merged.
    """
    result = Sealing()
    chosen = {directory.path for directory in directories}
    sources = _Sources(overlay)

    def prepare(
        directory: OverlayDirectory, progress: Progress
    ) -> tuple[tuple[OverlayDirectory, list[Pending]], list[OverlayDirectory]]:
        progress()
        try:
            return (directory, _prepare(overlay, lowers, sources, directory, chosen, settled)), []
        except OSError as error:
            return (directory, [Pending(directory.path, f"it cannot be sealed: {error.strerror}")]), []

    bad: set[bytes] = set()
    ready: list[OverlayDirectory] = []
    with beneath.working_directory_kept():
        prepared = parallel.walk(directories, prepare, workers, progress)
    for directory, problems in prepared:
        result.pending += problems
        if problems:
            bad |= with_parents([directory.path])
        else:
            ready.append(directory)
    ready = sorted((one for one in ready if one.path not in bad), key=lambda one: -depth(one.path))
    if not ready:
        return result
    syscalls.syncfs(overlay.roots.upper, overlay.upper)
    for directory in ready:
        progress()
        if directory.path in bad:
            continue
        try:
            _mark(overlay, directory)
            result.sealed += 1
        except OSError as error:
            result.pending.append(Pending(directory.path, f"it cannot be sealed: {error.strerror}"))
            bad |= with_parents([directory.path])
    syscalls.syncfs(overlay.roots.upper, overlay.upper)
    return result


class _Sources:
    """The paths in the lower layers that directories are merged with, now that nobody renames them through the overlay."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._known: dict[bytes, bytes | None] = {b"": b"/"}

    def of(self, path: bytes, fd: int = -1) -> bytes | None:
        """Return the path in the lower layers, or None if the directory is in the upper layer alone.

        ``fd`` is the open directory, or -1 to open it.
        """
        if path not in self._known:
            parent_path, name = posixpath.split(path)
            parent = self.of(parent_path)
            self._known[path] = lower_path(parent, name, self._marks(path) if fd < 0 else self._overlay.marks(fd))
        return self._known[path]

    def _marks(self, path: bytes) -> Marks:
        try:
            with beneath.opened(self._overlay.roots.upper, path, same_mount=True) as fd:
                return self._overlay.marks(fd)
        except FileNotFoundError:
            return Marks()


def _prepare(
    overlay: Overlay,
    lowers: Lowers,
    sources: _Sources,
    directory: OverlayDirectory,
    chosen: Collection[bytes],
    settled: Collection[bytes],
) -> list[Pending]:
    """Give each metadata-only copy in a directory its redirect; return what keeps the directory from being sealed."""
    source = directory.merged_with()
    names = lowers.names(source)
    if names is None and directory.marks and directory.marks.copied:
        return [Pending(directory.path, f"{show(source)} is gone from the lower layers")]
    names = names or set()
    with beneath.opened(overlay.roots.upper, directory.path, same_mount=True) as fd:
        if sources.of(directory.path, fd) != source:
            return [Pending(directory.path, "it, or a directory above it, was renamed during the run: run this again")]
        beneath.enter(fd)
        entries = beneath.entries(fd)
        # What appeared in the lower layers after the kernel sealed the directory was not shown, and stays so.
        appeared = () if overlay.marks(fd).sealed_by_kernel else names.difference(entry.name for entry in entries)
        problems = [
            Pending(directory.child(name), "it appeared in the lower layers during the run: run this again")
            for name in appeared
        ]
        if beneath.attribute(fd, overlay.prefix + b"opaque") == WITH_WHITEOUT_FILES:
            reason = "it has whiteouts that are regular files, which an opaque directory cannot have"
            problems.append(Pending(directory.path, reason))
        problems += [
            Pending(directory.child(entry.name), "it appeared during the run: run this again")
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            and directory.child(entry.name) not in chosen
            and directory.child(entry.name) not in settled
            and not overlay.marks_in(fd, entry.name).sealed
        ]
        return problems + _give_redirects(overlay, lowers, directory, entries, names)


def _give_redirects(
    overlay: Overlay,
    lowers: Lowers,
    directory: OverlayDirectory,
    entries: Sequence[os.DirEntry[bytes]],
    names: Collection[bytes],
) -> list[Pending]:
    """Give redirects to the copies among the entries of the entered directory; return what keeps them from having one.

    ``names`` are the names in the lower directory.
    """
    problems: list[Pending] = []
    top = posixpath.join(directory.merged_with(), b"")
    metacopy, redirect = overlay.prefix + b"metacopy", overlay.prefix + b"redirect"
    for entry in entries:
        name = entry.name
        if entry.is_file(follow_symlinks=False) and beneath.attribute_here(name, metacopy) is not None:
            target = top + name
            # Most copies have no redirect. Setting one costs as much as reading it, so set it without looking.
            if (
                name in names
                and len(target) <= LONGEST_REDIRECT
                and beneath.create_attribute_here(name, redirect, target)
            ):
                continue
            problems += _give_redirect(lowers, directory, name, redirect, name in names)
    return problems


def _give_redirect(
    lowers: Lowers, directory: OverlayDirectory, name: bytes, redirect: bytes, is_below: bool
) -> list[Pending]:
    """Give one metadata-only copy its redirect; return what keeps it from having one.

    ``redirect`` is the name of the xattr. ``is_below`` is whether the lower directory has the name.
    """
    has = beneath.attribute_here(name, redirect)
    target = needed_redirect(directory.lower, name, has)
    if target is None:
        if not has or not is_below or lowers.has(has):
            return []
        # The directory was renamed in the lower layers. The kernel still had the copy of the file, from the index or from memory, and gave
        # it the new name.
        target, has = posixpath.join(directory.merged_with(), name), None
    # A copy that was renamed within its directory is looked up by its old name.
    if (has or not is_below) and not lowers.has(target):
        return [Pending(directory.child(name), "its source is gone from the lower layers")]
    if len(target) > LONGEST_REDIRECT:
        return [Pending(directory.child(name), f"its path is longer than {LONGEST_REDIRECT} bytes")]
    beneath.set_attribute_here(name, redirect, target)
    return []


def _mark(overlay: Overlay, directory: OverlayDirectory) -> None:
    with beneath.opened(overlay.roots.upper, directory.path, same_mount=True) as fd:
        # Our mark first: it has no effect without the kernel's.
        beneath.set_attribute(fd, SEALED, directory.merged_with())
        beneath.set_attribute(fd, overlay.prefix + b"opaque", OPAQUE)
