"""Compressed streams: the same bytes again, and a named error for everything else."""

from __future__ import annotations

import gzip
import random

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.deflating import (
    CHUNK,
    GZIP,
    ZLIB,
    DamagedError,
    deflated,
    inflated,
)

CONTENTS = {
    "empty": b"",
    "short": b"short",
    "zeros": bytes(5_000_000),
    "random": random.Random(1).randbytes(300_000),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("window", [ZLIB, GZIP])
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_a_stream_is_the_same_again_in_small_chunks(content: bytes, window: int, size: int) -> None:
    packed = b"".join(deflated((content[at : at + size] for at in range(0, len(content), size)), 6, window))
    chunks = list(inflated((packed[at : at + size] for at in range(0, len(packed), size)), window))
    assert b"".join(chunks) == content
    assert max(map(len, chunks), default=0) <= CHUNK


def test_gzip_is_deterministic_and_readable_by_gzip() -> None:
    first, second = (b"".join(deflated([b"con", b"tent"], 6, GZIP)) for _turn in range(2))
    assert first == second
    assert first[4:8] == bytes(4)
    assert gzip.decompress(first) == b"content"


PACKED = b"".join(deflated([random.Random(2).randbytes(10_000)], 6, GZIP))


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b"", "ends early"),
        (PACKED[:-1], "ends early"),
        (PACKED + b"x", "has data after its end"),
        (b"x" + PACKED, "cannot be decompressed"),
        (PACKED[:-5] + b"\0" + PACKED[-4:], "cannot be decompressed"),
    ],
)
def test_a_damaged_stream_is_refused(damaged: bytes, words: str) -> None:
    with pytest.raises(DamagedError, match=words):
        list(inflated([damaged], GZIP))
