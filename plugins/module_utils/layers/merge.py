# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merging trees that appear at the same or nested places of a view, as streams of entries.

Each tree is read twice. The first reading finds what is in the way of what, how many names each hard-linked file keeps, and how many
subdirectories each directory has; the second yields the merged entries. What is remembered grows with the number of directories and
of hard-linked files, not with that of all files.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CARRIED_XATTRS,
    CHECKSUM_XATTR,
    Entry,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key

#: How many conflicts a message and a result name; all are counted.
CONFLICTS_IN_MESSAGE = 20
CONFLICTS_KEPT = 100


@dataclass(frozen=True)
class Conflict:
    """Two entries that cannot both be at one path."""

    path: bytes
    #: Whose entry the view shows, and whose it does not.
    kept: str
    hidden: str

    def as_dict(self) -> dict[str, str]:
        return {"path": show(self.path), "kept": self.kept, "hidden": self.hidden}


@dataclass
class Conflicts:
    """Keeps the first conflicts, and the number of all."""

    first: list[Conflict] = field(default_factory=list)
    count: int = 0

    def add(self, conflict: Conflict) -> None:
        self.count += 1
        if len(self.first) < CONFLICTS_KEPT:
            self.first.append(conflict)

    def refuse(self) -> None:
        """Raises OverlayError that names the conflicts, where there are any."""
        if not self.count:
            return
        named = [f"'{show(one.path)}' of {one.kept} and of {one.hidden}" for one in self.first[:CONFLICTS_IN_MESSAGE]]
        few = f", the first {len(named)} of which are" if len(named) < self.count else ""
        raise OverlayError(
            f"the view has {self.count} conflict{'s' if self.count > 1 else ''}{few}: {'; '.join(named)}. Leave out with 'exclude' what is"
            " not wanted, or let 'on_conflict' be first or last"
        )


@dataclass
class Tree:
    """One of the trees that are merged."""

    #: What conflicts call it.
    label: str
    #: Opens the entries as they would stand in the view if the tree were alone there, in manifest order, with their checksums.
    #: ``linked`` is to have the first entry of each file with several names before any of them comes, or would have come.
    entries: Callable[[], Iterator[Entry]]
    #: Paths of the directories that are there only because the tree is below them.
    implied: frozenset[bytes] = frozenset()
    linked: dict[bytes, Entry] = field(default_factory=dict)

    def described(self, entry: Entry) -> Entry:
        """Return the entry that has all that is known of a file: for a hard link that of its first name."""
        return self.linked[entry.target or b""] if entry.is_hardlink else entry


#: A name of the tree with this number, for the file whose first name this is.
_File = tuple[int, bytes]


