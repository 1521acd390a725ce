# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repair a generation of a view, and the data images that it is shown with, and switch the overlays that have them.

A damaged layer is built again from its manifests. A damaged image is copied again from its image store, or built again if the store does
not have it. What is new is complete before it takes the place of what is damaged.

The damaged layer is renamed aside first, and stays there if an overlay that was switched away still needs it. A killed run leaves
the old layer or the new one under the name of the generation, or none if it is killed between the two renames; then the next deployment
makes it again. A data image is replaced in one step.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing, published
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mount_lock, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import SwitchOverlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.locations import shown
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores.web_client import SYSTEM, Access
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import subjects
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import DATA_IMAGE, LAYER, Findings
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.subjects import Subject
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verified_files import Journal
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    generation_files,
    generations,
    image_store,
    removal,
    usage,
    view_state,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths, record_path

#: The name of the layer that is being built. It is that of no generation, so nothing takes it for one in use.
_STAGED = "repair"
#: Seconds that the kernel may take to free an overlay that was detached, and between two looks.
_MOMENT_SECONDS = 1.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class RebuildLayer(Action):
    """Build the layer of a generation again, in the place of the damaged one."""

    view: str
    generation: str

    def __str__(self) -> str:
        return f"build generation {self.generation} of view {self.view} again"


@dataclass(frozen=True)
class CopyLayer(Action):
    """Copy the image of a generation from its image store, in the place of the damaged one."""

    view: str
    generation: Generation
    #: The path or address of the image.
    image: str

    def __str__(self) -> str:
        return f"copy generation {self.generation.id} of view {self.view} again from {shown(self.image)}"


@dataclass(frozen=True)
class CopyDataImage(Action):
    """Copy a data image from its image store, in the place of the damaged one."""

    image: DataImage

    def __str__(self) -> str:
        return f"copy data image {self.image.id} of release {self.image.release} again"


@dataclass(frozen=True)
class RepairSources:
    """What a generation is made of again."""

    #: The declaration of the layer; None if manifests are missing.
    spec: LayerSpec | None = None
    #: The path or address of the image store; None if there is none.
    image_store: str | None = None
    access: Access = SYSTEM


def plan(subject: Subject, findings: Findings, sources: RepairSources) -> Plan:
    """Return the actions that repair a generation and its data images.

    Raises OverlayError if one cannot be made again, or if an overlay that has one cannot be switched.
    """
    actions: list[Action] = []
    live = {}
    if LAYER in findings.mended:
        actions.append(_remaking(subject, sources))
        live = {mount.id: (subject, mount) for mount in subject.mounts}
    images = [os.fsdecode(problem.path) for problem in findings.mended_by(DATA_IMAGE)]
    actions += [CopyDataImage(_data_image(subject, path, sources)) for path in images]
    if images:
        live.update((mount.id, (other, mount)) for other, mount in subjects.with_data_layers(subject, images))
    method = "beneath" if mounts.can_mount_beneath() else "over"
    for other, mount in live.values():
        if overlay_layers(mount).upper is not None:
            raise OverlayError(
                f"the overlay at {show(mount.path)} has an upper layer, so it cannot be switched while it is in use: unmount it, and"
                " repair the view then"
            )
        actions.append(SwitchOverlay(other.spec(mount), method))
    return tuple(actions)


def _remaking(subject: Subject, sources: RepairSources) -> Action:
    """Return the action that makes the layer again. A copy has the same digest, and one that is built here may have another."""
    name = subject.paths.name
    reason = ""
    if subject.is_image and sources.image_store is not None:
        there = subjects.generation(subject)
        image = image_store.image_path(sources.image_store, there.id)
        try:
            found = image_store.read(image, there.image.digest if there.image else "", sources.access)
            return CopyLayer(name, found, image)
        except OverlayError as error:
            reason = f"; {error}"
    if sources.spec is None:
        also = ", or 'image_store' with its image" if subject.is_image else ""
        raise OverlayError(f"view {name} cannot be repaired: give 'store' with all of its manifests{also}{reason}")
    return RebuildLayer(name, subject.name.id)


def _data_image(subject: Subject, path: str, sources: RepairSources) -> DataImage:
    """Return the data image with this path as its image store has it. Raises OverlayError if the store does not have it."""
    state_dir, image_id = subject.state_dir, os.path.splitext(os.path.basename(path))[0]
    there = installing.recorded(state_dir, image_id)
    if there is None:
        raise OverlayError(f"data image {path} cannot be repaired, since it has no record: deploy the view again")
    if sources.image_store is None:
        raise OverlayError(f"data image {path} cannot be repaired: give 'image_store'")
    found = published.find_by_id(sources.image_store, there.release, image_id, sources.access)
    if found is None or found.digest != there.digest:
        place = shown(published.image_path(sources.image_store, there))
        raise OverlayError(f"data image {path} cannot be repaired: {place} is missing, incomplete or another image")
    return found


