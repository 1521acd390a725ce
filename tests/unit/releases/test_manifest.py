"""Manifests are decoded as they were encoded, and invalid ones are refused with the reason."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CAPABILITY_XATTR,
    CHECKSUM_XATTR,
    DIRECTORY_XATTRS,
    FILE_XATTRS,
    MANIFEST_XATTRS,
    Entry,
    EntryCounts,
    ManifestRecord,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import (
    decode,
    encode,
    escape,
    listing_differences,
    read_entries,
    record_from_json,
    record_to_json,
    sibling_key,
    unescape,
)

ROOT = b"/ 0 40755 2 0 0 0 1.0 - - -"
RELEASE = b"pkg/1"


def directory(path: bytes, nlink: int = 2) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755, 0, nlink, 0, 0, 0, None, False, ())


def file(path: bytes, size: int = 1, nlink: int = 1) -> Entry:
    return Entry(path, stat.S_IFREG | 0o644, size, nlink, 0, 0, 0, RELEASE + path if size else None, False, ())


def read(*listed: bytes) -> list[Entry]:
    """Read ``listed`` as the lines after a root whose link count matches the directories among them."""
    inside = sum(line.count(b"/") == 1 and line.split(b" ")[2:3] in ([b"40755"], [b"40000"]) for line in listed)
    return list(read_entries([ROOT.replace(b" 2 ", b" %d " % (2 + inside)), *listed], RELEASE))


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (b"-", b"\\x2d"),
        (b"--", b"--"),
        (b"a-", b"a-"),
        (b"/a b", b"/a\\x20b"),
        (b"a\\b", b"a\\\\b"),
        (b"a\nb\rc\td", b"a\\nb\\rc\\td"),
        (b"a=b", b"a=b"),
        (b"\xff\x00\x7f", b"\\xff\\x00\\x7f"),
        ("ü".encode(), b"\\xc3\\xbc"),
    ],
)
def test_fields_are_escaped_as_composefs_does(field: bytes, text: bytes) -> None:
    assert escape(field) == text
    assert unescape(text) == field


@pytest.mark.parametrize("text", [b"\\", b"a\\", b"\\q", b"\\x", b"\\x1", b"\\xg0", b"\\012"])
def test_an_unknown_escape_is_refused(text: bytes) -> None:
    with pytest.raises(ManifestError, match="escape"):
        unescape(text)


@given(st.binary())
def test_unescaping_any_escaped_bytes_returns_them(field: bytes) -> None:
    text = escape(field)
    assert unescape(text) == field
    assert not set(text) & set(b" \n\t\r")
    assert text.isascii()


NUMBERS = st.integers(min_value=0, max_value=2**32 - 2)
ENTRIES = st.builds(
    Entry,
    path=st.binary().map(lambda name: b"/" + name),
    mode=st.integers(min_value=0, max_value=0o177777),
    size=st.integers(min_value=0, max_value=2**63 - 1),
    nlink=NUMBERS,
    uid=NUMBERS,
    gid=NUMBERS,
    mtime_ns=st.integers(min_value=-(2**62), max_value=2**62),
    target=st.none() | st.binary(min_size=1),
    is_hardlink=st.booleans(),
    xattrs=st.lists(
        st.tuples(st.sampled_from((CAPABILITY_XATTR, CHECKSUM_XATTR)), st.binary()),
        max_size=2,
        unique_by=lambda x: x[0],
    ).map(tuple),
)


@settings(deadline=None)
@given(ENTRIES)
def test_decoding_an_encoded_entry_returns_it(entry: Entry) -> None:
    line = encode(entry)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line[:-1]) == entry


@pytest.mark.parametrize(
    ("mtime", "nanoseconds"),
    [
        (b"0.0", 0),
        (b"1.5", 1_000_000_005),
        (b"1.000000005", 1_000_000_005),
        (b"1674041780.601887980", 1674041780_601887980),
        (b"-1.0", -1_000_000_000),
        (b"-2.999999999", -1_000_000_001),
    ],
)
def test_digits_after_the_point_of_an_mtime_are_a_number_of_nanoseconds(mtime: bytes, nanoseconds: int) -> None:
    assert decode(b"/a 0 100644 1 0 0 0 " + mtime + b" - - -").mtime_ns == nanoseconds


def test_mtimes_before_1970_have_positive_nanoseconds() -> None:
    assert b" -1.999999999 " in encode(file(b"/a")._replace(mtime_ns=-1))


def test_a_symbolic_link_whose_target_is_a_dash_keeps_its_target() -> None:
    link = Entry(b"/l", stat.S_IFLNK | 0o777, 1, 1, 0, 0, 0, b"-", False, ())
    assert b" \\x2d - -" in encode(link)
    assert decode(encode(link)[:-1]).target == b"-"


def test_equal_signs_are_not_escaped_in_paths_and_xattr_values() -> None:
    entry = file(b"/a=b")._replace(xattrs=((CAPABILITY_XATTR, b"x=y"),))
    assert encode(entry).startswith(b"/a=b ")
    assert b" security.capability=x=y" in encode(entry)
    assert decode(encode(entry)[:-1]) == entry


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "has 1 fields"),
        (b"/a 0 100644", "has 3 fields"),
        (b"/a 0 100644 1 0 0 5 1.0 - - -", "device numbers"),
        (b"/a 0 100644 1 0 0 0 1.0 - content -", "inline content"),
        (b"/a 0 100644 1 0 0 0 1.0 - - abcd", "fs-verity"),
        (b"/a x 100644 1 0 0 0 1.0 - - -", "number"),
        (b"/a 1_0 100644 1 0 0 0 1.0 pkg/1/a - -", "number"),
        (b"/a +1 100644 1 0 0 0 1.0 pkg/1/a - -", "number"),
        (b"/a \t1 100644 1 0 0 0 1.0 pkg/1/a - -", "number"),
        (b"/a 0 10064x 1 0 0 0 1.0 - - -", "number"),
        (b"/a 0 100648 1 0 0 0 1.0 - - -", "number"),
        (b"/a 0 0o100644 1 0 0 0 1.0 - - -", "number"),
        (b"/a 0 -100644 1 0 0 0 1.0 - - -", "number"),
        (b"/a 0 7100644 1 0 0 0 1.0 - - -", "number"),
        (b"/a 0 100644 1 0 0 0 1 - - -", "number"),
        (b"/a 0 100644 1 0 0 0 1.0.0 - - -", "number"),
        (b"/a 0 100644 1 0 0 0 1.-5 - - -", "number"),
        (b"/a 0 100644 1 0 0 0 1.1000000000 - - -", "number"),
        (b"/a -1 100644 1 0 0 0 1.0 - - -", "number"),
        (b"/a 9223372036854775808 100644 1 0 0 0 1.0 pkg/1/a - -", "number"),
        (b"/a 0 100644 1 4294967295 0 0 1.0 - - -", "number"),
        (b"/a 0 100644 1 0 4294967295 0 1.0 - - -", "number"),
        (b"/a 0 100644 1 -1 0 0 1.0 - - -", "number"),
        (b"/a 0 100644 1 0 0 0 99999999999999999999.0 - - -", "number"),
        (b"/a 0 100644 1 0 0 0 1.0 - - - trusted.overlay.redirect=/etc/shadow", r"trusted\.overlay\.redirect"),
        (b"/a 0 100644 1 0 0 0 1.0 - - - user.overlay.redirect=/etc/shadow", r"user\.overlay\.redirect"),
        (b"/a 0 100644 1 0 0 0 1.0 - - - system.nfs4_acl=x", "nfs4_acl"),
        (b"/a 0 100644 1 0 0 0 1.0 - - - security.capability", "xattr"),
        (b"/a 0 100644 1 0 0 0 1.0 - - - ", "xattr"),
    ],
)
def test_a_malformed_line_is_refused_with_line_number_and_reason(line: bytes, reason: str) -> None:
    with pytest.raises(ManifestError, match=rf"^line 2: .*{reason}"):
        read(line)


def entry_line(path: bytes, kind: bytes = b"100644", nlink: int = 0, payload: bytes = b"-", size: int = 0) -> bytes:
    nlink = nlink or (2 if kind.startswith(b"4") else 1)
    size = size or (len(payload) if kind.startswith(b"12") and payload != b"-" else 0)
    return b"%s %d %s %d 0 0 0 1.0 %s - -" % (path, size, kind, nlink, payload)


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ([entry_line(b"/b"), entry_line(b"/a")], "'/a' is out of order"),
        ([entry_line(b"/a"), entry_line(b"/a")], "'/a' is out of order or duplicated"),
        ([entry_line(b"/..")], "not a valid name"),
        ([entry_line(b"/.")], "not a valid name"),
        ([entry_line(b"/a\\x00b")], "not a valid name"),
        ([entry_line(b"/d", b"40755"), entry_line(b"/d/../x")], "parent"),
        ([entry_line(b"/d", b"40755"), entry_line(b"/d/")], "not a valid name"),
        ([entry_line(b"//a")], "parent"),
        ([entry_line(b"a")], "parent"),
        ([entry_line(b"/d/a")], "'/d/a' does not follow its parent"),
        ([entry_line(b"/d"), entry_line(b"/d/a")], "'/d/a' does not follow its parent"),
        ([entry_line(b"/l", b"120777", payload=b"d"), entry_line(b"/l/a")], "'/l/a' does not follow its parent"),
        ([entry_line(b"/d", b"40755"), entry_line(b"/e"), entry_line(b"/d/a")], "'/d/a' does not follow its parent"),
        ([ROOT], "not a valid name|parent"),
        ([entry_line(b"/a", b"20644")], "'/a' is neither"),
        ([entry_line(b"/a", b"60644")], "'/a' is neither"),
        ([entry_line(b"/a", b"10644")], "'/a' is neither"),
        ([entry_line(b"/a", b"140644")], "'/a' is neither"),
        ([entry_line(b"/a", b"644")], "'/a' is neither"),
        ([entry_line(b"/a", size=5)], "content path of '/a' is not the path of the file"),
        ([entry_line(b"/a", size=5, payload=b"pkg/1/b")], "content path of '/a' is not the path of the file"),
        ([entry_line(b"/a", size=5, payload=b"pkg/2/a")], "content path of '/a' is not the path of the file"),
        ([entry_line(b"/a", size=5, payload=b"/pkg/1/a")], "content path of '/a' is not the path of the file"),
        ([entry_line(b"/a", payload=b"pkg/1/a")], "content path of '/a' is not the path of the file"),
        ([entry_line(b"/l", b"120777")], "'/l' has no target"),
        ([entry_line(b"/a").replace(b" 1 0 0 0 ", b" 0 0 0 0 ")], "'/a' has a link count of 0"),
        ([entry_line(b"/h", b"@100644", 2, b"/a")], "hard link '/h' does not refer to an earlier file"),
        (
            [entry_line(b"/a"), entry_line(b"/h", b"@100644", 2, b"/a")],
            "hard link '/h' does not refer to an earlier file",
        ),
        ([entry_line(b"/h", b"@100644", 2)], "hard link '/h' does not refer to an earlier file"),
        (
            [entry_line(b"/d", b"40755", 2), entry_line(b"/h", b"@40755", 2, b"/d")],
            "hard link '/h' does not refer to an earlier file",
        ),
        (
            [
                entry_line(b"/a", nlink=2),
                entry_line(b"/h", b"@100644", 2, b"/a"),
                entry_line(b"/i", b"@100644", 2, b"/a"),
            ],
            "hard link '/i' does not refer to an earlier file",
        ),
        ([entry_line(b"/a", nlink=2), entry_line(b"/h", b"@100755", 2, b"/a")], "hard link '/h' differs from '/a'"),
        ([entry_line(b"/d", b"40755", size=5)], "'/d' has a size"),
        ([entry_line(b"/d", b"40755", payload=b"pkg/1/d")], "'/d' has a size, content"),
        ([entry_line(b"/d", b"40755", 3)], "link count of directory '/d/' does not match"),
        ([entry_line(b"/d", b"40755", 1)], "a link count below 2"),
        ([entry_line(b"/" + b"n" * 256)], "has 256 bytes, and at most 255"),
        ([entry_line(b"/l", b"120777", payload=b"a\\x00b", size=3)], "target of symbolic link '/l' has a NUL"),
        ([entry_line(b"/l", b"120777", payload=b"ab", size=3)], "target of symbolic link '/l'"),
        ([entry_line(b"/l", b"120777", payload=b"t" * 4096)], "target of symbolic link '/l'"),
        ([entry_line(b"/l", b"120755", payload=b"ab")], "'/l' has a mode other than 0777"),
        ([entry_line(b"/a", size=1 << 53, payload=b"pkg/1/a")], "'/a' has 9007199254740992 bytes"),
        ([entry_line(b"/a").replace(b" 1.0 ", b" -2147483649.0 ")], "mtime of '/a' is out of the range"),
        ([entry_line(b"/a").replace(b" 1.0 ", b" 15032385536.0 ")], "mtime of '/a' is out of the range"),
        (
            [entry_line(b"/a") + b" security.capability=garbage"],
            "security.capability of '/a' is malformed: .* and 7 bytes",
        ),
        ([entry_line(b"/a") + b" user.renderfarm.sha256=none"], "sha256 of '/a' is malformed"),
        ([entry_line(b"/a") + b" system.posix_acl_access=garbage"], "posix_acl_access of '/a' is malformed"),
        ([entry_line(b"/a") + b" system.posix_acl_default=x"], "'/a' may not have the xattr"),
        ([entry_line(b"/d", b"40755") + b" security.capability=x"], "'/d' may not have the xattr"),
        (
            [entry_line(b"/l", b"120777", payload=b"a") + b" system.posix_acl_access=x"],
            "'/l' may not have the xattr",
        ),
        ([entry_line(b"/a") + b" user.renderfarm.sha256=%s" % (b"0" * 64) * 2], "or has it twice"),
        ([entry_line(b"/a" * 100_000)], r"it has \d+ bytes, and at most 131072"),
        (
            [entry_line(b"/a", nlink=3), entry_line(b"/h", b"@100644", 3, b"/a")],
            "'/a' has fewer names than its link count",
        ),
    ],
)
def test_an_invalid_tree_is_refused_with_the_entry_and_reason(listed: Sequence[bytes], reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        read(*listed)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((b"100644", name) for name in sorted(MANIFEST_XATTRS - DIRECTORY_XATTRS | FILE_XATTRS)),
        *((b"40755", name) for name in sorted(DIRECTORY_XATTRS)),
    ],
)
def test_the_value_of_each_xattr_that_a_manifest_may_have_is_checked(kind: bytes, name: bytes) -> None:
    with pytest.raises(ManifestError, match=rf"the xattr {name.decode()} of '/a' is malformed"):
        read(entry_line(b"/a", kind) + b" " + name + b"=x")


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ([], "empty"),
        ([entry_line(b"/a")], "first entry"),
        ([entry_line(b"/")], "first entry"),
        ([entry_line(b"", b"40755")], "first entry"),
    ],
)
def test_a_manifest_that_does_not_start_with_the_root_is_refused(first: list[bytes], reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        list(read_entries(first, RELEASE))


def test_a_manifest_that_ends_before_a_hard_link_is_refused_as_truncated() -> None:
    whole = [entry_line(b"/a", nlink=2), entry_line(b"/b", b"@100644", 2, b"/a")]
    assert len(read(*whole)) == 3
    with pytest.raises(ManifestError, match=r"^after line 2: "):
        read(*whole[:-1])


def test_a_valid_tree_is_read_entry_by_entry() -> None:
    entries = read(
        entry_line(b"/a", b"40755"),
        entry_line(b"/a/x", size=3, payload=b"pkg/1/a/x"),
        entry_line(b"/a/y", b"120777", payload=b"../b", size=4),
        entry_line(b"/a-b"),
        entry_line(b"/b", b"40000", 3),
        entry_line(b"/b/c", b"41777"),
        entry_line(b"/c", b"104755", 2),
        entry_line(b"/d", b"@104755", 2, b"/c"),
    )
    paths = [entry.path for entry in entries]
    assert paths == [b"/", b"/a", b"/a/x", b"/a/y", b"/a-b", b"/b", b"/b/c", b"/c", b"/d"]
    assert sorted(paths, key=sibling_key) == paths


NAMES = st.binary(min_size=1, max_size=4).filter(lambda name: not set(name) & set(b"\0/") and name not in (b".", b".."))


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=20))
def test_sibling_key_sorts_paths_as_a_depth_first_walk_visits_them(paths: list[list[bytes]]) -> None:
    tree = {tuple(parts[:depth]) for parts in paths for depth in range(1, len(parts) + 1)}
    # Tuples of names sort as such a walk visits them: by the first name that differs, a directory before its content.
    walked = [b"/" + b"/".join(parts) for parts in sorted(tree)]
    assert sorted(walked, key=sibling_key) == walked


A = [directory(b"/"), file(b"/a"), file(b"/b")]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (A, []),
        (A[:2], ["/b: removed"]),
        ([*A, file(b"/c")], ["/c: added"]),
        ([A[0], A[2]], ["/a: removed"]),
        ([A[0], file(b"/a", 2), A[2]], ["/a: size 1 -> 2"]),
        ([A[0], A[1]._replace(mode=0o104755, uid=5), A[2]], ["/a: mode 100644 -> 104755, owner 0:0 -> 5:0"]),
        ([A[0], A[1]._replace(mtime_ns=-1), A[2]], ["/a: mtime 0.000000000 -> -1.999999999"]),
        ([A[0], A[1]._replace(nlink=2), A[2]], ["/a: links 1 -> 2"]),
        (
            [A[0], A[1]._replace(xattrs=((CHECKSUM_XATTR, b"a"),)), A[2]],
            [f"/a: xattrs  -> {(CHECKSUM_XATTR + b'=a').hex()}"],
        ),
        ([directory(b"/", 3), directory(b"/a"), file(b"/a/b"), file(b"/b")], None),
        ([], ["/: removed", "/a: removed", "/b: removed"]),
    ],
)
def test_each_difference_says_what_changed(new: list[Entry], expected: list[str] | None) -> None:
    found, count = listing_differences(A, new)
    assert count == len(found)
    if expected is None:
        assert found == [
            "/a: mode 100644 -> 40755, size 1 -> 0, links 1 -> 2, target pkg/1/a -> -",
            "/a/b: added",
        ]
    else:
        assert found == expected


def test_names_that_came_or_went_elsewhere_are_no_difference_of_a_directory() -> None:
    assert listing_differences(A, [A[0]._replace(mtime_ns=9, nlink=3), *A[1:]]) == ([], 0)
    (found,), _count = listing_differences(A, [A[0]._replace(mtime_ns=9, mode=0o40700), *A[1:]])
    assert found == "/: mode 40755 -> 40700"


def test_a_file_that_became_a_hard_link_is_a_difference() -> None:
    found, _count = listing_differences(A, [A[0], A[1], A[2]._replace(is_hardlink=True)])
    assert found == ["/b: hard link no -> yes"]


def test_the_first_differences_are_returned_and_all_are_counted() -> None:
    found, count = listing_differences(
        [], [directory(b"/"), *(file(b"/%03d" % number) for number in range(300))], limit=10
    )
    assert (len(found), count) == (10, 301)


RECORD = ManifestRecord("pkg/1", "sha256:" + "0" * 64, 123, EntryCounts(1, 2, 3, 4), 5, True, "/net/software")


def test_a_record_is_read_as_it_was_written() -> None:
    assert record_from_json(record_to_json(RECORD)) == RECORD


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        record_to_json(RECORD)[:-10],
        record_to_json(RECORD).replace(b'"format": 2', b'"format": 3'),
        record_to_json(RECORD).replace(b'"files"', b'"fils"'),
        record_to_json(RECORD).replace(b'"digest"', b'"digst"'),
        record_to_json(RECORD).replace(b'"checksums"', b'"more": 1, "checksums"'),
        record_to_json(RECORD).replace(b'"checksums"', b'"bytes": 5, "checksums"'),
    ],
)
def test_an_invalid_record_is_refused(text: bytes) -> None:
    with pytest.raises(ManifestError):
        record_from_json(text)


def test_a_record_of_an_older_version_is_outdated_and_not_damaged() -> None:
    for text in (b'{"format": 1}', record_to_json(RECORD).replace(b'"format": 2', b'"format": 1')):
        with pytest.raises(OutdatedError, match="scan the release again with release_manifest"):
            record_from_json(text)


FIELD = st.sampled_from([b"-", b"0", b"1", b"/a", b"100644", b"@100644", b"40755", b"120777", b"1.0", b"pkg/1/a"])
LINE = st.binary(max_size=60) | st.lists(FIELD | st.binary(max_size=8), min_size=9, max_size=13).map(b" ".join)


@settings(deadline=None)
@given(st.lists(LINE, max_size=5), st.booleans())
def test_any_lines_are_read_or_refused_with_a_manifest_error(listed: list[bytes], with_root: bool) -> None:
    with contextlib.suppress(ManifestError):
        list(read_entries([ROOT, *listed] if with_root else listed, RELEASE))
