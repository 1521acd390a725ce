# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read files of a store, whether it is a directory or the address of a web server."""

from __future__ import annotations

import io
import os
from typing import Union

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations, web_client
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.remote_file import RemoteFile, length_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access

Stream = Union[io.BufferedIOBase, io.RawIOBase]


def open_from(location: str, offset: int = 0, access: Access = SYSTEM, expected: int | None = None) -> Stream:
    """Open a file of a store for reading from ``offset`` bytes on. ``read`` may return fewer bytes than asked for before the end.

    ``expected`` is the length of the file in bytes, which a web server need not say.

    A stream from a web server reconnects when the connection breaks. Raises FileNotFoundError if there is no such file, OSError or
    HostError if it cannot be reached, and OverlayError if it is not a regular file or the server refuses to send it.
    """
    if locations.is_address(location):
        return RemoteFile(location, offset, access, expected)
    stream = record_files.open_regular(location)
    stream.seek(offset)
    return stream  # type: ignore[return-value]


def read(location: str, largest: int, access: Access = SYSTEM) -> bytes:
    """Return the content of a small file of a store.

    Raises OverlayError if it is longer than ``largest`` bytes, of which no more are read, and what ``open_from`` raises.
    """
    if not locations.is_address(location):
        return record_files.read(location, largest)
    text = b""
    with open_from(location, 0, access) as stream:
        while len(text) <= largest:
            part = stream.read(largest + 1 - len(text))
            if not part:
                return text
            text += part
    raise OverlayError(f"{locations.shown(location)} has more than {largest} bytes, so it is not a record: remove it")


def size(location: str, access: Access = SYSTEM) -> int | None:
    """Return the length of a file of a store in bytes; None if a web server does not say it.

    Raises FileNotFoundError if there is no such file, and what ``open_from`` raises.
    """
    if not locations.is_address(location):
        return os.stat(location).st_size
    with web_client.send("HEAD", location, {}, access) as response:
        return length_of(response)


def exists(location: str, access: Access = SYSTEM) -> bool:
    """Return whether a store has a file. Raises what ``size`` raises for any other reason than that there is none."""
    try:
        size(location, access)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
