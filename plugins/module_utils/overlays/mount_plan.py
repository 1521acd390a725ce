# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan to mount, switch and unmount an overlay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Action,
    CreateMountpoint,
    Plan,
    RemoveMountpoint,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    Mountpoint,
    listed,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    SCRATCH_PLACE,
    MountSpec,
    mount_differences,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.upper_rules import (
    UpperState,
    check_separate,
    check_upper,
)


@dataclass(frozen=True)
class CreateUpper(Action):
    """Create the directory of an upper layer, or its work directory."""

    path: bytes
    mode: int

    def __str__(self) -> str:
        return f"create directory {show(self.path)}"


@dataclass(frozen=True)
class MountOverlay(Action):
    """Mount an overlay where none is mounted."""

    spec: MountSpec

    def __str__(self) -> str:
        return f"mount overlay at {show(self.spec.path)}"


@dataclass(frozen=True)
class SwitchOverlay(Action):
    """Replace the overlay at a mountpoint by another one."""

    spec: MountSpec
    #: ``beneath``, ``over`` or ``replace``.
    method: str
    #: What to do if a mount inside the old overlay has no place in the new one: ``carry`` fails, ``drop`` leaves it behind.
    inner: str = "carry"

    def __str__(self) -> str:
        return f"switch the overlay at {show(self.spec.path)} ({self.method})"


@dataclass(frozen=True)
class DetachOverlay(Action):
    """Detach the topmost of several overlays. Processes that use it keep it."""

    path: bytes

    def __str__(self) -> str:
        return f"detach the topmost overlay at {show(self.path)}, which covers another one"


@dataclass(frozen=True)
class DropCovered(Action):
    """Detach the overlays that the topmost one covers, which stays in place. Processes that use them keep them."""

    path: bytes

    def __str__(self) -> str:
        return f"detach the overlays that the one at {show(self.path)} covers"


@dataclass(frozen=True)
class UnmountOverlay(Action):
    """Unmount an overlay, and detach those that it covers."""

    path: bytes

    def __str__(self) -> str:
        return f"unmount the overlay at {show(self.path)}"


@dataclass(frozen=True)
class MountpointState(Mountpoint):
    """What is at a mountpoint of an overlay."""

    #: The overlays at the path that the topmost mount covers, highest first.
    below: tuple[Mount, ...] = ()
    #: The mounts of others inside the topmost mount, and inside the overlay directly below it.
    inner: tuple[Mount, ...] = ()
    inner_below: tuple[Mount, ...] = ()
    #: The parts of the tree that the topmost mount is, and of those below it. They are not among the mounts inside.
    parts: tuple[Mount, ...] = ()
    parts_below: tuple[Mount, ...] = ()
    #: Whether the kernel can detach a covered mount (Linux 5.15), and how many of the lowest overlays can be detached so.
    can_drop: bool = False
    droppable: int = 0


def check_places(spec: MountSpec) -> None:
    """Check the mountpoint against the layers.

    Raises OverlayError if it is inside a data layer, if it would cover a layer or is inside one, or if the upper layer, the work directory
    and the other layers are not separate.
    """
    for path in spec.all_data:
        if is_inside(spec.path, path):
            raise OverlayError(
                f"mountpoint {show(spec.path)} is inside of the data layer {show(path)}: choose a mountpoint outside of the software root"
            )
    for path in (*spec.lower, *spec.all_data):
        if is_inside(path, spec.path):
            raise OverlayError(
                f"mountpoint {show(spec.path)} would cover its own layer {show(path)}: choose a mountpoint outside of all layers"
            )
        if is_inside(spec.path, path):
            raise OverlayError(
                f"mountpoint {show(spec.path)} is inside of its own layer {show(path)}: choose a mountpoint outside of all layers"
            )
    check_separate(spec, (*spec.lower, *spec.all_data, *spec.images))


def plan_mounted(
    spec: MountSpec,
    state: MountpointState,
    defaults: Mapping[bytes, bytes],
    switch: str,
    beneath: bool = True,
    upper: UpperState | None = None,
    inner: str = "carry",
) -> Plan:
    """Plan to make the declared overlay the topmost mount at its mountpoint.

    ``beneath`` says whether the kernel can mount beneath another mount. ``upper`` is the state of the upper layer, None if there is none or
    scratch space. ``inner`` is the field of SwitchOverlay.

    Raises OverlayError if the mountpoint has another mount or is not empty, if the live overlay differs and ``switch`` does not allow to
    switch it, or if the upper layer cannot be used.
    """
    check_places(spec)
    plan = _plan_mount(spec, state, defaults, switch, beneath, inner)
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
    spec: MountSpec, state: MountpointState, defaults: Mapping[bytes, bytes], switch: str, beneath: bool, inner: str
) -> Plan:
    if state.mount is None:
        if state.empty is None:
            return CreateMountpoint(spec.path), MountOverlay(spec)
        if not state.empty:
            raise OverlayError(
                f"mountpoint {show(spec.path)} is not empty, and a mount would hide what is in it: empty it, or choose another one"
            )
        return (MountOverlay(spec),)
    _check_is_overlay(spec.path, state.mount)
    changes = mount_differences(spec, state.mount, defaults, state.parts)
    if not changes:
        # A writable overlay stays as it is, and so do the overlays that it covers.
        return () if spec.writable or switch not in ("auto", "beneath") else _drop(spec, state.droppable)
    _check_may_switch(spec, state, changes, switch, beneath)
    if switch == "replace":
        return (SwitchOverlay(spec, "replace"),)
    method = "beneath" if beneath and switch != "over" else "over"
    as_declared = [
        not mount_differences(spec, mount, defaults, [one for one in state.parts_below if one.parent == mount.id])
        for mount in state.below
    ]
    return _plan_switch(spec, state, as_declared, method, inner, switch == "over")