def handlers(subject: Subject, sources: RepairSources, seconds: float, progress: Progress) -> Handlers:
    """Return what carries out ``plan``. It waits up to ``seconds`` for other runs on the view and at the mountpoint."""
    replaced = _devices(subject)

    def rebuild(_action: RebuildLayer) -> None:
        if sources.spec is None:
            raise OverlayError(f"view {subject.paths.name} cannot be built again without its manifests: give 'store'")
        with view_state.locked(subject.paths, seconds, progress):
            composition = generations.composed(sources.spec, progress)
            with _replacing(subject.paths, subject.directory, progress) as staged:
                made, _report = generations.build_layer(staged, sources.spec, None, composition, progress)
                generation_files.write(record_path(staged), made)

    def copy_layer(action: CopyLayer) -> None:
        with view_state.locked(subject.paths, seconds, progress):
            image_store.install(
                subject.paths, action.image, action.generation, progress, sources.access, staged=_replacing
            )

    def copy_data_image(action: CopyDataImage) -> None:
        store = sources.image_store or ""
        installing.install(store, action.image, subject.state_dir, progress, sources.access, replaces=True)

    def switch(action: SwitchOverlay) -> None:
        with mount_lock.held(action.spec.path, seconds, progress):
            mounts.HANDLERS[SwitchOverlay](action)
        if os.path.lexists(_aside(subject.paths, subject.directory)):
            with view_state.locked(subject.paths, seconds, progress):
                _remove_replaced(subject, replaced, progress)

    return {RebuildLayer: rebuild, CopyLayer: copy_layer, CopyDataImage: copy_data_image, SwitchOverlay: switch}


def _devices(subject: Subject) -> set[tuple[int, int]]:
    """Return the devices of the overlays that show a generation, in any mount namespace."""
    return {
        mount.device
        for _pid, live in namespaces.everywhere()
        for mount in live
        if mount.fstype == b"overlay" and overlay_layers(mount).lower[:1] == (subject.layer,)
    }


def _remove_replaced(subject: Subject, devices: Collection[tuple[int, int]], progress: Progress) -> None:
    """Remove the damaged layer if the overlays with these devices, which have it, are gone.

    An overlay that was detached is gone when no process uses it, which takes the kernel a moment.
    """
    end = time.monotonic() + _MOMENT_SECONDS
    while any(syscalls.has_superblock(device) is not False for device in devices):
        if time.monotonic() > end:
            return
        progress()
        time.sleep(_POLL_SECONDS)
    if any(subject.layer in overlay.lower for overlay, _processes in detached.in_use(forget=False)):
        return
    files.remove(_aside(subject.paths, subject.directory), progress)
    os.rmdir(subject.paths.removing)


def _aside(paths: ViewPaths, directory: str) -> str:
    """Return the path of a damaged layer that was replaced."""
    return os.path.join(paths.removing, directory)


@contextlib.contextmanager
def _replacing(paths: ViewPaths, directory: str, progress: Progress) -> Iterator[str]:
    """Provide an empty directory in which to make a generation, which then takes the place of the damaged one."""
    aside = _aside(paths, directory)
    if os.path.lexists(aside):
        raise OverlayError(
            f"{aside} is a layer that an earlier repair has replaced while a process used it: remove it when that process has ended, and"
            " repair the view then"
        )
    removal.clear(paths, paths.staging, progress)
    staged = os.path.join(paths.staging, _STAGED)
    try:
        files.make_directories(staged, 0o755)
        yield staged
        files.sync_file_system(os.fsencode(staged))
        files.make_directories(paths.removing, 0o755)
        os.rename(paths.generation(directory), aside)
        os.rename(staged, paths.generation(directory))
    except BaseException:
        # The first error is the one to report. If the directory cannot be removed now, the next build removes it.
        with contextlib.suppress(OSError):
            files.remove_tree(paths.staging, progress)
        raise
    files.sync_directory(paths.generations)
    os.rmdir(paths.staging)
    # An interrupted verification has findings of the damaged layer.
    Journal(paths, "").remove()
    if directory not in usage.of_generations(paths, forget=False):
        files.remove(aside, progress)
        os.rmdir(paths.removing)
