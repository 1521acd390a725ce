# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the rights that a layer gives: files that have or lost some, counted, and the first of them by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show

#: How many paths are kept of each kind; all are counted.
KEPT = 10


@dataclass
class PathCount:
    """Counts paths, and keeps the first ones as text for messages."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    #: How many are kept.
    kept: int = KEPT

    def add(self, path: bytes) -> None:
        self.count += 1
        if len(self.first) < self.kept:
            self.first.append(show(path))

    def listed(self, most: int = KEPT) -> str:
        """Return the first paths, not more than ``most``, for a message."""
        return ", ".join(self.first[:most]) + (", ..." if self.count > most else "")


@dataclass(frozen=True)
class Rights:
    """What a layer makes of the rights that its releases give."""

    #: Set-user-ID and set-group-ID files, and files with capabilities: they are ordinary ones where the view is mounted ``nosuid``.
    privileged: PathCount = field(default_factory=PathCount)
    #: Files that were of that kind and are not any more, since their owner or group is another one in the view.
    stripped: PathCount = field(default_factory=PathCount)
    #: Files and directories whose ACL the file system of the layer cannot hold: their mode gives nobody more than the ACL did.
    narrowed: PathCount = field(default_factory=PathCount)

    def as_dict(self) -> dict[str, Any]:
        """Return counts and first paths, under flat names."""
        values: dict[str, Any] = {}
        for name in ("privileged", "stripped", "narrowed"):
            paths: PathCount = getattr(self, name)
            values[name] = paths.count
            values[f"{name}_paths"] = list(paths.first)
        return values

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Rights:
        """Return what ``as_dict`` gave. What is not there is none. Raises TypeError or ValueError for values of another form."""
        return cls(*(_path_count(fields, name) for name in ("privileged", "stripped", "narrowed")))


def _path_count(fields: Mapping[str, Any], name: str) -> PathCount:
    count, first = fields.get(name, 0), fields.get(f"{name}_paths", [])
    if (
        not isinstance(count, int)
        or isinstance(count, bool)
        or not isinstance(first, list)
        or not all(isinstance(path, str) for path in first)
    ):
        raise TypeError(f"{name} is not a count with paths")
    if not len(first) <= min(count, KEPT):
        raise ValueError(f"{name} has more paths than it counts")
    return PathCount(count, first)
