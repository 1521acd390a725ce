# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe what there is of releases that are to be retired, check that they may be, and carry out the plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import published
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.image_plan import RemoveDataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import (
    manifest_store,
    manifest_writer,
    sampling,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ManifestRecord, Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest_plan import RemoveManifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement import deleting, release_use, stored_images
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_roots import ReleaseRoot, root_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.retire_plan import (
    DeleteRelease,
    RemoveReadyMarker,
    RemoveStoredImage,
    RetiredRelease,
    SetReleaseAside,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import image_store

#: How many entries of a release are compared with its manifest before it is deleted.
_SAMPLE = 200


@dataclass(frozen=True)
class RetireRequest:
    """What is to be retired, and where."""

    roots: tuple[ReleaseRoot, ...]
    store: str
    image_store: str | None
    delete: bool

    def root_of(self, release: str) -> ReleaseRoot:
        """Return the software root of a release. Raises OverlayError if it is of none of them."""
        return root_of(self.roots, release)


def check_unused(request: RetireRequest, releases: Sequence[str], state_dirs: Sequence[str]) -> None:
    """Check that this host neither shows nor uses releases. Raises OverlayError naming what does, or a release of none of the roots."""
    use = release_use.observe(state_dirs, request.roots, [root.identity for root in request.roots], True)
    for release in releases:
        request.root_of(release)
        found = use.of_release(release)
        users = [f"{one['name']} ({one['pid']})" for one in found["processes"]]
        shown = [path for view in found["views"] for path in view["mountpoints"]]
        reasons = [
            *([f"{', '.join(users[:10])} uses it"] if users else []),
            *([f"a view shows it{' at ' + ', '.join(shown) if shown else ''}"] if found["shown"] else []),
            *use.unknown,
        ]
        if reasons:
            raise OverlayError(
                f"release {release} is in use on this host, so nothing was removed: {'; '.join(reasons)}"
            )


def observe(request: RetireRequest, releases: Sequence[str], progress: Progress) -> list[RetiredRelease]:
    """Return what there is of releases. Raises OverlayError if one is no release of the software root, or cannot be deleted safely."""
    manifest_store.check_store(request.store)
    images = []
    if request.image_store:
        image_store.check_store(request.image_store, request.store)
        images = list(stored_images.stored_images(request.image_store))
    found = []
    for release in releases:
        found.append(_observed(request, release, images, progress))
        progress()
    return found


def _observed(
    request: RetireRequest, release: str, images: Sequence[stored_images.StoredImage], progress: Progress
) -> RetiredRelease:
    root = request.root_of(release)
    path = manifest_store.manifest_path(request.store, release)
    record = manifest_store.find_record(path, release)
    if record and record.root != root.identity:
        remedy = (
            "give a store of this root" if root.prefix else "give the root of the release, or its name as 'root_name'"
        )
        raise OverlayError(
            f"the manifest of release {release} is of the software root {show(os.fsencode(record.root))}, and this is"
            f" {show(os.fsencode(root.identity))}: {remedy}"
        )
    on_root = deleting.ReleaseOnRoot()
    if request.delete:
        _check_alone(request, release)
        on_root = deleting.observe(
            _deleted(request, release), lambda fd: _check_is_release(request, release, record, fd, progress)
        )
    data_images: list[str] = []
    if request.image_store:
        current = published.current_ids(request.image_store, release).values()
        data_images = list(dict.fromkeys((*current, *published.other_ids(request.image_store, release))))
    return RetiredRelease(
        release,
        manifest_store.remains(path),
        tuple(data_images),
        tuple(image.generation.id for image in images if (root.identity, release) in image.releases),
        request.delete,
        on_root.inode,
        on_root.has_marker,
        on_root.is_aside,
    )


def _deleted(request: RetireRequest, release: str) -> deleting.DeletedRelease:
    root = request.root_of(release)
    below, marker = os.fsencode(root.below(release)), os.fsencode(root.ready_marker)
    return deleting.DeletedRelease(os.fsencode(root.path), os.fsencode(release), below, marker, request.store)


def _check_is_release(
    request: RetireRequest, release: str, record: ManifestRecord | None, fd: int, progress: Progress
) -> None:
    """Check that the open directory is the release. Raises OverlayError if it has no manifest, or if a sample of the manifest differs."""
    root = request.root_of(release)
    path = show(os.fsencode(os.path.join(root.path, root.below(release))))
    if record is None:
        raise OverlayError(
            f"{path} has no manifest in {request.store}, so it is not known to be a release, and nothing was deleted: scan it with"
            " release_manifest first"
        )
    place = os.fsencode(release)
    placement = Placement(manifest_store.manifest_path(request.store, release), record, place, place)
    changed = sampling.changed_entries(fd, placement, _SAMPLE, root.ready_marker, progress)
    if changed:
        raise OverlayError(
            f"{path} is not what its manifest says ({', '.join(changed)}), so it may be another release, and nothing was deleted. If it is"
            " the right one, remove its manifest and scan it again with release_manifest"
        )


def _check_alone(request: RetireRequest, release: str) -> None:
    """Check that no other release is inside of a release or above it, and no other root inside of it. Raises OverlayError naming it.

    The software roots may be inside of each other, so a release of another root may be in the same directory.
    """
    own = request.root_of(release)
    place = os.path.join(os.path.realpath(own.path), own.below(release))
    for root in request.roots:
        top = os.path.realpath(root.path)
        if is_inside(os.fsencode(top), os.fsencode(place)):
            raise OverlayError(
                f"the software root {root.identity} ({root.path}) is inside of release {release}, so it is not deleted"
            )
        if is_inside(os.fsencode(place), os.fsencode(top)):
            other = root.release_at(os.path.relpath(place, top))
            record = manifest_store.record_path(manifest_store.manifest_path(request.store, other))
            if other != release and os.path.lexists(record):
                raise OverlayError(
                    f"release {release} is in the same directory as release {other} ({record}), so it is not deleted"
                )
            _check_none_around(request, other)


def _check_none_around(request: RetireRequest, release: str) -> None:
    """Check that the store has no release inside of a release or above it. Raises OverlayError naming the manifest of such a release."""
    above = os.path.dirname(release)
    while above:
        record = manifest_store.record_path(manifest_store.manifest_path(request.store, above))
        if os.path.lexists(record):
            raise OverlayError(
                f"release {release} is inside of release {above} ({record}): only the whole release can be deleted"
            )
        above = os.path.dirname(above)
    for place, _directories, names in os.walk(os.path.join(request.store, release)):
        inner = next((name for name in sorted(names) if name.endswith(manifest_store.SUFFIX)), None)
        if inner:
            raise OverlayError(
                f"another release is inside of release {release} ({os.path.join(place, inner)}): retire that one first"
            )


def handlers(request: RetireRequest, progress: Progress) -> Handlers:
    """Return the handlers that carry out the plan."""
    place = request.image_store or ""

    def remove_data_image(action: RemoveDataImage) -> None:
        published.remove_current(place, action.release)
        published.remove(place, action.release, action.image_id)
        published.remove_directories(place, action.release)

    return {
        RemoveReadyMarker: lambda action: deleting.remove_marker(_deleted(request, action.release), action.inode),
        SetReleaseAside: lambda action: deleting.set_aside(_deleted(request, action.release), action.inode),
        RemoveManifest: lambda action: manifest_writer.remove(request.store, action.release),
        RemoveDataImage: remove_data_image,
        RemoveStoredImage: lambda action: stored_images.remove(place, action.generation),
        DeleteRelease: lambda action: deleting.delete(_deleted(request, action.release), progress),
    }
