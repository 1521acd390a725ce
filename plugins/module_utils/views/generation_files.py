# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and write the records of generations, in state directories and in image stores, which may be addresses of web servers."""

from __future__ import annotations

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import store_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    LARGEST_RECORD,
    Generation,
    generation_from_json,
    generation_to_json,
)


def read(path: str, access: Access = SYSTEM) -> Generation:
    """Return the generation whose record is at ``path``, a path or an address.

    Raises OutdatedError if an older version of the collection wrote it, OverlayError if it is not the record of a generation, and OSError
    if it cannot be read.
    """
    return generation_from_json(store_files.read(path, LARGEST_RECORD, access), path)


def find(path: str, access: Access = SYSTEM) -> Generation | None:
    """Return the generation whose record is at ``path``; None if it is missing, or if an older version of the collection wrote it.

    Raises OverlayError or OSError as ``read`` does for any other record that cannot be used.
    """
    try:
        return read(path, access)
    except (FileNotFoundError, NotADirectoryError, OutdatedError):
        return None


def write(path: str, generation: Generation) -> None:
    """Write the record of a generation, replacing an earlier one in one step. Raises OverlayError if it could not be read again."""
    with files.written_aside(path) as aside:
        aside.write(generation_to_json(generation))
