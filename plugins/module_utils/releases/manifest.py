# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encode and decode manifests, which are composefs-dump(5) text, and the small record beside each manifest.

The text has one line for each entry, in depth-first order. The names in a directory are sorted by their bytes, so the same tree always
gives the same text. Properties that depend on the scanned file system are normalised: a directory has size 0 and a link count of 2 plus
the number of its subdirectories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import (
    OutdatedError,
    RecordError,
    RecordKind,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    ENTRY_COUNTS,
    MANIFEST_XATTRS,
    Entry,
    EntryCounts,
    ManifestRecord,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_check import check_entry, check_name

#: Increased whenever manifests or their records gain information. Format 2 adds the software root.
RECORD_FORMAT = 2
#: Bytes of the longest record.
LARGEST_RECORD = 1 << 16

#: Bytes of the longest line without its newline: more than an entry with the longest paths and xattrs needs.
LONGEST_LINE = 1 << 17

_FIXED_FIELDS = 11
_SHORT_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_ESCAPE_FIELD = re.compile(rb"[^!-~]|\\")
_ESCAPE_KEY = re.compile(rb"[^!-~]|[\\=]")
_UNESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[\\nrt]|)")
_UNESCAPE_SHORT = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}

#: A line up to its xattrs. Numbers are matched here because int() accepts more than a manifest may have, such as 1_0 and +1.
_LINE = re.compile(
    rb"([^ ]*) ([0-9]{1,19}) (@?)([0-7]{1,6}) ([0-9]{1,10}) ([0-9]{1,10}) ([0-9]{1,10}) 0"
    rb" (-?[0-9]{1,18})\.([0-9]{1,9}) ([^ ]*) - -(?: |$)"
)
_LARGEST_SIZE = (1 << 63) - 1
#: The next uid or gid is -1 as 32 bits, which chown(2) takes as "do not change".
_LARGEST_OWNER = (1 << 32) - 2


def _escaped(match: re.Match[bytes]) -> bytes:
    char = match.group()
    return _SHORT_ESCAPES.get(char) or b"\\x%02x" % char[0]


def escape(field: bytes) -> bytes:
    """Return a field with escapes, as in composefs-dump text. A field that is only a dash is escaped, since a dash means "not set"."""
    return b"\\x2d" if field == b"-" else _ESCAPE_FIELD.sub(_escaped, field)


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match.group(1)
    if not code:
        raise ManifestError("a backslash is not followed by a known escape")
    return bytes((int(code[1:], 16),)) if code[:1] == b"x" else _UNESCAPE_SHORT[code]


def unescape(field: bytes) -> bytes:
    """Return the bytes that an escaped field stands for. Raises ManifestError if an escape is unknown."""
    return _UNESCAPE.sub(_unescaped, field) if b"\\" in field else field


def encode(entry: Entry) -> bytes:
    """Return an entry as one line of composefs-dump text, including the newline."""
    seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
    line = b"%s %d %s%o %d %d %d 0 %d.%d %s - -" % (
        escape(entry.path),
        entry.size,
        b"@" if entry.is_hardlink else b"",
        entry.mode,
        entry.nlink,
        entry.uid,
        entry.gid,
        seconds,
        nanoseconds,
        b"-" if entry.target is None else escape(entry.target),
    )
    for name, value in entry.xattrs:
        line += b" " + _ESCAPE_KEY.sub(_escaped, name) + b"=" + _ESCAPE_FIELD.sub(_escaped, value)
    return line + b"\n"


def decode(line: bytes) -> Entry:
    """Return the entry that one line, without its newline, describes. Raises ManifestError if the line is malformed."""
    if len(line) > LONGEST_LINE:
        raise ManifestError(f"it has {len(line)} bytes, and at most {LONGEST_LINE} are allowed")
    match = _LINE.match(line)
    if match is None:
        raise _decode_error(line)
    path, size, hardlink, mode, nlink, uid, gid, seconds, nanoseconds, payload = match.groups()
    entry = Entry(
        unescape(path),
        int(mode, 8),
        int(size),
        int(nlink),
        int(uid),
        int(gid),
        int(seconds) * 1_000_000_000 + int(nanoseconds),
        None if payload == b"-" else unescape(payload),
        bool(hardlink),
        _decode_xattrs(line[match.end() :].split(b" ")) if line[match.end() - 1 :] != b"-" else (),
    )
    if entry.size > _LARGEST_SIZE or entry.uid > _LARGEST_OWNER or entry.gid > _LARGEST_OWNER or entry.mode > 0o177777:
        raise _decode_error(line)
    return entry


def _decode_error(line: bytes) -> ManifestError:
    """Return the error for a line that is not one of a manifest."""
    fields = line.split(b" ")
    if len(fields) < _FIXED_FIELDS:
        return ManifestError(f"it has {len(fields)} fields, and at least {_FIXED_FIELDS} are required")
    if fields[6] != b"0" or fields[9:_FIXED_FIELDS] != [b"-", b"-"]:
        return ManifestError("a release manifest may not have device numbers, inline content or fs-verity digests")
    return ManifestError(f"a number is malformed or out of range in {show(line)[:200]!r}")


