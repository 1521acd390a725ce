# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing what is mounted at boot: units of systemd and fstab."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    commands,
    files,
    fstab,
    namespaces,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import top_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import boot_entries, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.boot_entries import (
    ReloadSystemd,
    RemoveFstab,
    RemovePart,
    RemoveUnit,
    Stored,
    Unit,
    WriteFstab,
    WriteUnit,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

UNITS = "/etc/systemd/system"

#: It is there while systemd runs (sd_booted(3)).
_RUNNING = "/run/systemd/system"

#: Seconds for systemd to read its units again.
_RELOAD_SECONDS = 60.0


def read() -> Stored:
    """Return what is mounted at boot."""
    units = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(UNITS)):
            if name.endswith(".mount"):
                # A link that leads nowhere, or to /dev/null, is a unit as well: one without content.
                with contextlib.suppress(FileNotFoundError), open(os.path.join(UNITS, name), "rb") as stream:
                    units.append(Unit(name, stream.read(), os.path.lexists(_wants(name))))
    return Stored(tuple(units), fstab.read())


def missing_places(spec: MountSpec) -> set[bytes]:
    """Return the directories for mounting at boot that are not there."""
    return {place for place in boot_entries.places(spec) if not os.path.isdir(place)}


def _wants(name: str) -> str:
    return os.path.join(UNITS, f"{boot_entries.WANTED_BY}.wants", name)


def _write_unit(unit: Unit) -> None:
    files.make_directories(UNITS, 0o755)
    with files.written_aside(os.path.join(UNITS, unit.name)) as stream:
        stream.write(unit.text)
    if unit.wanted:
        files.make_directories(os.path.dirname(_wants(unit.name)), 0o755)
        files.replace_link(_wants(unit.name), os.path.join("..", unit.name))


def _remove_unit(name: str) -> None:
    # The unit itself last, since a run that is killed finds the rest by it.
    for path in (_wants(name), os.path.join(UNITS, name)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _reload() -> None:
    if not os.path.isdir(_RUNNING):
        return
    try:
        status, output = commands.run(["systemctl", "daemon-reload"], _RELOAD_SECONDS)
    except TimeoutError:
        raise OverlayError(f"systemctl daemon-reload has not ended for {_RELOAD_SECONDS:g} seconds") from None
    if status:
        raise OverlayError(f"systemctl daemon-reload failed (status {status}): {show(output.strip())}")


def _remove_part(name: bytes) -> None:
    mount = top_mount(namespaces.own_mounts(), name)
    if mount and mount.fstype in (b"erofs", b"overlay"):
        # The overlays over an image have copies of it, and mounts of a part do not need the whole, so nobody notices; who stands in it
        # keeps it.
        syscalls.umount(name, syscalls.MNT_DETACH)
    # Made for the mount alone; with something in it, or gone with its generation, it is none of ours.
    with contextlib.suppress(OSError):
        os.rmdir(name)


def _edit_fstab(path: bytes, lines: Sequence[bytes]) -> None:
    fstab.edit(lambda text: boot_entries.edited_fstab(text, path, lines))


#: Carries out the actions of a plan for an overlay that may be mounted at boot.
HANDLERS: Handlers = {
    **mounts.HANDLERS,
    WriteUnit: lambda action: _write_unit(action.unit),
    RemoveUnit: lambda action: _remove_unit(action.name),
    WriteFstab: lambda action: _edit_fstab(action.path, action.lines),
    RemoveFstab: lambda action: _edit_fstab(action.path, ()),
    ReloadSystemd: lambda _action: _reload(),
    RemovePart: lambda action: _remove_part(action.name),
}
