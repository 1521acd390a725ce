# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open files that somebody else may have put there: regular ones only, never waiting, and never more of them than fits."""

from __future__ import annotations

import errno
import os
import stat
from typing import BinaryIO

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

#: A FIFO is opened without waiting for a writer, and a terminal does not become that of this process.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read it.

    Raises OverlayError for anything else, a symbolic link too: opening some devices does something. Raises OSError for a file that is
    not there or may not be read.
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
    """Return the content of a regular file of up to ``largest`` bytes. Raises OverlayError for a longer one, as ``open_regular`` does."""
    with open_regular(path) as stream:
        text = stream.read(largest + 1)
    if len(text) > largest:
        raise OverlayError(f"{show(os.fsencode(path))} has more than {largest} bytes, so it is no record: remove it")
    return text
