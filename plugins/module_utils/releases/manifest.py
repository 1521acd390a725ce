# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and writing manifests: composefs-dump(5) text, and the small record kept beside each.

The text has one line for each entry, in depth-first order with the names of a directory sorted by their bytes, so the
same tree always gives the same bytes. What depends on the file system that the tree was scanned on is normalised:
directories have size 0 and the link count that their subdirectories give them.
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
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    Counts,
    Entry,
    ManifestRecord,
    Xattrs,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_check import check_entry, check_name
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR, DEFAULT_XATTR

#: Raised whenever manifests carry more than before, or their records say more. Format 2 names the software root.
RECORD_FORMAT = 2
#: Bytes of a record that is read.
LARGEST_RECORD = 1 << 16

#: The attributes that a manifest may carry. Others are refused: a ``trusted.overlay.redirect`` in a manifest would let
#: whoever wrote it point a name at any file of the data layer.
KNOWN_XATTRS = frozenset((CAPABILITY_XATTR, CHECKSUM_XATTR, ACCESS_XATTR, DEFAULT_XATTR))

#: Bytes of a line, its newline not included: more than any entry takes whose paths and attributes are as long as they may be.
LONGEST_LINE = 1 << 17

_FIXED_FIELDS = 11
_SHORT_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t"}
_ESCAPE_FIELD = re.compile(rb"[^!-~]|\\")
_ESCAPE_KEY = re.compile(rb"[^!-~]|[\\=]")
_UNESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[\\nrt]|)")
_UNESCAPE_SHORT = {b"\\": b"\\", b"n": b"\n", b"r": b"\r", b"t": b"\t"}

#: A line up to its attributes. Python would read more as numbers than a manifest has: 1_0, +1 and the like.
_LINE = re.compile(
    rb"([^ ]*) ([0-9]{1,19}) (@?)([0-7]{1,6}) ([0-9]{1,10}) ([0-9]{1,10}) ([0-9]{1,10}) 0"
    rb" (-?[0-9]{1,18})\.([0-9]{1,9}) ([^ ]*) - -(?: |$)"
)
_LARGEST_SIZE = (1 << 63) - 1
#: The next number is -1, which means 'leave as it is' to chown(2).
_LARGEST_OWNER = (1 << 32) - 2


def _escaped(match: re.Match[bytes]) -> bytes:
    char = match.group()
    return _SHORT_ESCAPES.get(char) or b"\\x%02x" % char[0]


def escape(field: bytes) -> bytes:
    """Return a field as it stands in the text. A lone dash is escaped, since it means 'not set'."""
    return b"\\x2d" if field == b"-" else _ESCAPE_FIELD.sub(_escaped, field)


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match.group(1)
    if not code:
        raise ManifestError("a backslash starts no known escape")
    return bytes((int(code[1:], 16),)) if code[:1] == b"x" else _UNESCAPE_SHORT[code]


def unescape(field: bytes) -> bytes:
    return _UNESCAPE.sub(_unescaped, field) if b"\\" in field else field


def encode(entry: Entry) -> bytes:
    """Return an entry as one line of composefs-dump text, with its newline."""
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
    """Return the entry that one line (without its newline) describes. Raises ManifestError if it describes none."""
    if len(line) > LONGEST_LINE:
        raise ManifestError(f"it has {len(line)} bytes, and {LONGEST_LINE} is the most")
    match = _LINE.match(line)
    if match is None:
        raise _explained(line)
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
        raise _explained(line)
    return entry


def _explained(line: bytes) -> ManifestError:
    """Return why a line is none of a manifest."""
    fields = line.split(b" ")
    if len(fields) < _FIXED_FIELDS:
        return ManifestError(f"{len(fields)} fields where there are at least {_FIXED_FIELDS}")
    if fields[6] != b"0" or fields[9:_FIXED_FIELDS] != [b"-", b"-"]:
        return ManifestError("device numbers, inline content and fs-verity digests are not for release manifests")
    return ManifestError(f"a number is malformed or out of its range in {show(line)[:200]!r}")


def _decode_xattrs(fields: list[bytes]) -> Xattrs:
    xattrs = []
    for field in fields:
        name, separator, value = field.partition(b"=")
        name = unescape(name)
        if not separator or name not in KNOWN_XATTRS:
            raise ManifestError(f"attribute {show(name)!r} is not one that a release manifest may carry")
        xattrs.append((name, unescape(value)))
    return tuple(xattrs)


def lines(text: bytes) -> list[bytes]:
    """Return the lines of a part of a manifest, without their newlines; nothing else ends a line."""
    found = text.split(b"\n")
    if not found[-1]:
        found.pop()
    return found


