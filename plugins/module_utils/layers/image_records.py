# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Divide an EROFS image into records that can be recognised in another image (kernel 6.12, fs/erofs/erofs_fs.h).

A record is an inode with its xattrs and inline data, or a block of a large directory. The same file has another inode number in each
image, and its directory has another offset for it, so a record is recognised by everything else.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator

_SUPERBLOCK = 1024
#: Inodes begin after the superblock, at multiples of ``SLOT`` bytes.
INODES_AT = 1152
SLOT = 32
_MAGIC = 0xE0F5E1E2
_BLOCK_BITS = 12
_BLOCK = 1 << _BLOCK_BITS
_LAYOUT_INLINE = 2
_LAYOUT_CHUNKS = 4
_XATTRS_HEADER = 12
#: Format, count of xattr words, mode, reserved, size, and the first block or the format of chunks.
_EXTENDED = struct.Struct("<HHHHQI")
_EXTENDED_BYTES = 64
#: Format, count of xattr words, mode, link count, size, reserved, and the first block or the format of chunks.
_COMPACT = struct.Struct("<HHHHIII")
_COMPACT_BYTES = 32
#: In the first entry of a directory: the offset of its name, which is where all entries end and all names begin.
_NAMES_AT = struct.Struct("<8xH")
_PADDING = bytes(SLOT)


def records(image: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield the offset, the length in bytes and the key of each record of an image, in the order of their offsets.

    Offsets are multiples of 32. Lengths do not include padding. Equal records have equal keys, of 32 bits. Nothing is yielded for a file
    that is not an EROFS image with blocks of 4096 bytes. For a damaged image, the records mean nothing, but they are inside of it.
    """
    size = len(image)
    if size < _BLOCK or struct.unpack_from("<I", image, _SUPERBLOCK)[0] != _MAGIC:
        return
    if image[_SUPERBLOCK + 12] != _BLOCK_BITS:
        return
    offset = INODES_AT
    blocks_at = size
    while offset + _EXTENDED_BYTES <= blocks_at:
        if image[offset : offset + SLOT] == _PADDING:
            offset += SLOT
            continue
        length, key, block = _inode(image, offset)
        if offset + length > size:
            return
        if block:
            blocks_at = min(blocks_at, block * _BLOCK)
        yield offset, length, key
        offset += -(-length // SLOT) * SLOT
    first = -(-max(blocks_at, offset) // _BLOCK) * _BLOCK
    for offset in range(first, size - _BLOCK + 1, _BLOCK):
        yield offset, _BLOCK, _names_key(image, offset, _BLOCK, 0)


def _inode(image: memoryview, offset: int) -> tuple[int, int, int]:
    """Return the length and the key of an inode, and the number of its first block, 0 if all of its data is inline."""
    kind = image[offset]
    if kind & 1:
        inode = _EXTENDED_BYTES
        _format, words, mode, _reserved, size, place = _EXTENDED.unpack_from(image, offset)
        # The uid, gid, mtime and link count.
        key = zlib.crc32(image[offset + 24 : offset + 48], (mode << 16 ^ size) & 0xFFFFFFFF)
    else:
        inode = _COMPACT_BYTES
        _format, words, mode, _links, size, _reserved, place = _COMPACT.unpack_from(image, offset)
        key = zlib.crc32(image[offset + 24 : offset + 28], mode << 16 ^ size)
    begin = offset + inode
    end = begin + (_XATTRS_HEADER + 4 * (words - 1) if words else 0)
    # The offsets of shared xattrs differ between images, so only the xattrs of this inode count.
    own = begin + _XATTRS_HEADER + 4 * image[begin + 4] if words and begin + 4 < len(image) else begin
    key = zlib.crc32(image[own:end], key)
    layout = kind >> 1 & 7
    if layout == _LAYOUT_CHUNKS:
        return end - offset + 4 * -(-size // (_BLOCK << (place & 31))), key, 0
    tail = size % _BLOCK if layout == _LAYOUT_INLINE else 0
    key = _names_key(image, end, tail, key) if stat.S_ISDIR(mode) else zlib.crc32(image[end : end + tail], key)
    return end - offset + tail, key, place if size > tail else 0


def _names_key(image: memoryview, offset: int, length: int, key: int) -> int:
    """Return the key of directory entries, by their names alone."""
    if offset + _NAMES_AT.size > len(image):
        return key
    (names,) = _NAMES_AT.unpack_from(image, offset)
    return zlib.crc32(image[offset + min(names, length) : offset + length], key)
