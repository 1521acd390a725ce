# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read files that somebody else may have put there: only regular files, without blocking, and up to a length."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import BinaryIO

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

#: O_NONBLOCK opens a FIFO without waiting for a writer. O_NOCTTY keeps a terminal from becoming the controlling one.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_regular(path: str) -> BinaryIO:
    """Open a regular file for reading.

    Raises OverlayError if it is anything else, a symbolic link too, since opening a device may have side effects. Raises OSError if the
    file does not exist or may not be read.
    """
    shown = show(os.fsencode(path))
    try:
        fd = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OverlayError(f"{shown} is a symbolic link: give the path of the file itself") from None
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise OverlayError(f"{shown} is not a regular file: remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OverlayError(f"{shown} is not a regular file: remove it")
    return open(fd, "rb")


def read(path: str, largest: int) -> bytes:
    """Return the content of a regular file.

    An NFS client remembers for up to a minute that a name is missing. So if the file is missing, the client is made to ask its server, and
    the file is looked for again. Raises OverlayError if the file is longer than ``largest`` bytes, or is not a regular file. Raises OSError
    if it does not exist or may not be read.
    """
    try:
        stream = open_regular(path)
    except FileNotFoundError:
        with contextlib.suppress(FileNotFoundError):
            _refresh(os.path.dirname(os.path.abspath(path)))
        stream = open_regular(path)
    with stream:
        text = stream.read(largest + 1)
    if len(text) > largest:
        raise OverlayError(f"{show(os.fsencode(path))} has more than {largest} bytes, so it is not a record: remove it")
    return text


def _refresh(directory: str) -> None:
    """Revalidate a directory with its file server. If it is missing, revalidate the directory above it first, and look again.

    Raises FileNotFoundError if it does not exist.
    """
    try:
        fd = os.open(directory, syscalls.HOLD_DIRECTORY)
    except FileNotFoundError:
        _refresh(os.path.dirname(directory))
        fd = os.open(directory, syscalls.HOLD_DIRECTORY)
    try:
        syscalls.refresh(fd)
    finally:
        os.close(fd)
