# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compress and decompress streams, holding no more than one chunk of them in memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

#: The window bits of zlib for its own format and for that of gzip.
ZLIB = zlib.MAX_WBITS
GZIP = zlib.MAX_WBITS + 16

#: The largest chunk that is yielded, in bytes.
CHUNK = 1 << 16


class DamagedError(ValueError):
    """A stream is not what was compressed. The message continues a sentence that names its file."""


def deflated(chunks: Iterable[bytes], level: int, window: int = ZLIB) -> Iterator[bytes]:
    """Yield chunks compressed. The same bytes give the same result, since gzip gets no name and no time."""
    packer = zlib.compressobj(level, zlib.DEFLATED, window)
    for chunk in chunks:
        packed = packer.compress(chunk)
        if packed:
            yield packed
    yield packer.flush()


def inflated(chunks: Iterable[bytes], window: int = ZLIB) -> Iterator[bytes]:
    """Yield what ``deflated`` has compressed. Raises DamagedError if a stream is damaged, or continues after its end."""
    unpacker = zlib.decompressobj(window)
    for chunk in chunks:
        pending, is_full = chunk, False
        while pending or is_full:
            try:
                part = unpacker.decompress(pending, CHUNK)
            except zlib.error as error:
                raise DamagedError(f"cannot be decompressed ({error})") from None
            if part:
                yield part
            pending, is_full = unpacker.unconsumed_tail, len(part) == CHUNK
        if unpacker.unused_data:
            raise DamagedError("has data after its end")
    if not unpacker.eof:
        raise DamagedError("ends early")
