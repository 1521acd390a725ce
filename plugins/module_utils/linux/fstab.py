# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and write /etc/fstab."""

from __future__ import annotations

import os
import stat
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mount_lock

FSTAB = "/etc/fstab"

#: Seconds to wait for another run that is writing the file, which takes a moment.
_LOCK_SECONDS = 30.0


def read() -> bytes:
    """Return the text of fstab; empty if there is no such file."""
    try:
        with open(FSTAB, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""


def edit(edited: Callable[[bytes], bytes]) -> None:
    """Replace the text of fstab by what ``edited`` returns for it, under a lock: runs for other mountpoints edit it too."""
    with mount_lock.held(os.fsencode(FSTAB), _LOCK_SECONDS):
        _write(edited(read()))


def _write(text: bytes) -> None:
    # The file may be a symbolic link into a directory of settings.
    path = os.path.realpath(FSTAB)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mode = 0o644
    with files.written_aside(path, mode) as stream:
        stream.write(text)
