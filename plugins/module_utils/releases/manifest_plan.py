# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan how a release gets its manifest, or loses it."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Action,
    Plan,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ManifestRecord


@dataclass(frozen=True)
class ScanRelease(Action):
    release: str
    #: Whether there is a manifest that an older version of the collection made.
    outdated: bool = False

    def __str__(self) -> str:
        again = " again, since an older version of the collection made its manifest" if self.outdated else ""
        return f"scan release {self.release}{again}"


@dataclass(frozen=True)
class RemoveManifest(Action):
    release: str

    def __str__(self) -> str:
        return f"remove the manifest of release {self.release}"


def plan_manifest(
    release: str, wanted: bool, record: ManifestRecord | None, remains: bool, outdated: bool = False
) -> Plan:
    """``record`` is that of a whole manifest; ``remains`` tells whether any part of a manifest is there.

    ``outdated`` tells whether that is one which an older version of the collection made.
    """
    if wanted:
        return () if record else (ScanRelease(release, outdated),)
    return (RemoveManifest(release),) if remains else ()