def _plan_switch(
    spec: MountSpec, state: MountpointState, as_declared: Sequence[bool], method: str, inner: str, leave: bool
) -> Plan:
    """Plan a switch in which no other overlay is ever seen: put the declared overlay on top, and then detach those that it covers.

    ``as_declared`` says for each covered overlay, highest first, whether it equals the declaration, for example after a killed switch or
    after a switch with ``over``. If the one directly below does, and has the same mounts inside, the topmost is detached. One
    further down is mounted again and the old one dropped, since uncovering it would show those between.

    With ``leave``, as for ``over``, the overlays that are covered afterwards stay, unless one of them equals the declaration.
    """
    if as_declared[:1] == [True] and _inner_places(state.inner) == _inner_places(state.inner_below):
        return (DetachOverlay(spec.path), *(() if leave else _drop(spec, min(len(as_declared) - 1, state.droppable))))
    covered = state.droppable
    if method == "over":
        covered = int(state.can_drop and covered == len(state.below))
    return (SwitchOverlay(spec, method, inner), *(() if leave and True not in as_declared else _drop(spec, covered)))


def _drop(spec: MountSpec, count: int) -> Plan:
    return (DropCovered(spec.path),) if count else ()


def _inner_places(inner: Sequence[Mount]) -> set[tuple[bytes, tuple[int, int], bytes]]:
    return {(mount.path, mount.device, mount.root) for mount in inner}


def _check_may_switch(
    spec: MountSpec,
    state: MountpointState,
    changes: Mapping[str, tuple[object, object]],
    switch: str,
    beneath: bool,
) -> None:
    if switch == "never":
        changed = ", ".join(f"{name}: {now} -> {wanted}" for name, (now, wanted) in changes.items())
        raise OverlayError(
            f"the overlay at {show(spec.path)} differs from the declaration ({changed}), and 'switch' is never: declare what is"
            " mounted, or give another value of 'switch'"
        )
    if switch == "replace":
        _check_nothing_inside(spec.path, state.inner)
        return
    if state.mount is not None:
        _check_no_upper(spec, state.mount, changes)
    if switch == "beneath" and not beneath:
        raise OverlayError(
            f"the overlay at {show(spec.path)} differs from the declaration, and this kernel cannot mount beneath it, which needs Linux"
            " 6.5: use 'switch: over', which mounts on top of it"
        )


def _check_nothing_inside(path: bytes, inner: Sequence[Mount]) -> None:
    """Check that nothing is mounted inside an overlay, so that it can be unmounted. Raises OverlayError naming the mounts inside."""
    if inner:
        raise OverlayError(
            f"the overlay at {show(path)} has mounts inside of it, so it cannot be unmounted: unmount {listed(inner)} first"
        )


def _check_no_upper(spec: MountSpec, live: Mount, changes: Mapping[str, tuple[object, object]]) -> None:
    """Check that an overlay which is switched while it is in use has no upper layer. Raises OverlayError if it has one."""
    upper = overlay_layers(live).upper
    if upper is None:
        return
    lost = ", and loses what was written to it" if upper.startswith(SCRATCH_PLACE) else ""
    raise OverlayError(
        f"the overlay at {show(spec.path)} differs from the declaration in {', '.join(changes)}, and has the upper layer {show(upper)}. It"
        " cannot be switched while it is in use, since the new overlay would miss what is written through the old one: use 'switch:"
        f" replace', which unmounts it first{lost}"
    )


def plan_unmounted(path: bytes, state: MountpointState, absent: bool) -> Plan:
    """Plan to unmount the overlay at a path, and with ``absent`` to remove the directory.

    Raises OverlayError if the mount there is no overlay, if there are mounts inside it, or if the directory to remove is not empty.
    """
    actions: tuple[Action, ...] = ()
    if state.mount is not None:
        _check_is_overlay(path, state.mount)
        _check_nothing_inside(path, state.inner)
        actions += (UnmountOverlay(path),)
    elif absent and state.empty is False:
        raise OverlayError(
            f"directory {show(path)} is not empty, so it is not removed: empty it, or use 'state: unmounted'"
        )
    if absent and (state.mount or state.empty):
        actions += (RemoveMountpoint(path),)
    return actions


def _check_is_overlay(path: bytes, mount: Mount) -> None:
    if mount.fstype != b"overlay":
        kind = mount.fstype.decode("ascii", "replace")
        raise OverlayError(
            f"{show(path)} has a mount of type {kind} from {show(mount.source)}, which is left alone: unmount it, or choose another"
            " mountpoint"
        )


def switch_method(plan: Plan) -> str | None:
    """Return how a plan switches an overlay: ``beneath``, ``over`` or ``replace``; None if it does not.

    Detaching the topmost overlay, which covers the declared one, finishes a switch with ``beneath``.
    """
    for action in reversed(plan):
        if isinstance(action, SwitchOverlay):
            return action.method
        if isinstance(action, DetachOverlay):
            return "beneath"
    return None
