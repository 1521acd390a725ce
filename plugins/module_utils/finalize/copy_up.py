# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Walk a mounted overlay, and copy up what is not in its upper layer.

The upper layer itself is only read. All changes go through the overlay, which may be in use.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import detaching, parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.decisions import (
    CarryOut,
    ChangeOwner,
    ChangeOwnerKeepingSetid,
    CopyUpRules,
    Decision,
    KeepOwner,
    LeaveAlone,
    decide,
    is_from_lower,
    loses_attributes,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.directories import OverlayDirectory, depth
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_request import Wanted
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import FinalizeCounts, Pending
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.live_overlay import Overlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import RESTORING, Marks, lower_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.owner_changes import (
    OwnerChanger,
    begun_change,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.tracing import is_stale
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CAPABILITY_XATTR

#: Errors that end the run, since the next entry would fail as well. All others concern one entry.
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)

_CAPABILITY = os.fsdecode(CAPABILITY_XATTR)
_JUST_COPIED = Marks(copied=True)


@dataclass
class Visit:
    """What a visit of one directory found and did."""

    directory: OverlayDirectory
    counts: FinalizeCounts = field(default_factory=FinalizeCounts)
    pending: list[Pending] = field(default_factory=list)
    #: Whether entries in it were copied up, so that it has to be read again.
    changed: bool = False
    #: The directories in it that a run has sealed. They are not visited.
    sealed: list[OverlayDirectory] = field(default_factory=list)
    #: The stale copies in it. They are not visited either.
    stale: list[bytes] = field(default_factory=list)
    #: The first path of each file in it that lost set-ID bits or a capability with its owner, by device and inode number.
    stripped: dict[tuple[int, int], bytes] = field(default_factory=dict)
    #: The size of each file in it that was in the upper layer without its content, by device and inode number.
    completed: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass
class _Here:
    """The directory that is being visited."""

    visit: Visit
    owners: OwnerChanger
    progress: Progress
    #: Its descriptors in the overlay, in the upper layer and in the lower layers; -1 if there is none, or it is not needed.
    shown: int = -1
    stored: int = -1
    lower: int = -1
    further: list[OverlayDirectory] = field(default_factory=list)
    #: Whether files are copied up with their content.
    whole: bool = False
    #: Whether the index may have files that have no name in the upper layer.
    indexed: bool = False

    @property
    def directory(self) -> OverlayDirectory:
        return self.visit.directory


def _keep_owner(here: _Here, name: bytes, _held: int, status: os.stat_result, _decision: KeepOwner) -> None:
    if here.whole and stat.S_ISREG(status.st_mode):
        with beneath.held(here.shown, name) as held:
            detaching.copy_up_whole(held, not here.indexed)
        return
    # A change of metadata that changes nothing makes the kernel copy the entry up.
    beneath.keep_times(here.shown, name, status.st_atime_ns)


def _change_owner(here: _Here, _name: bytes, held: int, _status: os.stat_result, decision: ChangeOwner) -> None:
    # The owner first, in the same step as the copy, so that a killed run leaves no copy with the old one.
    beneath.change_owner(held, decision.uid, decision.gid)
    if here.whole:
        detaching.copy_content(held)


def _change_owner_keeping_setid(
    here: _Here, name: bytes, held: int, _status: os.stat_result, decision: ChangeOwnerKeepingSetid
) -> None:
    here.owners.change(here.shown, name, held, decision.uid, decision.gid)
    if here.whole:
        detaching.copy_content(held)


#: How each decision is carried out on a name in the directory that is being visited, and on what was held and looked at.
CHANGES: Mapping[type[Any], Callable[[_Here, bytes, int, os.stat_result, Any], None]] = {
    KeepOwner: _keep_owner,
    ChangeOwner: _change_owner,
    ChangeOwnerKeepingSetid: _change_owner_keeping_setid,
}


class CopyUpWalk:
    """One walk over everything below some directories that no run has sealed."""

    def __init__(
        self,
        overlay: Overlay,
        wanted: Wanted,
        workers: int,
        carry_out: CarryOut,
        lowers: Lowers | None = None,
        looks_for_stale: bool = True,
        merged_levels: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """``lowers`` are the lower layers to compare with, or None if they cannot be opened or are not needed.

        Directories that the kernel has sealed are compared with them up to ``merged_levels`` only.
        """
        self._overlay = overlay
        self._workers = workers
        self._carry_out = carry_out
        self._lowers = lowers
        self._looks_for_stale = looks_for_stale
        self._merged_levels = merged_levels
        self._progress = progress
        self._copies_up = wanted.copy_up
        self._rules = CopyUpRules(
            owner=wanted.owner,
            group=wanted.group,
            keep_setid=wanted.keep_setid,
            keeps_links=overlay.keeps_links,
            copies_content=not overlay.metacopy or wanted.detach,
            copy_content=wanted.copy_content or wanted.detach,
        )
        self._detaches = wanted.detach
        self._has_index = wanted.detach and detaching.has_index(overlay)
        self._lock = parallel.Lock()
        self._upper_is_checked = False

    def run(self, starts: Sequence[OverlayDirectory]) -> list[Visit]:
        """Visit the directories and everything below them; return the visits in no order."""
        first = [directory for directory in starts if not directory.is_sealed]
        with beneath.working_directory_kept():
            return parallel.walk(first, self._visit, self._workers, self._progress)

    def _visit(self, directory: OverlayDirectory, progress: Progress) -> tuple[Visit, list[OverlayDirectory]]:
        here = _Here(Visit(directory), OwnerChanger(self._lock), progress)
        # Without metacopy, every copy has its content.
        here.whole = self._detaches and self._overlay.metacopy
        here.indexed = self._has_index
        progress()
        try:
            here.shown = self._overlay.open(directory.path)
            if directory.marks:
                here.stored = self._overlay.open_stored(directory.path)
            if self._rules.changes_owners and self._lowers and directory.lower is not None:
                here.lower = self._lowers.open(directory.lower)
            beneath.enter(here.shown)
            self._visit_entries(here)
        except OSError as error:
            self._note_failure(here.visit, directory.path, error)
        finally:
            for fd in (here.shown, here.stored, here.lower):
                if fd >= 0:
                    os.close(fd)
        return here.visit, here.further

    def _visit_entries(self, here: _Here) -> None:
        directory, visit = here.directory, here.visit
        # Read the upper layer before the overlay. An entry that appears there in between differs from the lower layers, and is reported.
        stored = beneath.names(here.stored) if here.stored >= 0 else set()
        if directory.marks and directory.marks.restoring:
            stored -= self._finish_owners(here, stored)
        entries = beneath.entries(here.shown)
        covered = {os.path.basename(path) for path in self._overlay.covered if os.path.dirname(path) == directory.path}
        stale = self._stale_among(here, [entry for entry in entries if entry.name in stored])
        visit.stale = [directory.child(name) for name in stale]
        visit.pending += [Pending(directory.child(name), "something else is mounted there") for name in covered]
        for entry in entries:
            here.progress()
            if entry.name in stale or entry.name in covered:
                continue
            try:
                self._visit_entry(here, entry, entry.name in stored)
            except OSError as error:
                self._note_failure(visit, directory.child(entry.name), error)
        if here.owners.marked and not here.owners.unfinished:
            self._carry_out(beneath.remove_attribute, here.shown, RESTORING)

    def _visit_entry(self, here: _Here, entry: os.DirEntry[bytes], stored: bool) -> None:
        """Copy an entry up unless it is ``stored`` in the upper layer. Note a directory that is to be visited."""
        directory, visit = here.directory, here.visit
        is_directory = entry.is_dir(follow_symlinks=False)
        marks: Marks | None = None
        if stored:
            visit.counts.already += 1
            marks = self._overlay.marks_in(here.stored, entry.name) if is_directory else None
            if self._detaches and entry.is_file(follow_symlinks=False):
                self._complete(here, entry.name)
        elif directory.lower is None:
            # It appeared in the upper layer just now.
            return
        elif not self._copies_up:
            visit.pending.append(Pending(directory.child(entry.name), "not copied up"))
        elif not self._copy_up(here, entry.name):
            return
        elif visit.changed:
            marks = _JUST_COPIED
        if not is_directory:
            return
        path = directory.child(entry.name)
        if marks and marks.sealed:
            visit.sealed.append(OverlayDirectory(path, None, marks))
            if self._detaches:
                here.further.append(visit.sealed[-1])
        else:
            lower = lower_path(directory.lower, entry.name, marks or Marks())
            here.further.append(OverlayDirectory(path, lower, marks))

    def _complete(self, here: _Here, name: bytes) -> None:
        """Copy the content of a file that the upper layer has without it."""
        if not detaching.lacks_content(self._overlay, here.stored, name):
            return
        try:
            with beneath.held(here.shown, name) as held:
                status = os.fstat(held)
                self._carry_out(detaching.copy_content, held)
        except FileNotFoundError:
            # Either the file was removed during the visit, or what it is a copy of.
            if beneath.has(here.stored, name):
                reason = "its content is gone from the lower layers"
                here.visit.pending.append(Pending(here.directory.child(name), reason))
            return
        here.visit.completed[status.st_dev, status.st_ino] = status.st_size

    def _stale_among(self, here: _Here, entries: Sequence[os.DirEntry[bytes]]) -> set[bytes]:
        """Return the names of those entries of the upper layer that are stale."""
        lowers, lower = self._lowers, here.directory.lower
        if lowers is None or lower is None or not entries or not self._looks_for_stale:
            return set()
        if here.directory.is_sealed_by_kernel and depth(here.directory.path) > self._merged_levels:
            # Listing it in the lower layers would cost calls in each run, as it does not for a directory that a run sealed.
            return set()
        names = lowers.names(lower)
        missing = [entry for entry in entries if names is None or entry.name not in names]
        return {entry.name for entry in missing if is_stale(self._overlay, lowers, lower, here.stored, entry.name)}

    def _copy_up(self, here: _Here, name: bytes) -> bool:
        """Decide about one entry, and carry that out. Return False if it is left alone."""
        if not self._rules.changes_owners:
            # Nothing needs to be held: whichever file has the name by then, keeping its owner changes nothing of it.
            status = beneath.status(here.shown, name)
            return self._take(here, name, -1, status, decide(self._rules, status))
        held = beneath.hold(here.shown, name)
        try:
            status = os.fstat(held)
            if not self._rules.changes_owner_of(status):
                return self._take(here, name, held, status, decide(self._rules, status))
            lower, capable = _status_in(here.lower, name), self._has_capability(name, status)
            return self._take(here, name, held, status, decide(self._rules, status, lower, capable))
        finally:
            os.close(held)

    def _has_capability(self, name: bytes, status: os.stat_result) -> bool:
        # Listing the xattrs is faster than the error of reading one that is not there.
        return self._rules.may_have_capability(status) and beneath.has_attribute_here(name, _CAPABILITY)

    def _take(self, here: _Here, name: bytes, held: int, status: os.stat_result, decision: Decision) -> bool:
        """Carry a decision out, and count it. This is the one place in which entries are copied up."""
        visit = here.visit
        if isinstance(decision, LeaveAlone):
            visit.pending.append(Pending(visit.directory.child(name), decision.reason))
            return False
        if self._carry_out(CHANGES[type(decision)], here, name, held, status, decision):
            visit.changed = True
            if not self._upper_is_checked:
                self._check_upper(visit.directory.child(name))
        counts = visit.counts
        counts.copied_up += 1
        content = self._rules.content_of(status)
        if content:
            counts.content_files += 1
            counts.content_bytes += content
        if isinstance(decision, ChangeOwner) and decision.strips:
            visit.stripped.setdefault((status.st_dev, status.st_ino), visit.directory.child(name))
        return True

    def _finish_owners(self, here: _Here, stored: set[bytes]) -> set[bytes]:
        """Finish the changes of owner that a killed run began; return the names of files that it had copied up and not begun."""
        visit = here.visit
        if not self._copies_up:
            reason = "a killed run began to change owners in it: the pass 'copy_up' finishes that"
            visit.pending.append(Pending(visit.directory.path, reason))
            return set()
        here.owners.marked = True
        not_begun = set()
        for name in stored:
            try:
                held = beneath.hold(here.shown, name)
            except FileNotFoundError:  # a whiteout
                continue
            try:
                change = begun_change(held)
                if change is not None:
                    self._carry_out(here.owners.finish, held, change)
                    visit.counts.restored += 1
                elif self._rules.changes_owners and self._is_not_begun(here, name, held):
                    not_begun.add(name)
            finally:
                os.close(held)
        return not_begun

    def _is_not_begun(self, here: _Here, name: bytes, held: int) -> bool:
        """Return whether a file was copied up to have its owner changed, and is still as the lower layers have it."""
        status = os.fstat(held)
        return loses_attributes(status, self._has_capability(name, status)) and is_from_lower(
            status, _status_in(here.lower, name)
        )

    def _check_upper(self, path: bytes) -> None:
        """Check that the upper layer has an entry that was just copied up.

        Raises OverlayError if it does not, since the path that the kernel reports then leads to another directory.
        """
        with beneath.opened(self._overlay.roots.upper, os.path.dirname(path), same_mount=True) as directory:
            is_there = beneath.has(directory, os.path.basename(path))
        if not is_there:
            raise OverlayError(
                f"{show(self._overlay.upper)} is not the upper layer of the overlay at {show(self._overlay.mount.path)}: another directory"
                " is in its place; mount the overlay again"
            )
        self._upper_is_checked = True

    @staticmethod
    def _note_failure(visit: Visit, path: bytes, error: OSError) -> None:
        if error.errno == errno.ENOENT:
            # The entry was removed during the visit.
            return
        if error.errno in FATAL:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
        visit.pending.append(Pending(path, f"{error.strerror}"))


def _status_in(directory: int, name: bytes) -> os.stat_result | None:
    """Return the status of ``name`` in an open directory, or None if it is not there or ``directory`` is -1."""
    if directory < 0:
        return None
    try:
        return beneath.status(directory, name)
    except FileNotFoundError:
        return None
