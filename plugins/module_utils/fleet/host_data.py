# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the data images of a view on its host, and choose the data layers that it is mounted with.

A data image that does not fit, or cannot be installed, is left out with a warning: its files are read from the software root.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import (
    coverage,
    installing,
    pruning_images,
    published,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.pruning_images import DataImagePruning
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import data_choice, status_file
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import (
    DataChoice,
    LockedImage,
    Space,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MOST_LAYERS
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.locations import shown
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import layer_parameters, pruning
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_sources import Source
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths

#: Bytes that are installed before a mounted view is switched to what is there.
PASS_BYTES = 4 << 30
_LOWER_LAYERS = 1
#: Releases that a warning names.
_MOST_NAMED = 5


class NotCoveredError(OverlayError):
    """The data images of a view do not have all of its content."""


@dataclass(frozen=True)
class InstallDataImage(Action):
    """Copy a data image to this host."""

    image: LockedImage

    def __str__(self) -> str:
        return f"install data image {self.image.id} of release {self.image.release} ({self.image.bytes_on_disk} bytes)"


@dataclass
class HostData:
    """The data images of one view on this host."""

    view: Mapping[str, Any]
    #: The images that the view is to have, the hottest first.
    wanted: tuple[LockedImage, ...]
    choice: DataChoice
    #: Those that are installed, by ID; in check mode also those that would be.
    installed: dict[str, DataImage | LockedImage]
    #: Those that the view is mounted without, each with the reason.
    left_out: dict[str, str] = field(default_factory=dict)
    #: Why the view cannot stand without the software root although it is to; empty otherwise.
    problem: str = ""

    @property
    def is_used(self) -> bool:
        """Whether the view has data images."""
        return bool(self.view["data_images"] != data_choice.NONE)

    @property
    def wants_to_detach(self) -> bool:
        """Whether the view is to stand without the software root."""
        return bool(self.view["data_images"] == data_choice.ONLY)

    @property
    def present(self) -> list[LockedImage]:
        """The images that the view is mounted with, in the order of their layers, which does not change when one is added."""
        return sorted((one for one in self.wanted if one.id in self.installed), key=lambda one: (one.release, one.id))

    def layers(self, with_root: bool = True) -> list[str]:
        """Return the paths of the data layers: the images, and then those that are declared. The software root is the last of these."""
        images = [installing.data_image_path(self.view["state_dir"], image.id) for image in self.present]
        declared: list[str] = self.view["data"] if with_root else self.view["data"][:-1]
        return [*images, *declared]

    def values(self) -> list[dict[str, Any]]:
        """Return the return values that describe the images."""
        return [
            {"release": one.release, "id": one.id, "bytes_on_disk": one.bytes_on_disk, "complete": one.complete}
            for one in self.present
        ]

    def warning(self) -> str:
        """Return a sentence about the releases whose files are read from the software root although the view wants a data image."""
        named = [f"{release} ({reason})" for release, reason in sorted(self.left_out.items())]
        if not named:
            return ""
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        return (
            f"view {self.view['name']}: {len(named)} of its releases have no data image on this host, and their files are read from the"
            f" software root: {', '.join(named[:_MOST_NAMED])}{more}"
        )


def prepare(view: Mapping[str, Any], source: Source) -> HostData:
    """Return the data images that a view is to have when it shows the generation of ``source``. None of them is installed yet.

    No file server is asked. ``view`` has all views of the run as ``companions``. Raises OverlayError if the record of an installed image is
    damaged, or if ``data_keep_free`` is not usable.
    """
    if view["data_images"] == data_choice.NONE:
        return HostData(view, (), DataChoice(), {})
    there = _installed(view)
    images, left_out = _images(view, source, there)
    wanted, too_many = data_choice.as_layers(images, there, _LOWER_LAYERS + len(view["data"]))
    left_out.update({image.release: f"an overlay has at most {MOST_LAYERS} layers" for image in too_many})
    others = [other for other in view["companions"] if _shares(view, other)]
    choice, _room = _choice([view, *others], {view["name"]: wanted}, there, _shown_by_others(view))
    left_out.update({image.release: choice.reason(image) for image in wanted if choice.reason(image)})
    installed: dict[str, DataImage | LockedImage] = {
        image.id: there[image.id] for image in wanted if image.id in there and not choice.reason(image)
    }
    return HostData(view, wanted, choice, installed, left_out)


def _installed(view: Mapping[str, Any]) -> dict[str, DataImage]:
    """Return the installed images that a view can be mounted with, by ID."""
    state_dir = view["state_dir"]
    return {
        image_id: image
        for image_id, image in installing.installed(state_dir).items()
        if not view["require_verity"] or files.has_verity(installing.data_image_path(state_dir, image_id))
    }


def _images(
    view: Mapping[str, Any], source: Source, installed: Mapping[str, DataImage]
) -> tuple[tuple[LockedImage, ...], dict[str, str]]:
    """Return the images for the releases of a view, and the releases that have none, each with the reason."""
    releases = [release["release"] for release in source.releases]
    if source.strategy == strategies.REDIRECT:
        return (), dict.fromkeys(releases, "strategy redirect has no data-only layers")
    if view["locked_generation"] in (None, source.generation):
        images, reason = data_choice.images_of(view["data_images"], _locked(view)), "the lock has none"
    else:
        # After a rollback, the lock is that of another generation.
        images = tuple(_of_releases(view["data_images"], source.releases, installed))
        reason = "none is installed here, and another generation than the locked one is shown"
    known = {image.release for image in images}
    return images, {release: reason for release in releases if release not in known}


def _choice(
    views: Sequence[Mapping[str, Any]],
    wanted: Mapping[str, Sequence[LockedImage]],
    there: Mapping[str, DataImage],
    shown: set[str],
) -> tuple[DataChoice, Space]:
    """Return which images the host has for views of one state directory, and the space for them.

    ``wanted`` has what views want, by name; the others want what the lock has for them. ``there`` are the installed images, by ID.
    ``shown`` are the IDs of those that other views of the host are mounted with.
    """
    required: list[LockedImage] = []
    optional: list[LockedImage] = []
    for view in views:
        images = wanted.get(view["name"])
        if images is None:
            images = data_choice.images_of(view["data_images"], _locked(view))
        (required if view["data_images"] == data_choice.ONLY else optional).extend(images)
    sizes = {image.id: image.bytes_on_disk for image in there.values()}
    wanted_ids = {one.id for one in (*required, *optional)}
    space = _space(views, sum(sizes[one] for one in sizes.keys() & shown - wanted_ids))
    return data_choice.choose(required, optional, sizes, space), space


def install(
    host: HostData,
    check_mode: bool,
    progress: Progress,
    carry_out: Callable[[Plan, Handlers], None],
    explain: Callable[[OverlayError | OSError], str],
) -> Iterator[tuple[Action, bool]]:
    """Install the images of a view that are chosen and not there, the hottest first.

    Yield each action that is carried out, or in check mode would be, with whether a pass ends there: so much is installed that it is worth
    a switch. An image that cannot be installed is left out, with the reason.
    """
    mine = {image.id for image in host.wanted}
    pending = 0
    for image in host.choice.install:
        if image.id not in mine:
            continue
        action = InstallDataImage(image)
        try:
            carry_out((action,), {InstallDataImage: lambda one: _install(host, one.image, progress)})
        except (OverlayError, OSError) as error:
            host.left_out[image.release] = _reason(error, explain)
            continue
        host.installed.setdefault(image.id, image)
        pending += image.bytes_on_disk
        yield action, pending >= PASS_BYTES and not check_mode
        pending = 0 if pending >= PASS_BYTES else pending


def check_covered(host: HostData, layer: str, namespace: str, seconds: float, progress: Progress) -> None:
    """Check that the images of a view have the content of everything in ``layer``, the path of its layer.

    Raises NotCoveredError naming the first files that would have no content without the software root.
    """
    state_dir = host.view["state_dir"]
    sources = {
        os.fsencode(found.source): os.fsencode(installing.data_image_path(state_dir, one.id))
        for one in host.present
        for found in [host.installed[one.id]]
        if isinstance(found, DataImage)
    }
    found = coverage.check(os.fsencode(layer), sources, namespace, seconds, progress)
    if found.missing:
        without = host.warning()
        raise NotCoveredError(
            f"{found.missing} of {found.files} files with content are in no data image here, so it cannot stand without the software root:"
            f" {found.listed()}{'; ' + without if without else ''}"
        )


def find_unneeded(view: Mapping[str, Any], check_mode: bool) -> DataImagePruning:
    """Return which data images of the state directory of a view can be removed. The caller has to hold their lock unless it is check mode.

    Images of the current and the previous generation of a view stay, and so do those that were installed less than ``min_age`` seconds ago,
    unless there are too many for the budget or the disk. What is in use stays.
    """
    state_dir = view["state_dir"]
    there = installing.installed(state_dir)
    views = [other for other in view["companions"] if _shares(view, other)]
    if view["state"] == "mounted" and view["data_images"] != data_choice.NONE:
        views = [view, *views]
    shown = _shown_by_others(view) if there else set()
    keep = dict.fromkeys(shown, "a view shows it")
    min_age = view["min_age"]
    if views and there:
        choice, space = _choice(views, {}, there, shown)
        keep.update(dict.fromkeys(choice.ids, "a view shows it"))
        total = sum(image.bytes_on_disk for image in there.values())
        if space.free < space.keep_free or (space.budget is not None and total > space.budget):
            min_age = 0
        elif set(there) - set(keep):
            left_out = {image.id for image, _reason in choice.left_out}
            earlier = pruning_images.images_of_views(state_dir).items()
            keep.update({image_id: reason for image_id, reason in earlier if image_id not in left_out})
    if not set(there) - set(keep):
        # To find what is in use takes a while.
        return DataImagePruning(state_dir)
    return pruning_images.find_data_images(state_dir, keep, min_age, check_mode)


def _install(host: HostData, image: LockedImage, progress: Progress) -> None:
    store = host.view["image_store"]
    if store is None:
        raise OverlayError("image_store is not given")
    access = layer_parameters.access(host.view)
    record = published.find_by_id(store, image.release, image.id, access)
    if record is None or record.digest != image.digest:
        raise OverlayError(f"{shown(published.release_directory(store, image.release))} has no data image {image.id}")
    installing.install(
        store, record, host.view["state_dir"], progress, access, require_verity=host.view["require_verity"]
    )
    host.installed[image.id] = record


def _reason(error: OverlayError | OSError, explain: Callable[[OverlayError | OSError], str]) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return explain(error)


def _locked(view: Mapping[str, Any]) -> list[LockedImage]:
    return [LockedImage.from_dict(one) for one in view["locked_data_images"]]


def _shares(view: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether another view of the run has data images in the same state directory."""
    has_images = other["state"] == "mounted" and other["data_images"] != data_choice.NONE
    return bool(has_images and other["name"] != view["name"] and other["state_dir"] == view["state_dir"])


def _of_releases(
    kind: str, releases: Iterable[Mapping[str, Any]], installed: Mapping[str, DataImage]
) -> Iterator[LockedImage]:
    """Yield the installed image of each release that suits a view best. Each release is given with the digest of its manifest."""
    wanted = data_choice.EVERYTHING if kind == data_choice.ONLY else kind
    for release in releases:
        found = [
            image
            for image in installed.values()
            if (image.release, image.manifest_digest) == (release["release"], release["digest"])
        ]
        found.sort(key=lambda image: (image.kind != wanted, not image.complete, image.id))
        for image in found[:1]:
            yield LockedImage(image.release, wanted, image.digest, image.bytes_on_disk, image.opens, image.complete)


def _space(views: Sequence[Mapping[str, Any]], bytes_of_others: int) -> Space:
    """Return the space for the data images of views. ``bytes_of_others`` is the size of those that only other views of the host show."""
    place = installing.data_directory(views[0]["state_dir"])
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    status = os.statvfs(place)
    try:
        keep_free = max(
            data_choice.bytes_to_keep_free(view["data_keep_free"], status.f_blocks * status.f_frsize) for view in views
        )
    except ValueError as error:
        raise OverlayError(f"data_keep_free: {error}, a percentage of the disk, or 0") from None
    budgets = [view["data_budget"] for view in views if view["data_budget"]]
    return Space(
        min(budgets) if budgets else None,
        status.f_bavail * status.f_frsize,
        keep_free,
        bytes_of_others,
    )


def _shown_by_others(view: Mapping[str, Any]) -> set[str]:
    """Return the IDs of the data images that views of the host were mounted with last, besides those for which this run decides."""
    state_dir = view["state_dir"]
    decided = {
        one["name"]
        for one in (view, *view["companions"])
        if one["locked_data_images"] or one["data_images"] == data_choice.NONE or one["state"] != "mounted"
    }
    found: set[str] = set()
    for name in pruning.view_names(state_dir):
        status = None if name in decided else status_file.find(ViewPaths.of(state_dir, name))
        for layer in status.mount["data"] if status and status.mount else ():
            found.add(os.path.splitext(os.path.basename(layer))[0])
    return found
