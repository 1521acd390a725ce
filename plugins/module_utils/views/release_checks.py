# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check whether releases can be shown in a view: they exist, are ready, have a manifest and match it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, mentions
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, sampling, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    ManifestRecord,
    Placement,
    below_root,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import IgnoredNames

#: The number of releases that a message names.
_NAMED = 5

_REMEDY = (
    "a release never changes, so publish this under a new version; if the change is intended, remove the manifest"
    " (release_manifest with state: absent) and deploy again"
)


@dataclass(frozen=True)
class ReleaseSource:
    """Where releases and their manifests are."""

    root: str
    store: str
    ready_marker: str
    #: Names that are no part of a release.
    ignored: IgnoredNames = field(default_factory=IgnoredNames)
    #: What the names of releases have before their path below the root (``entries.below_root``).
    prefix: str = ""

    def record(self, release: str) -> ManifestRecord:
        """Return the record of the manifest of a release. Raises ManifestError if there is no complete manifest."""
        return manifest_store.read_record(manifest_store.manifest_path(self.store, release))


@dataclass(frozen=True)
class RootSources:
    """Where the releases of a view are, which may be on several software roots."""

    #: By the first part of the name of a release; a single root has the prefix "" instead.
    sources: Mapping[str, ReleaseSource]

    @classmethod
    def of(cls, view: Mapping[str, Any]) -> RootSources:
        """Return where the releases of a view are; ``view`` has the parameters of view_lock."""
        ignored = IgnoredNames(view["ignore_names"])
        if not view["roots"]:
            return cls({"": ReleaseSource(view["root"], view["store"], view["ready_marker"], ignored)})
        return cls(
            {
                root["name"]: ReleaseSource(root["path"], view["store"], root["ready_marker"], ignored, root["name"])
                for root in view["roots"]
            }
        )

    def of_release(self, release: str) -> ReleaseSource:
        """Return where a release is. Raises OverlayError if its software root is not declared."""
        prefix = "" if "" in self.sources else release.partition("/")[0]
        if prefix not in self.sources:
            raise OverlayError(
                f"release {release} is of none of the declared software roots ({', '.join(self.sources)}): the name of a release begins"
                " with that of its root"
            )
        return self.sources[prefix]


def why_unusable(source: ReleaseSource, release: str) -> str:
    """Return why a release cannot be shown, empty if it can: it is deleted, was withdrawn, or has no complete manifest."""
    root, path = os.fsencode(source.root), os.fsencode(below_root(release, source.prefix))
    try:
        _check_presence(scan.open_release(root, path), release)
        if not scan.is_ready(root, path, os.fsencode(source.ready_marker)):
            return f"release {release} is not ready: it has no {source.ready_marker}, so it was withdrawn or is still being written"
        source.record(release)
    except OverlayError as error:
        return str(error)
    except PermissionError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _check_presence(fd: int, release: str) -> None:
    """Ask the file server for the directory of a release, and close ``fd``. Raises OverlayError if the directory was deleted."""
    try:
        syscalls.refresh(fd)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise OverlayError(f"release {release} was deleted on the file server") from None
    finally:
        os.close(fd)


def check_declared(
    view: str,
    sources: RootSources,
    releases: Iterable[str],
    sample: int,
    note: Callable[[str], None],
    progress: Progress,
) -> None:
    """Check the declared releases of a view, and compare ``sample`` entries of each with its manifest.

    ``note`` is called with the name of each release first. Raises OverlayError naming the releases that cannot be shown or have changed.
    """
    problems = []
    for release in dict.fromkeys(releases):
        note(f"release {release}")
        source = sources.of_release(release)
        problem = why_unusable(source, release)
        if not problem and sample:
            problem = _changes(source, release, sample, progress)
        if problem:
            problems.append(problem if mentions(problem, release) else f"release {release}: {problem}")
        progress()
    if problems:
        more = f" (and {len(problems) - _NAMED} more releases)" if len(problems) > _NAMED else ""
        raise OverlayError(f"view {view}: {'; '.join(problems[:_NAMED])}{more}")


def _changes(source: ReleaseSource, release: str, sample: int, progress: Progress) -> str:
    """Return how a release differs from its manifest, empty if no entry of the sample does."""
    place = os.fsencode(release)
    below = os.fsencode(below_root(release, source.prefix))
    placement = Placement(manifest_store.manifest_path(source.store, release), source.record(release), place, below)
    found = sampling.sample_differences(placement, source.root, sample, source.ready_marker, progress, source.ignored)
    return f"release {release} is no longer what its manifest says: {', '.join(found)}; {_REMEDY}" if found else ""


def unusable_releases(
    sources: RootSources, declared: Sequence[str], leaving: Iterable[str], progress: Progress
) -> dict[str, str]:
    """Return the releases of ``leaving`` that cannot linger, each with the reason.

    Besides those that cannot be shown, these are releases of another software root than the ``declared`` ones, or than those of the view.
    """
    single = sources.sources.get("")
    root = single.record(declared[0]).root if declared and single else None
    reasons = {}
    for release in leaving:
        try:
            source = sources.of_release(release)
        except OverlayError as error:
            reasons[release] = str(error)
            continue
        reason = why_unusable(source, release)
        if not reason and root not in (None, source.record(release).root):
            reason = f"release {release} is of another software root than the releases of the view"
        if reason:
            reasons[release] = reason
        progress()
    return reasons
