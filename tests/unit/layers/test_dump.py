"""Rewriting a manifest as text gives the same entries and the same refusals as decoding it entry by entry."""

from __future__ import annotations

import io
import random
import stat
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import placed
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.dump import placed_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import OwnershipRules
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    Entry,
    EntryCounts,
    ManifestRecord,
    Placement,
    Tally,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR, DEFAULT_XATTR
from ansible_collections.renderfarm.overlay.tests.unit.random_cases import Record, each_seed

RELEASE = b"pkg/1.0"
NOBODY = (1 << 32) - 1
PLACES = [b"pkg/1.0", b"", b"other", b"a name/with\nall\xff"]
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
#: user::rwx user:7:r-x group::r-x mask::rwx other::r-x
ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 7, NOBODY, 2, 5, 7, 4, 5, NOBODY, 16, 7, NOBODY, 32, 5, NOBODY)
NAMES = [
    b"a",
    b"b.py",
    b"lib",
    b"x-1_2",
    b"with space",
    b"back\\slash",
    b"\xff",
    b"...",
    b"..a",
    b"-",
    b"=",
    b"~",
    b"[",
]


def placement(at: bytes = RELEASE, source: bytes = RELEASE, checksums: bool = False) -> Placement:
    record = ManifestRecord(RELEASE.decode(), "sha256:0", 0, EntryCounts(), 0, checksums)
    return Placement("/store/pkg/1.0.dump.gz", record, at, source)


def tree(chance: random.Random, checksums: bool) -> Iterator[Entry]:
    """Yield a random tree with entries of all kinds. The link counts of directories match their subdirectories."""
    entries = [
        Entry(b"/", stat.S_IFDIR | 0o755, 0, 2, 1, 2, 5, None, False, ()),
        *_directory(chance, b"", checksums, 3),
    ]
    inside = Counter(
        entry.path[: entry.path.rfind(b"/")] or b"/" for entry in entries if entry.is_directory and entry.path != b"/"
    )
    for entry in entries:
        yield entry._replace(nlink=2 + inside[entry.path]) if entry.is_directory else entry


def _directory(chance: random.Random, here: bytes, checksums: bool, depth: int) -> Iterator[Entry]:
    first: bytes | None = None
    common = (chance.choice((0, 7, 2**31)), 2, chance.choice((-1, 10**9, 10**18)))
    for name in sorted(chance.sample(NAMES, chance.randrange(len(NAMES)))):
        path = here + b"/" + name
        kind = chance.randrange(7)
        if kind == 0 and depth:
            acls = chance.choice(((), ((ACCESS_XATTR, ACL), (DEFAULT_XATTR, ACL))))
            yield Entry(path, stat.S_IFDIR | 0o1775, 0, 2, *common, None, False, acls)
            yield from _directory(chance, path, checksums, depth - 1)
        elif kind == 1:
            target = chance.choice((b"a b", b"-", b"abc", b"x" * 4095))
            yield Entry(path, stat.S_IFLNK | 0o777, len(target), 1, *common, target, False, ())
        elif kind == 2:
            yield Entry(path, stat.S_IFREG | 0o600, 0, 1, *common, None, False, ())
        elif kind == 3:
            capability = ((CAPABILITY_XATTR, CAPABILITY),)
            yield Entry(path, stat.S_IFREG | 0o755, 9, 1, *common, RELEASE + path, False, capability)
        elif kind == 4 and first is None and depth == 3:
            first = path
            yield Entry(path, stat.S_IFREG | 0o4755, 9, 2, *common, RELEASE + path, False, ())
        elif kind == 5 and first:
            yield Entry(path, stat.S_IFREG | 0o4755, 9, 2, *common, first, True, ())
            first = b""
        else:
            xattrs = ((CHECKSUM_XATTR, b"0123456789abcdef" * 4),) if checksums else ()
            yield Entry(path, stat.S_IFREG | 0o644, 10**11, 1, *common, RELEASE + path, False, xattrs)


