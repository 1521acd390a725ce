# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for a software root that is mounted over NFS: its actions, and when each is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Action,
    CreateMountpoint,
    Plan,
    RemoveMountpoint,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    NFS_TYPES,
    Mount,
    Mountpoint,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside, overlap, to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import (
    SoftwareRootSpec,
    declared_by,
    nfs_differences,
)

#: KiB. The kernel keeps the read-ahead in pages, which have up to 64 KiB.
READ_AHEAD_UNIT = 64


@dataclass(frozen=True)
class MountSoftwareRoot(Action):
    """Mount the software root."""

    spec: SoftwareRootSpec

    def __str__(self) -> str:
        return f"mount {self.spec.source} at {show(self.spec.path)}"


@dataclass(frozen=True)
class UnmountSoftwareRoot(Action):
    """Unmount the software root."""

    path: bytes

    def __str__(self) -> str:
        return f"unmount {show(self.path)}"


@dataclass(frozen=True)
class SetReadAhead(Action):
    """Set the read-ahead of a mount, in KiB."""

    path: bytes
    kibibytes: int

    def __str__(self) -> str:
        return f"read {self.kibibytes} KiB ahead at {show(self.path)}"


@dataclass(frozen=True)
class WriteRootLine(Action):
    """Write or remove the line of fstab for the software root."""

    path: bytes
    #: None to have no line for the path.
    line: bytes | None

    def __str__(self) -> str:
        return f"{'remove' if self.line is None else 'write'} the line for {show(self.path)} in /etc/fstab"


@dataclass(frozen=True)
class DeclaredRoot:
    """The desired state of a software root on a host."""

    path: bytes
    #: None if nothing is to be mounted.
    spec: SoftwareRootSpec | None
    #: Whether the mountpoint is to be removed.
    absent: bool
    #: Whether a mount with other options may be replaced.
    replace: bool
    #: KiB; None to leave it unchanged.
    read_ahead: int | None
    #: Whether fstab is to agree with the declaration.
    in_fstab: bool


@dataclass(frozen=True)
class ObservedRoot:
    """The observed state of a software root on a host."""

    mountpoint: Mountpoint
    #: All mounts of this mount namespace.
    live: Sequence[Mount]
    #: KiB; None if nothing is mounted, or the kernel does not report it.
    read_ahead: int | None
    fstab: bytes


def plan_root(declared: DeclaredRoot, observed: ObservedRoot) -> Plan:
    """Return the actions that lead to the declared state. Raises OverlayError if something is in the way, or may not be replaced."""
    spec = declared.spec
    plan: Plan
    if spec is None:
        plan = plan_unmounted(declared.path, observed.mountpoint, observed.live, declared.absent)
    else:
        plan = plan_mounted(spec, observed.mountpoint, observed.live, declared.replace)
        plan += plan_read_ahead(spec.path, declared.read_ahead, observed.read_ahead, bool(plan))
    if declared.in_fstab:
        plan += plan_fstab(declared.path, spec, observed.fstab)
    return plan


def plan_mounted(spec: SoftwareRootSpec, state: Mountpoint, live: Sequence[Mount], replace: bool) -> Plan:
    """Return the actions that mount a software root as declared.

    Raises OverlayError if something else is in the way, or if the live mount differs and may not be replaced.
    """
    mount = state.mount
    if mount is None:
        if state.empty is None:
            return CreateMountpoint(spec.path), MountSoftwareRoot(spec)
        if not state.empty:
            raise OverlayError(
                f"mountpoint {show(spec.path)} is not empty, and a mount would hide its content: empty it, or give another path"
            )
        return (MountSoftwareRoot(spec),)
    _check_is_nfs(mount)
    if _without_slash(mount.source) != _without_slash(to_bytes(spec.source)):
        raise OverlayError(
            f"{show(spec.path)} has a mount of {show(mount.source)}, not of {spec.source}: it is left alone; unmount it first"
        )
    changes = nfs_differences(spec, mount)
    if not changes:
        return ()
    if not replace:
        listed = ", ".join(f"{name}: {now} -> {wanted}" for name, (now, wanted) in changes.items())
        raise OverlayError(
            f"the software root at {show(spec.path)} is mounted with other options than declared ({listed}); 'replace: true' unmounts it"
            " and mounts it again, which fails while it is in use"
        )
    _check_not_a_layer(mount, live)
    return UnmountSoftwareRoot(spec.path), MountSoftwareRoot(spec)


