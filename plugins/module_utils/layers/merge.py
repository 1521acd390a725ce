# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Merge trees at the same or nested places of a view, as streams of entries.

Each tree is read twice. The first pass finds conflicts, the number of names of each hard-linked file, and the number of subdirectories of
each directory. The second pass yields the merged entries. Memory is needed for directories and hard-linked files, not for other files.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.limits import CONFLICTS_KEPT
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CARRIED_XATTRS,
    CHECKSUM_XATTR,
    Entry,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key

#: The number of conflicts that a message names, and that are kept for the return value.
CONFLICTS_IN_MESSAGE = 20


@dataclass(frozen=True)
class Conflict:
    """Two different entries at one path."""

    path: bytes
    #: The trees whose entry the view shows and hides.
    kept: str
    hidden: str

    def as_dict(self) -> dict[str, str]:
        """Return the conflict as an element of the return value ``conflicts`` of metadata_layer."""
        return {"path": show(self.path), "kept": self.kept, "hidden": self.hidden}


@dataclass
class HiddenDirectory:
    """A directory of which the view shows nothing, because another tree has a file or symbolic link in its place."""

    path: bytes
    #: The trees whose entry the view shows, and whose directory it hides.
    kept: str
    hidden: str
    #: The number of entries in the directory and below, without itself.
    entries: int = 0


@dataclass
class Conflicts:
    """The first conflicts, and the number of all conflicts; the first hidden directories, and the number of all entries in them."""

    first: list[Conflict] = field(default_factory=list)
    count: int = 0
    directories: list[HiddenDirectory] = field(default_factory=list)
    hidden_entries: int = 0

    def add(self, conflict: Conflict) -> None:
        """Count a conflict, and keep it if it is one of the first."""
        self.count += 1
        if len(self.first) < CONFLICTS_KEPT:
            self.first.append(conflict)

    def hide(self, directory: HiddenDirectory) -> None:
        """Keep a hidden directory if it is one of the first."""
        if len(self.directories) < CONFLICTS_KEPT:
            self.directories.append(directory)

    def refuse(self) -> None:
        """Raises OverlayError naming the first conflicts if there are any."""
        if not self.count:
            return
        named = [f"'{show(one.path)}' of {one.kept} and of {one.hidden}" for one in self.first[:CONFLICTS_IN_MESSAGE]]
        few = f", the first {len(named)} of which are" if len(named) < self.count else ""
        raise OverlayError(
            f"the view has {self.count} conflict{'s' if self.count > 1 else ''}{few}: {'; '.join(named)}. Exclude one of the files with"
            " 'exclude', or set 'on_conflict' to first or last"
        )


@dataclass
class MergeInput:
    """A tree to be merged with others: the entries of a release at its place, or a declared link."""

    #: The name of the tree in conflicts.
    label: str
    #: Opens the entries of the tree: in manifest order, with paths in the view and with checksums.
    entries: Callable[[], Iterator[Entry]]
    #: Paths of the directories that exist only because the tree is below them.
    implied: frozenset[bytes] = frozenset()
    #: The first entry of each file with several names, by its path. ``entries`` adds it before it yields or skips that entry.
    linked: dict[bytes, Entry] = field(default_factory=dict)

    def first_name(self, entry: Entry) -> Entry:
        """Return the entry with the xattrs of a file: for a hard link the entry of the file's first name, otherwise ``entry``."""
        return self.linked[entry.target or b""] if entry.is_hardlink else entry


#: A file: the index of its tree, and the path of its first name.
_File = tuple[int, bytes]


