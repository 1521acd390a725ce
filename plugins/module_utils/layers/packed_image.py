# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compress images for a store and decompress them on a host, whole or as the difference from an image that the host has.

Only zlib is used, which every Python has. An image is synced, and its digest is checked, before any function returns.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.deflating import (
    GZIP,
    DamagedError,
    deflated,
    inflated,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.image_delta import decode, encode
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import Image, StoredFile
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_CHUNK = 1 << 18
_LEVEL = 6


def pack(image: str, packed: str, progress: Progress = no_progress) -> StoredFile:
    """Compress an image to the path ``packed``, where nothing exists yet, and return what to record about it."""
    return _stored(packed, deflated(_chunks(image, progress), _LEVEL, GZIP))


def unpack(packed: str, image: str, recorded: Image, progress: Progress = no_progress) -> None:
    """Decompress an image to the path ``image``.

    No more is written than the recorded length. Raises DamagedError, and leaves no image, if it has not the recorded length and digest.
    """
    _write(inflated(_chunks(packed, progress), GZIP), image, recorded)


def make_delta(old: str, new: str, delta: str, most: int, progress: Progress = no_progress) -> StoredFile | None:
    """Write the delta between two images to the path ``delta``, where nothing exists yet, and return what to record about it.

    None is returned, and nothing is left there, if the delta would have more than ``most`` bytes. A million files take 60 MB of memory,
    besides the pages of the two images.
    """
    with _mapped(old) as one, _mapped(new) as other:
        try:
            stored = _stored(delta, _limited(encode(one, other, progress), most))
        except _TooLongError:
            os.unlink(delta)
            return None
    if stored.bytes:
        return stored
    os.unlink(delta)
    return None


def apply_delta(old: str, delta: str, image: str, recorded: Image, progress: Progress = no_progress) -> None:
    """Make an image from an old one and a delta.

    Raises DamagedError, and leaves no image, if it has not the recorded length and digest.
    """
    with open(old, "rb") as stream:
        # A mapped file that cannot be read would end the process.
        read = functools.partial(_part, stream.fileno())
        length = os.fstat(stream.fileno()).st_size
        _write(decode(_chunks(delta, progress), read, length, recorded.bytes), image, recorded)


def _part(fd: int, start: int, size: int) -> bytes:
    """Return a part of an old image. Raises DamagedError if it cannot be read."""
    try:
        part = os.pread(fd, size, start)
    except OSError as error:
        raise DamagedError(f"cannot be used, since the old image cannot be read ({error.strerror})") from None
    if len(part) != size:
        raise DamagedError("cannot be used, since the old image ends early")
    return part


class _TooLongError(Exception):
    """A delta is longer than it may be."""


def _limited(chunks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """Yield chunks. Raises _TooLongError when they have more than ``most`` bytes."""
    for chunk in chunks:
        most -= len(chunk)
        if most < 0:
            raise _TooLongError
        yield chunk


def _chunks(path: str, progress: Progress) -> Iterator[bytes]:
    # In a store, other users may have replaced a file, with a pipe for example.
    with record_files.open_regular(path) as stream:
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            yield chunk
            progress()


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[memoryview]:
    """Map a file into memory. Raises ValueError if it is empty."""
    with (
        open(path, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        yield view


def _stored(path: str, chunks: Iterable[bytes]) -> StoredFile:
    """Write a new file with the mode 0644, sync it, and return what to record about it."""
    digest, size = hashlib.sha256(), 0
    with open(files.open_or_make(path, 0o600), "wb", buffering=0) as target:
        target.truncate()
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            files.write(target, chunk, path)
        os.fchmod(target.fileno(), 0o644)
        os.fsync(target.fileno())
    return StoredFile("sha256:" + digest.hexdigest(), size)


def _write(chunks: Iterable[bytes], image: str, recorded: Image) -> None:
    """Write an image with the mode 0644 and sync it. Raises DamagedError, and leaves no image, if it is not the recorded one."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(files.open_or_make(image, 0o600), "wb", buffering=0) as target:
            target.truncate()
            for chunk in chunks:
                size += len(chunk)
                if size > recorded.bytes:
                    raise DamagedError(f"makes an image of more than the recorded {recorded.bytes} bytes")
                digest.update(chunk)
                files.write(target, chunk, image)
            os.fchmod(target.fileno(), 0o644)
            os.fsync(target.fileno())
        if (size, "sha256:" + digest.hexdigest()) != (recorded.bytes, recorded.digest):
            raise DamagedError(f"does not make an image with the recorded digest {recorded.digest}")
    except (DamagedError, OSError):
        with contextlib.suppress(OSError):
            os.unlink(image)
        raise
