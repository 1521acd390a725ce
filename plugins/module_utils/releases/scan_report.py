# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report what a scan found besides the entries of a release: files that views cannot read, and ACLs that layers cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import PathCount

#: The number of unreadable files and directories whose paths are kept.
UNREADABLE_KEPT = 100
#: The number of unreadable files and directories that a warning names.
_UNREADABLE_NAMED = 5


@dataclass
class ScanReport:
    """The findings of a scan."""

    #: Files with content that not everybody may read, and directories that not everybody may enter. The path of a directory has a trailing
    #: slash, and nothing in it is counted. On an export with root_squash no view can read them, whoever scans them.
    unreadable: PathCount = field(default_factory=lambda: PathCount(kept=UNREADABLE_KEPT))
    #: Directories that root of this host may not list or enter. They are recorded without their content.
    unlisted: PathCount = field(default_factory=PathCount)
    #: Entries whose ACL a layer cannot hold.
    narrowed: PathCount = field(default_factory=PathCount)
    #: Files and directories that were left out because of their names. Nothing in such a directory is counted.
    ignored: PathCount = field(default_factory=PathCount)
    #: Files with names outside of the release: the path of the first name, and the number of names in the release, which replaces the link
    #: count that the file system reports.
    link_counts: dict[bytes, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the paths and counts as return values of a module."""
        values: dict[str, Any] = {}
        for name in ("unreadable", "unlisted", "narrowed", "ignored"):
            paths: PathCount = getattr(self, name)
            values[name] = list(paths.first)
            values[f"{name}_count"] = paths.count
        return values

    def warnings(self, release: str) -> Iterator[str]:
        """Yield a warning for each kind of finding. ``release`` is the path of the release."""
        if self.unreadable.count:
            yield (
                f"release {release}: not everybody may read {self.unreadable.count} of its files and directories, so no view can read them"
                f" from an export with root_squash: {self.unreadable.listed(_UNREADABLE_NAMED)}; let everybody read the release"
                " (chmod -R o+rX)"
            )
        if self.ignored.count:
            yield (
                f"release {release}: {self.ignored.count} files and directories are left out because of their names (ignore_names):"
                f" {self.ignored.listed()}"
            )
        if self.unlisted.count:
            yield (
                f"release {release}: root of this host may not list {self.unlisted.count} directories, so their content is missing in the"
                f" manifest: {self.unlisted.listed()}; to show it in views, let everybody list the directories (chmod o+rx), or scan the"
                " release on the file server"
            )
        if self.narrowed.count:
            yield (
                f"release {release}: a layer cannot hold the ACLs of {self.narrowed.count} files and directories; views grant no more than"
                f" these ACLs do, and grant less to some users: {self.narrowed.listed()}"
            )
