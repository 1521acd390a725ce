# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composing a view: the manifests of several releases, each under its prefix, as one stream of entries.

Releases with a place of their own are passed through, one after the other. Those that appear at the same or at nested places, have
patterns, or have a link of the view among them are merged; see merge.py.
"""

from __future__ import annotations

import functools
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import filtered
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.merge import Conflict, Conflicts, Merge, Tree
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    Attributes,
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
#: Entries of trees to be merged that are read between two signs of progress.
_ENTRIES_PER_STEP = 10_000

Reader = Callable[[Placement], Iterator[Entry]]
Progress = Callable[[], None]


@dataclass(frozen=True)
class Rules:
    """How the releases of a view become one tree."""

    attributes: Attributes = field(default_factory=Attributes)
    #: ``error`` refuses conflicts; with ``first`` and ``last`` the release that is declared first or last is shown.
    on_conflict: str = "error"
    links: tuple[Link, ...] = ()


def in_order(placements: Sequence[Placement]) -> list[Placement]:
    """Return the placements in an order that depends on nothing but themselves: that of their places, outer ones first."""
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
    """Return what the declared order of the placements decides; None where it decides nothing.

    For each place where the view shows several of them they are listed, those at places above included, the one that wins first.
    They are given by their numbers in ``in_order``, so equal views have equal lists.
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


def _inside(path: bytes, folder: bytes) -> bool:
    """Tell whether a path relative to the view is another one or below it."""
    return not folder or path == folder or path.startswith(folder + b"/")


@dataclass
class _Unit:
    """A part of the view that nothing else reaches into: a release alone at its place, or trees that are merged."""

    #: Place of the topmost of them, relative to the view.
    top: bytes
    #: The one that wins a conflict first.
    placements: list[Placement] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    #: None for a release that is passed through.
    merge: Merge | None = None

    @property
    def is_plain(self) -> bool:
        return (
            not self.links and len(self.placements) == 1 and not self.placements[0].include + self.placements[0].exclude
        )

    @property
    def type(self) -> int | None:
        """File type of what is at its place; None when nothing is left of it."""
        return self.merge.top if self.merge else stat.S_IFDIR


class Composition:
    """A view whose conflicts are known. ``read`` opens the manifest of a placement.

    Manifests are read here only where trees are merged; those are read a second time by ``entries``. ``progress`` is called from time
    to time while they are. Raises OverlayError for conflicts where the rules do not say which release is shown.
    """

    def __init__(self, placements: Sequence[Placement], read: Reader, rules: Rules, progress: Progress) -> None:
        self._placements = placements
        self._read = read
        self._rules = rules
        self._progress = progress
        self._units = _units(placements, rules)
        #: Files that lose set-ID bits or capabilities, as far as they have been read.
        self._strips: set[bytes] = set()
        #: Those of them that the view shows; complete when ``entries`` has ended.
        self.stripped = PathCount()
        conflicts = Conflicts()
        for unit in self._units:
            if not unit.is_plain:
                unit.merge = Merge(self._trees(unit), conflicts)
        if rules.on_conflict == "error":
            conflicts.refuse()
        #: The first ones, and how many there are in all.
        self.conflicts: tuple[Conflict, ...] = tuple(conflicts.first)
        self.conflict_count = conflicts.count

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the view, in manifest order, starting with its root."""
        attributes = self._rules.attributes
        self._strips.clear()
        self.stripped = PathCount()
        for part in self.parts():
            shown = (
                placed(part, self._read(part), attributes, strips=self._strips)
                if isinstance(part, Placement)
                else iter((part,))
            )
            yield from self._counted(shown) if attributes.strips else shown

    def _counted(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Pass entries on, and count the files that have lost something."""
        for entry in entries:
            if self._strips and not entry.is_hardlink and entry.path in self._strips:
                self.stripped.add(entry.path)
            yield entry

    def parts(self) -> Iterator[Entry | Placement]:
        """Yield the entries of the view, but for those of releases that share their place with nothing: these come as a whole.

        Directories above a release that no manifest describes are owned by root, or whom the rules give that to, have mode 0755 and the
        latest mtime of the releases' roots below them, so that the same releases give the same view on every host.
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

    def _trees(self, unit: _Unit) -> list[Tree]:
        trees = [self._link_tree(link, unit.top) for link in unit.links]
        trees += [self._release_tree(placement, unit.top) for placement in unit.placements]
        if not unit.top:
            # The view has a root, whatever is left of its releases.
            trees.append(Tree("the view", lambda: iter((self._implied(b"/"),)), frozenset((b"/",))))
        return trees

    def _link_tree(self, link: Link, top: bytes) -> Tree:
        parents = _ancestors(link.path, top)
        attributes = self._rules.attributes
        uid, gid = attributes.uid(0), attributes.gid(0)

        def entries() -> Iterator[Entry]:
            yield from map(self._implied, parents)
            mtime_ns = self._latest[b"/"]
            yield Entry(b"/" + link.path, _LINK_MODE, len(link.target), 1, uid, gid, mtime_ns, link.target, False, ())

        return Tree(f"link -> {show(link.target)}", entries, frozenset(parents))

    def _release_tree(self, placement: Placement, top: bytes) -> Tree:
        parents = _ancestors(placement.at, top)
        linked: dict[bytes, Entry] = {}

        def entries() -> Iterator[Entry]:
            attributes = self._rules.attributes
            all_of_it = placed(placement, self._read(placement), attributes, True, self._strips)
            chosen = _remembering(all_of_it, linked, self._progress)
            if placement.include or placement.exclude:
                chosen = filtered(chosen, placement.include, placement.exclude)
            for entry in chosen:
                yield from map(self._implied, parents)
                yield entry
                break
            yield from chosen

        return Tree(placement.record.release, entries, frozenset(parents), linked)

    def _implied(self, path: bytes, subdirectories: int = 0) -> Entry:
        attributes = self._rules.attributes
        mode = changed_mode(IMPLIED_MODE, attributes.mode)
        uid, gid = attributes.uid(0), attributes.gid(0)
        return Entry(path, mode, 0, 2 + subdirectories, uid, gid, self._latest[path], None, False, ())

    @functools.cached_property
    def _latest(self) -> dict[bytes, int]:
        """For each directory above a release or link the latest mtime of the roots of the releases below it.

        Links of the view are as old as the youngest release of all.
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
    """Yield the entries of a view, in manifest order, starting with its root; see Composition."""
    return Composition(placements, read, rules or Rules(), lambda: None).entries()


