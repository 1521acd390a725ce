# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter the entries of a release by patterns of paths.

``*``, ``?`` and ``[...]`` match characters within one name. ``**`` as a whole component matches any number of components, including none.
A pattern that matches a directory covers everything in it. There is no escape character: ``[*]`` matches an asterisk.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Union

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.limits import MOST_PATTERNS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import LONGEST_PATH
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, relative_path

_ANY_DEPTH = b"**"

_MOST_ANY_DEPTH = 8
_MAGIC = re.compile(rb"[*?[]")

#: One component of a pattern: a name, ``**``, or a regular expression for names.
_Component = Union[bytes, "re.Pattern[str]"]

#: The state of matching in a directory: pairs of the index of a pattern and the index of its next component.
_Positions = tuple[tuple[int, int], ...]


def clean_glob(pattern: bytes, what: str) -> bytes:
    """Return a normalised pattern, relative to the release. Raises OverlayError naming ``what`` if it is empty, too long or malformed."""
    if len(pattern) > LONGEST_PATH * 2:
        raise OverlayError(
            f"{what} {show(pattern[:100])!r} is too long: a pattern may have at most {LONGEST_PATH} bytes"
        )
    cleaned = relative_path(pattern, what)
    if not cleaned:
        raise OverlayError(
            f"{what} {show(pattern)!r} is empty: give a path relative to the release, such as 'lib/**/*.so'"
        )
    parts = cleaned.split(b"/")
    # Several "**" in a row mean the same as one.
    parts = [part for part, before in zip(parts, [b"", *parts]) if not part == before == _ANY_DEPTH]
    if len(cleaned) > LONGEST_PATH or parts.count(_ANY_DEPTH) > _MOST_ANY_DEPTH:
        raise OverlayError(
            f"{what} {show(pattern[:100])!r} is too long: a pattern may have at most {LONGEST_PATH} bytes and {_MOST_ANY_DEPTH} times '**'"
        )
    for part in parts:
        _check_component(part, what)
    return b"/".join(parts)


def clean_globs(patterns: Sequence[bytes], what: str) -> tuple[bytes, ...]:
    """Return patterns normalised by ``clean_glob``. Raises OverlayError also if there are too many."""
    if len(patterns) > MOST_PATTERNS:
        raise OverlayError(f"{what} has {len(patterns)} patterns: give at most {MOST_PATTERNS}")
    return tuple(clean_glob(pattern, what) for pattern in patterns)


def _check_component(part: bytes, what: str) -> None:
    """Raises OverlayError if one component of a pattern is malformed."""
    try:
        _component(part)
    except re.error as error:
        raise OverlayError(f"{what} {show(part)!r} is not a pattern: {error}") from None


class Globs:
    """Match patterns while descending a tree, one name at a time, so that a name takes the same time at any depth."""

    def __init__(self, patterns: Sequence[bytes]) -> None:
        self._patterns = tuple(tuple(_component(part) for part in pattern.split(b"/")) for pattern in patterns)
        #: The positions at the root of the release; None if a pattern such as ``**`` matches the root itself.
        self.start = self._settled([(number, 0) for number in range(len(self._patterns))])

    def below(self, positions: _Positions, name: bytes) -> _Positions | None:
        """Return the positions at ``name`` in a directory with ``positions``, or None if a pattern matches ``name``."""
        found: list[tuple[int, int]] = []
        for number, index in positions:
            component = self._patterns[number][index]
            if component == _ANY_DEPTH:
                found.append((number, index))
            elif component == name if isinstance(component, bytes) else component.match(to_text(name)):
                found.append((number, index + 1))
        return self._settled(found) if found else ()

    def _settled(self, positions: list[tuple[int, int]]) -> _Positions | None:
        """Return the positions without duplicates, plus those where ``**`` matches no component; None if a pattern matches."""
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
    """Return the parsed component of a pattern. Raises re.error if it is malformed."""
    return re.compile(fnmatch.translate(to_text(part))) if _MAGIC.search(part) and part != _ANY_DEPTH else part


@dataclass
class _Directory:
    """A directory above the current entry."""

    #: Path with a trailing slash.
    prefix: bytes
    #: None if everything in the directory is included.
    include: _Positions | None
    exclude: _Positions
    entry: Entry


def filtered(entries: Iterator[Entry], include: Sequence[bytes], exclude: Sequence[bytes]) -> Iterator[Entry]:
    """Yield the entries of one release that the patterns select. ``entries`` are in manifest order and start with the root.

    With ``include``, a directory that no pattern matches is shown only if an entry in it is. ``exclude`` takes precedence over ``include``.
    Memory is needed only for the directories above the current entry.
    """
    included, excluded = Globs(include), Globs(exclude)
    # Every manifest has a root.
    root = next(entries)  # pylint: disable=stop-iteration-return
    exclude_root = excluded.start
    if exclude_root is None:
        # Read to the end, where the digest of the manifest is checked.
        for _entry in entries:
            pass
        return
    directories = [_Directory(root.path.rstrip(b"/") + b"/", included.start if include else None, exclude_root, root)]
    #: How many of the directories have been yielded.
    shown = 0
    skipped: bytes | None = None
    if directories[0].include is None:
        shown = 1
        yield root
    for entry in entries:
        path = entry.path
        if skipped is not None and path.startswith(skipped):
            continue
        cut = path.rfind(b"/") + 1
        while directories[-1].prefix != path[:cut]:
            directories.pop()
        directory = directories[-1]
        shown = min(shown, len(directories))
        name = path[cut:]
        left_out = excluded.below(directory.exclude, name) if directory.exclude else ()
        if left_out is None:
            skipped = path + b"/"
            continue
        chosen = None if directory.include is None else included.below(directory.include, name)
        if entry.is_directory:
            directories.append(_Directory(path + b"/", chosen, left_out, entry))
        if chosen is None:
            while shown < len(directories):
                yield directories[shown].entry
                shown += 1
            if not entry.is_directory:
                yield entry