def _decode_xattrs(fields: list[bytes]) -> Xattrs:
    xattrs = []
    for field in fields:
        name, separator, value = field.partition(b"=")
        name = unescape(name)
        if not separator or name not in MANIFEST_XATTRS:
            raise ManifestError(f"a release manifest may not have the xattr {show(name)!r}")
        xattrs.append((name, unescape(value)))
    return tuple(xattrs)


def lines(text: bytes) -> list[bytes]:
    """Return the lines of a part of a manifest without their newlines. Unlike splitlines(), split only at newlines."""
    found = text.split(b"\n")
    if not found[-1]:
        found.pop()
    return found


def read_entries(lines: Iterable[bytes], release: bytes) -> Iterator[Entry]:
    """Yield the entries of a manifest, with their paths and structure checked.

    The root comes first. Every directory comes before the entries in it. Names are sorted and unique, and no path leads out of the tree.
    A hard link equals the entry of the first name of its file. Link counts of directories and files match their entries. Each entry is
    also checked by itself (entry_check.py).

    ``lines`` have no newlines; ``release`` is the path of the release. Raises ManifestError with the number of the line if a check fails.
    """
    check = StructureCheck(release)
    number = 0
    for number, line in enumerate(lines, 1):
        try:
            entry = decode(line)
            check.add(entry)
        except ManifestError as error:
            raise ManifestError(f"line {number}: {error}") from None
        yield entry
    try:
        check.end()
    except ManifestError as error:
        raise ManifestError(f"after line {number}: {error}") from None


class StructureCheck:
    """Check the structure of a manifest entry by entry. Memory is needed for open directories and for files with several names only."""

    def __init__(self, release: bytes) -> None:
        self._release = release
        #: Each open directory: its path with a trailing slash, and the last name that was read in it.
        self._open: list[tuple[bytes, bytes]] = []
        #: Each open directory: the number of its subdirectories that have not been read yet.
        self._subdirectories: list[int] = []
        #: Files with several names, by the path of the first one: the entry, and the number of names that have not been read yet.
        self._names_missing: dict[bytes, tuple[Entry, int]] = {}

    def add(self, entry: Entry) -> None:
        """Check the next entry. Raises ManifestError if it is invalid or may not come here."""
        path = entry.path
        if not self._open:
            if path != b"/" or not entry.is_directory or entry.is_hardlink:
                raise ManifestError(f"the first entry must be the directory '/', not {show(path)!r}")
            check_entry(entry, self._release)
            self._open.append((b"/", b""))
            self._subdirectories.append(entry.nlink - 2)
            return
        cut = path.rfind(b"/") + 1
        name = path[cut:]
        check_name(path)
        self.add_name(path[:cut], name)
        check_entry(entry, self._release)
        if entry.is_hardlink:
            self._check_hardlink(entry)
        elif entry.nlink > 1 and entry.is_directory:
            self.enter(path, entry.nlink)
        elif entry.nlink > 1:
            self._names_missing[path] = entry, entry.nlink - 1

    def add_name(self, parent: bytes, name: bytes) -> None:
        """Check the place of the next name, a valid one, in the directory ``parent``, a path with a trailing slash.

        Raises ManifestError if the name is out of order.
        """
        while self._open[-1][0] != parent:
            if len(self._open) == 1:
                raise ManifestError(f"{show(parent + name)!r} does not follow its parent directory")
            self._leave()
        if name <= self._open[-1][1]:
            raise ManifestError(f"{show(parent + name)!r} is out of order or duplicated")
        self._open[-1] = (parent, name)

    def position(self) -> tuple[bytes, bytes]:
        """Return the path of the current directory, with a trailing slash, and the last name that was read in it."""
        return self._open[-1]

    def pass_names(self, last: bytes) -> None:
        """Accept the names in the current directory up to ``last``, whose order the caller has checked."""
        self._open[-1] = (self._open[-1][0], last)

    def enter(self, path: bytes, nlink: int) -> None:
        """Make the directory ``path``, whose name was read last, the current one."""
        self._subdirectories[-1] -= 1
        self._open.append((path + b"/", b""))
        self._subdirectories.append(nlink - 2)

    def _leave(self) -> None:
        path = self._open.pop()[0]
        if self._subdirectories.pop():
            raise ManifestError(
                f"the link count of directory {show(path)!r} does not match the number of its subdirectories"
            )

    def _check_hardlink(self, entry: Entry) -> None:
        first, missing = self._names_missing.get(entry.target or b"", (None, 0))
        if first is None:
            raise ManifestError(
                f"hard link {show(entry.path)!r} does not refer to an earlier file that has further names"
            )
        if first[1:7] != entry[1:7]:
            raise ManifestError(
                f"hard link {show(entry.path)!r} differs from {show(first.path)!r}, the first name of its file"
            )
        if missing == 1:
            del self._names_missing[first.path]
        else:
            self._names_missing[first.path] = first, missing - 1

    def end(self) -> None:
        """Check that nothing is missing after the last entry. Raises ManifestError if something is."""
        if not self._open:
            raise ManifestError("the manifest is empty")
        while self._open:
            self._leave()
        for path in self._names_missing:
            raise ManifestError(f"the hard-linked file {show(path)!r} has fewer names than its link count")


