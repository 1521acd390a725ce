# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that say what is mounted at boot: read fstab and the mount units of systemd, and write fstab."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mount_lock

FSTAB = "/etc/fstab"
UNITS = "/etc/systemd/system"

#: Seconds to wait for another run that is writing the file, which takes a moment.
_LOCK_SECONDS = 30.0


def fstab() -> bytes:
    """Return the text of fstab; empty if there is no such file."""
    try:
        with open(FSTAB, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""


def edit_fstab(edited: Callable[[bytes], bytes]) -> None:
    """Replace the text of fstab by what ``edited`` returns for it, under a lock: runs for other mountpoints edit it too."""
    with mount_lock.held(os.fsencode(FSTAB), _LOCK_SECONDS):
        _write(edited(fstab()))


def _write(text: bytes) -> None:
    # The file may be a symbolic link into a directory of settings.
    path = os.path.realpath(FSTAB)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mode = 0o644
    with files.written_aside(path, mode) as stream:
        stream.write(text)


def mount_units() -> Iterator[tuple[str, bytes]]:
    """Yield the name and text of each mount unit in the administrator's directory, sorted by name."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(UNITS)):
            if name.endswith(".mount"):
                # A link to /dev/null is a unit without content. A dangling link is skipped.
                with contextlib.suppress(FileNotFoundError), open(os.path.join(UNITS, name), "rb") as stream:
                    yield name, stream.read()


def texts() -> list[bytes]:
    """Return the text of fstab and of each mount unit."""
    return [fstab(), *(text for _name, text in mount_units())]
