# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choosing what of a release a view shows, by patterns of paths.

``*``, ``?`` and ``[...]`` stand for characters within one name, ``**`` as a whole component for any number of components, none
included. A pattern that matches a directory covers all that is in it. There is no escape character: ``[*]`` is an asterisk.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Union

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import LONGEST_PATH
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, relative_path

_ANY_DEPTH = b"**"

#: Limits of patterns. What a name costs grows with the number of patterns and of their ``**``, and with nothing else.
MOST_PATTERNS = 256
_MOST_ANY_DEPTH = 8
_MAGIC = re.compile(rb"[*?[]")

#: One component of a pattern: a name, ``**``, or an expression for the text of a name.
_Component = Union[bytes, "re.Pattern[str]"]

#: How far the patterns have come in a directory: the pattern, and which of its components is next.
_Positions = tuple[tuple[int, int], ...]


def clean_glob(pattern: bytes, what: str) -> bytes:
    """Return a pattern as a path relative to the release. Raises OverlayError, naming ``what``, for one that names nothing."""
    if len(pattern) > LONGEST_PATH * 2:
        raise OverlayError(f"{what} {show(pattern[:100])!r} is too long: a pattern has {LONGEST_PATH} bytes at most")
    cleaned = relative_path(pattern, what)
    if not cleaned:
        raise OverlayError(
            f"{what} {show(pattern)!r} is empty: give a path relative to the release, such as 'lib/**/*.so'"
        )
    parts = cleaned.split(b"/")
    # One of several in a row says the same.
    parts = [part for part, before in zip(parts, [b"", *parts]) if not part == before == _ANY_DEPTH]
    if len(cleaned) > LONGEST_PATH or parts.count(_ANY_DEPTH) > _MOST_ANY_DEPTH:
        raise OverlayError(
            f"{what} {show(pattern[:100])!r} is too long: a pattern has {LONGEST_PATH} bytes and {_MOST_ANY_DEPTH} times '**' at most"
        )
    for part in parts:
        _check_component(part, what)
    return b"/".join(parts)


def clean_globs(patterns: Sequence[bytes], what: str) -> tuple[bytes, ...]:
    """Return patterns as ``clean_glob`` does. Raises OverlayError also for too many of them."""
    if len(patterns) > MOST_PATTERNS:
        raise OverlayError(f"{what} has {len(patterns)} patterns: give {MOST_PATTERNS} at most")
    return tuple(clean_glob(pattern, what) for pattern in patterns)


def _check_component(part: bytes, what: str) -> None:
    try:
        _component(part)
    except re.error as error:
        raise OverlayError(f"{what} {show(part)!r} is no pattern: {error}") from None


class Globs:
    """Matches patterns while going down a tree, one name at a time, so that a name costs the same at any depth."""

    def __init__(self, patterns: Sequence[bytes]) -> None:
        self._patterns = tuple(tuple(_component(part) for part in pattern.split(b"/")) for pattern in patterns)
        #: At the root of the release; None when a pattern matches the root itself, as ``**`` does.
        self.start = self._settled([(number, 0) for number in range(len(self._patterns))])

    def below(self, positions: _Positions, name: bytes) -> _Positions | None:
        """Return the positions at ``name`` in a directory that has ``positions``; None when a pattern matches it."""
        found: list[tuple[int, int]] = []
        for number, index in positions:
            component = self._patterns[number][index]
            if component == _ANY_DEPTH:
                found.append((number, index))
            elif component == name if isinstance(component, bytes) else component.match(to_text(name)):
                found.append((number, index + 1))
        return self._settled(found) if found else ()

    def _settled(self, positions: list[tuple[int, int]]) -> _Positions | None:
        """Add where ``**`` stands for nothing. Positions that several ways lead to are kept once."""
        settled: dict[tuple[int, int], None] = {}
        for number, index in positions:
            pattern = self._patterns[number]
            settled[number, index] = None
            while index < len(pattern) and pattern[index] == _ANY_DEPTH:
                index += 1
                settled[number, index] = None
            if index == len(pattern):
                return None
        return tuple(settled)


def _component(part: bytes) -> _Component:
    return re.compile(fnmatch.translate(to_text(part))) if _MAGIC.search(part) and part != _ANY_DEPTH else part


@dataclass
class _Folder:
    """A directory on the way to the entry at hand."""

    #: Path with a slash at the end.
    prefix: bytes
    #: None when the directory is included as a whole.
    include: _Positions | None
    exclude: _Positions
    entry: Entry


def filtered(entries: Iterator[Entry], include: Sequence[bytes], exclude: Sequence[bytes]) -> Iterator[Entry]:
    """Yield the entries of one release, in manifest order and beginning with its root, that the patterns choose.

    With ``include``, a directory that no pattern matches comes when the first entry in it does, and not at all where there is
    none. ``exclude`` wins over ``include``. What is remembered are the directories on the way to the entry at hand.
    """
    included, excluded = Globs(include), Globs(exclude)
    # Every manifest has one.
    root = next(entries)  # pylint: disable=stop-iteration-return
    exclude_root = excluded.start
    if exclude_root is None:
        # To the end, since the digest of a manifest is checked there.
        for _entry in entries:
            pass
        return
    folders = [_Folder(root.path.rstrip(b"/") + b"/", included.start if include else None, exclude_root, root)]
    #: How many of the folders have come.
    shown = 0
    skipped: bytes | None = None
    if folders[0].include is None:
        shown = 1
        yield root
    for entry in entries:
        path = entry.path
        if skipped is not None and path.startswith(skipped):
            continue
        cut = path.rfind(b"/") + 1
        while folders[-1].prefix != path[:cut]:
            folders.pop()
        folder = folders[-1]
        shown = min(shown, len(folders))
        name = path[cut:]
        left_out = excluded.below(folder.exclude, name) if folder.exclude else ()
        if left_out is None:
            skipped = path + b"/"
            continue
        chosen = None if folder.include is None else included.below(folder.include, name)
        if entry.is_directory:
            folders.append(_Folder(path + b"/", chosen, left_out, entry))
        if chosen is None:
            while shown < len(folders):
                yield folders[shown].entry
                shown += 1
            if not entry.is_directory:
                yield entry
