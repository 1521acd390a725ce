# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encode, decode and merge traces: which files of a release were opened, how often, and by how many starts.

A trace is JSON text with one line for each file, sorted by path, so that it can be read and compared line by line. The same trace
always gives the same text.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError, RecordKind

RECORD_FORMAT = 1

#: Bytes of the longest trace, and the largest number of files in it.
LARGEST_TRACE = 1 << 28
MOST_FILES = 1_000_000

#: The largest number of opens and starts of a trace. A sum of traces stays at it.
MOST_COUNTED = (1 << 53) - 1


@dataclass(frozen=True)
class TracedFile:
    """A file of a release that was opened."""

    #: Path relative to the release.
    path: bytes
    #: The number of times that it was opened, at least 1.
    opens: int
    #: The number of starts that opened it, at least 1.
    starts: int


@dataclass(frozen=True)
class Trace:
    """The files of a release that were opened, sorted by path."""

    #: Path of the release below the software root.
    release: str
    #: The number of starts that opened any of the files.
    starts: int
    files: tuple[TracedFile, ...]

    @property
    def opens(self) -> int:
        """Return the number of opens of all files."""
        return sum(one.opens for one in self.files)


def trace_of(release: str, starts: int, files: Iterable[TracedFile]) -> Trace:
    """Return a trace of ``files`` in any order, each path once."""
    return Trace(release, starts, tuple(sorted(files, key=lambda one: one.path)))


def merged(one: Trace, other: Trace) -> Trace:
    """Return a trace with the files of two traces and the sums of their counts. Raises OverlayError if they are of different releases."""
    if one.release != other.release:
        raise OverlayError(
            f"a trace of release {one.release} cannot be merged with one of release {other.release}: merge traces of one release"
        )
    found = {file.path: file for file in one.files}
    for file in other.files:
        before = found.get(file.path)
        found[file.path] = (
            file
            if before is None
            else TracedFile(file.path, _sum(before.opens, file.opens), _sum(before.starts, file.starts))
        )
    return trace_of(one.release, _sum(one.starts, other.starts), found.values())


def _sum(one: int, other: int) -> int:
    return min(one + other, MOST_COUNTED)


def known_part(trace: Trace, paths: Container[bytes]) -> Trace:
    """Return a trace without the files whose path is not in ``paths``, the files that the manifest of the release has."""
    return replace(trace, files=tuple(file for file in trace.files if file.path in paths))


def _file_problem(value: object) -> str | None:
    """Return what is wrong with a file of a trace: a list of its path, opens and starts."""
    if not isinstance(value, list) or len(value) != len(_FILE_FIELDS):
        return "has to be a list of a path, the number of opens and the number of starts"
    problems = (check(field) for check, field in zip(_FILE_FIELDS, value))
    return next((problem for problem in problems if problem), None)


_COUNT = records.integer(1, MOST_COUNTED)
_FILE_FIELDS = (records.relative(), _COUNT, _COUNT)
_KIND = RecordKind(
    records.fields(
        {
            "format": _COUNT,
            "release": records.relative(),
            "starts": _COUNT,
            "files": records.list_of(_file_problem, MOST_FILES, 1),
        }
    ),
    LARGEST_TRACE,
    "format",
    RECORD_FORMAT,
)


def trace_to_text(trace: Trace) -> bytes:
    """Return a trace as JSON text. Raises RecordError if ``trace_from_text`` would refuse it."""
    files = ",\n".join("  " + json.dumps([to_text(one.path), one.opens, one.starts]) for one in trace.files)
    text = (
        f'{{\n "format": {RECORD_FORMAT},\n "release": {json.dumps(trace.release)},\n "starts": {trace.starts},\n'
        f' "files": [\n{files}\n ]\n}}\n'
    ).encode("ascii")
    trace_from_text(text)
    return text


def trace_from_text(text: bytes) -> Trace:
    """Return the trace that ``text``, written by ``trace_to_text``, holds.

    Raises OutdatedError if an older version of the collection wrote it, and RecordError if it is not a trace.
    """
    fields = _KIND.load(text)
    files = tuple(TracedFile(to_bytes(path), opens, starts) for path, opens, starts in fields["files"])
    trace = Trace(fields["release"], fields["starts"], files)
    for before, file in zip(files, files[1:]):
        if before.path >= file.path:
            raise RecordError(f"field 'files' has {show(file.path[:100])!r} twice or out of order")
    for file in files:
        if file.starts > min(file.opens, trace.starts):
            raise RecordError(
                f"field 'files' has {show(file.path[:100])!r} with {file.starts} starts, which is more than its opens or than all starts"
            )
    return trace
