# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sealing directories of an upper layer whose overlay is unmounted.

A sealed directory is opaque: names that it does not have are not looked up in the lower layers. Copies of metadata alone are found
by their name in the lower layers, which ends with that, so each is given a redirect first. All redirects are on the disk before the
first mark is set, and marks are set from the deepest directory up: what a run that is killed leaves reads as before.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.core import finalize
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.finalize import Pending, needed_redirect
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, parallel, xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.finalize import (
    Overlay,
    Place,
    working_directory_kept,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.lowers import Lowers


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

    def prepare(place: Place, progress: Progress) -> tuple[tuple[Place, list[Pending]], list[Place]]:
        progress()
        try:
            return (place, _give_redirects(overlay, lowers, place, chosen, settled)), []
        except OSError as error:
            return (place, [Pending(place.path, f"it cannot be sealed: {error.strerror}")]), []

    bad: set[bytes] = set()
    ready: list[Place] = []
    with working_directory_kept():
        prepared = parallel.walk(places, prepare, workers, progress)
    for place, problems in prepared:
        outcome.pending += problems
        if problems:
            bad |= finalize.with_parents([place.path])
        else:
            ready.append(place)
    ready = sorted((place for place in ready if place.path not in bad), key=lambda one: -finalize.depth(one.path))
    if not ready:
        return outcome
    files.sync_file_system(overlay.upper)
    for place in ready:
        progress()
        if place.path in bad:
            continue
        try:
            _mark(overlay, place)
            outcome.sealed += 1
        except OSError as error:
            outcome.pending.append(Pending(place.path, f"it cannot be sealed: {error.strerror}"))
            bad |= finalize.with_parents([place.path])
    files.sync_file_system(overlay.upper)
    return outcome


def _source(place: Place) -> bytes:
    """Return where in the lower layers a merged directory is looked for. Raises ValueError for one of the upper layer alone."""
    if place.lower is None:
        raise ValueError(f"{place.path!r} is in the upper layer alone")
    return place.lower


def _give_redirects(
    overlay: Overlay, lowers: Lowers, place: Place, chosen: Collection[bytes], settled: Collection[bytes]
) -> list[Pending]:
    """Give each metadata-only copy in a directory its redirect; return what keeps the directory from being sealed."""
    source = _source(place)
    names = lowers.names(source)
    if names is None and place.marks and place.marks.copied:
        return [Pending(place.path, f"{show(source)} is gone from the lower layers")]
    names = names or set()
    # Entries are named by their names alone from here on, which saves the kernel walking their paths.
    os.chdir(overlay.stored(place.path))
    with os.scandir(b".") as found:
        entries = list(found)
    problems = [
        Pending(place.inside(name), "it appeared in the lower layers while the overlay was being finalized")
        for name in names.difference(entry.name for entry in entries)
    ]
    if overlay.attribute(place.path, b"opaque") == finalize.WITH_WHITEOUT_FILES:
        problems.append(Pending(place.path, "it has whiteouts that are files, which an opaque directory cannot have"))
    folder = posixpath.join(source, b"")
    metacopy, redirect = overlay.prefix + b"metacopy", overlay.prefix + b"redirect"
    for entry in entries:
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            path = place.inside(name)
            if path not in chosen and path not in settled and not overlay.marks(path).sealed:
                problems.append(Pending(path, "it appeared while the overlay was being finalized"))
        elif entry.is_file(follow_symlinks=False) and xattrs.read(name, metacopy) is not None:
            target = folder + name
            # Most have none: it costs as much to find that out as to set it.
            if name in names and len(target) <= finalize.LONGEST_REDIRECT and xattrs.create(name, redirect, target):
                continue
            problems += _give_redirect(lowers, place, name, redirect, name in names)
    return problems


def _give_redirect(lowers: Lowers, place: Place, name: bytes, redirect: bytes, is_below: bool) -> list[Pending]:
    """Give one metadata-only copy its redirect; return what keeps it from having one.

    ``redirect`` is the attribute, and ``is_below`` tells whether the lower layers have the name.
    """
    has = xattrs.read(name, redirect)
    target = needed_redirect(place.lower, name, has)
    if target is None:
        return []
    # One that was renamed in its directory is looked for by its old name.
    if (has or not is_below) and not lowers.has(target):
        reason = f"{show(target)}, of which it is a copy, is gone from the lower layers"
        return [Pending(place.inside(name), reason)]
    if len(target) > finalize.LONGEST_REDIRECT:
        return [Pending(place.inside(name), f"its path is longer than {finalize.LONGEST_REDIRECT} bytes")]
    xattrs.write(name, redirect, target)
    return []


def _mark(overlay: Overlay, place: Place) -> None:
    stored = overlay.stored(place.path)
    # Ours first, since it means nothing without the other one.
    xattrs.write(stored, finalize.SEALED, _source(place))
    xattrs.write(stored, overlay.prefix + b"opaque", finalize.OPAQUE)
