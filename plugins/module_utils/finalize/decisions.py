# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide what to do with an entry that is not in the upper layer, from what was seen of it.

A visit looks at one entry and ``decide`` returns the decision. The visit then hands the change to a ``CarryOut``, which makes it, or in
check mode does not. Everything else is the same in both modes. Decisions are made one by one because a plan for all entries of an
overlay would not fit in memory, and because an owner is only safe to change on the descriptor that was looked at.
"""

from __future__ import annotations

import functools
import stat
from dataclasses import dataclass
from typing import Any, Callable, Protocol, Union

#: Call a function with its arguments, or leave that out. Return whether it was called.
CarryOut = Callable[..., bool]

_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH

_EXCHANGED = (
    "it differs from the lower layers: it was replaced, or changed on the file server, during the run; run this again"
)


def carry_out(change: Callable[..., object], *arguments: Any) -> bool:
    """Call ``change`` and return True."""
    change(*arguments)
    return True


def leave_out(_change: Callable[..., object], *_arguments: Any) -> bool:
    """Return False without calling anything, as in check mode."""
    return False


class Status(Protocol):
    """The fields of ``os.stat_result`` that decisions depend on."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...


@dataclass(frozen=True)
class LeaveAlone:
    """Do not copy the entry up, and report why."""

    reason: str


@dataclass(frozen=True)
class KeepOwner:
    """Copy the entry up with its owner and group."""


@dataclass(frozen=True)
class ChangeOwner:
    """Copy the entry up with another owner or group. ``strips`` is whether it loses set-ID bits or a capability by that."""

    uid: int
    gid: int
    strips: bool = False


@dataclass(frozen=True)
class ChangeOwnerKeepingSetid:
    """Copy a file up with another owner or group, and set its set-ID bits and its capability again."""

    uid: int
    gid: int


Decision = Union[LeaveAlone, KeepOwner, ChangeOwner, ChangeOwnerKeepingSetid]

_KEEP_OWNER = KeepOwner()
#: Most entries of an overlay get the same decision, so it is made once.
_change_owner = functools.lru_cache(maxsize=256)(ChangeOwner)


@dataclass(frozen=True)
class CopyUpRules:
    """What decides about all entries of an overlay."""

    #: The uid and gid that entries get; None keeps theirs.
    owner: int | None
    group: int | None
    #: Whether files keep set-ID bits and capabilities when their owner changes.
    keep_setid: bool
    #: Whether hard links stay hard links when they are copied up.
    keeps_links: bool
    #: Whether copying up copies the content of files.
    copies_content: bool
    #: Whether that is allowed.
    copy_content: bool

    @property
    def changes_owners(self) -> bool:
        return self.owner is not None or self.group is not None

    def owner_of(self, status: Status) -> tuple[int, int]:
        """Return the uid and gid that an entry gets."""
        return (
            status.st_uid if self.owner is None else self.owner,
            status.st_gid if self.group is None else self.group,
        )

    def changes_owner_of(self, status: Status) -> bool:
        """Return whether an entry gets another owner, so that ``decide`` needs its status in the lower layers."""
        return self.owner_of(status) != (status.st_uid, status.st_gid)

    def may_have_capability(self, status: Status) -> bool:
        """Return whether ``decide`` needs to know if an entry has a capability.

        A capability has an effect on programs only. Other files are looked at only if they are to keep theirs.
        """
        if not stat.S_ISREG(status.st_mode) or has_setid(status):
            return False
        return self.keep_setid or bool(status.st_mode & _EXECUTABLE)

    def content_of(self, status: Status) -> int:
        """Return how many bytes of content are copied with an entry."""
        return status.st_size if self.copies_content and stat.S_ISREG(status.st_mode) else 0


def has_setid(status: Status) -> bool:
    """Return whether a file has a set-user-ID or set-group-ID bit."""
    return bool(status.st_mode & (stat.S_ISUID | stat.S_ISGID))


def loses_attributes(status: Status, has_capability: bool) -> bool:
    """Return whether chown(2) takes set-ID bits or a capability away from an entry."""
    return stat.S_ISREG(status.st_mode) and (has_capability or has_setid(status))


def is_from_lower(status: Status, lower: Status | None) -> bool:
    """Return whether an entry is the one of that name in the lower layers. ``lower`` is the status of the latter; None if there is none."""
    return (
        lower is not None
        and lower.st_mode == status.st_mode
        and lower.st_mtime_ns == status.st_mtime_ns
        and lower.st_uid == status.st_uid
        and lower.st_gid == status.st_gid
        and (lower.st_size == status.st_size or stat.S_ISDIR(status.st_mode))
    )


def decide(rules: CopyUpRules, status: Status, lower: Status | None = None, has_capability: bool = False) -> Decision:
    """Return what to do with an entry that is not in the upper layer.

    ``lower`` is the status of the entry of that name in the lower layers. It and ``has_capability`` only matter if the rules say so.

    A user who may write to the directory may have put another file in the place of the one that the lower layers have: for example a
    file of root in the upper layer, which this user may not read. Its owner must not be changed.
    """
    if status.st_nlink > 1 and not rules.keeps_links and not stat.S_ISDIR(status.st_mode):
        return LeaveAlone("it has several names, which would become separate files: mount the overlay with index=on")
    if rules.copies_content and not rules.copy_content and rules.content_of(status):
        return LeaveAlone("its content would be copied: allow that with 'copy_content'")
    uid, gid = rules.owner_of(status)
    if uid == status.st_uid and gid == status.st_gid:
        return _KEEP_OWNER
    if not is_from_lower(status, lower):
        return LeaveAlone(_EXCHANGED)
    loses = loses_attributes(status, has_capability)
    if loses and rules.keep_setid:
        return ChangeOwnerKeepingSetid(uid, gid)
    return _change_owner(uid, gid, loses)
