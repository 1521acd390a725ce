# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encode an EROFS image as its difference from another one.

Segments of the old image, one after the other, predict the new image. A changed release moves everything after it, so inode numbers and
offsets in directories are larger by the same number over long stretches. The difference is therefore taken in words of 32 bits: most words
are zero, and most of the others repeat. It is deflated twice, since the first time leaves long repetitions.

A delta begins with a magic number, the lengths of both images in bytes and the number of segments. The segments follow, each as its offset
in the old image, -1 for zeros, and its length, and then the difference.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, NamedTuple, Union

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.deflating import (
    DamagedError,
    deflated,
    inflated,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.image_records import INODES_AT, SLOT, records

#: Bytes of what is subtracted at a time.
_BLOCK = 1 << 16
#: The highest bit of each word, and the other bits. With the highest bits set or clear, no word borrows from or carries to the next one.
_HIGH = int.from_bytes(b"\x00\x00\x00\x80" * (_BLOCK // 4), "little")
_LOW = int.from_bytes(b"\xff\xff\xff\x7f" * (_BLOCK // 4), "little")

_HEADER = struct.Struct("<8sQQI")
_SEGMENT = struct.Struct("<qQ")
_MAGIC = b"erofsdl1"
_ZEROS = -1
_NOWHERE = -1
_MOST_SEGMENTS = 1 << 20
_LEVELS = (6, 9)
#: One record of the old image in so many can be found. The records before it are then compared backwards.
_SAMPLED = 8
#: An image of 1 GiB has half as many. A crafted one may have more, and the rest of it is not predicted.
_MOST_RECORDS = 1 << 23
#: Records between two signs of progress.
_PROGRESS = 20_000

#: Return a part of the old image, given its offset and its length in bytes.
Read = Callable[[int, int], Union[bytes, memoryview]]


class Segment(NamedTuple):
    """A part of a prediction."""

    #: The offset in the old image; -1 for zeros.
    start: int
    #: In bytes.
    length: int


class _Records:
    """The records of an image."""

    def __init__(self, image: memoryview, progress: Callable[[], None]) -> None:
        self.offsets, self.ends, self.keys = array("Q"), array("Q"), array("I")
        for offset, length, key in itertools.islice(records(image), _MOST_RECORDS):
            self.offsets.append(offset)
            self.ends.append(min(len(image), offset + -(-length // SLOT) * SLOT))
            self.keys.append(key)
            if len(self.keys) % _PROGRESS == 0:
                progress()

    def __len__(self) -> int:
        return len(self.keys)


def encode(old: memoryview, new: memoryview, progress: Callable[[], None]) -> Iterator[bytes]:
    """Yield the delta that makes ``new`` from ``old``. Yield nothing if they have too little in common for one.

    Records take about 50 bytes of memory each.
    """
    found = _segments(old, new, progress)
    if sum(one.length for one in found if one.start == _ZEROS) * 2 > len(new) or len(found) > _MOST_SEGMENTS:
        return
    yield from deflated(deflated(_plain(old, new, found, progress), _LEVELS[0]), _LEVELS[1])


def _plain(old: memoryview, new: memoryview, found: list[Segment], progress: Callable[[], None]) -> Iterator[bytes]:
    """Yield a delta that is not deflated."""
    yield _HEADER.pack(_MAGIC, len(old), len(new), len(found))
    for one in found:
        yield _SEGMENT.pack(*one)
    position = 0
    for prediction in _predicted(lambda start, size: old[start : start + size], found):
        yield _subtracted(new[position : position + len(prediction)], prediction)
        position += len(prediction)
        progress()


def decode(delta: Iterable[bytes], read: Read, length: int, size: int) -> Iterator[bytes]:
    """Yield the image of ``size`` bytes that a delta makes from an image of ``length`` bytes. Nothing more than that is yielded.

    Raises DamagedError if the delta is damaged, or belongs to another image. Not every damage is found, so the digest has to be compared.
    """
    stream = _Stream(inflated(inflated(delta)))
    magic, of_old, of_new, count = _HEADER.unpack(stream.take(_HEADER.size))
    if magic != _MAGIC or (of_old, of_new) != (length, size) or count > _MOST_SEGMENTS:
        raise DamagedError("belongs to other images")
    found = [Segment(*one) for one in _SEGMENT.iter_unpack(stream.take(_SEGMENT.size * count))]
    if sum(one.length for one in found) != size:
        raise DamagedError("does not describe the whole image")
    if any(one.start < _ZEROS or one.start + one.length > length for one in found if one.start != _ZEROS):
        raise DamagedError("refers to what is not in the old image")
    for prediction in _predicted(read, found):
        yield _added(stream.take(len(prediction)), prediction)
    stream.check_end()


class _Stream:
    """Chunks as a stream of bytes."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._pending = bytearray()

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes. Raises DamagedError if there are fewer."""
        while len(self._pending) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise DamagedError("ends early")
            self._pending += chunk
        taken = bytes(self._pending[:size])
        del self._pending[:size]
        return taken

    def check_end(self) -> None:
        """Check that there is nothing more. Raises DamagedError if there is, or if a stream below is damaged."""
        if self._pending or next(self._chunks, None) is not None:
            raise DamagedError("has data after its end")


class _Index:
    """Find records of the old image by their keys."""

    def __init__(self, keys: Sequence[int]) -> None:
        self._first: dict[int, int] = {}
        #: Maps the position of a record to that of the next one with the same key.
        self._next: dict[int, int] = {}
        for at in range((len(keys) - 1) // _SAMPLED * _SAMPLED, -1, -_SAMPLED):
            if keys[at] in self._first:
                self._next[at] = self._first[keys[at]]
            self._first[keys[at]] = at

    def find(self, key: int, after: int) -> int:
        """Return the position of the first record with a key from ``after`` on, else of the last one before; -1 if there is none.

        ``after`` seldom decreases, so records before it are forgotten.
        """
        found = self._first.get(key, _NOWHERE)
        while found != _NOWHERE and found < after and found in self._next:
            found = self._first[key] = self._next.pop(found)
        return found


def _segments(old: memoryview, new: memoryview, progress: Callable[[], None]) -> list[Segment]:
    """Return the segments that predict ``new``."""
    ours, theirs = _Records(new, progress), _Records(old, progress)
    known = _Index(theirs.keys)
    pieces: list[tuple[int, int, int]] = []
    index, free, after = 0, 0, 0
    while index < len(ours):
        # Directories of different releases often have the same names, so a record that was replaced in its place is tried first.
        at = after + index - free
        if at >= len(theirs) or theirs.keys[at] != ours.keys[index]:
            at = known.find(ours.keys[index], after)
        if at == _NOWHERE:
            index += 1
            continue
        while index > free and at and ours.keys[index - 1] == theirs.keys[at - 1]:
            index, at = index - 1, at - 1
        while index < len(ours) and at < len(theirs) and ours.keys[index] == theirs.keys[at]:
            _add_piece(pieces, ours.offsets[index], ours.ends[index], theirs.offsets[at])
            index, at = index + 1, at + 1
        free, after = index, at
    return list(_without_gaps(pieces, len(old), len(new)))


def _add_piece(pieces: list[tuple[int, int, int]], begin: int, end: int, start: int) -> None:
    """Add a piece of the new image from ``begin`` to ``end``, which is at ``start`` in the old one, or extend the last one."""
    if pieces and start - begin == pieces[-1][2] - pieces[-1][0]:
        pieces[-1] = (pieces[-1][0], end, pieces[-1][2])
    else:
        pieces.append((begin, end, start))


def _without_gaps(pieces: Iterable[tuple[int, int, int]], old: int, new: int) -> Iterator[Segment]:
    """Yield the pieces as segments, from the begin of the new image to its end, given the lengths of both images."""
    # The superblock.
    done = min(INODES_AT, old, new)
    yield Segment(0, done)
    for begin, end, start in pieces:
        if begin > done:
            yield Segment(_ZEROS, begin - done)
        length = min(end - begin, old - start)
        yield Segment(start, length)
        done = begin + length
    if new > done:
        yield Segment(_ZEROS, new - done)


def _predicted(read: Read, found: Iterable[Segment]) -> Iterator[bytes]:
    """Yield the prediction in blocks, all but the last one of the same length."""
    pending = bytearray()
    for start, length in found:
        done = 0
        while done < length:
            part = min(length - done, _BLOCK - len(pending))
            pending += bytes(part) if start == _ZEROS else read(start + done, part)
            done += part
            if len(pending) == _BLOCK:
                yield bytes(pending)
                pending.clear()
    if pending:
        yield bytes(pending)


def _subtracted(block: memoryview, prediction: bytes) -> bytes:
    """Return the difference of two blocks of the same length, word by word."""
    one, other = int.from_bytes(block, "little"), int.from_bytes(prediction, "little")
    difference = ((one | _HIGH) - (other & _LOW)) ^ ((one ^ ~other) & _HIGH)
    return difference.to_bytes(_BLOCK, "little")[: len(block)]


def _added(difference: bytes, prediction: bytes) -> bytes:
    """Return the block whose difference from the prediction is given."""
    one, other = int.from_bytes(difference, "little"), int.from_bytes(prediction, "little")
    total = ((one & _LOW) + (other & _LOW)) ^ ((one ^ other) & _HIGH)
    return total.to_bytes(_BLOCK, "little")[: len(difference)]
