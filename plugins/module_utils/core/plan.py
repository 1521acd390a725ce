# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: from what is wanted and what is there to the actions that are needed.

A plan is a tuple of actions. Nothing is changed when it is empty, ``changed`` is that it is not, and check mode is to make it and
not carry it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.generation import id_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import ManifestRecord
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.options import (
    SCRATCH_PLACE,
    MountSpec,
    differences,
    shown,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.upper import (
    UpperState,
    check_separate,
    check_upper,
    inside,
)


class Action:
    """One step of a plan; its string is what the user reads."""


Plan = tuple[Action, ...]


# Manifests


@dataclass(frozen=True)
class ScanRelease(Action):
    release: str
    #: Whether there is a manifest that an older version of the collection made.
    outdated: bool = False

    def __str__(self) -> str:
        again = " again, since an older version of the collection made its manifest" if self.outdated else ""
        return f"scan release {self.release}{again}"


@dataclass(frozen=True)
class RemoveManifest(Action):
    release: str

    def __str__(self) -> str:
        return f"remove the manifest of release {self.release}"


def plan_manifest(
    release: str, wanted: bool, record: ManifestRecord | None, remains: bool, outdated: bool = False
) -> Plan:
    """``record`` is that of a whole manifest; ``remains`` tells whether any part of a manifest is there.

    ``outdated`` tells whether that is one which an older version of the collection made.
    """
    if wanted:
        return () if record else (ScanRelease(release, outdated),)
    return (RemoveManifest(release),) if remains else ()


# Layers


@dataclass(frozen=True)
class BuildGeneration(Action):
    generation: str
    #: ``directory`` or ``erofs``.
    format: str

    def __str__(self) -> str:
        return f"build generation {self.generation} ({self.format})"


@dataclass(frozen=True)
class InstallGeneration(Action):
    generation: str
    #: Path of the image that it is installed from.
    image: str

    def __str__(self) -> str:
        return f"install generation {self.generation} from {self.image}"


@dataclass(frozen=True)
class PublishImage(Action):
    image: str

    def __str__(self) -> str:
        return f"build image {self.image}"


@dataclass(frozen=True)
class MakeCurrent(Action):
    #: The generation's folder.
    folder: str
    #: That of the generation that becomes the previous one; None when there was none or it is the same.
    previous: str | None

    def __str__(self) -> str:
        return f"make generation {id_of(self.folder)} current"


@dataclass(frozen=True)
class RemoveView(Action):
    name: str

    def __str__(self) -> str:
        return f"remove all generations of view {self.name}"


@dataclass(frozen=True)
class RemoveGeneration(Action):
    view: str
    folder: str

    def __str__(self) -> str:
        return f"remove generation {id_of(self.folder)} of view {self.view}"


@dataclass(frozen=True)
class RemoveRemains(Action):
    view: str
    path: str

    def __str__(self) -> str:
        return f"remove what a killed run has left at {self.path}"


@dataclass(frozen=True)
class ViewState:
    """What is there of a view: its finished generations, and which of them is current and was before."""

    exists: bool
    #: By the names of their folders, as are the two below.
    generations: frozenset[str]
    current: str | None
    previous: str | None


def plan_layer(folder: str, provide: Action | None, state: ViewState) -> Plan:
    """``provide`` is how a generation that is not there is made; None for one that has to be.

    Raises OverlayError for one that has to be there and is not, as when another run has removed it meanwhile.
    """
    actions: tuple[Action, ...] = ()
    if provide is None and folder not in state.generations:
        raise OverlayError(f"generation {id_of(folder)} is not on this host any more")
    if provide and folder not in state.generations:
        actions += (provide,)
    if folder != state.current:
        actions += (MakeCurrent(folder, state.current),)
    return actions


def plan_view_removal(name: str, state: ViewState, mounted_at: tuple[bytes, ...]) -> Plan:
    """Raises OverlayError while a generation of the view is mounted."""
    if not state.exists:
        return ()
    if mounted_at:
        raise OverlayError(
            f"view {name} is mounted at {', '.join(shown(mounted_at))}: unmount it before its layers are removed"
        )
    return (RemoveView(name),)


# Mounts


@dataclass(frozen=True)
class CreateMountpoint(Action):
    path: bytes

    def __str__(self) -> str:
        return f"create directory {show(self.path)}"


@dataclass(frozen=True)
class CreateUpper(Action):
    """Make the directory for an upper layer, or its work directory."""

    path: bytes
    mode: int

    def __str__(self) -> str:
        return f"create directory {show(self.path)}"


@dataclass(frozen=True)
class MountOverlay(Action):
    spec: MountSpec

    def __str__(self) -> str:
        return f"mount overlay at {show(self.spec.path)}"


@dataclass(frozen=True)
class SwitchOverlay(Action):
    spec: MountSpec
    #: ``beneath``, ``over`` or ``replace``.
    method: str

    def __str__(self) -> str:
        return f"switch the overlay at {show(self.spec.path)} ({self.method})"


@dataclass(frozen=True)
class DetachOverlay(Action):
    """Take away the topmost of several overlays; whoever uses it keeps it."""

    path: bytes

    def __str__(self) -> str:
        return f"detach the topmost overlay at {show(self.path)}, which covers another one"


@dataclass(frozen=True)
class UnmountOverlay(Action):
    path: bytes

    def __str__(self) -> str:
        return f"unmount the overlay at {show(self.path)}"


@dataclass(frozen=True)
class RemoveMountpoint(Action):
    path: bytes

    def __str__(self) -> str:
        return f"remove directory {show(self.path)}"


@dataclass(frozen=True)
class MountpointState:
    """What is there at a mountpoint."""

    #: The topmost mount at the path itself.
    mount: Mount | None
    #: Whether the directory has no entries; None where there is none. Not looked at below a mount.
    empty: bool | None
    #: The overlays at the path that the topmost one covers, highest first.
    below: tuple[Mount, ...] = ()


def check_places(spec: MountSpec) -> None:
    """Raises OverlayError when the overlay would cover one of its own layers, or lie in the software root."""
    for path in spec.data:
        if inside(spec.path, path):
            raise OverlayError(
                f"mountpoint {show(spec.path)} is inside of the data layer {show(path)}: mount the view outside of the software root"
            )
    for path in (*spec.lower, *spec.data):
        if inside(path, spec.path) or inside(spec.path, path):
            raise OverlayError(f"mountpoint {show(spec.path)} would cover its own layer {show(path)}")
    check_separate(spec, (*spec.lower, *spec.data, *spec.images))


def plan_mounted(
    spec: MountSpec,
    state: MountpointState,
    defaults: Mapping[bytes, bytes],
    switch: str,
    beneath: bool = True,
    upper: UpperState | None = None,
) -> Plan:
    """``beneath`` tells whether the kernel can mount beneath another mount; ``upper`` is what is there of an upper layer.

    Raises OverlayError where something else is in the way, the live mount differs and may not or cannot be switched as told, or the
    upper layer cannot be used.
    """
    check_places(spec)
    plan = _plan_mount(spec, state, defaults, switch, beneath)
    switches = [action for action in plan if isinstance(action, (MountOverlay, SwitchOverlay))]
    if upper is None or not switches:
        return plan
    replaced = isinstance(switches[0], SwitchOverlay) and switches[0].method == "replace"
    check_upper(spec, upper, state.mount if replaced else None)
    missing = [
        CreateUpper(place.path, mode) for place, mode in ((upper.upper, 0o755), (upper.work, 0o700)) if not place.exists
    ]
    return (*missing, *plan)


def _plan_mount(
    spec: MountSpec, state: MountpointState, defaults: Mapping[bytes, bytes], switch: str, beneath: bool
) -> Plan:
    if state.mount is None:
        if state.empty is None:
            return CreateMountpoint(spec.path), MountOverlay(spec)
        if not state.empty:
            raise OverlayError(f"mountpoint {show(spec.path)} is not empty: a mount there would hide what is in it")
        return (MountOverlay(spec),)
    _check_is_overlay(spec.path, state.mount)
    changes = differences(spec, state.mount, defaults)
    if changes and switch == "never":
        listed = ", ".join(f"{name}: {now} -> {wanted}" for name, (now, wanted) in changes.items())
        raise OverlayError(
            f"the overlay at {show(spec.path)} differs from what is declared and 'switch' is never ({listed})"
        )
    if changes and switch != "replace":
        _check_no_upper(spec, state.mount, changes)
    if changes and switch == "beneath" and not beneath:
        raise OverlayError(
            f"the overlay at {show(spec.path)} differs from what is declared and this kernel cannot mount beneath it (Linux 6.5):"
            " 'switch: over' mounts on top of it"
        )
    if switch == "replace":
        return (SwitchOverlay(spec, "replace"),) if changes else ()
    if not changes and spec.writable:
        # What it covers has to stay until it is unmounted: it cannot be mounted a second time, beneath that.
        return ()
    covered = [not differences(spec, mount, defaults) for mount in state.below]
    if beneath and switch in ("auto", "beneath"):
        return _plan_beneath(spec, [not changes, *covered])
    if not changes:
        return ()
    if True in covered:
        return (DetachOverlay(spec.path),) * (covered.index(True) + 1)
    return (SwitchOverlay(spec, "over"),)


def _check_no_upper(spec: MountSpec, live: Mount, changes: Mapping[str, tuple[object, object]]) -> None:
    """An overlay that is written to cannot be exchanged for another one while it is in use."""
    upper = overlay_layers(live).upper
    if upper is None:
        return
    lost = " (what was written to it is lost then)" if upper.startswith(SCRATCH_PLACE) else ""
    raise OverlayError(
        f"the overlay at {show(spec.path)} differs from what is declared in {', '.join(changes)}, and has the upper layer {show(upper)}:"
        " what is written through the old one would not reach the new one, so it is not switched while it is in use; 'switch: replace'"
        f" unmounts it first{lost}"
    )


def _plan_beneath(spec: MountSpec, as_declared: Sequence[bool]) -> Plan:
    """``as_declared`` tells of each overlay of a stack, highest first, whether it is the declared one.

    More than one is there when a switch was killed half-way, with the new one already beneath the old one, or after one with ``over``. A
    mount can only be taken away together with all above it, so those above the lowest go first.
    """
    plan: Plan = (DetachOverlay(spec.path),) * (len(as_declared) - 1)
    return plan if as_declared[-1] else (*plan, SwitchOverlay(spec, "beneath"))


def plan_unmounted(path: bytes, state: MountpointState, absent: bool) -> Plan:
    """Raises OverlayError where something else than an overlay is mounted, or the directory to be removed is not empty."""
    actions: tuple[Action, ...] = ()
    if state.mount is not None:
        _check_is_overlay(path, state.mount)
        actions += (UnmountOverlay(path),)
    elif absent and state.empty is False:
        raise OverlayError(f"directory {show(path)} is not empty: it is not removed")
    if absent and (state.mount or state.empty):
        actions += (RemoveMountpoint(path),)
    return actions


def _check_is_overlay(path: bytes, mount: Mount) -> None:
    if mount.fstype != b"overlay":
        kind = mount.fstype.decode("ascii", "replace")
        raise OverlayError(f"{show(path)} has a mount of type {kind} from {show(mount.source)}: it is left alone")
