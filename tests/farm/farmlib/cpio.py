"""Write cpio (newc) archives, which the kernel unpacks for an initramfs."""

from __future__ import annotations

from collections.abc import Mapping


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return an archive of files by path, each as (mode with type bits, content). A directory must precede its entries."""
    parts = [_entry(number, name, mode, content) for number, (name, (mode, content)) in enumerate(files.items(), 1)]
    parts.append(_entry(0, "TRAILER!!!", 0, b""))
    return b"".join(parts)


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    links = 1 if inode else 0
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + path) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
