# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe and change the manifests of several releases, one release after the other."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import HostError, OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, manifest_writer, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    ManifestRecord,
    Placement,
    below_root,
    relative_path,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest_plan import (
    ReleaseManifest,
    RemoveManifest,
    ScanRelease,
    plan_manifest,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import IgnoredNames

#: Errors of a store that is full or read-only. Every later write to it would fail too.
_STORE_UNUSABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class ManifestRequest:
    """What is to become of the manifests, the same for all releases."""

    root: str
    store: str
    #: Identity of the software root.
    identity: str
    #: True if the manifests are to be present, False if absent.
    wanted: bool
    checksum: bool
    ready_marker: str
    #: Compare each release with its manifest.
    rescan: bool
    #: Names that are no part of a release.
    ignored: IgnoredNames = field(default_factory=IgnoredNames)
    #: What the names of releases have before their path below the root (``entries.below_root``).
    prefix: str = ""


def requested_manifests(request: ManifestRequest, releases: Sequence[str]) -> list[ReleaseManifest]:
    """Return the manifests of the requested releases, each once, not observed yet.

    Raises OverlayError if a path of a release leads out of the root, the store is in a release, or the root or store does not exist.
    """
    paths = _normalised(releases)
    _check_store_is_outside(request, paths)
    manifest_store.check_store(request.store)
    if request.wanted:
        # Without a root every release would fail, for the same reason.
        os.close(scan.open_root(os.fsencode(request.root)))
    return [ReleaseManifest(release, manifest_store.manifest_path(request.store, release)) for release in paths]


def _normalised(releases: Sequence[str]) -> list[str]:
    paths = [os.fsdecode(relative_path(os.fsencode(release), "release")) for release in releases]
    if "" in paths:
        raise OverlayError("release is empty; give the path of a release below the software root")
    return list(dict.fromkeys(paths))


def _check_store_is_outside(request: ManifestRequest, releases: Sequence[str]) -> None:
    real_root, real_store = os.path.realpath(request.root), os.path.join(os.path.realpath(request.store), "")
    for release in releases:
        directory = os.path.join(real_root, below_root(release, request.prefix), "")
        if real_store.startswith(directory):
            raise OverlayError(
                f"store {request.store} is inside the release {directory[:-1]}: a release never changes, so keep manifests elsewhere"
            )


def for_each(
    manifests: Sequence[ReleaseManifest], step: Callable[[ReleaseManifest], None], note: Callable[[str], None]
) -> None:
    """Call ``step`` for each manifest that has not failed, and record failures, so that one does not affect the others.

    ``note`` is called with the name of the release before each step. After an error of the whole store no further manifest is tried.
    """
    for number, manifest in enumerate(manifests):
        if manifest.failure:
            continue
        try:
            note(f"release {manifest.release}")
            step(manifest)
        except (OverlayError, OSError) as error:
            manifest.failure = error
            if isinstance(error, OSError) and error.errno in _STORE_UNUSABLE:
                for later in manifests[number + 1 :]:
                    if later.plan:
                        later.failure = HostError(f"release {later.release} was not tried after that: {error.strerror}")


def observe(manifest: ReleaseManifest, request: ManifestRequest, progress: Progress) -> None:
    """Read the state of a manifest and plan its change.

    Raises OverlayError if the release cannot have a manifest, the manifest is of another software root, or the release differs from it.
    """
    try:
        record = manifest_store.find_record(manifest.path, manifest.release)
    except OverlayError:
        if request.wanted:
            raise
        # A damaged manifest can be removed.
        record = None
    if record:
        _check_root(manifest, record, request)
    if request.wanted:
        if record:
            record = manifest_store.read_record(manifest.path, manifest.release)
        _check_release(request, manifest.release)
        if record and request.rescan:
            _compare(manifest.path, record, request, progress)
    manifest.before = record
    manifest.after = record if request.wanted else None
    remains = manifest_store.remains(manifest.path)
    outdated = record is None and remains and manifest_store.is_outdated(manifest.path)
    manifest.plan = plan_manifest(manifest.release, request.wanted, record, remains, outdated)
    progress()


def handlers(manifest: ReleaseManifest, request: ManifestRequest, progress: Progress) -> Handlers:
    """Return the handlers that carry out the plan of ``manifest`` and record the result in it."""

    def scan_release(action: ScanRelease) -> None:
        written = manifest_writer.write(
            request.store,
            request.root,
            action.release,
            request.checksum,
            progress,
            request.identity,
            request.ignored,
            request.prefix,
        )
        manifest.after = written.record
        manifest.report = written.report

    return {
        ScanRelease: scan_release,
        RemoveManifest: lambda action: manifest_writer.remove(request.store, action.release),
    }


def _check_release(request: ManifestRequest, release: str) -> None:
    root, path = os.fsencode(request.root), os.fsencode(below_root(release, request.prefix))
    os.close(scan.open_release(root, path))
    if not scan.is_ready(root, path, os.fsencode(request.ready_marker)):
        raise OverlayError(
            f"release {release} is not ready: it has no {request.ready_marker}, so it is still being written or was interrupted"
        )
    marker = scan.negative_marker(root, path)
    if marker is not None:
        raise OverlayError(
            f"release {release} is not ready: {show(os.fsencode(marker))} beside it says that it is being written or is to be ignored"
        )


def _check_root(manifest: ReleaseManifest, record: ManifestRecord, request: ManifestRequest) -> None:
    """Check that a manifest is of this software root. Raises OverlayError if it is of a release at the same path below another one."""
    if record.root != request.identity:
        recorded, requested = (show(os.fsencode(root)) for root in (record.root, request.identity))
        raise OverlayError(
            f"store {request.store} has a manifest of release {manifest.release} of the software root {recorded}, and this is the root"
            f" {requested}: use a separate store for each software root; if both are the same root, set 'root_name' to the recorded name"
        )


def _compare(manifest: str, record: ManifestRecord, request: ManifestRequest, progress: Progress) -> None:
    """Scan a release again. Raises OverlayError with the first differences if the release is not as its manifest."""
    place = os.fsencode(record.release)
    listed, count = manifest_writer.rescan_differences(
        Placement(manifest, record, place, place), request.root, progress, request.ignored, request.prefix
    )
    if count:
        more = f" (and {count - len(listed)} more)" if count > len(listed) else ""
        raise OverlayError(
            f"release {record.release} is no longer what its manifest says, in {count} places; a release must never change:"
            f" {'; '.join(listed)}{more}"
        )