def chunks(text: bytes, chance: random.Random) -> list[bytes]:
    """Split a text into random parts of whole lines."""
    found = [b""]
    for line in io.BytesIO(text):
        if chance.random() < 0.2:
            found.append(b"")
        found[-1] += line
    return [chunk for chunk in found if chunk]


def one_by_one(place: Placement, text: bytes) -> tuple[list[Entry], Tally] | None:
    """Return the entries of a manifest decoded one by one, and their tally; None if the manifest is refused."""
    tally, entries = Tally(), []
    try:
        for entry in placed(place, manifest.read_entries(manifest.lines(text), RELEASE), OwnershipRules()):
            tally.add(entry)
            entries.append(entry)
    except ManifestError:
        return None
    return entries, tally


def as_text(place: Placement, parts: list[bytes]) -> tuple[list[Entry], Tally] | None:
    """Return the entries of a manifest rewritten as text, and their tally; None if the manifest is refused."""
    tally = Tally()
    try:
        text = b"".join(placed_text(place, parts, tally))
    except ManifestError:
        return None
    return list(map(manifest.decode, manifest.lines(text))), tally


def test_rewritten_text_has_the_entries_that_are_decoded_one_by_one(record_testsuite_property: Record) -> None:
    each_seed(200, _check_text, record_testsuite_property)


def _check_text(seed: int) -> None:
    chance = random.Random(seed)
    checksums = chance.random() < 0.5
    place = placement(chance.choice(PLACES), chance.choice((RELEASE, RELEASE, b"elsewhere")), checksums)
    entries = list(tree(chance, checksums))
    text = b"".join(map(manifest.encode, entries))
    expected = one_by_one(place, text)
    # The tree may lack the second name of a file. Both ways refuse it then.
    assert expected or any(entry.nlink > 1 and not entry.is_directory for entry in entries)
    assert as_text(place, chunks(text, chance)) == expected


def test_damaged_manifests_are_refused_as_text_and_one_by_one_alike(record_testsuite_property: Record) -> None:
    each_seed(3000, _check_damaged, record_testsuite_property)


def _check_damaged(seed: int) -> None:
    chance = random.Random(seed)
    checksums = chance.random() < 0.3
    place = placement(chance.choice(PLACES), checksums=checksums)
    text = bytearray(b"".join(map(manifest.encode, tree(chance, checksums))))
    for _change in range(chance.randrange(1, 3)):
        where = chance.randrange(len(text))
        change = chance.randrange(4)
        if change == 0:
            text[where] = chance.choice(b"/. -0149\\\n@xa\xff\r")
        elif change == 1:
            del text[where]
        elif change == 2:
            text.insert(where, chance.choice(b"/. -0149\\\n@xa\xff\r"))
        else:
            lines = list(io.BytesIO(bytes(text)))
            one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            text = bytearray(b"".join(lines))
    parts = chunks(bytes(text), chance)
    assert as_text(place, parts) == one_by_one(place, bytes(text))


def test_a_last_line_without_a_newline_is_checked() -> None:
    root, plain = b"/ 0 40755 2 1 2 0 0.0 - - -\n", b"/a 0 100644 1 1 2 0 0.0 - - -\n"
    odd = b"/b 0 100644 1 1 2 0 0.0 - - - trusted.overlay.redirect=/etc/shadow"
    for parts in ([root + plain + odd], [root, plain + odd], [root, plain, odd]):
        with pytest.raises(ManifestError, match=r"^line 3: .* may not have the xattr 'trusted\.overlay\.redirect'"):
            list(placed_text(placement(), parts, Tally()))


def test_an_error_has_the_line_number() -> None:
    text = b"".join(manifest.encode(entry) for entry in tree(random.Random(1), False))
    with pytest.raises(ManifestError, match=rf"^line {len(text.splitlines()) + 1}: '/\.\.' is not a valid name"):
        list(placed_text(placement(), [text, b"/.. 0 100644 1 0 0 0 1.0 - - -\n"], Tally()))
    with pytest.raises(ManifestError, match=r"^after line 0: the manifest is empty$"):
        list(placed_text(placement(), [], Tally()))
