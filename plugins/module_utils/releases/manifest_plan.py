# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan how a release gets its manifest or loses it, and describe the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, mentions
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ManifestRecord
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan_report import ScanReport

#: The number of failed releases that a message names.
_NAMED = 5


@dataclass(frozen=True)
class ScanRelease(Action):
    """Scan a release and write its manifest."""

    release: str
    #: True if an older version of the collection wrote a manifest of the release.
    outdated: bool = False

    def __str__(self) -> str:
        again = " again, since an older version of the collection made its manifest" if self.outdated else ""
        return f"scan release {self.release}{again}"


@dataclass(frozen=True)
class RemoveManifest(Action):
    """Remove the manifest of a release."""

    release: str

    def __str__(self) -> str:
        return f"remove the manifest of release {self.release}"


def plan_manifest(
    release: str, wanted: bool, record: ManifestRecord | None, remains: bool, outdated: bool = False
) -> Plan:
    """Return the plan that makes the manifest of a release present if ``wanted``, otherwise absent.

    ``record`` is the record of a complete manifest, None if there is none. ``remains`` is True if any part of a manifest exists, and
    ``outdated`` if an older version of the collection wrote it.
    """
    if wanted:
        return () if record else (ScanRelease(release, outdated),)
    return (RemoveManifest(release),) if remains else ()


@dataclass
class ReleaseManifest:
    """The manifest of one release in the course of a run: its plan, and its state before and after."""

    release: str
    path: str
    plan: Plan = ()
    before: ManifestRecord | None = None
    after: ManifestRecord | None = None
    report: ScanReport = field(default_factory=ScanReport)
    failure: OverlayError | OSError | None = None

    @property
    def _is_scanned(self) -> bool:
        return any(isinstance(action, ScanRelease) for action in self.plan)

    def values(self) -> dict[str, Any]:
        """Return the return values of the module for this release."""
        after = self.after
        values: dict[str, Any] = {"manifest": self.path, "digest": after.digest if after else None}
        if after:
            values.update(entries=after.entries.as_dict(), bytes=after.bytes)
        if self._is_scanned:
            values.update(self.report.as_dict())
        return values

    def diff_before(self) -> dict[str, Any]:
        """Return the state before the run for the diff."""
        return _diff(self.before)

    def diff_after(self) -> dict[str, Any]:
        """Return the state after the run for the diff. In check mode the result of a scan is unknown."""
        if self._is_scanned and not self.after:
            return {"digest": "known after the scan"}
        return _diff(self.after)


def _diff(record: ManifestRecord | None) -> dict[str, Any]:
    return {"digest": record.digest, "entries": record.entries.as_dict()} if record else {}


def failure_message(failures: Sequence[tuple[str, str]], count: int) -> str:
    """Return the message about the releases that failed; empty if none did.

    ``failures`` has the path of each of them and the reason; ``count`` is the number of all releases.
    """
    reasons = [reason if mentions(reason, release) else f"{release}: {reason}" for release, reason in failures]
    if count == 1 or not reasons:
        return "".join(reasons)
    more = f" (and {len(reasons) - _NAMED} more)" if len(reasons) > _NAMED else ""
    return f"{len(reasons)} of {count} releases failed: {'; '.join(reasons[:_NAMED])}{more}"
