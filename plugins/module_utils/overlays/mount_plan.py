# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan how an overlay gets mounted, switched and unmounted."""

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
    differences,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.upper_rules import (
    UpperState,
    check_separate,
    check_upper,
)


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
    #: What becomes of mounts inside that have no place in the new one: ``carry`` fails then, ``drop`` leaves them behind.
    inner: str = "carry"

    def __str__(self) -> str:
        return f"switch the overlay at {show(self.spec.path)} ({self.method})"


@dataclass(frozen=True)
class DetachOverlay(Action):
    """Take away the topmost of several overlays; whoever uses it keeps it."""

    path: bytes

    def __str__(self) -> str:
        return f"detach the topmost overlay at {show(self.path)}, which covers another one"


@dataclass(frozen=True)
class DropCovered(Action):
    """Take away the overlays that the topmost one covers, which stays where it is; whoever uses them keeps them."""

    path: bytes

    def __str__(self) -> str:
        return f"detach the overlays that the one at {show(self.path)} covers"


@dataclass(frozen=True)
class UnmountOverlay(Action):
    path: bytes

    def __str__(self) -> str:
        return f"unmount the overlay at {show(self.path)}"


@dataclass(frozen=True)
class MountpointState(Mountpoint):
    """A mountpoint of an overlay."""

    #: The overlays at the path that the topmost one covers, highest first.
    below: tuple[Mount, ...] = ()
    #: What is mounted inside of the topmost mount, and inside of the one that it covers.
    inner: tuple[Mount, ...] = ()
    inner_below: tuple[Mount, ...] = ()
    #: Whether the kernel can take away a mount that others cover (Linux 5.15), and how many of the lowest ones it can be done with.
    can_drop: bool = False
    droppable: int = 0


def check_places(spec: MountSpec) -> None:
    """Raises OverlayError when the overlay would cover one of its own layers, or lie in the software root."""
    for path in spec.data:
        if is_inside(spec.path, path):
            raise OverlayError(
                f"mountpoint {show(spec.path)} is inside of the data layer {show(path)}: mount the view outside of the software root"
            )
    for path in (*spec.lower, *spec.data):
        if is_inside(path, spec.path) or is_inside(spec.path, path):
            raise OverlayError(f"mountpoint {show(spec.path)} would cover its own layer {show(path)}")
    check_separate(spec, (*spec.lower, *spec.data, *spec.images))


def plan_mounted(
    spec: MountSpec,
    state: MountpointState,
    defaults: Mapping[bytes, bytes],
    switch: str,
    beneath: bool = True,
    upper: UpperState | None = None,
    inner: str = "carry",
) -> Plan:
    """Plan how the declared overlay comes to be what is seen at its mountpoint.

    ``beneath`` tells whether the kernel can mount beneath another mount; ``upper`` is what is there of an upper layer; ``inner`` is what
    becomes of mounts inside (SwitchOverlay).

    Raises OverlayError where something else is in the way, the live mount differs and may not or cannot be switched as told, or the
    upper layer cannot be used.
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
            raise OverlayError(f"mountpoint {show(spec.path)} is not empty: a mount there would hide what is in it")
        return (MountOverlay(spec),)
    _check_is_overlay(spec.path, state.mount)
    changes = differences(spec, state.mount, defaults)
    if not changes:
        # An overlay that is written to is left as it is, with what it covers.
        return () if spec.writable or switch not in ("auto", "beneath") else _drop(spec, state.droppable)
    _check_may_switch(spec, state, changes, switch, beneath)
    if switch == "replace":
        return (SwitchOverlay(spec, "replace"),)
    method = "beneath" if beneath and switch != "over" else "over"
    as_declared = [not differences(spec, mount, defaults) for mount in state.below]
    return _plan_switch(spec, state, as_declared, method, inner, switch == "over")


def _plan_switch(
    spec: MountSpec, state: MountpointState, as_declared: Sequence[bool], method: str, inner: str, leave: bool
) -> Plan:
    """Plan a switch that is never seen: the declared overlay comes first, and then those go that it covers, unless they are left.

    ``as_declared`` tells of each covered overlay, highest first, whether it is the declared one, as after a switch that was killed
    half-way, or one with ``over``, which leaves what it covers. To uncover it, those above it would have to go one by one, so only one
    that is covered by a single one is uncovered, and has to have the same mounts inside. Otherwise it is mounted anew, and is not left.
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
        listed = ", ".join(f"{name}: {now} -> {wanted}" for name, (now, wanted) in changes.items())
        raise OverlayError(
            f"the overlay at {show(spec.path)} differs from what is declared and 'switch' is never ({listed})"
        )
    if switch == "replace":
        check_nothing_inside(spec.path, state.inner)
        return
    if state.mount is not None:
        _check_no_upper(spec, state.mount, changes)
    if switch == "beneath" and not beneath:
        raise OverlayError(
            f"the overlay at {show(spec.path)} differs from what is declared and this kernel cannot mount beneath it (Linux 6.5):"
            " 'switch: over' mounts on top of it"
        )


def check_nothing_inside(path: bytes, inner: Sequence[Mount]) -> None:
    """Raises OverlayError that names what is mounted inside of an overlay which is to be unmounted."""
    if inner:
        raise OverlayError(
            f"{show(path)} cannot be unmounted, since there are mounts inside of it: {listed(inner)}; unmount these first"
        )


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


def plan_unmounted(path: bytes, state: MountpointState, absent: bool) -> Plan:
    """Plan that no overlay is mounted at a path.

    Raises OverlayError where something else than an overlay is mounted, something is mounted inside of it, or the directory to be
    removed is not empty.
    """
    actions: tuple[Action, ...] = ()
    if state.mount is not None:
        _check_is_overlay(path, state.mount)
        check_nothing_inside(path, state.inner)
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
