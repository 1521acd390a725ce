# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which releases linger in a view after it no longer declares them, and which are removed at once.

Each view has one record of the releases that it declared last and of those that are leaving it. The record is kept in the manifest store
and not on hosts, so every host and every batch of a rollout derives the same generation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.limits import MOST_PATTERNS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordKind
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ForgetReleases, RecordReleases

RECORD_FORMAT = 1

#: Bytes of the longest record, and the largest number of placements in it: far more than a farm needs, and quick to read.
LARGEST_RECORD = 1 << 26
_MOST_PLACEMENTS = 1_000_000
#: The last second of the year 9999, in seconds since 1970.
_LAST_SECOND = 253_402_300_799


@dataclass(frozen=True, order=True)
class Placed:
    """A release at a place in a view, as declared."""

    #: Path in the view, relative to its root; empty for the root itself.
    at: str
    #: Path of the release below the software root.
    release: str
    #: Path in the data layer, relative to its root.
    source: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def has_own_place(self) -> bool:
        """Whether the place can be of no other release: it is the path of the release, or ends in its path below one of several roots."""
        # A release of one of several software roots has the name of the root before its path there.
        is_of_root = self.release.endswith("/" + self.source)
        return self.at == self.release or (is_of_root and f"/{self.at}".endswith("/" + self.source))

    def as_dict(self) -> dict[str, Any]:
        """Return the placement as an element of the option ``releases`` of metadata_layer."""
        found: dict[str, Any] = {"release": self.release, "at": self.at or "/", "source": self.source or "/"}
        found.update({"include": list(self.include)} if self.include else {})
        found.update({"exclude": list(self.exclude)} if self.exclude else {})
        return found


@dataclass(frozen=True, order=True)
class Leaving:
    """A release that lingers: the view still shows it but no longer declares it."""

    placed: Placed
    #: When the release left the declaration, in seconds since 1970.
    since: int


@dataclass(frozen=True)
class Left:
    """A release that a view no longer shows, and the reason."""

    placed: Placed
    reason: str

    def as_dict(self) -> dict[str, str]:
        """Return the release as an element of the return value ``left`` of view_releases."""
        return {"release": self.placed.release, "at": self.placed.at or "/", "reason": self.reason}


@dataclass(frozen=True)
class Record:
    """The releases that a view declared last and those that are leaving it, both sorted by place."""

    declared: tuple[Placed, ...]
    leaving: tuple[Leaving, ...] = ()


@dataclass(frozen=True)
class Decision:
    """The new record of a view, and the releases that it no longer shows."""

    record: Record
    left: tuple[Left, ...] = ()


def placed(release: str, at: str | None, source: str | None, include: Iterable[str], exclude: Iterable[str]) -> Placed:
    """Return a declared placement with normalised paths. Raises OverlayError naming the release if a path leads out of its root."""
    path = _normalised(release, "release")
    if not path:
        raise OverlayError("release is empty; give the path of a release below the software root")

    def place(given: str | None, option: str) -> str:
        return path if given is None else _normalised(given, f"'{option}' of release {path}")

    return Placed(place(at, "at"), path, place(source, "source"), tuple(include), tuple(exclude))


def _normalised(path: str, what: str) -> str:
    return to_text(relative_path(to_bytes(path), what))


class Occupied:
    """The places of a view that are in use."""

    def __init__(self, places: Iterable[str]) -> None:
        self._count = Counter(places)
        self._above = frozenset(above for place in self._count for above in _above(place))

    def touches(self, place: str, but: int = 0) -> bool:
        """Return whether a place below or above ``place`` is in use, or ``place`` itself more than ``but`` times."""
        below_or_above = place in self._above or any(above in self._count for above in _above(place))
        return below_or_above or self._count[place] > but


def _above(place: str) -> Iterator[str]:
    """Yield the places above a place, up to the root of the view."""
    while place:
        place = place.rpartition("/")[0]
        yield place


def candidates(
    declared: Sequence[Placed], links: Iterable[str], record: Record | None
) -> tuple[tuple[Leaving, ...], tuple[Left, ...]]:
    """Return the releases of the last record that may linger, and those that are removed at once because of their place.

    A release may linger only if its place in the view is its own, and nothing else is at, below or above that place. Any other place means
    "the current release", and releases that were not declared together must not be mixed there. ``links`` are the places of the links
    that the view declares. A release that leaves the declaration now has the time 0.
    """
    if record is None:
        return (), ()
    still_declared = {(one.at, one.release) for one in declared}
    taken = Occupied([*(one.at for one in declared), *links])
    before = [*(Leaving(one, 0) for one in record.declared), *record.leaving]
    gone = [one for one in before if (one.placed.at, one.placed.release) not in still_declared]
    gone_places = Occupied(one.placed.at for one in gone)
    alone, left = [], []
    for one in gone:
        if not one.placed.has_own_place:
            left.append(Left(one.placed, "its place in the view is not its own path, so the place changes at once"))
        elif taken.touches(one.placed.at):
            left.append(Left(one.placed, "something else is declared at, below or above its place"))
        elif gone_places.touches(one.placed.at, but=1):
            left.append(Left(one.placed, "it was merged with another release that is leaving"))
        else:
            alone.append(one)
    return tuple(alone), tuple(left)


