# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record overlays that are detached, and find out which of them are in use.

The records are below /run, which a reboot empties. overlays/detached_records.py describes their format.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    files,
    namespaces,
    processes,
    record_files,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.files import ASIDE_PREFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import Process, Use
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached_records
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.detached_records import DetachedMount

#: The directory of the records. Only root may read or write them.
DIRECTORY = "/run/renderfarm-overlay/detached"


def record(mount: Mount, mounts: Collection[int]) -> DetachedMount:
    """Record an overlay that is about to be detached. ``mounts`` are the IDs of all its mounts in all mount namespaces."""
    now = time.time_ns()
    entry = detached_records.record_of(mount, mounts, now / 1e9)
    files.make_directories(os.path.dirname(DIRECTORY), 0o755)
    files.make_directories(DIRECTORY, 0o700)
    name = f"{mount.device[0]}-{mount.device[1]}-{now}.json"
    aside = os.path.join(DIRECTORY, ASIDE_PREFIX + name)
    # Not synced: the record need not outlive the processes.
    with open(files.open_or_make(aside, 0o600), "wb") as stream:
        stream.write(detached_records.to_json(entry))
    os.rename(aside, os.path.join(DIRECTORY, name))
    return entry


@dataclass(frozen=True)
class Observed:
    """The detached overlays that are in use, and what was read to find them."""

    #: The recorded overlays that are in use, oldest first, each with the processes that use it.
    recorded: list[tuple[DetachedMount, list[Process]]]
    #: Processes by mount ID, of mounts that are in no mount namespace and in no record.
    unlisted: dict[int, list[Process]]
    #: The mounts of each mount namespace, with a process in it, or None for the namespace of this process.
    live: list[tuple[int | None, list[Mount]]]
    #: For each mount ID, the processes that use the mount, each with what it uses there.
    uses: dict[int, dict[Process, list[Use]]]


def in_use(forget: bool = True) -> list[tuple[DetachedMount, list[Process]]]:
    """Return the recorded overlays that are in use, oldest first, each with the processes that use it.

    With ``forget``, remove the records of the others.
    """
    return look(forget).recorded if _read() else []


def look(forget: bool = True) -> Observed:
    """Find the detached overlays that are in use. With ``forget``, remove the records of the recorded ones that are not.

    An overlay that no process uses is in use while it is mounted anywhere, for example in the mount namespace of a container.
    """
    # The order matters. The records are read before the processes, so that the users of every record that is read are found. The mounts
    # are read after the processes, so that a mount that has got a recorded mount ID in the meantime is seen.
    records = _read()
    devices = {mount_id: entry.device for entry, _path in records for mount_id in entry.mounts}
    devices.update((mount.id, mount.device) for _pid, mounts in namespaces.everywhere() for mount in mounts)
    holders = processes.uses_by_mount(devices)
    everywhere = list(namespaces.everywhere())
    live = [mount for _pid, mounts in everywhere for mount in mounts]
    found = []
    current = detached_records.brought_up_to_date([entry for entry, _path in records], live)
    for entry, (_old, path) in zip(current, records):
        # Without its superblock the overlay is gone, and another mount may have its mount ID.
        exists = syscalls.has_superblock(entry.device) is not False
        users = {process for mount_id in entry.mounts if exists for process in holders.get(mount_id, ())}
        if users or detached_records.is_mounted(entry, live):
            found.append((entry, sorted(users)))
        elif forget:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    listed = {mount.id for mount in live}.union(*(entry.mounts for entry, _users in found))
    unlisted = {
        mount_id: list(users) for mount_id, users in holders.items() if mount_id >= 0 and mount_id not in listed
    }
    return Observed(found, unlisted, everywhere, holders)


def _entry(path: str) -> DetachedMount:
    """Return the record in a file.

    Raises OverlayError if it is not a valid record: ignoring it could let the layers of an overlay in use be removed.
    """
    try:
        return detached_records.from_json(record_files.read(path, detached_records.LARGEST_RECORD))
    except RecordError as error:
        raise OverlayError(
            f"{path} is not a valid record of a detached overlay: {error}; end the processes that still use an earlier view, and then"
            " remove the file"
        ) from None


def _read() -> list[tuple[DetachedMount, str]]:
    """Return the records with their files, oldest first. Raises OverlayError if one is not valid."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(DIRECTORY):
            if name.endswith(".json") and not name.startswith(ASIDE_PREFIX):
                path = os.path.join(DIRECTORY, name)
                with contextlib.suppress(FileNotFoundError):
                    found.append((_entry(path), path))
    return sorted(found, key=lambda pair: pair[0].time)
