# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Repair a generation of a view: build its layer again, put it in the place of the damaged one, and switch the overlays that show it.

The damaged layer is renamed aside first, and stays there if an overlay that was switched away still needs it. A killed run leaves
the old layer or the new one under the name of the generation, or none if it is killed between the two renames; then the next deployment
makes it again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mount_lock, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import SwitchOverlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.subjects import Subject
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verified_files import Journal
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    generation_files,
    generations,
    removal,
    usage,
    view_state,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import record_path

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


def plan(subject: Subject, spec: LayerSpec | None) -> Plan:
    """Return the actions that repair a generation. ``spec`` is its declaration; None if manifests are missing.

    Raises OverlayError if it cannot be built, or if an overlay that shows it cannot be switched.
    """
    if spec is None:
        raise OverlayError(f"view {subject.paths.name} cannot be repaired: give 'store' with all of its manifests")
    switches = []
    for mount in subject.mounts:
        if overlay_layers(mount).upper is not None:
            raise OverlayError(
                f"the overlay at {show(mount.path)} has an upper layer, so it cannot be switched while it is in use: unmount it, and"
                " repair the view then"
            )
        method = "beneath" if mounts.can_mount_beneath() else "over"
        switches.append(SwitchOverlay(subject.spec(mount), method))
    return (RebuildLayer(subject.paths.name, subject.name.id), *switches)


def handlers(subject: Subject, spec: LayerSpec, seconds: float, progress: Progress) -> Handlers:
    """Return what carries out ``plan``. It waits up to ``seconds`` for other runs on the view and at the mountpoint."""

    def rebuild(_action: RebuildLayer) -> None:
        with view_state.locked(subject.paths, seconds, progress):
            _rebuild(subject, spec, progress)

    replaced = _devices(subject)

    def switch(action: SwitchOverlay) -> None:
        with mount_lock.held(action.spec.path, seconds, progress):
            mounts.HANDLERS[SwitchOverlay](action)
        with view_state.locked(subject.paths, seconds, progress):
            _remove_replaced(subject, replaced, progress)

    return {RebuildLayer: rebuild, SwitchOverlay: switch}


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
    aside = os.path.join(subject.paths.removing, subject.directory)
    end = time.monotonic() + _MOMENT_SECONDS
    while any(syscalls.has_superblock(device) is not False for device in devices):
        if time.monotonic() > end:
            return
        progress()
        time.sleep(_POLL_SECONDS)
    if any(subject.layer in overlay.lower for overlay, _processes in detached.in_use(forget=False)):
        return
    files.remove(aside, progress)
    os.rmdir(subject.paths.removing)


def _rebuild(subject: Subject, spec: LayerSpec, progress: Progress) -> None:
    paths, directory = subject.paths, subject.directory
    aside = os.path.join(paths.removing, directory)
    if os.path.lexists(aside):
        raise OverlayError(
            f"{aside} is a layer that an earlier repair has replaced while a process used it: remove it when that process has ended, and"
            " repair the view then"
        )
    removal.clear(paths, paths.staging, progress)
    staged = os.path.join(paths.staging, _STAGED)
    files.make_directories(staged, 0o755)
    made, _report = generations.build_layer(staged, spec, None, generations.composed(spec, progress), progress)
    generation_files.write(record_path(staged), made)
    files.sync_file_system(os.fsencode(staged))
    files.make_directories(paths.removing, 0o755)
    os.rename(paths.generation(directory), aside)
    os.rename(staged, paths.generation(directory))
    files.sync_directory(paths.generations)
    os.rmdir(paths.staging)
    # An interrupted verification has findings of the damaged layer.
    Journal(paths, "").remove()
    if directory not in usage.of_generations(paths, forget=False):
        files.remove(aside, progress)
        os.rmdir(paths.removing)