class Merge:
    """Merges trees; where two are in each other's way, the earlier one in ``trees`` is shown.

    Directories are merged, with the attributes of the first tree that describes one. Whatever else wins hides what later trees have
    at its path and below. Of equal links, and of files with equal content and mode, the first is shown without a conflict.
    """

    def __init__(self, trees: Sequence[Tree], conflicts: Conflicts) -> None:
        """Reads the trees for the first time."""
        self._trees = trees
        self._subdirectories: dict[bytes, int] = {}
        self._names: dict[_File, int] = {}
        #: Type of the topmost entry; None when nothing is left of any tree.
        self.top: int | None = None
        for number, entry in self._surviving(conflicts.add):
            if self.top is None:
                self.top = stat.S_IFMT(entry.mode)
            if entry.is_directory:
                parent = entry.path[: entry.path.rfind(b"/")] or b"/"
                if entry.path != b"/":
                    self._subdirectories[parent] = self._subdirectories.get(parent, 0) + 1
            elif entry.nlink > 1 or entry.is_hardlink:
                file = _file(number, entry)
                self._names[file] = self._names.get(file, 0) + 1

    def entries(self) -> Iterator[Entry]:
        """Yield the merged entries, in manifest order, without checksums."""
        shown: dict[_File, bytes] = {}
        for number, entry in self._surviving(lambda _conflict: None):
            if entry.is_directory:
                nlink = 2 + self._subdirectories.get(entry.path, 0)
                yield entry if entry.nlink == nlink else entry._replace(nlink=nlink)
            elif entry.nlink > 1 or entry.is_hardlink:
                yield self._named(number, entry, shown)
            elif entry.xattrs:
                yield entry._replace(xattrs=carried(entry))
            else:
                yield entry

    def _named(self, number: int, entry: Entry, shown: dict[_File, bytes]) -> Entry:
        """Return an entry of a file with several names: the first one that is left stands for the file."""
        file = _file(number, entry)
        nlink = self._names[file]
        if file in shown:
            return entry._replace(target=shown[file], nlink=nlink, xattrs=())
        shown[file] = entry.path
        described = self._trees[number].described(entry)
        return described._replace(path=entry.path, nlink=nlink, xattrs=carried(described))

    def _surviving(self, report: Callable[[Conflict], None]) -> Iterator[tuple[int, Entry]]:
        """Yield the entries that the view shows, each with the number of its tree."""
        if len(self._trees) == 1:
            for entry in self._trees[0].entries():
                yield 0, entry
            return
        hidden_below: bytes | None = None
        streams = [_numbered(number, tree) for number, tree in enumerate(self._trees)]
        # Of equal keys, those of the earlier stream come first.
        for _key, group in itertools.groupby(heapq.merge(*streams, key=_key_of), _key_of):
            (_key, number, entry), *others = group
            if hidden_below is not None and entry.path.startswith(hidden_below):
                continue
            if not others:
                yield number, entry
                continue
            for _key, other_number, other in others:
                if not self._agree(number, entry, other_number, other):
                    report(Conflict(entry.path, self._trees[number].label, self._trees[other_number].label))
            if not entry.is_directory:
                hidden_below = entry.path + b"/"
            elif entry.path in self._trees[number].implied:
                number, entry = self._describing(number, entry, others)
            yield number, entry

    def _agree(self, number: int, entry: Entry, other_number: int, other: Entry) -> bool:
        if entry.is_directory or other.is_directory:
            return entry.is_directory and other.is_directory
        return same_content(self._trees[number].described(entry), self._trees[other_number].described(other))

    def _describing(self, number: int, entry: Entry, others: list[_Item]) -> tuple[int, Entry]:
        """Return the directory that a release describes, if any, instead of one that is only implied."""
        for _key, other_number, other in others:
            if other.is_directory and entry.path not in self._trees[other_number].implied:
                return other_number, other
        return number, entry


#: The key by which paths sort, the number of the tree, and the entry.
_Item = tuple[bytes, int, Entry]


def _numbered(number: int, tree: Tree) -> Iterator[_Item]:
    for entry in tree.entries():
        yield sibling_key(entry.path), number, entry


_key_of = operator.itemgetter(0)


def _file(number: int, entry: Entry) -> _File:
    return number, (entry.target or b"") if entry.is_hardlink else entry.path


def carried(entry: Entry) -> Xattrs:
    """Return the attributes that go from the manifest into the view."""
    return tuple(pair for pair in entry.xattrs if pair[0] in CARRIED_XATTRS) if entry.xattrs else ()


def same_content(one: Entry, other: Entry) -> bool:
    """Tell whether two entries, neither of them a directory, are links to the same target or files with the same content and mode.

    The content of files is compared by their recorded checksums; empty files need none.
    """
    if one.mode != other.mode:
        return False
    if stat.S_ISLNK(one.mode):
        return one.target == other.target
    if one.size != other.size or carried(one) != carried(other):
        return False
    checksum = dict(one.xattrs).get(CHECKSUM_XATTR)
    return not one.size or (checksum is not None and checksum == dict(other.xattrs).get(CHECKSUM_XATTR))
