# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Encode a view as a tar archive with the headers of files but not their content, from which mkfs.erofs builds an image.

An extended header (pax) before each plain header (POSIX ustar) has the values for which a plain header has no room: long paths and targets,
large sizes, nanoseconds, and xattrs under the names that GNU tar and libarchive use (``SCHILY.xattr.``).
"""

from __future__ import annotations

import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, Xattrs

_BLOCK = 512
#: The end of an archive.
END = bytes(2 * _BLOCK)

_REGULAR, _HARD_LINK, _SYMLINK, _DIRECTORY, _EXTENDED = b"0", b"1", b"2", b"5", b"x"
#: The largest size, uid and gid that fit into a plain header.
_LARGEST_PLAIN_SIZE = 8**11 - 1
_LARGEST_PLAIN_OWNER = 8**7 - 1


def encode(entry: Entry, overlay: Xattrs) -> bytes:
    """Return the headers of an entry. ``overlay`` are xattrs to add to those of the entry."""
    size, link, kind = 0, b"", _REGULAR
    if entry.is_hardlink:
        link, kind = entry.target or b"", _HARD_LINK
    elif stat.S_ISDIR(entry.mode):
        kind = _DIRECTORY
    elif stat.S_ISLNK(entry.mode):
        link, kind = entry.target or b"", _SYMLINK
    else:
        size = entry.size
    records = [
        (b"path", entry.path),
        (b"size", b"%d" % size),
        (b"mtime", _decimal(entry.mtime_ns)),
        (b"uid", b"%d" % entry.uid),
        (b"gid", b"%d" % entry.gid),
    ]
    if link:
        records.append((b"linkpath", link))
    records += [(b"SCHILY.xattr." + name, value) for name, value in (*overlay, *entry.xattrs)]
    extended = b"".join(_record(name, value) for name, value in records)
    return (
        _header(b"extended", 0o644, 0, 0, len(extended), 0, _EXTENDED)
        + extended
        + bytes(-len(extended) % _BLOCK)
        + _header(
            b"entry",
            entry.mode & 0o7777,
            min(entry.uid, _LARGEST_PLAIN_OWNER),
            min(entry.gid, _LARGEST_PLAIN_OWNER),
            min(size, _LARGEST_PLAIN_SIZE),
            max(entry.mtime_ns // 1_000_000_000, 0),
            kind,
        )
    )


def _decimal(nanoseconds: int) -> bytes:
    """Return a time in nanoseconds since 1970 as pax requires it: a decimal number of seconds with an optional sign."""
    sign = b"-" if nanoseconds < 0 else b""
    return b"%s%d.%09d" % (sign, *divmod(abs(nanoseconds), 1_000_000_000))


def _record(name: bytes, value: bytes) -> bytes:
    """Return a record of an extended header. It starts with its own length in decimal digits, which are included in the length."""
    rest = len(name) + len(value) + 3
    length = rest + len(b"%d" % rest)
    if len(b"%d" % length) > len(b"%d" % rest):
        length = rest + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, name, value)


def _header(name: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes) -> bytes:
    before = b"%-100s%07o\0%07o\0%07o\0%011o\0%011o\0" % (b"", mode, uid, gid, size, min(mtime, _LARGEST_PLAIN_SIZE))
    before = name + bytes(100 - len(name)) + before[100:]
    after = kind + bytes(100) + b"ustar\x0000" + bytes(_BLOCK - 148 - 8 - 1 - 100 - 8)
    # The checksum is computed as if its own field were eight spaces.
    return before + b"%06o\0 " % (sum(before) + sum(after) + 8 * 0x20) + after
