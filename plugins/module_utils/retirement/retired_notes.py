# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Note in the manifest store which directory on the software root was renamed to be deleted.

The note of release ``houdini/19.5`` is ``houdini/.retired-19.5``, and holds the inode number. It outlives the manifest, and is removed
when the directory is gone.
"""

from __future__ import annotations

import contextlib
import os
import re

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_writer

_PREFIX = ".retired-"
#: Bytes of the longest note.
_LONGEST = 32
_NUMBER = re.compile(rb"([0-9]{1,20})\n")


def read(store: str, release: bytes) -> int | None:
    """Return the inode number in the note of a release; None if there is no note. Raises OverlayError if the note is damaged."""
    parent, name = _place(release)
    path = os.path.join(store, parent, name)
    try:
        text = record_files.read(path, _LONGEST)
    except FileNotFoundError:
        return None
    found = _NUMBER.fullmatch(text)
    if not found:
        raise OverlayError(
            f"{show(os.fsencode(path))} is not the note of a release that is being deleted: remove it and the directory that was renamed on"
            " the software root by hand"
        )
    return int(found[1])


def write(store: str, release: bytes, inode: int) -> None:
    """Write the note of a release."""
    parent, name = _place(release)
    with contextlib.ExitStack() as opened:
        directory = opened.enter_context(files.directory_within(store, parent, files.mode_within(store)))
        opened.enter_context(files.written_aside(os.path.join(directory, name))).write(b"%d\n" % inode)


def remove(store: str, release: bytes) -> None:
    """Remove the note of a release, and the directories of the store that this leaves empty. A missing note is ignored."""
    parent, name = _place(release)
    with contextlib.suppress(FileNotFoundError), files.directory_within(store, parent, None) as directory:
        os.unlink(os.path.join(directory, name))
    manifest_writer.remove_empty_directories(store, os.fsdecode(release))


def _place(release: bytes) -> tuple[str, str]:
    parent, name = os.path.split(os.fsdecode(release))
    return parent, _PREFIX + name
