# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which generations of a view are removed, and why the others are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A generation on this host."""

    #: The name of its directory.
    directory: str
    #: When it was built or installed on this host, in seconds since the epoch.
    built_at: float
    #: Disk space that its layer uses besides inodes, in bytes.
    bytes: int
    #: The reasons why it is in use; empty if it is not.
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Retention:
    """What happens to a generation."""

    candidate: Candidate
    #: Why it is kept; None if it is removed.
    reason: str | None


@dataclass(frozen=True)
class RetentionRules:
    """Which generations are kept, besides those that are in use."""

    #: The directories of the current and of the previous generation.
    current: str | None
    previous: str | None
    #: How many of the newest generations are kept.
    keep: int
    #: For how many seconds a generation is kept in any case.
    min_age: float

    def decide(self, candidates: Sequence[Candidate], now: float) -> list[Retention]:
        """Return what happens to each generation, newest first. ``now`` is in seconds since the epoch.

        A generation whose time is in the future counts as young: the clock may have been set back.
        """
        newest_first = sorted(candidates, key=lambda one: (one.built_at, one.directory), reverse=True)
        return [
            Retention(candidate, self._reason(candidate, position, now))
            for position, candidate in enumerate(newest_first)
        ]

    def _reason(self, candidate: Candidate, position: int, now: float) -> str | None:
        if candidate.uses:
            return "; ".join(candidate.uses)
        if candidate.directory == self.current:
            return "it is the current generation"
        if candidate.directory == self.previous:
            return "it is the previous generation"
        if position < self.keep:
            return f"it is among the {self.keep} newest"
        if now - candidate.built_at < self.min_age:
            return f"it is younger than {self.min_age:g} seconds"
        return None
