# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and writing fstab(5)."""

from __future__ import annotations

import os
import stat
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mount_lock

FSTAB = "/etc/fstab"

#: To write the file takes a moment.
_LOCK_SECONDS = 30.0


def read() -> bytes:
    """Return its text; empty where there is none."""
    try:
        with open(FSTAB, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""


def edit(edited: Callable[[bytes], bytes]) -> None:
    """Write what ``edited`` makes of the text. Runs on other mountpoints, which change other lines, come before or after."""
    with mount_lock.held(os.fsencode(FSTAB), _LOCK_SECONDS):
        write(edited(read()))


def write(text: bytes) -> None:
    # The file may be a link into a folder of settings.
    path = os.path.realpath(FSTAB)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mode = 0o644
    with files.written_aside(path, mode) as stream:
        stream.write(text)
