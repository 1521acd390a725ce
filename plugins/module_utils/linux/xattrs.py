# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Xattrs (xattr(7)) by path or file descriptor, through pyxattr if it is installed, else through the os module.

Symbolic links are not followed.
"""

from __future__ import annotations

import errno
import os
from typing import Union

try:
    import xattr as pyxattr

    # Another package on PyPI has the same import name and different functions.
    HAS_PYXATTR = hasattr(pyxattr, "get_all")
except ImportError:
    HAS_PYXATTR = False

Target = Union[bytes, int]

#: Errors of a file system without xattrs of this namespace, or without any.
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
    """Return the value of an xattr; None if the file has none of that name, or its file system does not support it."""
    try:
        return (_read_pyxattr if HAS_PYXATTR else _read_os)(target, name)
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in _NOT_SUPPORTED:
            return None
        raise


def names(target: Target) -> list[str]:
    """Return the names of the xattrs of a file; none if its file system does not support xattrs."""
    try:
        return os.listxattr(target, **({} if isinstance(target, int) else {"follow_symlinks": False}))
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return []
        raise


#: Set an xattr. Raises OSError: EOPNOTSUPP if the file system does not support it, ENOSPC if there is no room for it.
write = _write_pyxattr if HAS_PYXATTR else _write_os


def remove(target: Target, name: bytes) -> None:
    """Remove an xattr, if the file has it."""
    try:
        os.removexattr(target, name, **({} if isinstance(target, int) else {"follow_symlinks": False}))
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
