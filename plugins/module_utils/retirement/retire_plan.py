# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan how a release is retired: what is removed from the software root and from stores, in which order.

The order lets an interrupted run go on. The release gets another name before its manifest is removed, so that no run takes it for a
release, and its content is deleted last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.image_plan import RemoveDataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest_plan import RemoveManifest


@dataclass(frozen=True)
class RemoveReadyMarker(Action):
    """Remove the ready marker of a release, so that no other run uses the release."""

    release: str
    #: The inode number of its directory.
    inode: int

    def __str__(self) -> str:
        return f"remove the ready marker of release {self.release}"


@dataclass(frozen=True)
class SetReleaseAside(Action):
    """Rename the directory of a release, so that nothing refers to it."""

    release: str
    #: The inode number of its directory.
    inode: int

    def __str__(self) -> str:
        return f"rename release {self.release} on the software root"


@dataclass(frozen=True)
class RemoveStoredImage(Action):
    """Remove a metadata image from an image store."""

    generation: str
    reason: str

    def __str__(self) -> str:
        return f"remove image {self.generation} from the image store, {self.reason}"


@dataclass(frozen=True)
class DeleteRelease(Action):
    """Delete the content of a release that has been renamed."""

    release: str

    def __str__(self) -> str:
        return f"delete release {self.release} from the software root"


@dataclass(frozen=True)
class RetiredRelease:
    """What there is of a release that is to be retired."""

    release: str
    #: Whether anything of a manifest is in the store.
    has_manifest: bool
    #: IDs of its data images in the image store.
    data_images: tuple[str, ...]
    #: IDs of the generations in the image store that show it.
    images: tuple[str, ...]
    #: Whether it is to be deleted from the software root.
    delete: bool = False
    #: The inode number of its directory on the software root; None if it is not there.
    inode: int | None = None
    #: Whether it has a ready marker, and was renamed by an earlier run.
    has_marker: bool = False
    is_aside: bool = False

    def plan(self) -> Plan:
        """Return the plan that retires the release."""
        found: list[Action] = []
        if self.delete and self.inode is not None:
            found += [RemoveReadyMarker(self.release, self.inode)] if self.has_marker else []
            found.append(SetReleaseAside(self.release, self.inode))
        if self.has_manifest:
            found.append(RemoveManifest(self.release))
        found += [RemoveDataImage(self.release, image_id) for image_id in self.data_images]
        found += [RemoveStoredImage(one, f"since it shows release {self.release}") for one in self.images]
        if self.delete and (self.inode is not None or self.is_aside):
            found.append(DeleteRelease(self.release))
        return tuple(found)

    def diff(self) -> dict[str, Any]:
        """Return what there is of the release, for the diff."""
        found: dict[str, Any] = {"manifest": self.has_manifest}
        if self.data_images:
            found["data_images"] = list(self.data_images)
        if self.images:
            found["images"] = list(self.images)
        if self.delete:
            found["software_root"] = (
                "present" if self.inode is not None else "partly deleted" if self.is_aside else "absent"
            )
        return found

    def diff_after(self) -> dict[str, Any]:
        """Return what there is of the release after its plan was carried out, for the diff."""
        return {"manifest": False, **({"software_root": "absent"} if self.delete else {})}


def unique_plan(releases: Sequence[RetiredRelease]) -> Plan:
    """Return the plan that retires several releases. An image that shows several of them is removed once."""
    found: dict[object, Action] = {}
    for release in releases:
        for action in release.plan():
            key = action.generation if isinstance(action, RemoveStoredImage) else action
            found.setdefault(key, action)
    return tuple(found.values())
