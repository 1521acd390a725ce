# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan what mounts an overlay at boot: its units, or its lines of fstab.

What mounts the mountpoint is written last. So a run that is killed leaves all mounts of the old declaration or all of the new.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_mounts import places
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_units import (
    MARKER,
    Unit,
    desired_units,
    needed_units,
    removable_units,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.view_lines import (
    desired_lines,
    fstab_with_view,
    needed_lines,
    own_line,
    removed_parts,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, CreateMountpoint, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    inside,
    overlay_layers,
    top_mount,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts

#: The layer name of a data image that was installed on the host.
_INSTALLED = re.compile(rb"/data/[0-9a-f]{16}\Z")


@dataclass(frozen=True)
class Stored:
    """The mounts at boot: all mount units in the administrator's directory, ours and others, and the text of fstab."""

    units: tuple[Unit, ...]
    fstab: bytes
    #: Whether a run has changed a unit, and has ended before systemd read its units again.
    reload_due: bool = False


@dataclass(frozen=True)
class WriteUnit(Action):
    """Write a unit, and its link in the target that wants it."""

    unit: Unit

    def __str__(self) -> str:
        return f"write unit {self.unit.name}"


@dataclass(frozen=True)
class RemoveUnit(Action):
    """Remove a unit and its link."""

    name: str

    def __str__(self) -> str:
        return f"remove unit {self.name}"


@dataclass(frozen=True)
class WriteViewLines(Action):
    """Write the lines of a view to fstab."""

    path: bytes
    lines: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"write the overlay at {show(self.path)} into /etc/fstab"


@dataclass(frozen=True)
class RemoveViewLines(Action):
    """Remove the lines of a view from fstab."""

    path: bytes

    def __str__(self) -> str:
        return f"remove the overlay at {show(self.path)} from /etc/fstab"


@dataclass(frozen=True)
class ReloadSystemd(Action):
    """Reload the units of systemd."""

    def __str__(self) -> str:
        return "have systemd read its units again"


@dataclass(frozen=True)
class RemovePart(Action):
    """Unmount what was mounted at boot for a view besides the view itself, and remove its mountpoint."""

    name: bytes

    def __str__(self) -> str:
        return f"unmount what a view needed at {show(self.name)}"


def plan_places(spec: MountSpec | None, persist: str, missing: Collection[bytes]) -> Plan:
    """Return the actions that create the mountpoints of the parts of a view. ``missing`` are those that do not exist."""
    if spec is None or persist == "none":
        return ()
    return tuple(CreateMountpoint(place) for place in places(spec) if place in missing)


def plan_persistence(
    path: bytes,
    spec: MountSpec | None,
    persist: str,
    stored: Stored,
    live: Sequence[Mount],
    append: bool,
    any_length: bool = False,
) -> Plan:
    """Return the actions that make the mounts at boot agree with the declaration of a view; ``spec`` is None for an unmounted view.

    ``persist`` is ``none``, ``systemd`` or ``fstab``. ``live`` are the mounts before the view was mounted or unmounted. ``append`` and
    ``any_length`` are those of ``desired_units``. Raises OverlayError if the overlay cannot be mounted at boot, or if a unit or line of
    somebody else is in the way.
    """
    units = desired_units(spec, append, any_length, live) if spec and persist == "systemd" else ()
    lines = desired_lines(spec, append, any_length, live) if spec and persist == "fstab" else ()
    _check_nobody_else(path, units, lines, stored)
    removable = list(removable_units(path, stored.units, units))
    fstab = fstab_with_view(stored.fstab, path, lines)
    unneeded = removed_parts(stored.fstab, fstab).union(*(names for _unit_, names in removable))
    kept = needed_units(path, stored.units) | needed_lines(path, stored.fstab)

    actions: list[Action] = [WriteUnit(unit) for unit in units if not _is_there(unit, stored)]
    if actions:
        actions.append(ReloadSystemd())
    # Parts are removed before their units and lines, by which the run after a killed one finds them.
    actions += [RemovePart(name) for name in _to_unmount(path, spec, live, unneeded, kept)]
    if fstab != stored.fstab:
        actions.append(WriteViewLines(path, lines) if lines else RemoveViewLines(path))
    actions += [RemoveUnit(unit.name) for unit, _names in removable]
    if removable or (stored.reload_due and ReloadSystemd() not in actions):
        actions.append(ReloadSystemd())
    return tuple(actions)


def _to_unmount(
    path: bytes, spec: MountSpec | None, live: Sequence[Mount], unneeded: Collection[bytes], kept: Collection[bytes]
) -> list[bytes]:
    """Return what was mounted at boot for the view, and is used by no other overlay, and needed by no unit or line."""
    here: set[bytes] = set()
    elsewhere = set((*spec.lower, *spec.all_data) if spec else ())
    of_view = {
        one.id for top in live if top.path == path for one in (top, *tree_parts.split(top, inside(live, top))[0])
    }
    for mount in live:
        # Overlays that are to be unmounted use nothing afterwards.
        if mount.fstype == b"overlay" and mount.path not in unneeded:
            layers = overlay_layers(mount)
            if mount.id in of_view:
                # A data layer may be an image that somebody else has mounted.
                here.update((*layers.lower, *filter(_INSTALLED.search, layers.data)))
            else:
                elsewhere.update((*layers.lower, *layers.data))
    visible = {name for name in here if _is_image(top_mount(live, name))}
    # New trees need the directory of the empty data layer, so it stays mounted.
    return sorted((visible | set(unneeded)) - elsewhere - set(kept) - {tree_parts.NO_DATA})


def _is_image(mount: Mount | None) -> bool:
    return mount is not None and mount.fstype == b"erofs"


def _is_there(unit: Unit, stored: Stored) -> bool:
    """Return whether a unit is stored as desired. One that a target wants without need is left so."""
    return any(
        (other.name, other.text) == (unit.name, unit.text) and other.wanted >= unit.wanted for other in stored.units
    )


def _check_nobody_else(path: bytes, units: Sequence[Unit], lines: Sequence[bytes], stored: Stored) -> None:
    """Check that units and lines for the mountpoint are ours. Raises OverlayError naming one that is not."""
    there = {unit.name: unit for unit in stored.units}
    for unit in units:
        other = there.get(unit.name)
        if other and other.text.split(b"\n")[0] != MARKER:
            raise OverlayError(
                f"unit {unit.name} is there already and is not of this collection: it is left alone; remove it to use 'persist: systemd'"
            )
    for line in fstab_lines.split(stored.fstab) if lines else ():
        if fstab_lines.is_of(line, path) and own_line(line, b"view") is None:
            raise OverlayError(
                f"/etc/fstab has a line for {show(path)} that is not of this collection: it is left alone; remove it to use"
                " 'persist: fstab'"
            )
