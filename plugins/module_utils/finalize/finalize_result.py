# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run did to an overlay, or in check mode would do, and how a module returns it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show

#: How many pending entries are returned, and how many paths for each reason.
MOST_NAMED, MOST_NAMED_PER_REASON = 100, 10


@dataclass(frozen=True)
class Pending:
    """An entry that is left to do, or that the run cannot do."""

    #: Relative to the overlay's root; empty for the root.
    path: bytes
    reason: str

    def as_dict(self) -> dict[str, str]:
        return {"path": show(self.path) or ".", "reason": self.reason}


def first_pending(pending: Iterable[Pending]) -> list[dict[str, str]]:
    """Return the first MOST_NAMED distinct entries, sorted by path."""
    ordered = sorted(set(pending), key=lambda one: (one.path, one.reason))
    return [one.as_dict() for one in ordered[:MOST_NAMED]]


def pending_by_reason(pending: Iterable[Pending]) -> list[dict[str, Any]]:
    """Return the reasons, the most frequent first, each with its number of entries and the first of their paths."""
    paths: dict[str, list[bytes]] = {}
    for one in sorted(set(pending), key=lambda one: one.path):
        paths.setdefault(one.reason, []).append(one.path)
    return [
        {
            "reason": reason,
            "total": len(found),
            "paths": [show(path) or "." for path in found[:MOST_NAMED_PER_REASON]],
        }
        for reason, found in sorted(paths.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


@dataclass(frozen=True)
class CopyUpEntries(Action):
    count: int

    def __str__(self) -> str:
        return f"copy up the metadata of {self.count} entries"


@dataclass(frozen=True)
class CopyContent(Action):
    count: int
    size: int

    def __str__(self) -> str:
        return f"copy the content of {self.count} files, {self.size} bytes, to the upper layer"


@dataclass(frozen=True)
class FinishOwners(Action):
    count: int

    def __str__(self) -> str:
        return f"finish changing the owner of {self.count} files, which a killed run began"


@dataclass(frozen=True)
class SealDirectories(Action):
    count: int

    def __str__(self) -> str:
        return f"seal {self.count} directories"


@dataclass(frozen=True)
class RemoveStale(Action):
    path: bytes

    def __str__(self) -> str:
        return f"remove the copy of {show(self.path)}, which is gone from the lower layers"


@dataclass(frozen=True)
class Detach(Action):
    lower: tuple[bytes, ...]
    empty: bytes

    def __str__(self) -> str:
        return f"detach the overlay from {', '.join(map(show, self.lower))}, and mount it over the empty directory {show(self.empty)}"


@dataclass(frozen=True)
class MountAgain(Action):
    path: bytes

    def __str__(self) -> str:
        return f"mount the overlay at {show(self.path)} again, which a killed run had unmounted"


@dataclass
class FinalizeCounts:
    """Numbers of entries, under the names of the module's return values."""

    copied_up: int = 0
    #: Files whose content is copied too, and its size in bytes.
    content_files: int = 0
    content_bytes: int = 0
    already: int = 0
    restored: int = 0
    setid_stripped: int = 0
    directories_read: int = 0
    sealed: int = 0
    warmed: int = 0

    def add(self, other: FinalizeCounts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class FinalizeResult:
    """What a run did, or in check mode would do, and what is left to do."""

    counts: FinalizeCounts = field(default_factory=FinalizeCounts)
    pending: list[Pending] = field(default_factory=list)
    #: Paths of stale copies that were removed.
    removed: list[bytes] = field(default_factory=list)
    #: The overlay's path if a killed run had unmounted it.
    mounted_again: bytes | None = None
    #: Whether this run unmounted the overlay, and mounted it again.
    unmounted: bool = False
    #: Paths of files that lost set-ID bits or capabilities with their owner. Names of one file are counted once.
    stripped: list[bytes] = field(default_factory=list)
    #: The lower layers of the overlay before the run, data layers last; empty if it is not mounted.
    lower: tuple[bytes, ...] = ()
    #: The empty directory that is its lower layer after the run if the run detached it.
    detached_over: bytes | None = None
    #: Whether the overlay was detached before the run.
    was_detached: bool = False
    #: Why the run is refused before it changes anything; empty if it is not.
    refusal: str = ""

    @property
    def plan(self) -> Plan:
        """The actions that the counts amount to. Reading directories changes nothing."""
        if self.refusal:
            return ()
        counts = self.counts
        plan: Plan = ()
        if self.mounted_again is not None:
            plan += (MountAgain(self.mounted_again),)
        if counts.restored:
            plan += (FinishOwners(counts.restored),)
        if counts.copied_up:
            plan += (CopyUpEntries(counts.copied_up),)
        if counts.content_files:
            plan += (CopyContent(counts.content_files, counts.content_bytes),)
        plan += tuple(RemoveStale(path) for path in sorted(self.removed))
        if counts.sealed:
            plan += (SealDirectories(counts.sealed),)
        if self.detached_over is not None:
            plan += (Detach(self.lower, self.detached_over),)
        return plan

    @property
    def values(self) -> dict[str, Any]:
        """The return values of the module."""
        return {
            **vars(self.counts),
            "removed": [show(path) for path in sorted(self.removed)],
            "unmounted": self.unmounted,
            "detached": self.was_detached or self.detached_over is not None,
            "lower": [show(layer) for layer in self._lower_after],
            "pending": first_pending(self.pending),
            "pending_total": len(set(self.pending)),
            "pending_by_reason": pending_by_reason(self.pending),
            "finalized": not self.pending and not self.refusal,
        }

    @property
    def _lower_after(self) -> tuple[bytes, ...]:
        return self.lower if self.detached_over is None else (self.detached_over,)

    @property
    def before(self) -> dict[str, Any]:
        """The state before the run, for the diff."""
        if self.refusal:
            return {}
        return {
            "mounted": self.mounted_again is None,
            "in upper": self.counts.already,
            "owners half changed": self.counts.restored,
            "sealed by this run": 0,
            "lower layers": [show(layer) for layer in self.lower],
            "gone from the lower layers": [show(path) for path in sorted(self.removed)],
        }

    @property
    def after(self) -> dict[str, Any]:
        """The state after the run, for the diff."""
        if self.refusal:
            return {}
        return {
            "mounted": True,
            "in upper": self.counts.already + self.counts.copied_up,
            "owners half changed": 0,
            "sealed by this run": self.counts.sealed,
            "lower layers": [show(layer) for layer in self._lower_after],
            "gone from the lower layers": [],
        }

    @property
    def warnings(self) -> list[str]:
        found = [_stripped_warning(self.stripped)] if self.stripped else []
        return found if self.detached_over is None else [*found, _detached_warning(self.detached_over)]


def content_refusal(path: bytes, files: int, size: int) -> str:
    """Return the message that refuses to copy ``size`` bytes of content of ``files`` files within the overlay at ``path``."""
    gib = f" ({size / (1 << 30):.1f} GiB)" if size >= 1 << 30 else ""
    return (
        f"the overlay at {show(path)} is mounted without metacopy=on, so copying up would copy the content of {files} files with {size}"
        f" bytes{gib} from the lower layers to the upper layer; nothing was changed. Mount the overlay with metacopy=on, or allow the copy"
        " with 'copy_content: true'"
    )


def _detached_warning(empty: bytes) -> str:
    return (
        f"from now on, the lower layer of the overlay is the empty directory {show(empty)}: give it as 'lower' wherever the overlay is"
        " declared, also where it is mounted at boot"
    )


def _stripped_warning(paths: Collection[bytes]) -> str:
    names = ", ".join(show(path) for path in sorted(paths)[:MOST_NAMED_PER_REASON])
    more = f" and {len(paths) - MOST_NAMED_PER_REASON} more" if len(paths) > MOST_NAMED_PER_REASON else ""
    return (
        f"{len(paths)} files lost their set-ID bits or capabilities when their owner or group changed: {names}{more}. To keep them in files"
        " that are copied up from now on, set 'keep_setid: true'"
    )