def sibling_key(path: bytes) -> bytes:
    """Return a sort key that puts the paths of a tree in depth-first order: a slash sorts before every other byte."""
    return b"" if path == b"/" else path.replace(b"/", b"\0")


def listing_differences(old: Iterable[Entry], new: Iterable[Entry], limit: int = 100) -> tuple[list[str], int]:
    """Compare two listings of a tree, both in manifest order.

    Return descriptions of the first ``limit`` differences, and the number of all differences. The mtime and the link count of a directory
    are not compared: they also change with names that are no part of the release.
    """
    found: list[str] = []
    count = 0
    for before, after in _paired(iter(old), iter(new)):
        description = _difference(before, after)
        if description:
            count += 1
            if len(found) < limit:
                found.append(description)
    return found, count


def _paired(old: Iterator[Entry], new: Iterator[Entry]) -> Iterator[tuple[Entry | None, Entry | None]]:
    before, after = next(old, None), next(new, None)
    while before or after:
        if after is None or (before and sibling_key(before.path) < sibling_key(after.path)):
            yield before, None
            before = next(old, None)
        elif before is None or sibling_key(after.path) < sibling_key(before.path):
            yield None, after
            after = next(new, None)
        else:
            yield before, after
            before, after = next(old, None), next(new, None)


#: The properties that are compared of two entries with the same path, each with the function that returns its text.
_COMPARED: tuple[tuple[str, Callable[[Entry], object]], ...] = (
    ("mode", lambda entry: f"{entry.mode:o}"),
    ("size", lambda entry: entry.size),
    ("links", lambda entry: entry.nlink),
    ("hard link", lambda entry: "yes" if entry.is_hardlink else "no"),
    ("owner", lambda entry: f"{entry.uid}:{entry.gid}"),
    ("mtime", lambda entry: "{}.{:09}".format(*divmod(entry.mtime_ns, 1_000_000_000))),
    ("target", lambda entry: show(entry.target or b"-")),
    ("xattrs", lambda entry: b" ".join(b"=".join(pair) for pair in entry.xattrs).hex()),
)


def _difference(before: Entry | None, after: Entry | None) -> str | None:
    if before is None:
        return f"{show(after.path)}: added" if after else None
    if after is None:
        return f"{show(before.path)}: removed"
    if before == after:
        return None
    if before.is_directory and after.is_directory:
        before = before._replace(mtime_ns=after.mtime_ns, nlink=after.nlink)
    changes = [f"{name} {get(before)} -> {get(after)}" for name, get in _COMPARED if get(before) != get(after)]
    return f"{show(before.path)}: {', '.join(changes)}" if changes else None


_COUNT = records.integer(0, records.LARGEST_SIZE)
_RECORD = RecordKind(
    records.fields(
        {
            "format": _COUNT,
            "root": records.text(),
            "release": records.relative(),
            "digest": records.digest,
            "stored_bytes": _COUNT,
            "entries": ENTRY_COUNTS,
            "bytes": _COUNT,
            "checksums": records.boolean,
        }
    ),
    LARGEST_RECORD,
    "format",
    RECORD_FORMAT,
)


def record_to_json(record: ManifestRecord) -> bytes:
    """Return a record as the JSON text beside the manifest. Raises ManifestError if ``record_from_json`` would refuse it."""
    fields = {
        "root": record.root,
        "release": record.release,
        "digest": record.digest,
        "stored_bytes": record.stored_bytes,
        "entries": record.entries.as_dict(),
        "bytes": record.bytes,
        "checksums": record.checksums,
    }
    try:
        return _RECORD.dump(fields)
    except RecordError as error:
        raise ManifestError(f"the manifest cannot be recorded: {error}") from None


def record_from_json(text: bytes) -> ManifestRecord:
    """Return the record that ``text``, written by ``record_to_json``, holds.

    Raises OutdatedError if an older version of the collection wrote it, and ManifestError if it is not the record of a manifest.
    """
    try:
        fields = _RECORD.load(text)
    except OutdatedError as error:
        raise OutdatedError(f"{error}: scan the release again with release_manifest") from None
    except RecordError as error:
        raise ManifestError(f"not the record of a manifest: {error}") from None
    return ManifestRecord(
        release=fields["release"],
        digest=fields["digest"],
        stored_bytes=fields["stored_bytes"],
        entries=EntryCounts(**fields["entries"]),
        bytes=fields["bytes"],
        checksums=fields["checksums"],
        root=fields["root"],
    )