def plan_read_ahead(path: bytes, wanted: int | None, observed: int | None, mounting: bool) -> Plan:
    """Return the action that sets the read-ahead, in KiB, if it is needed. ``mounting`` is whether the plan mounts the software root.

    Raises OverlayError if the kernel cannot keep the value.
    """
    if wanted is None:
        return ()
    if wanted <= 0 or wanted % READ_AHEAD_UNIT:
        raise OverlayError(
            f"read_ahead is {wanted}: it has to be a positive multiple of {READ_AHEAD_UNIT} KiB, such as 1024"
        )
    return () if wanted == observed and not mounting else (SetReadAhead(path, wanted),)


def plan_unmounted(path: bytes, state: Mountpoint, live: Sequence[Mount], absent: bool) -> Plan:
    """Return the actions that unmount a software root and, with ``absent``, remove its mountpoint.

    Raises OverlayError if the mount is not an NFS mount or is a layer of an overlay, or if the mountpoint is not empty.
    """
    actions: Plan = ()
    if state.mount is not None:
        _check_is_nfs(state.mount)
        _check_not_a_layer(state.mount, live)
        actions += (UnmountSoftwareRoot(path),)
    elif absent and state.empty is False:
        raise OverlayError(f"directory {show(path)} is not empty, so it is not removed: empty it first")
    if absent and (state.mount or state.empty):
        actions += (RemoveMountpoint(path),)
    return actions


def plan_fstab(path: bytes, spec: SoftwareRootSpec | None, text: bytes) -> Plan:
    """Return the action that makes the text of fstab agree with the declaration, if it is needed."""
    line = root_line(spec) if spec else None
    return () if fstab_lines.replaced(text, path, line) == text else (WriteRootLine(path, line),)


def root_line(spec: SoftwareRootSpec) -> bytes:
    """Return the line of fstab for a software root."""
    options = ",".join(spec.options) or "defaults"
    return fstab_lines.make_line(to_bytes(spec.source), spec.path, to_bytes(spec.fstype), to_bytes(options))


def grouped(paths: Sequence[bytes]) -> list[list[int]]:
    """Return the positions of mountpoints in groups. Only those of different groups can be mounted at the same time.

    A mountpoint inside of another one has to be made after the outer one is mounted. Groups keep the order of ``paths``.
    """
    groups: list[list[int]] = []
    for position, path in enumerate(paths):
        touched = [group for group in groups if any(overlap(path, paths[other]) for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append(sorted([position, *(other for group in touched for other in group)]))
    return groups


def changes_mount(plan: Plan) -> bool:
    """Return whether a plan mounts or unmounts the software root."""
    return any(isinstance(step, (MountSoftwareRoot, UnmountSoftwareRoot)) for step in plan)


def diff_of(declared: DeclaredRoot, observed: ObservedRoot, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state before and after the plan, as the diff shows it."""
    before = declared_by(observed.mountpoint.mount, declared.spec)
    after = dict(before)
    if changes_mount(plan):
        after = declared.spec.as_dict() if declared.spec else {}
    for step in plan:
        if isinstance(step, SetReadAhead):
            before["read_ahead"], after["read_ahead"] = observed.read_ahead, step.kibibytes
        elif isinstance(step, WriteRootLine):
            before["fstab"], after["fstab"] = "as it is", str(step)
    return before, after


def ignored_options(spec: SoftwareRootSpec | None, live: Mount | None) -> list[str]:
    """Return a warning if a new mount differs from its declaration, since the next run would find the difference again."""
    changes = nfs_differences(spec, live) if spec and live else {}
    if not changes:
        return []
    listed = ", ".join(f"{name} is {now}, not {wanted}" for name, (now, wanted) in changes.items())
    return [f"the server or the kernel did not accept all options: {listed}; declare the values that it accepts"]


def _without_slash(source: bytes) -> bytes:
    return source.rstrip(b"/") if not source.endswith(b":/") else source


def _check_is_nfs(mount: Mount) -> None:
    """Check the type of a mount. Raises OverlayError if it is not NFS."""
    if mount.fstype not in NFS_TYPES:
        kind = mount.fstype.decode("ascii", "replace")
        raise OverlayError(
            f"{show(mount.path)} has a mount of type {kind} from {show(mount.source)}, not of NFS: it is left alone; unmount it first"
        )


def _check_not_a_layer(mount: Mount, live: Sequence[Mount]) -> None:
    """Check that no overlay has a layer inside a mount. Raises OverlayError naming the overlay if one has.

    An overlay holds its layers itself. Unmounting one would succeed, and views would silently continue to read the old mount.
    """
    for other in live:
        if other.fstype != b"overlay":
            continue
        layers = overlay_layers(other)
        if any(is_inside(path, mount.path) for path in (*layers.lower, *layers.data)):
            raise OverlayError(
                f"{show(mount.path)} is a layer of the overlay at {show(other.path)}: unmount that first; nothing was unmounted"
            )
