"""Examine files with fs-verity, and damage them on the disk below. Runs on a render node with the standard library only.

    python3 verity.py enable PATH...        give files fs-verity
    python3 verity.py digests PATH          print the digest that the kernel has measured, that of the content, and SHA-256, as JSON
    python3 verity.py damage PATH DISK ...  flip a bit of a file at each of these offsets, in the file DISK that its file system is on
    python3 verity.py compare PATH COPY     print how many blocks of a file are right, wrong, and cannot be read (EIO), as JSON

See Documentation/filesystems/fsverity.rst and linux/fiemap.h.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import struct
import sys
from pathlib import Path

BLOCK = 4096
_SHA256, _DIGEST_BYTES = 1, 32
_ENABLE_VERITY, _MEASURE_VERITY = 0x40806685, 0xC0046686
_FIEMAP = 0xC020660B
_FIEMAP_SYNC = 1


def enable(path: str) -> None:
    with open(path, "rb") as file:
        fcntl.ioctl(file, _ENABLE_VERITY, struct.pack("=4I112x", 1, _SHA256, BLOCK, 0))


def measured(path: str) -> str:
    """Return the digest of a file with fs-verity. Raises OSError (ENODATA) if it has none."""
    with open(path, "rb") as file:
        argument = struct.pack("=2H", 0, _DIGEST_BYTES) + bytes(_DIGEST_BYTES)
        answer = fcntl.ioctl(file, _MEASURE_VERITY, argument)
    return answer[4 : 4 + _DIGEST_BYTES].hex()


def computed(content: bytes) -> str:
    """Return the digest that fs-verity has for a content that is not empty, with SHA-256, blocks of 4096 bytes and no salt."""
    level = content
    while True:
        blocks = [level[start : start + BLOCK].ljust(BLOCK, b"\0") for start in range(0, len(level), BLOCK)]
        hashes = [hashlib.sha256(block).digest() for block in blocks]
        if len(hashes) == 1:
            break
        level = b"".join(hashes)
    descriptor = struct.pack("<4BIQ64s32s144x", 1, _SHA256, 12, 0, 0, len(content), hashes[0], b"")
    return hashlib.sha256(descriptor).hexdigest()


def damage(path: str, disk: str, offsets: list[int]) -> None:
    """Flip a bit of a file at each offset, below its file system. Raises ValueError if there is no block at an offset."""
    with open(path, "rb") as file, open(disk, "r+b") as below:
        for offset in offsets:
            argument = struct.pack("=2Q4I", offset, 1, _FIEMAP_SYNC, 0, 1, 0) + bytes(56)
            answer = fcntl.ioctl(file, _FIEMAP, argument)
            if not struct.unpack_from("=I", answer, 20)[0]:
                raise ValueError(f"{path} has no block at {offset}")
            logical, physical = struct.unpack_from("=2Q", answer, 32)
            below.seek(physical + offset - logical)
            byte = below.read(1)[0]
            below.seek(-1, os.SEEK_CUR)
            below.write(bytes([byte ^ 1]))
        below.flush()
        os.fsync(below.fileno())


def compare(path: str, copy: str) -> dict[str, int]:
    found = {"right": 0, "wrong": 0, "EIO": 0}
    content = Path(copy).read_bytes()
    with open(path, "rb", buffering=0) as file:
        for start in range(0, len(content), BLOCK):
            try:
                block = os.pread(file.fileno(), BLOCK, start)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                found["EIO"] += 1
            else:
                found["right" if block == content[start : start + BLOCK] else "wrong"] += 1
    return found


def main() -> None:
    action, path, *others = sys.argv[1:]
    if action == "enable":
        for one in (path, *others):
            enable(one)
    elif action == "damage":
        damage(path, others[0], [int(offset) for offset in others[1:]])
    elif action == "digests":
        content = Path(path).read_bytes()
        whole = hashlib.sha256(content).hexdigest()
        json.dump({"measured": measured(path), "computed": computed(content), "sha256": whole}, sys.stdout)
    else:
        json.dump(compare(path, others[0]), sys.stdout)


if __name__ == "__main__":
    main()
