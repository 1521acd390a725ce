# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealing directories of an upper layer whose overlay is unmounted.

A sealed directory is opaque: names that it does not have are not looked up in the lower layers. Copies of metadata alone are found
by their name in the lower layers, which ends with that, so each is given a redirect first. All redirects are on the disk before the
first mark is set, and marks are set from the deepest directory up: what a run that is killed leaves reads as before.

Users may have renamed directories until the overlay was unmounted, so where each is in the lower layers is found out anew.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import marks, parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.copy_up import Overlay, Place
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    Marks,
    Pending,
    lower_path,
    needed_redirect,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show


@dataclass
class Sealing:
    """What came of it."""

    sealed: int = 0
    pending: list[Pending] = field(default_factory=list)


def seal(
    overlay: Overlay,
    lowers: Lowers,
    places: Sequence[Place],
    settled: Collection[bytes],
    workers: int,
    progress: Progress = no_progress,
) -> Sealing:
    """Seal merged directories, those that are still all copied up. The overlay must not be mounted.

    ``settled`` are the paths of the directories that need no mark: sealed ones, and those of the upper layer alone.
    """
    outcome = Sealing()
    chosen = {place.path for place in places}
    sources = _Sources(overlay)

    def prepare(place: Place, progress: Progress) -> tuple[tuple[Place, list[Pending]], list[Place]]:
        progress()
        try:
            return (place, _give_redirects(overlay, lowers, sources, place, chosen, settled)), []
        except OSError as error:
            return (place, [Pending(place.path, f"it cannot be sealed: {error.strerror}")]), []

    bad: set[bytes] = set()
    ready: list[Place] = []
    with beneath.working_directory_kept():
        prepared = parallel.walk(places, prepare, workers, progress)
    for place, problems in prepared:
        outcome.pending += problems
        if problems:
            bad |= marks.with_parents([place.path])
        else:
            ready.append(place)
    ready = sorted((place for place in ready if place.path not in bad), key=lambda one: -marks.depth(one.path))
    if not ready:
        return outcome
    syscalls.syncfs(overlay.roots.upper, overlay.upper)
    for place in ready:
        progress()
        if place.path in bad:
            continue
        try:
            _mark(overlay, place)
            outcome.sealed += 1
        except OSError as error:
            outcome.pending.append(Pending(place.path, f"it cannot be sealed: {error.strerror}"))
            bad |= marks.with_parents([place.path])
    syscalls.syncfs(overlay.roots.upper, overlay.upper)
    return outcome


class _Sources:
    """Where directories of the upper layer are looked for in the lower layers, now that nobody renames them through the overlay."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._known: dict[bytes, bytes | None] = {b"": b"/"}

    def of(self, path: bytes, fd: int = -1) -> bytes | None:
        """Return the path in the lower layers; None for a directory of the upper layer alone. ``fd`` is the directory, where it is open."""
        if path not in self._known:
            folder, name = posixpath.split(path)
            parent = self.of(folder)
            self._known[path] = lower_path(parent, name, self._marks(path) if fd < 0 else self._overlay.marks(fd))
        return self._known[path]

    def _marks(self, path: bytes) -> Marks:
        try:
            with beneath.opened(self._overlay.roots.upper, path, same_mount=True) as fd:
                return self._overlay.marks(fd)
        except FileNotFoundError:
            return Marks()


def _source(place: Place) -> bytes:
    """Return where in the lower layers a merged directory is looked for. Raises ValueError for one of the upper layer alone."""
    if place.lower is None:
        raise ValueError(f"{place.path!r} is in the upper layer alone")
    return place.lower


def _give_redirects(
    overlay: Overlay,
    lowers: Lowers,
    sources: _Sources,
    place: Place,
    chosen: Collection[bytes],
    settled: Collection[bytes],
) -> list[Pending]:
    """Give each metadata-only copy in a directory its redirect; return what keeps the directory from being sealed."""
    source = _source(place)
    names = lowers.names(source)
    if names is None and place.marks and place.marks.copied:
        return [Pending(place.path, f"{show(source)} is gone from the lower layers")]
    names = names or set()
    with beneath.opened(overlay.roots.upper, place.path, same_mount=True) as fd:
        if sources.of(place.path, fd) != source:
            return [Pending(place.path, "it was renamed, or another directory was, while it was being finalized")]
        beneath.enter(fd)
        entries = beneath.entries(fd)
        problems = [
            Pending(place.inside(name), "it appeared in the lower layers while the overlay was being finalized")
            for name in names.difference(entry.name for entry in entries)
        ]
        if beneath.attribute(fd, overlay.prefix + b"opaque") == marks.WITH_WHITEOUT_FILES:
            problems.append(
                Pending(place.path, "it has whiteouts that are files, which an opaque directory cannot have")
            )
        problems += [
            Pending(place.inside(entry.name), "it appeared while the overlay was being finalized")
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            and place.inside(entry.name) not in chosen
            and place.inside(entry.name) not in settled
            and not overlay.marks_in(fd, entry.name).sealed
        ]
        return problems + _give_each_redirect(overlay, lowers, place, entries, names)


def _give_each_redirect(
    overlay: Overlay, lowers: Lowers, place: Place, entries: Sequence[os.DirEntry[bytes]], names: Collection[bytes]
) -> list[Pending]:
    """Give redirects to the files among the entries of the directory that was entered; ``names`` are those of the lower layers."""
    problems: list[Pending] = []
    folder = posixpath.join(_source(place), b"")
    metacopy, redirect = overlay.prefix + b"metacopy", overlay.prefix + b"redirect"
    for entry in entries:
        name = entry.name
        if entry.is_file(follow_symlinks=False) and beneath.attribute_here(name, metacopy) is not None:
            target = folder + name
            # Most have none: it costs as much to find that out as to set it.
            if (
                name in names
                and len(target) <= marks.LONGEST_REDIRECT
                and beneath.create_attribute_here(name, redirect, target)
            ):
                continue
            problems += _give_redirect(lowers, place, name, redirect, name in names)
    return problems


def _give_redirect(lowers: Lowers, place: Place, name: bytes, redirect: bytes, is_below: bool) -> list[Pending]:
    """Give one metadata-only copy its redirect; return what keeps it from having one.

    ``redirect`` is the attribute, and ``is_below`` tells whether the lower layers have the name.
    """
    has = beneath.attribute_here(name, redirect)
    target = needed_redirect(place.lower, name, has)
    if target is None:
        return []
    # One that was renamed in its directory is looked for by its old name.
    if (has or not is_below) and not lowers.has(target):
        reason = "what it is a copy of is gone from the lower layers"
        return [Pending(place.inside(name), reason)]
    if len(target) > marks.LONGEST_REDIRECT:
        return [Pending(place.inside(name), f"its path is longer than {marks.LONGEST_REDIRECT} bytes")]
    beneath.set_attribute_here(name, redirect, target)
    return []


def _mark(overlay: Overlay, place: Place) -> None:
    with beneath.opened(overlay.roots.upper, place.path, same_mount=True) as fd:
        # Ours first, since it means nothing without the other one.
        beneath.set_attribute(fd, marks.SEALED, _source(place))
        beneath.set_attribute(fd, overlay.prefix + b"opaque", marks.OPAQUE)
