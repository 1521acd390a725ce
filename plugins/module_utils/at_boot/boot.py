# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and write the units of systemd and the lines of fstab that mount overlays at boot."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import boot_mounts, view_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import (
    ReloadSystemd,
    RemovePart,
    RemoveUnit,
    RemoveViewLines,
    Stored,
    WriteUnit,
    WriteViewLines,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_units import Unit
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    boot_files,
    files,
    mount_lock,
    namespaces,
    processes,
    syscalls,
    trust,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import top_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

#: This directory exists while systemd runs (sd_booted(3)).
_RUNNING = "/run/systemd/system"

#: Seconds to wait for systemd to reload its units.
_RELOAD_SECONDS = 60.0

#: A file for each change of a unit that systemd has not read yet. Below /run, since systemd reads all units when it starts.
_UNREAD = "/run/renderfarm-overlay/unread-units"

#: Seconds to wait for another run that changes a unit, which takes a moment.
_LOCK_SECONDS = 30.0

#: Seconds to wait for mount(8) to print its version.
_VERSION_SECONDS = 10.0


def read() -> Stored:
    """Return the mount units in the administrator's directory, and the text of fstab."""
    units = [Unit(name, text, os.path.lexists(_wants(name))) for name, text in boot_files.mount_units()]
    return Stored(tuple(units), boot_files.fstab(), bool(_unread()))


@functools.cache
def takes_long_options() -> bool:
    """Return whether mount(8) takes options of any length, since it passes them one at a time (util-linux 2.39)."""
    try:
        _status, output = processes.run(["mount", "--version"], _VERSION_SECONDS)
    except (OSError, TimeoutError):
        return False
    return b"fd-based-mount" in output


def check_hidden(spec: MountSpec) -> None:
    """Check that users cannot reach the overlays of a tree that are mounted beside its layer at boot.

    Each of them shows the names of all software roots over the files of one, so a file could be read with the mode of another. Raises
    OverlayError if users other than root may enter the directory of the layer.
    """
    place = os.path.dirname(spec.lower[0])
    if spec.parts and os.path.isdir(place) and not trust.is_hidden(place):
        raise OverlayError(
            f"the tree of overlays at {show(spec.path)} is put together in {show(place)} at boot, and users other than root may enter that"
            " directory. They could read files of one software root with the rights of another: set the mode of the state directory to"
            " 0700, or use 'persist: none'"
        )


def missing_places(spec: MountSpec) -> set[bytes]:
    """Return the mountpoints of the parts of an overlay that do not exist."""
    return {place for place in boot_mounts.places(spec) if not os.path.isdir(place)}


def _wants(name: str) -> str:
    return os.path.join(boot_files.UNITS, f"{boot_mounts.WANTED_BY}.wants", name)


def _unread() -> list[str]:
    """Return the names of the files that note changes which systemd has not read."""
    try:
        return os.listdir(_UNREAD)
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def _changing_units() -> Iterator[None]:
    """Note that systemd has to read its units again, and let the block change one.

    The note comes first, so that it outlives a run that is killed after the change. Each change has a note of its own: other runs may have
    systemd read its units at the same time, and remove the notes that were there before.
    """
    if not os.path.isdir(_RUNNING):
        yield
        return
    with _notes_locked():
        files.make_directories(_UNREAD, 0o755)
        os.close(files.open_or_make(os.path.join(_UNREAD, secrets.token_hex(8)), 0o644))
        yield


def _notes_locked() -> contextlib.AbstractContextManager[None]:
    return mount_lock.held(os.fsencode(_UNREAD), _LOCK_SECONDS)


def _write_unit(unit: Unit) -> None:
    files.make_directories(boot_files.UNITS, 0o755)
    with _changing_units():
        with files.written_aside(os.path.join(boot_files.UNITS, unit.name)) as stream:
            stream.write(unit.text)
        if unit.wanted:
            files.make_directories(os.path.dirname(_wants(unit.name)), 0o755)
            files.replace_link(_wants(unit.name), os.path.join("..", unit.name))


def _remove_unit(name: str) -> None:
    with _changing_units():
        # The unit itself goes last, since the run after a killed one finds the link by it.
        for path in (_wants(name), os.path.join(boot_files.UNITS, name)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _reload() -> None:
    """Have systemd reload its units if it runs. Raises OverlayError if that fails, or takes too long."""
    if not os.path.isdir(_RUNNING):
        return
    # Under the lock no unit is between its note and its change. So systemd reads all changes that have these notes.
    with _notes_locked():
        read_now = _unread()
    try:
        status, output = processes.run(["systemctl", "daemon-reload"], _RELOAD_SECONDS)
    except TimeoutError:
        raise OverlayError(
            f"systemctl daemon-reload has not ended for {_RELOAD_SECONDS:g} seconds: check systemd, and run the task again"
        ) from None
    if status:
        raise OverlayError(f"systemctl daemon-reload failed (status {status}): {show(output.strip())}")
    for note in read_now:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(_UNREAD, note))


def _remove_part(name: bytes) -> None:
    mount = top_mount(namespaces.own_mounts(), name)
    if mount and mount.fstype in (b"erofs", b"overlay"):
        # This disturbs nobody: overlays hold their own copies of the mounts of their layers, a bind mount does not need the mount of the
        # whole overlay, and processes inside keep the detached mount.
        syscalls.umount(name, syscalls.MNT_DETACH)
    # The directory was made for this mount. It is kept if it is not empty, and may have gone with its generation.
    with contextlib.suppress(OSError):
        os.rmdir(name)


def _edit_fstab(path: bytes, lines: Sequence[bytes]) -> None:
    boot_files.edit_fstab(lambda text: view_lines.fstab_with_view(text, path, lines))


#: Handlers of the actions for an overlay, including those for mounting it at boot.
HANDLERS: Handlers = {
    **mounts.HANDLERS,
    WriteUnit: lambda action: _write_unit(action.unit),
    RemoveUnit: lambda action: _remove_unit(action.name),
    WriteViewLines: lambda action: _edit_fstab(action.path, action.lines),
    RemoveViewLines: lambda action: _edit_fstab(action.path, ()),
    ReloadSystemd: lambda _action: _reload(),
    RemovePart: lambda action: _remove_part(action.name),
}
