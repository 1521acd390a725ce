# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the passes that finalize an overlay, one after the other."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import detaching, lowers, remount, seal
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.copy_up import CopyUpWalk, Visit
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.decisions import (
    CarryOut,
    carry_out,
    leave_out,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.directories import (
    OverlayDirectory,
    depth,
    with_parents,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_request import Request, Wanted
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import (
    FinalizeResult,
    Pending,
    content_refusal,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.live_overlay import Overlay, find
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import KERNEL_SEALED, empty_lower
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.reading import read_directories
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.stale import StaleRemoval
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.tracing import is_stale, start, trace
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mount_lock
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts


def run(request: Request, progress: Progress = no_progress) -> FinalizeResult:
    """Finalize an overlay. Raises OverlayError if none is mounted, or if it has to be unmounted and is in use."""
    change = leave_out if request.wanted.check_mode else carry_out
    with contextlib.ExitStack() as stack:
        change(stack.enter_context, mount_lock.held(request.path, request.patience, progress))
        result = FinalizeResult()
        overlay = _overlay(request.path, change, result)
        if overlay is not None:
            stack.callback(overlay.roots.close)
            result.lower = (*overlay.layers.lower, *overlay.layers.data)
            result.was_detached = result.lower == (empty_lower(overlay.upper),)
            if result.was_detached:
                # There is nothing below that could be copied up or be gone.
                return result
            if request.wanted.detach:
                detaching.check(overlay)
            # The same upper layer may be used by a mount at another path.
            change(stack.enter_context, mount_lock.held(overlay.upper, request.patience, progress))
            _Run(overlay, request, change, result, progress).all_passes()
        return result


def _overlay(path: bytes, change: CarryOut, result: FinalizeResult) -> Overlay | None:
    """Return the overlay at ``path``; mount it again if a killed run had unmounted it.

    Return None if it is to stay unmounted, as in check mode. Raises OverlayError if there is none.
    """
    overlay = find(path)
    unfinished = remount.unfinished(path)
    if overlay is not None:
        if unfinished:
            change(remount.forget, path)
        return overlay
    if unfinished is None:
        raise _not_mounted(path)
    result.mounted_again = path
    if not change(remount.mount_again, unfinished):
        result.pending.append(Pending(b"", "it is not mounted: a killed run had unmounted it"))
        return None
    overlay = find(path)
    if overlay is None:
        raise _not_mounted(path)
    return overlay


def _mount_at(path: bytes) -> Mount:
    mount = mounts.observe(path).mount
    if mount is None:
        raise _not_mounted(path)
    return mount


def _not_mounted(path: bytes) -> OverlayError:
    return OverlayError(f"no overlay is mounted at {show(path)}: mount it first")


class _Run:
    """The passes over one mounted overlay. ``change`` makes every change, or in check mode none."""

    def __init__(
        self, overlay: Overlay, request: Request, change: CarryOut, result: FinalizeResult, progress: Progress
    ) -> None:
        self._overlay = overlay
        self._request = request
        self._change = change
        self._workers = request.workers or overlay.default_workers
        self._result = result
        self._progress = progress
        #: Directories that the kernel has sealed, in earlier runs and in this one.
        self._sealed_before: list[OverlayDirectory] = []
        self._sealed_now: list[OverlayDirectory] = []

    def all_passes(self) -> None:
        with contextlib.ExitStack() as stack:
            below = self._open_lowers(stack)
            if self._is_refused(below):
                return
            visits = self._copy_up(below)
            wanted = self._request.wanted
            while (wanted.detach or not self._overlay.metacopy) and any(visit.changed for visit in visits):
                # Copying all content takes long. Meanwhile entries may have appeared.
                visits = self._copy_up(below, again=True)
            self._result.pending += [one for visit in visits for one in visit.pending]
            self._remove_stale(visits, below)
        self._read(visits)
        if self._overlay.kernel_seals:
            self._note_kernel_seals(visits)
        if self._request.seals:
            self._seal(visits)
        self._result.counts.sealed += len(self._sealed_now)
        if "warm" in self._request.passes:
            self._change(self._warm)
        self._report_levels()

    def _open_lowers(self, stack: contextlib.ExitStack) -> Lowers | None:
        """Return the lower layers, or None if no pass compares with them or they cannot be opened."""
        wanted = self._request.wanted
        if self._request.stale == "ignore" and wanted.owner is None and wanted.group is None:
            return None
        try:
            return stack.enter_context(lowers.opened(self._overlay.layers))
        except OverlayError as error:
            self._result.pending.append(Pending(b"", str(error)))
            return None

    def _is_refused(self, below: Lowers | None) -> bool:
        """Return whether content would be copied without being allowed, and record how much."""
        wanted = self._request.wanted
        if self._overlay.metacopy or wanted.copy_content or wanted.detach or "copy_up" not in self._request.passes:
            return False
        counting = replace(wanted, owner=None, group=None, copy_content=True)
        counts = self._result.counts
        for visit in self._walk(counting, leave_out, below):
            counts.content_files += visit.counts.content_files
            counts.content_bytes += visit.counts.content_bytes
        if counts.content_files:
            self._result.refusal = content_refusal(self._request.path, counts.content_files, counts.content_bytes)
        return bool(self._result.refusal)

    def _copy_up(self, below: Lowers | None, again: bool = False) -> list[Visit]:
        visits = self._walk(self._request.wanted, self._change, below)
        stripped: dict[tuple[int, int], bytes] = {}
        completed: dict[tuple[int, int], int] = {}
        for visit in visits:
            if again:
                visit.counts.already = 0
            completed.update(visit.completed)
            self._result.counts.add(visit.counts)
            stripped.update({file: path for file, path in visit.stripped.items() if file not in stripped})
        self._result.counts.content_files += len(completed)
        self._result.counts.content_bytes += sum(completed.values())
        self._result.counts.setid_stripped += len(stripped)
        self._result.stripped += stripped.values()
        return visits

    def _walk(self, wanted: Wanted, change: CarryOut, below: Lowers | None) -> list[Visit]:
        visits, starts = [], []
        for subtree in self._request.subtrees or (b"",):
            if below and subtree and self._is_stale(below, subtree):
                visits.append(Visit(start(self._overlay, posixpath.dirname(subtree)), stale=[subtree]))
                continue
            directory = start(self._overlay, subtree)
            starts.append(directory)
            if directory.is_sealed:
                visits.append(Visit(directory, sealed=[directory]))
        looks = self._request.stale != "ignore"
        levels = self._request.merged_levels
        walk = CopyUpWalk(self._overlay, wanted, self._workers, change, below, looks, levels, self._progress)
        return visits + walk.run(starts)

    def _is_stale(self, below: Lowers, subtree: bytes) -> bool:
        if self._request.stale == "ignore":
            return False
        parent_path, name = posixpath.split(subtree)
        with contextlib.ExitStack() as stack:
            parent, stored = trace(self._overlay, parent_path, stack)
            if stored < 0 or parent.lower is None:
                return False
            return is_stale(self._overlay, below, parent.lower, stored, name)

    def _remove_stale(self, visits: Sequence[Visit], below: Lowers | None) -> None:
        for path in (path for visit in visits for path in visit.stale):
            if self._request.stale == "report" or below is None:
                reason = "it is gone from the lower layers: 'stale: remove' removes the copy"
                self._result.pending.append(Pending(path, reason))
                continue
            removal = StaleRemoval(self._overlay, below, self._change, self._progress)
            removal.remove(path)
            self._result.pending += removal.kept
            if removal.count:
                self._result.removed.append(path)

    def _read(self, visits: Sequence[Visit]) -> None:
        if "readdir" not in self._request.passes:
            return
        merged = [one for one in _merged(visits) if not one.is_sealed_by_kernel]
        self._result.counts.directories_read = len(merged)
        self._change(self._read_changed, merged, visits)

    def _read_changed(self, merged: Sequence[OverlayDirectory], visits: Sequence[Visit]) -> None:
        """Read the directories whose entries have changed since they were visited."""
        if self._request.seals and self._request.allow_unmount and not self._overlay.kernel_seals:
            # The overlay will be unmounted, and the kernel forgets what it has read.
            return
        changed = with_parents(visit.directory.path for visit in visits if visit.changed)
        again = sorted((one for one in merged if one.path in changed), key=lambda one: -depth(one.path))
        self._result.pending += read_directories(self._overlay, again, self._workers, self._progress)

    def _note_kernel_seals(self, visits: Sequence[Visit]) -> None:
        """Note the directories that the kernel has sealed, by this run or before, and in check mode those that it would seal."""
        merged = _merged(visits)
        self._sealed_before = [one for one in merged if one.is_sealed_by_kernel]
        rest = [one for one in merged if not one.is_sealed_by_kernel]
        if not self._change(self._note_sealed_now, rest) and "readdir" in self._request.passes:
            paths = {one.path for one in self._result.pending}
            incomplete = paths.union(map(posixpath.dirname, paths))
            self._sealed_now = [one for one in rest if one.path not in incomplete]

    def _note_sealed_now(self, directories: Iterable[OverlayDirectory]) -> None:
        self._sealed_now = [one for one in directories if self._is_sealed_by_kernel(one)]

    def _is_sealed_by_kernel(self, directory: OverlayDirectory) -> bool:
        try:
            return self._overlay.attribute(directory.path, b"opaque") == KERNEL_SEALED
        except FileNotFoundError:
            return False

    @property
    def _kernel_sealed(self) -> list[OverlayDirectory]:
        return [*self._sealed_before, *self._sealed_now]

    def _seal(self, visits: Sequence[Visit]) -> None:
        merged = [one for one in _merged(visits) if depth(one.path) > self._request.merged_levels]
        done = {directory.path for directory in self._kernel_sealed}
        incomplete = with_parents(one.path for one in self._result.pending)
        chosen = [directory for directory in merged if directory.path not in done | incomplete]
        detaches = self._request.wanted.detach and not self._result.pending
        if not chosen and not detaches:
            return
        if self._request.seal == "kernel":
            self._leave(chosen, "the kernel has not sealed it: 'seal: offline' does")
            return
        if not self._request.allow_unmount:
            self._leave(chosen, "it can only be sealed while the overlay is unmounted: allow that with 'allow_unmount'")
            if detaches:
                reason = "it can only be detached while the overlay is unmounted: allow that with 'allow_unmount'"
                self._result.pending.append(Pending(b"", reason))
            return
        # A directory that the kernel has sealed cannot stay so in an opaque one, nor over the empty directory of a detached overlay.
        opaque = {directory.path for directory in (merged if detaches else chosen)}
        opaque |= {path for path in done if _is_below(path, opaque)}
        chosen = [directory for directory in merged if directory.path in opaque]
        self._sealed_before = [one for one in self._sealed_before if one.path not in opaque]
        self._sealed_now = [one for one in self._sealed_now if one.path not in opaque]
        settled = {directory.path for visit in visits for directory in visit.sealed}
        settled |= {visit.directory.path for visit in visits if not visit.directory.is_merged}
        if not self._change(self._seal_unmounted, chosen, settled - incomplete):
            self._result.counts.sealed += len(chosen)
            self._result.detached_over = empty_lower(self._overlay.upper) if detaches else None

    def _seal_unmounted(self, chosen: Sequence[OverlayDirectory], settled: Collection[bytes]) -> None:
        overlay = self._overlay
        images = lowers.images_among(overlay.layers)
        if self._request.wanted.detach:
            detaching.make_empty_lower(overlay)
        with remount.unmounted(overlay.mount, images, overlay.roots.let_go, self._progress) as place:
            self._result.unmounted = True
            with lowers.opened(overlay.layers) as below:
                sealing = seal.seal(overlay, below, chosen, settled, self._workers, self._progress)
                self._result.counts.sealed += sealing.sealed
                self._result.pending += sealing.pending
                is_ready = self._request.wanted.detach and self._is_ready(below)
            if is_ready:
                detaching.detach(overlay, self._workers, self._progress)
                place.mount_over(empty_lower(overlay.upper))
                self._result.detached_over = empty_lower(overlay.upper)
        overlay.roots.open(_mount_at(self._request.path))

    def _is_ready(self, below: Lowers) -> bool:
        """Return whether the unmounted overlay can be detached, and record what keeps it from that."""
        if not self._result.pending:
            self._result.pending += detaching.unready(self._overlay, below, self._workers, self._progress)
        return not self._result.pending

    def _leave(self, directories: Sequence[OverlayDirectory], reason: str) -> None:
        """Report the topmost of the directories."""
        paths = {directory.path for directory in directories}
        self._result.pending += [Pending(path, reason) for path in paths if posixpath.dirname(path) not in paths]

    def _warm(self) -> None:
        """Read the directories that the kernel has sealed again, so that their entries are in memory.

        If this run has not unmounted the overlay, its visits have read them.
        """
        if self._result.unmounted:
            read = read_directories(self._overlay, self._kernel_sealed, self._workers, self._progress)
            self._result.pending += read
        self._result.counts.warmed = len(self._kernel_sealed)

    def _report_levels(self) -> None:
        """Report directories that are to stay merged and that the kernel has sealed."""
        levels = self._request.merged_levels
        reason = "the kernel has sealed it, so what appears in it in the lower layers does not show, although 'merged_levels' asks for that"
        if levels:
            found = [one.path for one in self._kernel_sealed if depth(one.path) <= levels]
            self._result.pending += [Pending(path, reason) for path in found]


def _merged(visits: Iterable[Visit]) -> list[OverlayDirectory]:
    """Return the visited directories that are merged with one of the lower layers."""
    return [visit.directory for visit in visits if visit.directory.is_merged]


def _is_below(path: bytes, directories: Collection[bytes]) -> bool:
    """Return whether a directory is below one of others."""
    while path:
        path = posixpath.dirname(path)
        if path in directories:
            return True
    return False
