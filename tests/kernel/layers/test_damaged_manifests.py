"""Layers of all formats refuse the same damaged manifests, and are equal for those that are accepted."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import stat
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    EntryCounts,
    ManifestRecord,
    Placement,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import encode
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.layers.test_erofs import builder
from ansible_collections.renderfarm.overlay.tests.kernel.support import MASK, OTHER, OWNER, OWNING_GROUP, USER, acl
from ansible_collections.renderfarm.overlay.tests.unit.random_cases import Record

BUILDERS = ("mkcomposefs", "mkfs.erofs")
RELEASE = "pkg/1"
SEEDS = 1_000
#: The number of damaged manifests in one test.
AT_ONCE = 100

ACL = acl((OWNER, 7), (USER, 4, 5001), (OWNING_GROUP, 0), (MASK, 5), (OTHER, 5))


def _escaped(value: bytes) -> bytes:
    return b"".join(b"\\x%02x" % byte for byte in value)


def _xattr(name: bytes, value: bytes) -> bytes:
    return name + b"=" + _escaped(value)


#: Values to replace each field of a line with.
FIELDS: list[Sequence[bytes]] = [
    [b"/" + b"n" * 255, b"/" + b"n" * 256, b"/a\\x00b", b"/..", b"/.", b"//", b"/a/b", b"\\", b"/\\xff", b"/~~"],
    [b"0", b"1", b"4", b"9007199254740991", b"9007199254740992", b"9223372036854775807", b"-1", b"00"],
    b"100644 104755 107777 40755 41777 120777 120755 20644 10644 140644 @100644 @40755 0 177777 100755 100000 @100755".split(),
    [b"0", b"1", b"2", b"3", b"4", b"5", b"65535", b"4294967295", b"9999999999"],
    [b"0", b"1", b"1000", b"65536", b"4294967294", b"4294967295", b"-1"],
    [b"0", b"1", b"1000", b"65536", b"4294967294", b"4294967295", b"-1"],
    [b"0", b"1", b"5"],
    b"0.0 -1.999999999 -2147483648.0 -2147483649.0 15032385535.999999999 15032385536.0 1.5 9999999999.1".split(),
    [b"-", b"x", b"pkg/1/file", b"/etc/shadow", b"\\x00", b"a\\x00b", b"t" * 4095, b"t" * 4096, b"/file", b"\\x2d"],
    [b"-", b"content"],
    [b"-", b"0" * 64],
]
#: Xattrs to append to a line.
XATTRS = [
    _xattr(b"security.capability", support.CAPABILITY),
    _xattr(b"security.capability", b"garbage"),
    _xattr(b"security.capability", b"\x01\x00\x00\x03" + bytes(16) + b"\xe8\x03\x00\x00"),
    _xattr(b"security.capability", b"\x01\x00\x00\x03" + bytes(20)),
    _xattr(b"security.capability", b""),
    _xattr(b"user.renderfarm.sha256", b"0123456789abcdef" * 4),
    _xattr(b"user.renderfarm.sha256", b"none"),
    _xattr(b"system.posix_acl_access", ACL),
    _xattr(b"system.posix_acl_access", acl((OWNER, 6), (OWNING_GROUP, 4), (OTHER, 4))),
    _xattr(b"system.posix_acl_access", acl((OWNER, 6), (OWNING_GROUP, 4), (MASK, 4), (OTHER, 4))),
    _xattr(b"system.posix_acl_access", ACL[:-1]),
    _xattr(b"system.posix_acl_default", ACL),
    _xattr(b"system.posix_acl_default", acl((OWNER, 6), (OWNING_GROUP, 4), (OTHER, 4))),
    _xattr(b"system.posix_acl_default", b""),
    _xattr(b"trusted.overlay.redirect", b"/etc/shadow"),
    _xattr(b"trusted.overlay.opaque", b"y"),
    b"security.capability",
    b"",
]


@pytest.fixture(scope="module")
def whole(arena: Path) -> list[bytes]:
    """Return the lines of a manifest with entries of all kinds."""
    root = arena / "damaged"
    top = root / RELEASE
    (top / "directory" / "inner").mkdir(parents=True)
    for name in ("file", "program", "directory/file", "directory/inner/with space"):
        support.write(top / name, b"content", 0o755 if name == "program" else 0o644)
    support.write(top / "empty")
    (top / "link").symlink_to("file")
    os.link(top / "program", top / "program-too")
    support.write(top / "acl", b"x", 0o755)
    os.setxattr(top / "acl", "system.posix_acl_access", ACL)
    os.setxattr(top / "directory", "system.posix_acl_default", ACL)
    support.write(top / "capable", b"x", 0o755)
    os.setxattr(top / "capable", "security.capability", support.CAPABILITY)
    placement = support.scanned(arena / "damaged-store", root, RELEASE)
    return [encode(entry)[:-1] for entry in manifest_store.entries(placement)]


def damaged(whole: Sequence[bytes], seed: int) -> bytes:
    """Return the text of a manifest with one or two random changes, which may leave it valid."""
    dice = random.Random(seed)
    text = list(whole)
    for _change in range(dice.choice((1, 1, 2))):
        number = dice.randrange(len(text))
        kind = dice.randrange(10)
        if kind < 5:
            fields = text[number].split(b" ")
            which = dice.randrange(min(len(fields), len(FIELDS)))
            fields[which] = dice.choice(FIELDS[which])
            text[number] = b" ".join(fields)
        elif kind < 7:
            text[number] += b" " + dice.choice(XATTRS)
        elif kind == 7:
            other = dice.randrange(len(text))
            text[number], text[other] = text[other], text[number]
        elif kind == 8:
            text[number : number + 1] = dice.choice(([], [text[number]] * 2))
        else:
            line = bytearray(text[number])
            line[dice.randrange(len(line))] = dice.choice(b"/. -0149\\@xa\xff\r\n")
            text[number] = bytes(line)
        if not text:
            break
    return b"".join(line + b"\n" for line in text)


def stored(area: Path, text: bytes, like: str = RELEASE) -> Placement:
    """Write a manifest and return a placement whose record matches it."""
    area.mkdir()
    path = area / "1.dump.gz"
    path.write_bytes(gzip.compress(text, 1, mtime=0))
    lines = text.count(b"\n") + (text[-1:] not in (b"", b"\n"))
    record = replace(
        RECORD,
        digest="sha256:" + hashlib.sha256(text).hexdigest(),
        stored_bytes=path.stat().st_size,
        entries=EntryCounts(files=lines),
    )
    place = like.encode()
    return Placement(str(path), record, place, place)


RECORD = ManifestRecord(RELEASE, "", 0, EntryCounts(), 0, False, "/net/software")


def outcome(state: Path, placement: Placement, name: str | None) -> Path | str:
    """Return the path of the layer, or the message if the manifest is refused."""
    try:
        return support.build(state, [placement], builder=builder(name) if name else None)[0]
    except ManifestError as error:
        return str(error)


Shown = dict[bytes, tuple[object, ...]]


def shown(top: Path) -> Shown:
    """Return the visible properties of each file in a layer, by path."""
    found: Shown = {}
    first: dict[int, bytes] = {}
    for path, status in sorted(support.listing(top).items()):
        if stat.S_ISCHR(status.st_mode):
            # mkcomposefs adds whiteouts to the root, to hide names of lower layers. There are none here.
            continue
        full = os.fsencode(top) + path
        names = sorted(set(os.listxattr(full, follow_symlinks=False)) - {"trusted.overlay.opaque"})
        values = [(name, os.getxattr(full, name, follow_symlinks=False)) for name in names]
        is_directory = stat.S_ISDIR(status.st_mode)
        found[path] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_nlink),
            0 if is_directory else status.st_size,
            os.readlink(full) if stat.S_ISLNK(status.st_mode) else None,
            b"" if is_directory else first.setdefault(status.st_ino, path),
            values,
        )
    return found


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_all_formats_accept_and_refuse_the_same_manifests(
    area: Path, whole: list[bytes], start: int, record_testsuite_property: Record
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(start, start + AT_ONCE):
        place = area / str(seed)
        placement = stored(place, damaged(whole, seed))
        if seed % 3 == 0:
            # A release with patterns is composed as in a merged view.
            placement = replace(placement, exclude=(b"nothing",))
        directory = outcome(place / "directory", placement, None)
        for name in BUILDERS:
            image = outcome(place / name, placement, name)
            if isinstance(directory, str):
                assert image == directory, seed
                continue
            assert isinstance(image, Path), (seed, image)
            mounted = place / f"{name}.mounted"
            mounted.mkdir()
            support.command("mount", "-t", "erofs", "-o", "loop", image, mounted)
            try:
                assert shown(mounted) == shown(directory), (seed, name)
            finally:
                support.command("umount", mounted)
        seen["refused" if isinstance(directory, str) else "accepted"] += 1
    # Both outcomes must occur, otherwise the changes are too weak or too strong.
    assert min(seen["refused"], seen["accepted"]) >= AT_ONCE // 10, seen
    record_testsuite_property("cases", AT_ONCE)


@pytest.mark.parametrize("letter", [b"a", b"\\", b"/a", b" ", b"\xff"])
def test_a_very_long_line_is_refused_without_reading_all_of_it(area: Path, letter: bytes) -> None:
    text = b"/ 0 40755 2 0 0 0 1.0 - - -\n/" + letter * 50_000_000
    placement = stored(area / "endless", text)
    # Little more is read than the longest allowed line.
    started = time.process_time()
    refused = [outcome(area / str(name), placement, name) for name in (None, *BUILDERS)]
    assert len(set(refused)) == 1
    assert "131072" in str(refused[0])
    assert time.process_time() - started < 2
