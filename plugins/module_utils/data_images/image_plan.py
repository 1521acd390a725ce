# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan which data images of a release are built and removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.selection import Selection
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage


@dataclass(frozen=True)
class BuildDataImage(Action):
    """Build a data image of a release, and publish it."""

    release: str
    kind: str
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"build data image {self.kind} of release {self.release} ({self.files} files, {self.bytes} bytes)"


@dataclass(frozen=True)
class RemoveDataImage(Action):
    """Remove a data image from an image store."""

    release: str
    image_id: str

    def __str__(self) -> str:
        return f"remove data image {self.image_id} of release {self.release}"


@dataclass(frozen=True)
class WantedImage:
    """The data image that a release is to have."""

    release: str
    kind: str
    manifest_digest: str
    #: Digest of the selection.
    selection: str
    files: Selection

    def is_met_by(self, image: DataImage | None) -> bool:
        """Return whether a published image has the selected files."""
        return image is not None and (image.manifest_digest, image.selection) == (self.manifest_digest, self.selection)


def plan_present(wanted: WantedImage, current: DataImage | None, older: Sequence[str], keep: int) -> Plan:
    """Return the plan that gives a release its data image.

    ``current`` is the current image of the kind. ``older`` are the IDs of the images that are not current for any kind, the newest first,
    and ``keep`` is how many of them stay.
    """
    build: Plan = ()
    superseded: list[str] = []
    if wanted.files.files and not wanted.is_met_by(current):
        build = (BuildDataImage(wanted.release, wanted.kind, len(wanted.files.files), wanted.files.size),)
        superseded = [current.id] if current else []
    stale = [*superseded, *older][keep:]
    return (*build, *(RemoveDataImage(wanted.release, image_id) for image_id in stale))


def plan_absent(release: str, found: Sequence[str]) -> Plan:
    """Return the plan that removes all data images of a release, given their IDs."""
    return tuple(RemoveDataImage(release, image_id) for image_id in found)
