# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find and remove the metadata images in an image store."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import ID_LENGTH, Generation

_RECORD = re.compile(f"([0-9a-f]{{{ID_LENGTH}}})\\.json")


@dataclass(frozen=True)
class StoredImage:
    """A metadata image in an image store."""

    generation: Generation
    #: When its record was written, in seconds since the epoch.
    written: float

    @property
    def releases(self) -> set[tuple[str, str]]:
        """The releases that it shows, each with the identity of its software root before it."""
        return {(one["root"], one["release"]) for one in self.generation.releases}


def stored_images(store: str) -> Iterator[StoredImage]:
    """Yield the images in a store, which may be missing. Records that cannot be used are left out.

    Raises OSError if the store cannot be listed.
    """
    if not os.path.isdir(store):
        return
    with files.fresh_listing(store) as listing:
        dated = [
            (item.name, item.stat(follow_symlinks=False).st_mtime)
            for item in listing
            if _RECORD.fullmatch(item.name) and item.is_file(follow_symlinks=False)
        ]
    for name, written in sorted(dated):
        with contextlib.suppress(OverlayError):
            generation = generation_files.find(os.path.join(store, name))
            if generation and name == f"{generation.id}.json":
                yield StoredImage(generation, written)


def remove(store: str, generation: str) -> None:
    """Remove an image of a generation, its record first, and the deltas that make it. Missing files are ignored."""
    with files.directory_within(store, "", None) as directory:
        names = [name for name in os.listdir(directory) if name.startswith(f"{generation}.")]
        for name in sorted(names, key=lambda name: (name != f"{generation}.json", name)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
        files.sync_directory(directory)
