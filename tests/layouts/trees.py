"""Compare trees of files."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def entries(top: Path) -> dict[str, tuple[object, ...]]:
    """Return what users see of each entry of a tree, by its path: kind, mode, owner, mtime, target or content, and the first hard link."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[tuple[int, int], str] = {}
    for directory, directories, files in os.walk(top):
        for name in ["", *directories, *files] if directory == str(top) else [*directories, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            shown = os.path.relpath(path, top)
            values: tuple[object, ...] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
            if stat.S_ISLNK(status.st_mode):
                values += (os.readlink(path),)
            elif stat.S_ISREG(status.st_mode):
                same = first.setdefault((status.st_dev, status.st_ino), shown) if status.st_nlink > 1 else shown
                values += (same, status.st_size, Path(path).read_bytes())
            found[shown] = values
    return found
