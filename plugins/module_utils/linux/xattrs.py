# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extended attributes by path or file descriptor, through pyxattr where it is installed and the os module elsewhere.

Symbolic links are not followed.
"""

from __future__ import annotations

import errno
import os
from typing import Union

try:
    import xattr as pyxattr

    # Another package of PyPI is imported under the same name and has other functions.
    HAS_PYXATTR = hasattr(pyxattr, "get_all")
except ImportError:
    HAS_PYXATTR = False

Target = Union[bytes, int]

#: What a file system answers that has no attributes of this kind, or none at all.
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP)


def _read_os(target: Target, name: bytes) -> bytes:
    return os.getxattr(target, name, **({} if isinstance(target, int) else {"follow_symlinks": False}))


def _read_pyxattr(target: Target, name: bytes) -> bytes:
    return bytes(pyxattr.get(target, name, nofollow=not isinstance(target, int)))


def _write_pyxattr(target: Target, name: bytes, value: bytes) -> None:
    pyxattr.set(target, name, value, nofollow=not isinstance(target, int))


def _write_os(target: Target, name: bytes, value: bytes) -> None:
    os.setxattr(target, name, value, **({} if isinstance(target, int) else {"follow_symlinks": False}))


def read(target: Target, name: bytes) -> bytes | None:
    """Return one attribute of a file, or None when it has none of that name."""
    try:
        return (_read_pyxattr if HAS_PYXATTR else _read_os)(target, name)
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in _NOT_SUPPORTED:
            return None
        raise


def names(target: Target) -> list[str]:
    """Return the names of a file's attributes; none where the file system has none."""
    try:
        return os.listxattr(target, **({} if isinstance(target, int) else {"follow_symlinks": False}))
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return []
        raise


def has(path: bytes, name: bytes) -> bool:
    """Tell whether a file has an attribute of that name."""
    return os.fsdecode(name) in os.listxattr(path, follow_symlinks=False)


#: Sets one attribute. Raises OSError: EOPNOTSUPP where the file system has none of this kind, ENOSPC where it is too long.
write = _write_pyxattr if HAS_PYXATTR else _write_os


def create(target: Target, name: bytes, value: bytes) -> bool:
    """Set one attribute, unless the file has it; tell whether that is so. Raises OSError as ``write`` does."""
    try:
        os.setxattr(
            target, name, value, os.XATTR_CREATE, **({} if isinstance(target, int) else {"follow_symlinks": False})
        )
    except FileExistsError:
        return False
    return True


def remove(target: Target, name: bytes) -> None:
    """Remove one attribute, if it is there."""
    try:
        os.removexattr(target, name, **({} if isinstance(target, int) else {"follow_symlinks": False}))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
