# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory of an overlay as the passes know it, and sets of directories by path."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import Marks


@dataclass(frozen=True)
class OverlayDirectory:
    """A directory of the overlay."""

    #: Relative to the overlay's root; empty for the root itself.
    path: bytes
    #: The path in the lower layers that it is merged with; None if it is in the upper layer alone.
    lower: bytes | None
    #: None if it is not in the upper layer.
    marks: Marks | None

    @property
    def is_merged(self) -> bool:
        return self.lower is not None

    @property
    def is_sealed(self) -> bool:
        return self.marks is not None and self.marks.sealed

    @property
    def is_sealed_by_kernel(self) -> bool:
        return self.marks is not None and self.marks.sealed_by_kernel

    def child(self, name: bytes) -> bytes:
        """Return the path of ``name`` in the directory, relative to the overlay's root."""
        return self.path + b"/" + name if self.path else name

    def merged_with(self) -> bytes:
        """Return the path in the lower layers. Raises ValueError if the directory is in the upper layer alone."""
        if self.lower is None:
            raise ValueError(f"{self.path!r} is in the upper layer alone")
        return self.lower


def depth(path: bytes) -> int:
    """Return how many levels a directory is below the overlay's root."""
    return path.count(b"/") + 1 if path else 0


def with_parents(paths: Iterable[bytes]) -> set[bytes]:
    """Return the paths and all directories above them, including the overlay's root."""
    found: set[bytes] = set()
    for path in paths:
        while path not in found:
            found.add(path)
            path = posixpath.dirname(path)
    return found
