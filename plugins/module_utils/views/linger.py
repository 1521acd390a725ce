# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases that leave a view: which of them linger at their place, since when, and which go at once.

What a view last declared, and what is leaving since when, is one record per view. It is kept beside the manifests and not on the
hosts, so every host and every batch of a rollout derives the same generation from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import MOST_PATTERNS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordKind
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path

RECORD_FORMAT = 1

#: Bytes of a record, and placements in it: far beyond what a farm has, and little to read.
RECORD_LIMIT = 1 << 26
_MOST_PLACEMENTS = 1_000_000
#: A point in time, in seconds since 1970; the year 9999.
_LAST_SECOND = 253_402_300_799


@dataclass(frozen=True, order=True)
class Placed:
    """One release at its place in a view, as it is declared."""

    #: Path within the view, relative to its root; empty for the root itself.
    at: str
    #: Path of the release below the software root.
    release: str
    #: Path within the data layer, relative to its root.
    source: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the placement as metadata_layer takes it."""
        found: dict[str, Any] = {"release": self.release, "at": self.at or "/", "source": self.source or "/"}
        found.update({"include": list(self.include)} if self.include else {})
        found.update({"exclude": list(self.exclude)} if self.exclude else {})
        return found


@dataclass(frozen=True, order=True)
class Leaving:
    """A release that a view does not declare any more and still shows."""

    placed: Placed
    #: When it left the declaration, in seconds since 1970.
    since: int


@dataclass(frozen=True)
class Left:
    """A release that a view does not show any more, and why."""

    placed: Placed
    reason: str


@dataclass(frozen=True)
class Record:
    """What a view declared last, and what is leaving it; both sorted by place."""

    declared: tuple[Placed, ...]
    leaving: tuple[Leaving, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What a view shows besides its declaration, and what goes."""

    record: Record
    left: tuple[Left, ...] = ()


def placed(release: str, at: str | None, source: str | None, include: Iterable[str], exclude: Iterable[str]) -> Placed:
    """Return a declared placement with clean paths. Raises OverlayError, naming the release, for one that leads out of its root."""
    path = _clean(release, "release")
    if not path:
        raise OverlayError("release is empty; give the path of a release below the software root")

    def place(given: str | None, option: str) -> str:
        return path if given is None else _clean(given, f"'{option}' of release {path}")

    return Placed(place(at, "at"), path, place(source, "source"), tuple(include), tuple(exclude))


def _clean(path: str, what: str) -> str:
    return to_text(relative_path(to_bytes(path), what))


class Occupied:
    """Places of a view where something is."""

    def __init__(self, places: Iterable[str]) -> None:
        self._count = Counter(places)
        self._above = frozenset(above for place in self._count for above in _above(place))

    def touches(self, place: str, but: int = 0) -> bool:
        """Tell whether something is at a place, inside it, or above it; at the place itself, more than ``but``."""
        inside_or_above = place in self._above or any(above in self._count for above in _above(place))
        return inside_or_above or self._count[place] > but


def _above(place: str) -> Iterator[str]:
    """Yield the places above a place, the root of the view among them."""
    while place:
        place = place.rpartition("/")[0]
        yield place


def candidates(
    declared: Sequence[Placed], links: Iterable[str], record: Record | None
) -> tuple[tuple[Leaving, ...], tuple[Left, ...]]:
    """Return what of the last state may linger, and what goes at once since its place is not its own.

    A release lingers only at the place that is its own path, versioned as that is, and only where nothing else is placed at, inside or
    above it: elsewhere its place means "what is current", and no two releases may be mixed there that nobody has declared together.
    ``links`` are the places of the view's own links. What newly leaves has 0 as its time.
    """
    if record is None:
        return (), ()
    there = {(one.at, one.release) for one in declared}
    taken = Occupied([*(one.at for one in declared), *links])
    before = [*(Leaving(one, 0) for one in record.declared), *record.leaving]
    gone = [one for one in before if (one.placed.at, one.placed.release) not in there]
    going = Occupied(one.placed.at for one in gone)
    alone, left = [], []
    for one in gone:
        if one.placed.at != one.placed.release:
            left.append(Left(one.placed, "its place in the view is not its own path, so it is re-pointed at once"))
        elif taken.touches(one.placed.at):
            left.append(Left(one.placed, "something else is declared at, inside or above its place"))
        elif going.touches(one.placed.at, but=1):
            left.append(Left(one.placed, "it was merged with another release that leaves"))
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
    """Decide what lingers, at ``now`` (seconds since 1970), for ``linger`` seconds.

    ``unusable`` gives, for releases that cannot be shown any more, the reason. A time in the future, as after a clock was wrong, counts as
    now. The result depends on nothing else, so a run that is given the same ``now`` decides the same.
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


# The record as JSON


def record_to_json(view: str, record: Record) -> bytes:
    """Return the record of a view as the JSON that is kept below the manifest store."""
    fields = {
        "view": view,
        "declared": [_fields(one) for one in record.declared],
        "leaving": [{**_fields(one.placed), "since": one.since} for one in record.leaving],
    }
    return _RECORD.dump(fields)


def _fields(one: Placed) -> dict[str, Any]:
    """Return a placement as it is recorded: without what is as by default."""
    fields: dict[str, Any] = {"release": one.release}
    fields.update({"at": one.at} if one.at != one.release else {})
    fields.update({"source": one.source} if one.source != one.release else {})
    fields.update({"include": list(one.include)} if one.include else {})
    fields.update({"exclude": list(one.exclude)} if one.exclude else {})
    return fields


_PATTERNS = records.list_of(records.text(), MOST_PATTERNS)
_PLACEMENT = {"release": records.relative()}
_AS_BY_DEFAULT = {
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
            "declared": records.list_of(records.fields(_PLACEMENT, _AS_BY_DEFAULT), _MOST_PLACEMENTS),
            "leaving": records.list_of(records.fields(_LEAVING, _AS_BY_DEFAULT), _MOST_PLACEMENTS),
        }
    ),
    RECORD_LIMIT,
    "format",
    RECORD_FORMAT,
)


def record_from_json(view: str, text: bytes) -> Record:
    """Return the record that ``record_to_json`` wrote for a view. Raises RecordError for anything else."""
    fields = _RECORD.load(text)
    if fields["view"] != view:
        raise records.RecordError("it is the record of another view")
    declared = {_recorded(one) for one in fields["declared"]}
    leaving = {Leaving(_recorded(one), one["since"]) for one in fields["leaving"]}
    return Record(tuple(sorted(declared)), tuple(sorted(leaving)))


def _recorded(fields: Mapping[str, Any]) -> Placed:
    release = fields["release"]
    include, exclude = (tuple(fields.get(key, ())) for key in ("include", "exclude"))
    return Placed(fields.get("at", release), release, fields.get("source", release), include, exclude)
