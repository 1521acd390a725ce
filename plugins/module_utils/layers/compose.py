# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose a view: turn the manifests of its releases into one stream of entries.

A release that is alone at its place is passed through. Releases at the same or at nested places, with patterns, or with a declared link in
their place are merged; see merge.py.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import filtered
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.merge import (
    Conflict,
    Conflicts,
    HiddenDirectory,
    Merge,
    MergeInput,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    OwnershipRules,
    changed_acls,
    changed_mode,
    is_privileged,
    without_privileges,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CARRIED_XATTRS,
    CHECKSUM_XATTR,
    Entry,
    Placement,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount

IMPLIED_MODE = stat.S_IFDIR | 0o755
_LINK_MODE = stat.S_IFLNK | 0o777
#: The number of entries of merged trees that are read between two calls of the progress callback.
_ENTRIES_PER_STEP = 10_000

Reader = Callable[[Placement], Iterator[Entry]]
Progress = Callable[[], None]


@dataclass(frozen=True)
class Rules:
    """How the releases of a view are combined into one tree."""

    ownership: OwnershipRules = field(default_factory=OwnershipRules)
    #: ``error`` refuses conflicts. ``first`` and ``last`` show the release that is declared first or last.
    on_conflict: str = "error"
    links: tuple[Link, ...] = ()


def in_order(placements: Sequence[Placement]) -> list[Placement]:
    """Return the placements sorted by place, parents first. The result does not depend on the given order."""
    return sorted(placements, key=_order)


def _order(placement: Placement) -> tuple[object, ...]:
    record = placement.record
    return (
        sibling_key(b"/" + placement.at),
        record.release,
        record.digest,
        placement.source,
        sorted(placement.include),
        sorted(placement.exclude),
    )


def precedence(placements: Sequence[Placement], rules: Rules) -> list[list[int]] | None:
    """Return which placement takes precedence at each place, or None if the declared order of the placements has no effect.

    There is a list for each place at which, together with the places above it, the view shows several placements. The one that takes
    precedence comes first. Placements are given by their index in ``in_order``, so equal views have equal lists.
    """
    if rules.on_conflict == "error":
        return None
    canonical = sorted(range(len(placements)), key=lambda number: _order(placements[number]))
    rank = {number: position for position, number in enumerate(canonical)}
    winning = range(len(placements)) if rules.on_conflict == "first" else range(len(placements) - 1, -1, -1)
    turn = {rank[number]: position for position, number in enumerate(winning)}
    at_place: dict[bytes, list[int]] = {}
    for number in canonical:
        at_place.setdefault(b"/" + placements[number].at, []).append(rank[number])
    lists = []
    for place, here in at_place.items():
        above = [number for path in _ancestors(place[1:]) for number in at_place.get(path, ())]
        if len(here) + len(above) > 1:
            lists.append(sorted([*above, *here], key=turn.__getitem__))
    touched = any(
        _inside(link.path, placement.at) or _inside(placement.at, link.path)
        for link in rules.links
        for placement in placements
    )
    return lists if lists or touched else None


def _inside(path: bytes, directory: bytes) -> bool:
    """Return whether ``path`` is ``directory`` or below it. Both are relative to the root of the view."""
    return not directory or path == directory or path.startswith(directory + b"/")


@dataclass
class _Unit:
    """A separate part of the view: a release that is alone at its place, or several trees that are merged."""

    #: Place of the topmost tree, relative to the root of the view.
    top: bytes
    #: The placements by precedence, highest first.
    placements: list[Placement] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    #: None if the unit is a release that is passed through.
    merge: Merge | None = None

    @property
    def is_plain(self) -> bool:
        """True if the unit is one release without patterns and declared links, which is passed through."""
        return (
            not self.links and len(self.placements) == 1 and not self.placements[0].include + self.placements[0].exclude
        )

    @property
    def type(self) -> int | None:
        """The file type of the topmost entry, None if the unit has no entries."""
        return self.merge.top if self.merge else stat.S_IFDIR


class Composition:
    """A composed view, whose conflicts have been found. ``read`` opens the manifest of a placement.

    Creating one reads the manifests of the trees that are merged; ``entries`` reads them again. ``progress`` is called while they are read.
    Raises OverlayError if there are conflicts and the rules do not resolve them.
    """

    def __init__(self, placements: Sequence[Placement], read: Reader, rules: Rules, progress: Progress) -> None:
        self._placements = placements
        self._read = read
        self._rules = rules
        self._progress = progress
        self._units = _units(placements, rules)
        #: Paths of the files read so far that lose set-ID bits or capabilities.
        self._strips: set[bytes] = set()
        #: The files of these that the view shows. Complete when ``entries`` has ended.
        self.stripped = PathCount()
        #: By the identity of the placement, since each tree is read twice.
        self._excluded: dict[int, int] = {}
        conflicts = Conflicts()
        for unit in self._units:
            if not unit.is_plain:
                unit.merge = Merge(self._trees(unit), conflicts)
        if rules.on_conflict == "error":
            conflicts.refuse()
        #: The first conflicts, and the number of all conflicts.
        self.conflicts: tuple[Conflict, ...] = tuple(conflicts.first)
        self.conflict_count = conflicts.count
        #: The first directories of which the view shows nothing, and the number of entries in all of them.
        self.hidden_directories: tuple[HiddenDirectory, ...] = tuple(conflicts.directories)
        self.hidden_entries = conflicts.hidden_entries

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the view, in manifest order, starting with its root."""
        ownership = self._rules.ownership
        self._strips.clear()
        self.stripped = PathCount()
        for part in self.parts():
            shown = (
                placed(part, self._read(part), ownership, strips=self._strips)
                if isinstance(part, Placement)
                else iter((part,))
            )
            yield from self._counted(shown) if ownership.strips else shown

    def _counted(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield ``entries``, and count the files among them that lose set-ID bits or capabilities."""
        for entry in entries:
            if self._strips and not entry.is_hardlink and entry.path in self._strips:
                self.stripped.add(entry.path)
            yield entry

    def parts(self) -> Iterator[Entry | Placement]:
        """Yield the entries of the view, and in their place the placement of each release that is passed through.

        Directories above releases that no manifest describes are owned by root, subject to the ownership rules. They have mode 0755 and the
        latest mtime of the releases below them, so the same releases give the same view on every host.
        """
        units = [unit for unit in self._units if unit.type is not None]
        subdirectories: dict[bytes, set[bytes]] = {}
        for unit in units:
            chain = [*_ancestors(unit.top), b"/" + unit.top]
            for parent, child in zip(chain, chain[1:]):
                children = subdirectories.setdefault(parent, set())
                if child is not chain[-1] or unit.type == stat.S_IFDIR:
                    children.add(child)
        if not units:
            yield self._implied(b"/")
        emitted: set[bytes] = set()
        for unit in units:
            for path in _ancestors(unit.top):
                if path not in emitted:
                    emitted.add(path)
                    yield self._implied(path, len(subdirectories[path]))
            if unit.merge:
                yield from unit.merge.entries()
            else:
                yield unit.placements[0]

    @property
    def ownership(self) -> OwnershipRules:
        """How owners and modes change."""
        return self._rules.ownership

    @property
    def passed_through(self) -> list[Placement]:
        """The placements of the releases that ``parts`` passes through."""
        return [unit.placements[0] for unit in self._units if unit.merge is None]

    def _trees(self, unit: _Unit) -> list[MergeInput]:
        """Return the trees of a unit by precedence, declared links first."""
        trees = [self._link_tree(link, unit.top) for link in unit.links]
        trees += [self._release_tree(placement, unit.top) for placement in unit.placements]
        if not unit.top:
            # The view has a root even if its releases have no entries.
            trees.append(MergeInput("the view", lambda: iter((self._implied(b"/"),)), frozenset((b"/",))))
        return trees

    def _link_tree(self, link: Link, top: bytes) -> MergeInput:
        parents = _ancestors(link.path, top)
        ownership = self._rules.ownership
        uid, gid = ownership.uid(0), ownership.gid(0)

        def entries() -> Iterator[Entry]:
            yield from map(self._implied, parents)
            mtime_ns = self._latest[b"/"]
            yield Entry(b"/" + link.path, _LINK_MODE, len(link.target), 1, uid, gid, mtime_ns, link.target, False, ())

        return MergeInput(f"link -> {show(link.target)}", entries, frozenset(parents))

    def _release_tree(self, placement: Placement, top: bytes) -> MergeInput:
        parents = _ancestors(placement.at, top)
        linked: dict[bytes, Entry] = {}

        def entries() -> Iterator[Entry]:
            whole = placed(placement, self._read(placement), self._rules.ownership, True, self._strips)
            chosen = _remembering(whole, linked, self._progress)
            if placement.include or placement.exclude:
                chosen = self._filtered(placement, chosen)
            for entry in chosen:
                yield from map(self._implied, parents)
                yield entry
                break
            yield from chosen

        return MergeInput(placement.record.release, entries, frozenset(parents), linked)

    def _filtered(self, placement: Placement, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield the entries of a release that its patterns select, and count the others when all have been read."""
        seen = chosen = 0

        def all_entries() -> Iterator[Entry]:
            nonlocal seen
            for entry in entries:
                seen += 1
                yield entry

        for entry in filtered(all_entries(), placement.include, placement.exclude):
            chosen += 1
            yield entry
        self._excluded[id(placement)] = seen - chosen

    @property
    def excluded(self) -> int:
        """The number of entries of all releases that their patterns leave out."""
        return sum(self._excluded.values())

    def _implied(self, path: bytes, subdirectories: int = 0) -> Entry:
        """Return the entry of a directory that no manifest describes."""
        ownership = self._rules.ownership
        mode = changed_mode(IMPLIED_MODE, ownership.mode)
        uid, gid = ownership.uid(0), ownership.gid(0)
        return Entry(path, mode, 0, 2 + subdirectories, uid, gid, self._latest[path], None, False, ())

    @functools.cached_property
    def _latest(self) -> dict[bytes, int]:
        """The latest mtime of the releases below each directory that is above a release or declared link.

        Declared links have the latest mtime of all releases.
        """
        latest = {b"/": 0}
        roots = [(placement.at, next(self._read(placement)).mtime_ns) for placement in self._placements]
        newest = max((mtime_ns for _at, mtime_ns in roots), default=0)
        for place, mtime_ns in [*roots, *((link.path, newest) for link in self._rules.links)]:
            for path in _ancestors(place):
                latest[path] = max(latest.get(path, mtime_ns), mtime_ns)
        latest[b"/"] = newest
        return latest


def compose(placements: Sequence[Placement], read: Reader, rules: Rules | None = None) -> Iterator[Entry]:
    """Yield the entries of a view, in manifest order, starting with its root. Raises OverlayError as Composition does."""
    return Composition(placements, read, rules or Rules(), lambda: None).entries()


def placed(
    placement: Placement,
    entries: Iterator[Entry],
    ownership: OwnershipRules,
    with_checksums: bool = False,
    strips: set[bytes] | None = None,
) -> Iterator[Entry]:
    """Yield the entries of one release as entries of the view: paths are below ``at``, content paths below ``source``.

    Xattrs that a view does not carry are removed, checksums only without ``with_checksums``. The paths of files that lose set-ID bits or
    capabilities are added to ``strips``.
    """
    base = b"/" + placement.at if placement.at else b""
    source = placement.source
    carried = CARRIED_XATTRS | {CHECKSUM_XATTR} if with_checksums else CARRIED_XATTRS
    change = None if ownership == OwnershipRules() else _Change(ownership, strips)
    for path, mode, size, nlink, uid, gid, mtime_ns, target, is_hardlink, xattrs in entries:
        here = (base + path if path != b"/" else base) or b"/"
        if target is not None:
            if is_hardlink:
                target = base + target
            elif stat.S_ISREG(mode):
                target = (source + path).lstrip(b"/")
        if xattrs:
            xattrs = tuple(pair for pair in xattrs if pair[0] in carried)
        if change:
            mode, uid, gid, xattrs = change.of(here, mode, uid, gid, xattrs)
        yield Entry(here, mode, size, nlink, uid, gid, mtime_ns, target, is_hardlink, xattrs)


class _Change:
    """Applies ownership rules to entries."""

    def __init__(self, ownership: OwnershipRules, strips: set[bytes] | None) -> None:
        self._owner, self._group = ownership.owner, ownership.group
        self._owners, self._groups = dict(ownership.owner_map), dict(ownership.group_map)
        self._mode = functools.cache(lambda mode: changed_mode(mode, ownership.mode))
        self._strips_any = ownership.strips
        self._strips = strips

    def of(self, path: bytes, mode: int, uid: int, gid: int, xattrs: Xattrs) -> tuple[int, int, int, Xattrs]:
        """Return the mode, uid, gid and xattrs of an entry in the view."""
        new_uid = self._owners.get(uid, uid if self._owner is None else self._owner)
        new_gid = self._groups.get(gid, gid if self._group is None else self._group)
        if self._strips_any and (new_uid, new_gid) != (uid, gid) and is_privileged(mode, xattrs):
            mode, xattrs = without_privileges(mode, xattrs)
            if self._strips is not None:
                self._strips.add(path)
        mode = self._mode(mode)
        if xattrs:
            xattrs = changed_acls(xattrs, mode, self._owners, self._groups)
        return mode, new_uid, new_gid, xattrs


def _remembering(entries: Iterator[Entry], linked: dict[bytes, Entry], progress: Progress) -> Iterator[Entry]:
    """Yield ``entries``, and keep the first entry of each file with several names in ``linked``."""
    for number, entry in enumerate(entries):
        if number % _ENTRIES_PER_STEP == 0:
            progress()
        if entry.nlink > 1 and not entry.is_directory and not entry.is_hardlink:
            linked[entry.path] = entry
        yield entry


def _ancestors(place: bytes, top: bytes = b"") -> list[bytes]:
    """Return the paths of the directories above ``place``, from ``top`` down; none if ``place`` is ``top``."""
    if place == top:
        return []
    parts = place.split(b"/")
    first = top.count(b"/") + 1 if top else 0
    return [b"/" + b"/".join(parts[:depth]) for depth in range(first, len(parts))]


def _units(placements: Sequence[Placement], rules: Rules) -> list[_Unit]:
    """Return the separate parts of a view, sorted by place."""
    if rules.on_conflict == "error":
        winning = in_order(placements)
    else:
        winning = list(placements if rules.on_conflict == "first" else reversed(placements))
    items: list[tuple[bytes, Placement | Link]] = [(placement.at, placement) for placement in winning]
    items += [(link.path, link) for link in rules.links]
    units: list[_Unit] = []
    for place in sorted({place for place, _item in items}, key=lambda place: sibling_key(b"/" + place)):
        if not units or not _inside(place, units[-1].top):
            units.append(_Unit(place))
    by_top = {unit.top: unit for unit in units}
    for place, item in items:
        unit = next(by_top[top] for top in _tops(place) if top in by_top)
        if isinstance(item, Link):
            unit.links.append(item)
        else:
            unit.placements.append(item)
    return units


def _tops(place: bytes) -> Iterator[bytes]:
    """Yield a place and those above it, from the root down."""
    yield from (path[1:] for path in _ancestors(place))
    yield place
