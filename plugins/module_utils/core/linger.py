# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases that leave a view: which of them linger at their place, since when, and which go at once.

What a view last declared, and what is leaving since when, is one record per view. It is kept beside the manifests and not on the
hosts, so every host and every batch of a rollout derives the same generation from it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.generation import is_view_name
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import relative_path

RECORD_FORMAT = 1

#: Bytes of a record, of a path or pattern in it, and placements in it: far beyond what a farm has, and little to read.
RECORD_LIMIT = 1 << 26
_LONGEST_TEXT = 4096
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
    return _decoded(relative_path(_encoded(path), what))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


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
        "format": RECORD_FORMAT,
        "view": view,
        "declared": [_fields(one) for one in record.declared],
        "leaving": [{**_fields(one.placed), "since": one.since} for one in record.leaving],
    }
    return json.dumps(fields, indent=1, sort_keys=True).encode("ascii") + b"\n"


def _fields(one: Placed) -> dict[str, Any]:
    """Return a placement as it is recorded: without what is as by default."""
    fields: dict[str, Any] = {"release": one.release}
    fields.update({"at": one.at} if one.at != one.release else {})
    fields.update({"source": one.source} if one.source != one.release else {})
    fields.update({"include": list(one.include)} if one.include else {})
    fields.update({"exclude": list(one.exclude)} if one.exclude else {})
    return fields


def record_from_json(view: str, text: bytes) -> Record:
    """Return the record that ``record_to_json`` wrote for a view. Raises OverlayError for anything else."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise OverlayError("it is not JSON") from None
    if not isinstance(fields, dict) or set(fields) != {"format", "view", "declared", "leaving"}:
        raise OverlayError("it does not have the fields of such a record")
    if fields["format"] != RECORD_FORMAT or isinstance(fields["format"], bool):
        raise OverlayError("its format is not one that this version of the collection reads")
    if not is_view_name(view) or fields["view"] != view:
        raise OverlayError("it is the record of another view")
    declared = [_placement(one, ()) for one in _list(fields["declared"], _MOST_PLACEMENTS)]
    leaving = [_leaving(one) for one in _list(fields["leaving"], _MOST_PLACEMENTS)]
    return Record(tuple(sorted(set(declared))), tuple(sorted(set(leaving))))


def _leaving(fields: object) -> Leaving:
    one = _placement(fields, ("since",))
    since = fields["since"] if isinstance(fields, dict) and "since" in fields else None
    if not isinstance(since, int) or isinstance(since, bool) or not 0 < since <= _LAST_SECOND:
        raise OverlayError(f"the time since which release {show(_encoded(one.release))!r} is leaving is none")
    return Leaving(one, since)


def _placement(fields: object, more: Sequence[str]) -> Placed:
    if not isinstance(fields, dict) or "release" not in fields:
        raise OverlayError("a placement in it has no release")
    unknown = set(fields) - {"release", "at", "source", "include", "exclude", *more}
    if unknown:
        raise OverlayError("a placement in it has fields that placements do not have")
    release = _path(fields["release"])
    if not release:
        raise OverlayError("a placement in it has an empty release")
    at = _path(fields.get("at", release))
    source = _path(fields.get("source", release))
    include, exclude = (tuple(_text(one) for one in _list(fields.get(key, []), 1000)) for key in ("include", "exclude"))
    return Placed(at, release, source, include, exclude)


def _path(value: object) -> str:
    """Return a recorded path, which is in its clean form as it was written."""
    text = _text(value)
    if text and _clean(text, "a path in it") != text:
        raise OverlayError(f"{show(_encoded(text))!r} is no clean relative path")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise OverlayError("a path or pattern in it is no text, or too long")
    try:
        _encoded(value)
    except UnicodeEncodeError:
        raise OverlayError("a path or pattern in it has characters that no path has") from None
    return value


def _list(value: object, most: int) -> list[object]:
    if not isinstance(value, list) or len(value) > most:
        raise OverlayError("a list in it is none, or too long")
    return value