def read_entries(lines: Iterable[bytes], release: bytes) -> Iterator[Entry]:
    """Yield the entries of a manifest, each checked, so that what follows can trust paths and structure.

    Checked are: the root comes first, every parent comes before its children, names are sorted and unique and none
    leads out of the tree, hard links are as their first name, directories and files have as many links as there are names
    of them, and each entry by itself (see entry_check.py).

    ``lines`` have no newlines. Raises ManifestError with the number of the line.
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
    """Holds what must be remembered to check entries as they pass: the open directories, and files with more names."""

    def __init__(self, release: bytes) -> None:
        self._release = release
        #: For each open directory its path with a slash at the end, and the name that came last in it.
        self._open: list[tuple[bytes, bytes]] = []
        #: For each open directory how many subdirectories are still to come.
        self._subdirectories: list[int] = []
        #: By the first name of a file with several: its entry, and how many names are still to come.
        self._names_missing: dict[bytes, tuple[Entry, int]] = {}

    def add(self, entry: Entry) -> None:
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
        """Take the next name, which is a valid one, in ``parent``, a path that ends in a slash."""
        while self._open[-1][0] != parent:
            if len(self._open) == 1:
                raise ManifestError(f"{show(parent + name)!r} does not follow its parent directory")
            self._leave()
        if name <= self._open[-1][1]:
            raise ManifestError(f"{show(parent + name)!r} is out of order or there twice")
        self._open[-1] = (parent, name)

    def position(self) -> tuple[bytes, bytes]:
        """Return the directory that is listed, its path with a slash at the end, and the name that came last in it."""
        return self._open[-1]

    def pass_names(self, last: bytes) -> None:
        """Take names in the directory that is listed, up to ``last``: the caller has seen that they are in order."""
        self._open[-1] = (self._open[-1][0], last)

    def enter(self, path: bytes, nlink: int) -> None:
        """Take the directory that the last name was."""
        self._subdirectories[-1] -= 1
        self._open.append((path + b"/", b""))
        self._subdirectories.append(nlink - 2)

    def _leave(self) -> None:
        path = self._open.pop()[0]
        if self._subdirectories.pop():
            raise ManifestError(
                f"the directory {show(path)!r} has another number of links than its subdirectories give it"
            )

    def _check_hardlink(self, entry: Entry) -> None:
        first, missing = self._names_missing.get(entry.target or b"", (None, 0))
        if first is None:
            raise ManifestError(f"the hard link {show(entry.path)!r} names no earlier file with names to come")
        if first[1:7] != entry[1:7]:
            raise ManifestError(f"the hard link {show(entry.path)!r} is not as the file {show(first.path)!r} is")
        if missing == 1:
            del self._names_missing[first.path]
        else:
            self._names_missing[first.path] = first, missing - 1

    def end(self) -> None:
        if not self._open:
            raise ManifestError("the manifest is empty")
        while self._open:
            self._leave()
        for path in self._names_missing:
            raise ManifestError(f"names are missing of the hard-linked file {show(path)!r}")


def sibling_key(path: bytes) -> bytes:
    """Return what paths sort by so that a tree comes in depth-first order: a slash sorts before every other byte."""
    return b"" if path == b"/" else path.replace(b"/", b"\0")


def differences(old: Iterable[Entry], new: Iterable[Entry], limit: int = 100) -> tuple[list[str], int]:
    """Compare two listings of a tree, both in manifest order.

    Returns the first ``limit`` differences as sentences, and how many there are in all.
    """
    found: list[str] = []
    count = 0
    for before, after in _paired(iter(old), iter(new)):
        sentence = _difference(before, after)
        if sentence:
            count += 1
            if len(found) < limit:
                found.append(sentence)
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


#: What is compared of two entries with the same path, and how it is shown.
_COMPARED: tuple[tuple[str, Callable[[Entry], object]], ...] = (
    ("mode", lambda entry: f"{entry.mode:o}"),
    ("size", lambda entry: entry.size),
    ("links", lambda entry: entry.nlink),
    ("hard link", lambda entry: "yes" if entry.is_hardlink else "no"),
    ("owner", lambda entry: f"{entry.uid}:{entry.gid}"),
    ("mtime", lambda entry: "{}.{:09}".format(*divmod(entry.mtime_ns, 1_000_000_000))),
    ("target", lambda entry: show(entry.target or b"-")),
    ("attributes", lambda entry: b" ".join(b"=".join(pair) for pair in entry.xattrs).hex()),
)


def _difference(before: Entry | None, after: Entry | None) -> str | None:
    if before is None:
        return f"{show(after.path)}: added" if after else None
    if after is None:
        return f"{show(before.path)}: removed"
    if before == after:
        return None
    changes = [f"{name} {get(before)} -> {get(after)}" for name, get in _COMPARED if get(before) != get(after)]
    return f"{show(before.path)}: {', '.join(changes)}"


_COUNT = records.integer(0, records.LARGEST_SIZE)
COUNTS = records.fields(dict.fromkeys(Counts().as_dict(), _COUNT))
_RECORD = RecordKind(
    records.fields(
        {
            "format": _COUNT,
            "root": records.text(),
            "release": records.relative(),
            "digest": records.digest,
            "stored_bytes": _COUNT,
            "entries": COUNTS,
            "bytes": _COUNT,
            "checksums": records.boolean,
        }
    ),
    LARGEST_RECORD,
    "format",
    RECORD_FORMAT,
)


def record_to_json(record: ManifestRecord) -> bytes:
    """Return the record as the JSON that is kept beside the manifest. Raises ManifestError for what could not be read again."""
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
    """Return the record that ``record_to_json`` wrote.

    Raises OutdatedError for one of an older version of the collection, and ManifestError for anything else.
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
        entries=Counts(**fields["entries"]),
        bytes=fields["bytes"],
        checksums=fields["checksums"],
        root=fields["root"],
    )
