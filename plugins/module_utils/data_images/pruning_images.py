# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove data images that are not needed any more from a host, and what killed runs have left of others.

An image is renamed aside first, so that nothing can begin to use it, and checked once more; if it is in use then, it gets its name back.
views/usage.py decides what is in use.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing, published
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.files import ASIDE_PREFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import (
    DataImage,
    is_image_id,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import pruning, usage, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths

#: The directory that images are moved to before they are removed.
_REMOVING = "removing"

_SUFFIXES = (published.SUFFIX, published.RECORD_SUFFIX)


@dataclass(frozen=True)
class RemoveInstalledImage(Action):
    """Remove a data image and its record from this host."""

    id: str
    release: str

    def __str__(self) -> str:
        return f"remove data image {self.id} of release {self.release}"


@dataclass(frozen=True)
class RemoveDataRemains(Action):
    """Remove what a killed run has left of data images."""

    path: str

    def __str__(self) -> str:
        return f"remove {self.path}, which a killed run has left"


@dataclass
class DataImagePruning:
    """Which data images are to be removed. It is corrected while it is carried out: an image may come into use meanwhile."""

    state_dir: str
    #: The images to remove, and those that are kept with the reason, by ID.
    removed: dict[str, DataImage] = field(default_factory=dict)
    kept: dict[str, tuple[DataImage, str]] = field(default_factory=dict)
    #: The paths of what killed runs have left.
    remains: list[str] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """The actions, without those that turned out to be impossible."""
        return (
            *(RemoveDataRemains(path) for path in self.remains),
            *(RemoveInstalledImage(image.id, image.release) for image in self.removed.values()),
        )

    def handlers(self, progress: Progress) -> Handlers:
        """Return what carries out the plan, and corrects it for everything that cannot be removed."""
        reasons: dict[str, list[str]] | None = None

        def remove_image(action: RemoveInstalledImage) -> None:
            nonlocal reasons
            if reasons is None:
                # All at once, since it takes a while to find what is in use.
                _put_aside(self.state_dir, self.removed)
                reasons = usage.of_data_images(self.removed, forget=False)
            progress()
            if action.id in reasons:
                _put_back(self.state_dir, action.id)
                self.kept[action.id] = (self.removed.pop(action.id), "; ".join(reasons[action.id]))
            else:
                _remove(self.state_dir, action.id, progress)

        def remove(action: RemoveDataRemains) -> None:
            files.remove(action.path, progress)
            _remove_empty(_removing(self.state_dir))

        return {RemoveInstalledImage: remove_image, RemoveDataRemains: remove}

    def removed_values(self) -> list[dict[str, Any]]:
        """Return the return values that describe the removed images."""
        return [{**_values(image), "bytes": image.bytes_on_disk} for image in self.removed.values()]

    def kept_values(self) -> list[dict[str, Any]]:
        """Return the return values that describe the images that are kept."""
        return [{**_values(image), "reason": reason} for image, reason in self.kept.values()]

    @property
    def before(self) -> list[str]:
        """The images, for the diff."""
        return sorted(map(_line, (*self.removed.values(), *(image for image, _reason in self.kept.values()))))

    @property
    def after(self) -> list[str]:
        """The images that are kept, for the diff."""
        return sorted(_line(image) for image, _reason in self.kept.values())


def _line(image: DataImage) -> str:
    return f"{image.id}: {image.release} ({image.kind})"


def _values(image: DataImage) -> dict[str, Any]:
    return {"id": image.id, "release": image.release, "kind": image.kind}


def prune_data_images(
    state_dir: str,
    keep: Mapping[str, str],
    min_age: float,
    check_mode: bool = False,
    progress: Progress = no_progress,
) -> DataImagePruning:
    """Remove the data images of a state directory that are not in use, and return what was removed and kept; in check mode, what would be.

    ``keep`` maps the IDs of images that are kept to the reasons. Images installed less than ``min_age`` seconds ago are kept as well.
    Raises OverlayError if a record is damaged, or if others than root can write to the directory.
    """
    with locked(state_dir, check_mode, progress):
        found = find_data_images(state_dir, keep, min_age, check_mode)
        if not check_mode:
            handlers = found.handlers(progress)
            for action in found.plan:
                apply(action, handlers)
        return found


@contextlib.contextmanager
def locked(state_dir: str, check_mode: bool, progress: Progress = no_progress) -> Iterator[None]:
    """Hold the lock of the installed data images while the block runs, unless there are none or it is check mode."""
    place = installing.data_directory(state_dir)
    if check_mode or not (trust.check_state_dir(state_dir) and trust.check_own(place, stat.S_IFDIR)):
        yield
        return
    with installing.locked(place, progress):
        yield


def find_data_images(
    state_dir: str, keep: Mapping[str, str], min_age: float, check_mode: bool = False
) -> DataImagePruning:
    """Return which data images can be removed; the parameters are those of ``prune_data_images``.

    The caller has to hold the lock unless it is in check mode. Outside of check mode, images in use that a killed run had moved aside get
    their names back, and records of detached overlays that are not in use any more are removed.
    """
    found = DataImagePruning(state_dir)
    place = installing.data_directory(state_dir)
    if not trust.check_own(place, stat.S_IFDIR):
        return found
    aside = _names_in(_removing(state_dir))
    ids = {image_id for name in (*_names_in(place), *aside) for image_id in [os.path.splitext(name)[0]]}
    uses = usage.of_data_images({image_id for image_id in ids if is_image_id(image_id)}, forget=not check_mode)
    if not check_mode:
        for name in aside:
            if os.path.splitext(name)[0] in uses:
                _put_back(state_dir, os.path.splitext(name)[0])
    for image_id, image in installing.installed(state_dir).items():
        reason = _reason(state_dir, image_id, uses, keep, min_age)
        if reason is None:
            found.removed[image_id] = image
        else:
            found.kept[image_id] = (image, reason)
    found.remains = sorted(_remains(place, {*found.removed, *found.kept, *uses}, min_age))
    return found


def _reason(
    state_dir: str, image_id: str, uses: Mapping[str, list[str]], keep: Mapping[str, str], min_age: float
) -> str | None:
    """Return why an installed image is kept; None if it can be removed."""
    if image_id in uses:
        return "; ".join(uses[image_id])
    if image_id in keep:
        return keep[image_id]
    # A time in the future counts as young: the clock may have been set back.
    if time.time() - os.stat(installing.record_path(state_dir, image_id)).st_mtime < min_age:
        return f"it is younger than {min_age:g} seconds"
    return None


def _remains(place: str, needed: Collection[str], min_age: float) -> Iterator[str]:
    """Yield the paths that killed runs have left. The lock tells that no run is active. ``needed`` are IDs of images that stay.

    An interrupted copy continues when the image is installed again, so it is kept for ``min_age`` seconds.
    """
    for name in _names_in(place):
        path = os.path.join(place, name)
        if name == installing.INCOMING:
            parts = [path, *(os.path.join(path, part) for part in _names_in(path))]
            if time.time() - max(os.lstat(part).st_mtime for part in parts) >= min_age:
                yield path
        elif name == _REMOVING:
            inside = _names_in(path)
            yield from (os.path.join(path, one) for one in inside if os.path.splitext(one)[0] not in needed)
            if not inside:
                yield path
        elif _is_left(path, needed):
            yield path


def _is_left(path: str, needed: Collection[str]) -> bool:
    """Return whether a path is that of an unfinished file, of a part of an image, or of the empty mountpoint of an image at boot."""
    name = os.path.basename(path)
    image_id, suffix = os.path.splitext(name)
    if name.startswith(ASIDE_PREFIX):
        return True
    if not is_image_id(image_id) or image_id in needed:
        return False
    return suffix in _SUFFIXES or (os.path.isdir(path) and not os.path.ismount(path) and not _names_in(path))


def images_of_views(state_dir: str) -> dict[str, str]:
    """Map the IDs of the installed data images that views may be mounted with to the reasons.

    For each release of the current and the previous generation of a view, these are the newest image of each kind. Raises OverlayError if
    a record is damaged.
    """
    newest: dict[tuple[str, str, str, str], tuple[float, str]] = {}
    for image_id, image in installing.installed(state_dir).items():
        of = (image.root_name, image.source, image.manifest_digest, image.kind)
        installed_at = os.stat(installing.record_path(state_dir, image_id)).st_mtime
        newest[of] = max(newest.get(of, (0.0, "")), (installed_at, image_id))
    by_release: dict[tuple[str, ...], list[str]] = {}
    for (*release, _kind), (_time, image_id) in newest.items():
        by_release.setdefault(tuple(release), []).append(image_id)
    found: dict[str, str] = {}
    for name in pruning.view_names(state_dir):
        for generation in _generations(ViewPaths.of(state_dir, name)):
            for one in generation.releases:
                for image_id in by_release.get((one["root"], one["source"], one["digest"]), ()):
                    found.setdefault(image_id, f"view {name} shows its release")
    return found


def _generations(paths: ViewPaths) -> list[Generation]:
    """Return the current and the previous generation of a view, as far as they are there."""
    state = view_state.observe(paths)
    names = [name for name in (state.current, state.previous) if name in state.generations]
    return [view_state.read_generation(paths, name) for name in names if name]


def _put_aside(state_dir: str, ids: Collection[str]) -> None:
    """Rename images aside, so that nothing refers to them any more."""
    files.make_directories(_removing(state_dir), 0o700)
    for image_id in ids:
        os.rename(installing.data_image_path(state_dir, image_id), _aside(state_dir, image_id))


def _removing(state_dir: str) -> str:
    return os.path.join(installing.data_directory(state_dir), _REMOVING)


def _aside(state_dir: str, image_id: str) -> str:
    return os.path.join(_removing(state_dir), image_id + published.SUFFIX)


def _put_back(state_dir: str, image_id: str) -> None:
    os.rename(_aside(state_dir, image_id), installing.data_image_path(state_dir, image_id))
    _remove_empty(_removing(state_dir))


def _remove(state_dir: str, image_id: str, progress: Progress) -> None:
    """Remove an image that was put aside, its record first, and the mountpoint that it may have at boot."""
    os.unlink(installing.record_path(state_dir, image_id))
    files.remove(_aside(state_dir, image_id), progress)
    _remove_empty(_removing(state_dir))
    _remove_empty(os.path.join(installing.data_directory(state_dir), image_id))


def _names_in(place: str) -> list[str]:
    try:
        return sorted(os.listdir(place))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_empty(place: str) -> None:
    """Remove a directory if it exists and is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(place)
