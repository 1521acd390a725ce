# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The passes that finalize an overlay, one after the other."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import lowers, marks, remount, seal
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.copy_up import (
    CopyUp,
    Overlay,
    Place,
    Visit,
    Wanted,
    find,
    is_gone,
    read_below,
    read_directories,
    start,
    trace,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import Counts, Pending
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.stale import Removal
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mount_lock
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts

_NEEDS_UNMOUNTING = "it can only be sealed while the overlay is unmounted, which 'allow_unmount' allows"
_GONE = "it is gone from the lower layers: what was copied up of it is removed with 'stale: remove'"


@dataclass(frozen=True)
class Request:
    """What is to be done with the overlay at ``path``."""

    path: bytes
    #: Relative to the overlay's root; none for all of it.
    subtrees: tuple[bytes, ...]
    passes: frozenset[str]
    #: ``auto``, ``offline``, ``kernel`` or ``none``.
    seal: str
    allow_unmount: bool
    #: ``report``, ``remove`` or ``ignore``.
    stale: str
    #: Directories so many levels below the root stay merged.
    merged_levels: int
    wanted: Wanted
    #: How many processes work at the same time; None for what is usual.
    workers: int | None
    #: Seconds to wait for another run.
    patience: float


@dataclass
class Outcome:
    """What was done, or in check mode would be done, and what is left to do."""

    counts: Counts = field(default_factory=Counts)
    pending: list[Pending] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)
    #: The overlay's path, when a run that was killed had unmounted it.
    mounted_again: bytes | None = None
    unmounted: bool = False
    #: Files that lost set-ID bits or capabilities with their owner.
    stripped: list[bytes] = field(default_factory=list)
    #: Why nothing is done; empty where something is.
    refusal: str = ""

    @property
    def plan(self) -> Plan:
        if self.refusal:
            return ()
        return marks.plan_of(self.mounted_again, self.counts, self.removed)


def _not_mounted(path: bytes) -> OverlayError:
    return OverlayError(f"no overlay is mounted at {show(path)}: mount it first")


def _mounted(path: bytes) -> Overlay:
    overlay = find(path)
    if overlay is None:
        raise _not_mounted(path)
    return overlay


def _mounted_again(path: bytes) -> Mount:
    mount = mounts.observe(path).mount
    if mount is None:
        raise _not_mounted(path)
    return mount


def run(request: Request, progress: Progress = no_progress) -> Outcome:
    """Finalize an overlay. Raises OverlayError where none is mounted, or it has to be unmounted and is in use."""
    with contextlib.ExitStack() as stack:
        if not request.wanted.check_mode:
            stack.enter_context(mount_lock.held(request.path, request.patience, progress))
        return _run(request, stack, progress)


def _run(request: Request, stack: contextlib.ExitStack, progress: Progress) -> Outcome:
    outcome = Outcome()
    overlay = find(request.path)
    unfinished = remount.unfinished(request.path)
    if overlay is None:
        if unfinished is None:
            raise _not_mounted(request.path)
        outcome.mounted_again = request.path
        if request.wanted.check_mode:
            outcome.pending.append(Pending(b"", "it is not mounted: a run that was killed had unmounted it"))
            return outcome
        remount.mount_again(unfinished)
        overlay = _mounted(request.path)
    elif unfinished and not request.wanted.check_mode:
        remount.forget(request.path)
    stack.callback(overlay.roots.close)
    if not request.wanted.check_mode:
        # The same overlay may be mounted at several places.
        stack.enter_context(mount_lock.held(overlay.upper, request.patience, progress))
    _Run(overlay, request, outcome, progress).all_passes()
    return outcome


