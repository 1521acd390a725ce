# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which generations of a view may be removed, and why the others may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A generation on this host."""

    folder: str
    #: When it was built or installed here, in seconds since the epoch.
    built_at: float
    #: Room that its layer takes, besides inodes.
    bytes: int
    #: Who needs it, in words; empty when nobody does.
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    candidate: Candidate
    #: Why it is kept; None when it is to be removed.
    reason: str | None


def judge(
    candidates: Sequence[Candidate],
    current: str | None,
    previous: str | None,
    keep: int,
    min_age: float,
    now: float,
) -> list[Verdict]:
    """Return what becomes of each generation, newest first.

    ``keep`` is how many of the newest stay in any case, ``min_age`` how many seconds a generation has to have been there. A time in
    the future, as after a clock that was set back, counts as young.
    """
    newest_first = sorted(candidates, key=lambda one: (one.built_at, one.folder), reverse=True)
    return [
        Verdict(candidate, _reason(candidate, place, current, previous, keep, min_age, now))
        for place, candidate in enumerate(newest_first)
    ]


def _reason(
    candidate: Candidate,
    place: int,
    current: str | None,
    previous: str | None,
    keep: int,
    min_age: float,
    now: float,
) -> str | None:
    if candidate.uses:
        return "; ".join(candidate.uses)
    if candidate.folder == current:
        return "it is the current generation"
    if candidate.folder == previous:
        return "it is the previous generation"
    if place < keep:
        return f"it is among the {keep} newest"
    if now - candidate.built_at < min_age:
        return f"it is younger than {min_age:g} seconds"
    return None