def placed(
    placement: Placement,
    entries: Iterator[Entry],
    attributes: Attributes,
    with_checksums: bool = False,
    strips: set[bytes] | None = None,
) -> Iterator[Entry]:
    """Yield the entries of one release as they stand in the view: paths below ``at``, content below ``source``.

    The paths of files that lose set-ID bits or capabilities are added to ``strips``.
    """
    base = b"/" + placement.at if placement.at else b""
    source = placement.source
    carried = CARRIED_XATTRS | {CHECKSUM_XATTR} if with_checksums else CARRIED_XATTRS
    change = None if attributes == Attributes() else _Change(attributes, strips)
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
    """What becomes of the mode, owner, group and attributes of entries."""

    def __init__(self, attributes: Attributes, strips: set[bytes] | None) -> None:
        self._owner, self._group = attributes.owner, attributes.group
        self._owners, self._groups = dict(attributes.owner_map), dict(attributes.group_map)
        self._mode = functools.cache(lambda mode: changed_mode(mode, attributes.mode))
        self._strips_any = attributes.strips
        self._strips = strips

    def of(self, path: bytes, mode: int, uid: int, gid: int, xattrs: Xattrs) -> tuple[int, int, int, Xattrs]:
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
    """Pass entries on, and keep the first one of each file with several names."""
    for number, entry in enumerate(entries):
        if number % _ENTRIES_PER_STEP == 0:
            progress()
        if entry.nlink > 1 and not entry.is_directory and not entry.is_hardlink:
            linked[entry.path] = entry
        yield entry


def _ancestors(place: bytes, top: bytes = b"") -> list[bytes]:
    """Return the paths of the directories above a place in the view, from ``top`` down; none for ``top`` itself."""
    if place == top:
        return []
    parts = place.split(b"/")
    first = top.count(b"/") + 1 if top else 0
    return [b"/" + b"/".join(parts[:depth]) for depth in range(first, len(parts))]


def _units(placements: Sequence[Placement], rules: Rules) -> list[_Unit]:
    """Return the parts of a view, in the order of their places."""
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
    """Yield the places at and above a place, from the root down."""
    yield from (path[1:] for path in _ancestors(place))
    yield place