class _Run:
    def __init__(self, overlay: Overlay, request: Request, outcome: Outcome, progress: Progress) -> None:
        self._overlay = overlay
        self._request = request
        self._wanted = request.wanted
        self._workers = request.workers or overlay.usual_workers
        self._outcome = outcome
        self._progress = progress

    def all_passes(self) -> None:
        request = self._request
        with contextlib.ExitStack() as stack:
            below = self._below(stack)
            if self._is_refused(below):
                return
            visits = self._copy_up(below)
            while not (self._overlay.metacopy or self._wanted.check_mode) and any(visit.changed for visit in visits):
                # Copying all content takes so long that it is worth a look whether all is as it was.
                visits = self._copy_up(below, again=True)
            self._outcome.pending += [one for visit in visits for one in visit.pending]
            self._outcome.stripped += [path for visit in visits for path in visit.stripped]
            self._remove_gone(visits, below)
        kernel_sealed = self._read(visits)
        if "seal" in request.passes and request.seal != "none":
            self._seal(visits, kernel_sealed)
        if "warm" in request.passes and not self._wanted.check_mode:
            places = [*kernel_sealed, *(place for visit in visits for place in visit.sealed if _by_kernel(place))]
            self._outcome.counts.warmed = read_below(self._overlay, places, self._workers, self._progress)

    def _below(self, stack: contextlib.ExitStack) -> Lowers | None:
        """Return the lower layers, where it is to be found out what is gone from them, or what they have is to be compared."""
        compares = self._wanted.owner is not None or self._wanted.group is not None
        if self._request.stale == "ignore" and not compares:
            return None
        try:
            return stack.enter_context(lowers.opened(self._overlay.layers))
        except OverlayError as error:
            self._outcome.pending.append(Pending(b"", str(error)))
            return None

    def _is_refused(self, below: Lowers | None) -> bool:
        """Tell whether content would be copied that nobody has asked for, and say how much."""
        if self._overlay.metacopy or self._wanted.copy_content or "copy_up" not in self._request.passes:
            return False
        wanted = self._wanted
        self._wanted = replace(wanted, check_mode=True)
        self._copy_up(below)
        self._wanted = wanted
        counts = self._outcome.counts
        self._outcome.counts = Counts(content_files=counts.content_files, content_bytes=counts.content_bytes)
        if counts.content_files:
            self._outcome.refusal = marks.refuse_content(self._request.path, counts.content_files, counts.content_bytes)
        return bool(self._outcome.refusal)

    def _copy_up(self, below: Lowers | None, again: bool = False) -> list[Visit]:
        visits, starts = [], []
        for subtree in self._request.subtrees or (b"",):
            if below and subtree and self._is_gone(below, subtree):
                visits.append(Visit(start(self._overlay, posixpath.dirname(subtree)), gone=[subtree]))
                continue
            place = start(self._overlay, subtree)
            starts.append(place)
            if place.marks and place.marks.sealed:
                visits.append(Visit(place, sealed=[place]))
        looks = self._request.stale != "ignore"
        visits += CopyUp(self._overlay, self._wanted, self._workers, below, looks, self._progress).run(starts)
        for visit in visits:
            if again:
                visit.counts.already = 0
            self._outcome.counts.add(visit.counts)
        return visits

    def _is_gone(self, below: Lowers, subtree: bytes) -> bool:
        if self._request.stale == "ignore":
            return False
        folder, name = posixpath.split(subtree)
        with contextlib.ExitStack() as stack:
            parent, stored = trace(self._overlay, folder, stack)
            if stored < 0 or parent.lower is None:
                return False
            return is_gone(self._overlay, below, parent.lower, stored, name)

    def _remove_gone(self, visits: Sequence[Visit], below: Lowers | None) -> None:
        for visit in visits:
            for path in visit.gone:
                if self._request.stale == "report" or below is None:
                    self._outcome.pending.append(Pending(path, _GONE))
                    continue
                removal = Removal(self._overlay, below, self._wanted.check_mode, self._progress)
                removal.remove(path)
                self._outcome.pending += removal.kept
                if removal.count:
                    self._outcome.removed.append(path)

    def _read(self, visits: Sequence[Visit]) -> list[Place]:
        """Read the directories whose listing has changed since they were read; return those that the kernel has sealed by that."""
        merged = [visit.place for visit in visits if _is_merged(visit.place)]
        if "readdir" not in self._request.passes:
            return []
        self._outcome.counts.directories_read = len(merged)
        if self._wanted.check_mode:
            return []
        changed = marks.with_parents(visit.place.path for visit in visits if visit.changed)
        again = sorted((place for place in merged if place.path in changed), key=lambda one: -marks.depth(one.path))
        if again and not self._is_worth_reading(again[0]):
            return []
        self._outcome.pending += read_directories(self._overlay, again, self._workers, self._progress)
        found = []
        for place in merged:
            with contextlib.suppress(FileNotFoundError):
                if self._overlay.attribute(place.path, b"opaque") == marks.KERNEL_SEALED:
                    found.append(place)
        self._outcome.counts.sealed += len(found)
        return found

    def _is_worth_reading(self, deepest: Place) -> bool:
        """Tell whether to read directories when the overlay is about to be unmounted: not unless the kernel marks one by that."""
        if "seal" not in self._request.passes or self._request.seal == "none" or not self._request.allow_unmount:
            return True
        self._outcome.pending += read_directories(self._overlay, [deepest], 1, self._progress)
        return self._overlay.attribute(deepest.path, b"opaque") == marks.KERNEL_SEALED

    def _seal(self, visits: Sequence[Visit], kernel_sealed: Sequence[Place]) -> None:
        done = {place.path for place in kernel_sealed}
        bad = marks.with_parents(one.path for one in self._outcome.pending)
        chosen = [
            visit.place
            for visit in visits
            if _is_merged(visit.place)
            and marks.depth(visit.place.path) > self._request.merged_levels
            and visit.place.path not in done | bad
        ]
        if not chosen:
            return
        if self._request.seal == "kernel":
            self._leave(chosen, "the kernel has not marked it: 'seal: offline' does")
        elif not self._request.allow_unmount:
            self._leave(chosen, _NEEDS_UNMOUNTING)
        elif self._wanted.check_mode:
            self._outcome.counts.sealed += len(chosen)
        else:
            settled = {place.path for visit in visits for place in visit.sealed} | done
            settled |= {visit.place.path for visit in visits if visit.place.lower is None}
            roots = self._overlay.roots
            images = lowers.images_among(self._overlay.layers)
            with remount.unmounted(self._overlay.mount, images, roots.let_go, self._progress):
                self._outcome.unmounted = True
                with lowers.opened(self._overlay.layers) as below:
                    sealing = seal.seal(self._overlay, below, chosen, settled - bad, self._workers, self._progress)
            roots.open(_mounted_again(self._request.path))
            self._outcome.counts.sealed += sealing.sealed
            self._outcome.pending += sealing.pending

    def _leave(self, places: Sequence[Place], reason: str) -> None:
        """Report those of the directories that are not inside of others of them."""
        paths = {place.path for place in places}
        self._outcome.pending += [Pending(path, reason) for path in paths if posixpath.dirname(path) not in paths]


def _is_merged(place: Place) -> bool:
    return place.lower is not None


def _by_kernel(place: Place) -> bool:
    return place.marks is not None and place.marks.sealed_by_kernel
