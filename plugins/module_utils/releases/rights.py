# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count the files of a layer that have or lost privileges, and keep the paths of the first ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show

#: The number of paths that are kept of each kind.
KEPT = 10


@dataclass
class PathCount:
    """A count of paths, and the first of these paths as text for messages."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    #: The number of paths to keep.
    kept: int = KEPT

    def add(self, path: bytes) -> None:
        """Count ``path``, and keep it if it is one of the first."""
        self.count += 1
        if len(self.first) < self.kept:
            self.first.append(show(path))

    def listed(self, most: int = KEPT) -> str:
        """Return at most ``most`` of the kept paths as text for a message."""
        return ", ".join(self.first[:most]) + (", ..." if self.count > most else "")


@dataclass(frozen=True)
class Rights:
    """How the rights in a layer differ from those in its releases."""

    #: Files with set-ID bits or capabilities. A mount with ``nosuid`` ignores these.
    privileged: PathCount = field(default_factory=PathCount)
    #: Files that lost set-ID bits or capabilities because the view changes their owner or group.
    stripped: PathCount = field(default_factory=PathCount)
    #: Files and directories whose ACL the file system of the layer cannot hold. Their mode grants no more than the ACL.
    narrowed: PathCount = field(default_factory=PathCount)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and first paths as a flat dict: NAME and NAME_paths for each kind."""
        values: dict[str, Any] = {}
        for name in ("privileged", "stripped", "narrowed"):
            paths: PathCount = getattr(self, name)
            values[name] = paths.count
            values[f"{name}_paths"] = list(paths.first)
        return values

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Rights:
        """Return the rights that ``as_dict`` described; missing fields count as 0. Raises TypeError or ValueError if a field is invalid."""
        return cls(*(_path_count(fields, name) for name in ("privileged", "stripped", "narrowed")))


def _path_count(fields: Mapping[str, Any], name: str) -> PathCount:
    count, first = fields.get(name, 0), fields.get(f"{name}_paths", [])
    if (
        not isinstance(count, int)
        or isinstance(count, bool)
        or not isinstance(first, list)
        or not all(isinstance(path, str) for path in first)
    ):
        raise TypeError(f"{name} is not a count, or {name}_paths is not a list of paths")
    if not len(first) <= min(count, KEPT):
        raise ValueError(f"{name}_paths has more paths than {name} counts, or more than {KEPT}")
    return PathCount(count, first)