class Merge:
    """Merges trees. If several have an entry at one path, the first one in ``trees`` takes precedence.

    Directories are merged; owner, mode and mtime come from the first tree that describes the directory. Any other entry hides the entries
    of later trees at its path and below. Equal links, and files with equal content and mode, are not a conflict.
    """

    def __init__(self, trees: Sequence[MergeInput], conflicts: Conflicts) -> None:
        """Read the trees for the first time, and add the conflicts that are found to ``conflicts``."""
        self._trees = trees
        self._subdirectories: dict[bytes, int] = {}
        self._names: dict[_File, int] = {}
        #: The file type of the topmost entry, None if no tree has entries.
        self.top: int | None = None
        for number, entry in self._surviving(conflicts):
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
        """Yield the merged entries in manifest order, without checksums."""
        shown: dict[_File, bytes] = {}
        for number, entry in self._surviving(Conflicts()):
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
        """Return the entry of a name of a file with several names. All names but the first one shown become hard links to that."""
        file = _file(number, entry)
        nlink = self._names[file]
        if file in shown:
            return entry._replace(target=shown[file], nlink=nlink, xattrs=())
        shown[file] = entry.path
        original = self._trees[number].first_name(entry)
        return original._replace(path=entry.path, nlink=nlink, xattrs=carried(original))

    def _surviving(self, conflicts: Conflicts) -> Iterator[tuple[int, Entry]]:
        """Yield the entries that the view shows, each with the index of its tree, and add what is found to ``conflicts``."""
        if len(self._trees) == 1:
            for entry in self._trees[0].entries():
                yield 0, entry
            return
        hidden_below: bytes | None = None
        hidden: dict[int, HiddenDirectory] = {}
        streams = [_numbered(number, tree) for number, tree in enumerate(self._trees)]
        # merge() is stable: among equal keys, entries of earlier trees come first.
        for _key, group in itertools.groupby(heapq.merge(*streams, key=_key_of), _key_of):
            (_key, number, entry), *others = group
            if hidden_below is not None and entry.path.startswith(hidden_below):
                self._count(hidden, (number, *(other_number for _key, other_number, _other in others)), conflicts)
                continue
            if not others:
                yield number, entry
                continue
            for _key, other_number, other in others:
                if not self._agree(number, entry, other_number, other):
                    conflicts.add(Conflict(entry.path, self._trees[number].label, self._trees[other_number].label))
            if not entry.is_directory:
                hidden_below = entry.path + b"/"
                hidden = self._hidden_by(number, entry, others)
                for directory in hidden.values():
                    conflicts.hide(directory)
            elif entry.path in self._trees[number].implied:
                number, entry = self._describing(number, entry, others)
            yield number, entry

    @staticmethod
    def _count(hidden: dict[int, HiddenDirectory], numbers: Sequence[int], conflicts: Conflicts) -> None:
        """Count the entries at one path of trees, given their indexes, whose directory above is hidden."""
        for number in numbers:
            if number in hidden:
                hidden[number].entries += 1
                conflicts.hidden_entries += 1

    def _hidden_by(self, number: int, entry: Entry, others: list[_Item]) -> dict[int, HiddenDirectory]:
        """Return the directories that an entry hides, by the index of their tree."""
        kept = self._trees[number].label
        return {
            other_number: HiddenDirectory(entry.path, kept, self._trees[other_number].label)
            for _key, other_number, other in others
            if other.is_directory
        }

    def _agree(self, number: int, entry: Entry, other_number: int, other: Entry) -> bool:
        """Return whether two entries at one path are not a conflict."""
        if entry.is_directory or other.is_directory:
            return entry.is_directory and other.is_directory
        return same_content(self._trees[number].first_name(entry), self._trees[other_number].first_name(other))

    def _describing(self, number: int, entry: Entry, others: list[_Item]) -> tuple[int, Entry]:
        """Return the first entry of a directory that a release describes, if any, otherwise the implied one."""
        for _key, other_number, other in others:
            if other.is_directory and entry.path not in self._trees[other_number].implied:
                return other_number, other
        return number, entry


#: The sort key of a path, the index of the tree, and the entry.
_Item = tuple[bytes, int, Entry]


def _numbered(number: int, tree: MergeInput) -> Iterator[_Item]:
    for entry in tree.entries():
        yield sibling_key(entry.path), number, entry


_key_of = operator.itemgetter(0)


def _file(number: int, entry: Entry) -> _File:
    return number, (entry.target or b"") if entry.is_hardlink else entry.path


def carried(entry: Entry) -> Xattrs:
    """Return the xattrs of an entry that a view carries."""
    return tuple(pair for pair in entry.xattrs if pair[0] in CARRIED_XATTRS) if entry.xattrs else ()


def same_content(one: Entry, other: Entry) -> bool:
    """Return whether two entries, neither a directory, are links to one target or files with equal content, mode and carried xattrs.

    The content of files is compared by recorded checksums. Files without a checksum differ unless both are empty.
    """
    if one.mode != other.mode:
        return False
    if stat.S_ISLNK(one.mode):
        return one.target == other.target
    if one.size != other.size or carried(one) != carried(other):
        return False
    checksum = dict(one.xattrs).get(CHECKSUM_XATTR)
    return not one.size or (checksum is not None and checksum == dict(other.xattrs).get(CHECKSUM_XATTR))
