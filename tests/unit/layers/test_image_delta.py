"""Deltas between images: the new image again, small where records only moved, and an error for whatever is damaged."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.deflating import (
    DamagedError,
    deflated,
    inflated,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.image_delta import decode, encode
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.image_records import INODES_AT, records

BLOCK = 4096
_DIRECTORY, _FILE, _SYMLINK = 0o40755, 0o100644, 0o120777


def image(releases: Sequence[str], files: int = 40) -> bytes:
    """Return an image with releases of ``files`` files each. Only what the kernel needs to mount it is missing."""
    rest, at, number = bytearray(), INODES_AT, 0
    children: list[tuple[bytes, int]] = []
    for release in releases:
        for index in range(files):
            name = f"{release}/file_{index:04}.py".encode()
            node = _inode(_FILE, number, 1000 + index, 0x4, chunks=True, xattrs=_redirect(name, len(releases)))
            children.append((name, at // 32))
            number += 1
            rest += node
            at += len(node)
        target = f"{release}/latest".encode()
        node = _inode(_SYMLINK, number, len(target), 0) + target
        rest += node.ljust(-(-len(node) // 32) * 32, b"\0")
        at, number = INODES_AT + len(rest), number + 1
    blocks = -(-at // BLOCK) * BLOCK
    entries = _directory_blocks(children)
    root = _inode(_DIRECTORY, number, len(entries), blocks // BLOCK, inline=False)
    rest += root
    blocks = -(-(INODES_AT + len(rest)) // BLOCK)
    rest[-len(root) :] = _inode(_DIRECTORY, number, len(entries), blocks, inline=False)
    superblock = struct.pack("<I", 0xE0F5E1E2).ljust(12, b"\0") + b"\x0c"
    head = (bytes(1024) + superblock).ljust(INODES_AT, b"\0")
    return (head + rest).ljust(blocks * BLOCK, b"\0") + entries


def _inode(
    mode: int, number: int, size: int, place: int, chunks: bool = False, inline: bool = True, xattrs: bytes = b""
) -> bytes:
    layout = 4 if chunks else 2 if inline else 0
    words = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
    node = struct.pack("<HHHHQII", layout << 1 | 1, words, mode, 0, size, place, number)
    node += struct.pack("<IIQII", 5000, 5000, 1_700_000_000, 5, 1).ljust(40, b"\0") + xattrs
    if not chunks:
        return node
    node += b"\xff\xff\xff\xff"
    return node.ljust(-(-len(node) // 32) * 32, b"\0")


def _redirect(name: bytes, shared: int) -> bytes:
    value = struct.pack("<IB7x", 7, 1) + struct.pack("<I", shared) + b"\x10\x04" + bytes([len(name), 0]) + name
    return value.ljust(-(-len(value) // 4) * 4, b"\0")


def _directory_blocks(children: list[tuple[bytes, int]]) -> bytes:
    text = b""
    for first in range(0, len(children), 60):
        part = children[first : first + 60]
        names, offset = b"", 12 * len(part)
        entries = b""
        for name, place in part:
            entries += struct.pack("<QHBB", place, offset + len(names), 1, 0)
            names += name
        text += (entries + names).ljust(BLOCK, b"\0")
    return text


OLD = image([f"tool/{number}" for number in range(60)])
NEW = image([f"tool/{number}" for number in (*range(20), 100, *range(21, 60))], 40)
LONGER = image([f"tool/{number}" for number in (*range(20), 100, 101, *range(21, 60))])


def delta(old: bytes, new: bytes) -> bytes:
    return b"".join(encode(memoryview(old), memoryview(new), lambda: None))


def applied(text: bytes, old: bytes, size: int) -> bytes:
    return b"".join(decode([text], lambda start, length: old[start : start + length], len(old), size))


@pytest.mark.parametrize("new", [OLD, NEW, LONGER, OLD + b"odd"], ids=["same", "replaced", "longer", "odd length"])
def test_a_delta_makes_the_new_image_and_is_small(new: bytes) -> None:
    text = delta(OLD, new)
    assert applied(text, OLD, len(new)) == new
    whole = sum(map(len, deflated([new], 6)))
    assert len(text) * 5 < whole
    assert delta(OLD, new) == text


def test_records_cover_an_image_and_keep_their_keys_when_they_move() -> None:
    old, new = list(records(memoryview(OLD))), list(records(memoryview(LONGER)))
    end = INODES_AT
    for offset, length, _key in old:
        assert end <= offset < end + BLOCK
        assert offset % 32 == 0
        end = offset + length
    assert end == len(OLD)
    # The replaced release, and the blocks of the directory after it.
    assert len({key for _offset, _length, key in old} - {key for _offset, _length, key in new}) < 80 < len(old) / 20


@pytest.mark.parametrize("new", [random.Random(3).randbytes(50_000), b"", OLD[:1100]])
def test_there_is_no_delta_of_what_is_no_image(new: bytes) -> None:
    text = delta(OLD, new)
    assert not text or applied(text, OLD, len(new)) == new


def test_damaged_images_give_records_inside_of_them_and_deltas_that_work() -> None:
    dice = random.Random(4)
    for _turn in range(150):
        damaged = bytearray(NEW[: dice.randrange(1000, len(NEW))])
        for _change in range(dice.randrange(1, 200)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        if dice.random() < 0.8:
            damaged[1024 : 1024 + 13] = NEW[1024 : 1024 + 13][: max(0, len(damaged) - 1024)]
        new = bytes(damaged)
        assert all(offset >= 0 and offset + length <= len(new) for offset, length, _key in records(memoryview(new)))
        for old, other in ((OLD, new), (new, OLD)):
            text = delta(old, other)
            assert not text or applied(text, old, len(other)) == other


DELTA = delta(OLD, NEW)
PLAIN = b"".join(inflated(inflated([DELTA])))


def packed(plain: bytes) -> bytes:
    return b"".join(deflated(deflated([plain], 6), 9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "ends early"),
        (DELTA[:-9], "ends early|cannot be decompressed"),
        (b"\0" + DELTA[1:], "cannot be decompressed"),
        (packed(PLAIN[:-1]), "ends early"),
        (packed(PLAIN + b"x"), "has data after its end"),
        (packed(b"another1" + PLAIN[8:]), "belongs to other images"),
        (packed(PLAIN[:24] + struct.pack("<I", 1 << 31) + PLAIN[28:]), "belongs to other images"),
        (packed(PLAIN[:28] + struct.pack("<qQ", -1, 1 << 60) + PLAIN[44:]), "does not describe the whole image"),
        (packed(PLAIN[:28] + struct.pack("<q", len(OLD)) + PLAIN[36:]), "refers to what is not in the old image"),
        (packed(PLAIN[:28] + struct.pack("<q", -2) + PLAIN[36:]), "refers to what is not in the old image"),
    ],
)
def test_a_damaged_delta_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(DamagedError, match=words):
        applied(text, OLD, len(NEW))


def test_a_delta_of_another_image_is_refused() -> None:
    with pytest.raises(DamagedError, match="belongs to other images"):
        applied(DELTA, LONGER, len(NEW))
    with pytest.raises(DamagedError, match="belongs to other images"):
        applied(DELTA, OLD, len(NEW) + 1)
