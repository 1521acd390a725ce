"""The headers of a headerball are read by Python's tarfile."""

from __future__ import annotations

import io
import stat
import tarfile
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import headerball
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry

FILE, LINK, DIRECTORY = stat.S_IFREG | 0o4755, stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o1775


def entry(path: bytes = b"/f", mode: int = FILE, size: int = 7, target: bytes | None = b"r/1/f", **more: Any) -> Entry:
    plain = Entry(path, mode, size, 1, 5, 6, 1_700_000_000_123_456_789, target, False, ())
    return plain._replace(**more)


def read(text: bytes) -> tarfile.TarInfo:
    """Return the only member of a headerball, after checking that the archive has no content after its headers."""
    with tarfile.open(fileobj=io.BytesIO(text + headerball.END), errors="surrogateescape") as archive:
        member = archive.next()
        assert member is not None
        assert (
            archive.offset - len(text) == -(-member.size // 512) * 512
            if member.isreg()
            else archive.offset == len(text)
        )
        return member


@pytest.mark.parametrize(
    "path",
    [b"/f", b"/" + b"x" * 255, b"/d" * 300, "/ünï".encode(), b"/not utf-8 \xff\n=", b"/ 1 path=x\n", b"/" + b"9" * 84],
)
def test_a_path_of_any_length_and_bytes_is_kept(path: bytes) -> None:
    assert "/" + read(headerball.encode(entry(path), ())).name.lstrip("/") == path.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("length", range(80, 120))
def test_the_length_of_a_record_includes_its_own_digits(length: int) -> None:
    path = b"/" + b"p" * length
    assert read(headerball.encode(entry(path), ())).name.encode().lstrip(b"/") == path[1:]


def test_a_file_keeps_size_mode_owner_mtime_and_xattrs() -> None:
    member = read(headerball.encode(entry(size=8**11 + 5), ((b"trusted.overlay.redirect", b"/r/1/f"),)))
    assert (member.isreg(), member.size, member.mode, member.uid, member.gid) == (True, 8**11 + 5, 0o4755, 5, 6)
    assert member.pax_headers["mtime"] == "1700000000.123456789"
    assert member.pax_headers["SCHILY.xattr.trusted.overlay.redirect"] == "/r/1/f"


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [(0, "0.000000000"), (1, "0.000000001"), (-1, "-0.000000001"), (-5_500_000_000, "-5.500000000")],
)
def test_an_mtime_before_or_after_1970_is_kept(mtime_ns: int, text: str) -> None:
    assert read(headerball.encode(entry(mtime_ns=mtime_ns), ())).pax_headers["mtime"] == text


def test_a_uid_or_gid_of_32_bits_is_kept() -> None:
    member = read(headerball.encode(entry(uid=2**32 - 2, gid=2**31), ()))
    assert (member.uid, member.gid) == (2**32 - 2, 2**31)


def test_directories_symbolic_links_and_hard_links_keep_type_and_target() -> None:
    assert read(headerball.encode(entry(mode=DIRECTORY, size=0, target=None), ())).isdir()
    link = read(headerball.encode(entry(mode=LINK, size=300, target=b"t" * 300), ()))
    assert (link.issym(), link.linkname, link.size) == (True, "t" * 300, 0)
    hard = read(headerball.encode(entry(is_hardlink=True, target=b"/a/first name"), ()))
    assert (hard.islnk(), hard.linkname, hard.size) == (True, "/a/first name", 0)


def test_an_xattr_may_have_any_bytes() -> None:
    value = b"\x01\x00\x00\x02\n\xff"
    text = headerball.encode(entry(xattrs=((b"security.capability", value),)), ())
    assert b" SCHILY.xattr.security.capability=" + value + b"\n" in text