def decide(
    declared: Sequence[Placed],
    links: Iterable[str],
    record: Record | None,
    now: int,
    linger: int,
    unusable: Mapping[str, str],
) -> Decision:
    """Decide which releases linger in a view at ``now`` (seconds since 1970), each for ``linger`` seconds.

    ``unusable`` has the reasons why releases can no longer be shown. A recorded time in the future, left by a clock that was wrong, counts
    as ``now``. The decision depends only on the arguments, so every run with the same ``now`` and record makes the same one.
    """
    lingering, left = candidates(declared, links, record)
    stays: list[Leaving] = []
    goes = list(left)
    for one in lingering:
        since = min(one.since or now, now)
        if one.placed.release in unusable:
            goes.append(Left(one.placed, unusable[one.placed.release]))
        elif now - since >= linger:
            goes.append(Left(one.placed, f"it has lingered for {linger} seconds" if linger else "nothing lingers"))
        else:
            stays.append(replace(one, since=since))
    return Decision(Record(tuple(sorted(set(declared))), tuple(sorted(stays))), tuple(goes))


def plan_record(view: str, before: Record | None, after: Record, linger: int) -> Plan:
    """Return the plan that makes ``after`` the record of a view, or removes the record if nothing lingers."""
    if not linger:
        return () if before is None else (ForgetReleases(view),)
    return () if before == after else (RecordReleases(view),)


# The JSON text of a record


def record_to_json(view: str, record: Record) -> bytes:
    """Return the record of a view as the JSON text in the manifest store. Raises RecordError if it is too long."""
    fields = {
        "view": view,
        "declared": [_fields(one) for one in record.declared],
        "leaving": [{**_fields(one.placed), "since": one.since} for one in record.leaving],
    }
    return _RECORD.dump(fields)


def _fields(one: Placed) -> dict[str, Any]:
    """Return the recorded fields of a placement, without those that have their default."""
    fields: dict[str, Any] = {"release": one.release}
    fields.update({"at": one.at} if one.at != one.release else {})
    fields.update({"source": one.source} if one.source != one.release else {})
    fields.update({"include": list(one.include)} if one.include else {})
    fields.update({"exclude": list(one.exclude)} if one.exclude else {})
    return fields


_PATTERNS = records.list_of(records.text(), MOST_PATTERNS)
_PLACEMENT = {"release": records.relative()}
_WITH_DEFAULT = {
    "at": records.relative(0),
    "source": records.relative(0),
    "include": _PATTERNS,
    "exclude": _PATTERNS,
}
_LEAVING = {**_PLACEMENT, "since": records.integer(1, _LAST_SECOND)}
_RECORD = RecordKind(
    records.fields(
        {
            "format": records.integer(RECORD_FORMAT, RECORD_FORMAT),
            "view": records.text(),
            "declared": records.list_of(records.fields(_PLACEMENT, _WITH_DEFAULT), _MOST_PLACEMENTS),
            "leaving": records.list_of(records.fields(_LEAVING, _WITH_DEFAULT), _MOST_PLACEMENTS),
        }
    ),
    LARGEST_RECORD,
    "format",
    RECORD_FORMAT,
)


def record_from_json(view: str, text: bytes) -> Record:
    """Return the record of ``view`` that ``record_to_json`` wrote. Raises RecordError if ``text`` is not such a record."""
    fields = _RECORD.load(text)
    if fields["view"] != view:
        raise records.RecordError("it is the record of another view")
    declared = {_recorded(one) for one in fields["declared"]}
    leaving = {Leaving(_recorded(one), one["since"]) for one in fields["leaving"]}
    return Record(tuple(sorted(declared)), tuple(sorted(leaving)))


def _recorded(fields: Mapping[str, Any]) -> Placed:
    """Return the placement that recorded fields describe."""
    release = fields["release"]
    include, exclude = (tuple(fields.get(key, ())) for key in ("include", "exclude"))
    return Placed(fields.get("at", release), release, fields.get("source", release), include, exclude)
