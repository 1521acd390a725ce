# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of detached overlays below /run, which a reboot empties as it ends all processes.

What a record is, overlays/detached_records.py says.
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
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import Process
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached_records
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.detached_records import DetachedMount

#: Only root may know who uses what, or say so.
FOLDER = "/run/renderfarm-overlay/detached"


def record(mount: Mount, mounts: Collection[int]) -> DetachedMount:
    """Note an overlay that is about to be detached, with the numbers of all its mounts in all namespaces."""
    now = time.time_ns()
    entry = detached_records.record_of(mount, mounts, now / 1e9)
    files.make_directories(os.path.dirname(FOLDER), 0o755)
    files.make_directories(FOLDER, 0o700)
    name = f"{mount.device[0]}-{mount.device[1]}-{now}.json"
    aside = os.path.join(FOLDER, ASIDE_PREFIX + name)
    # Not synced: it need not outlive the processes.
    with open(files.open_or_make(aside, 0o600), "wb") as stream:
        stream.write(detached_records.to_json(entry))
    os.rename(aside, os.path.join(FOLDER, name))
    return entry


@dataclass(frozen=True)
class Observed:
    """What is in use of overlays that were detached, and what was looked at for it."""

    #: The recorded ones that are still in use, oldest first, each with its users.
    recorded: list[tuple[DetachedMount, list[Process]]]
    #: Processes by the numbers of mounts that are in no mount namespace, and in no record.
    unlisted: dict[int, list[Process]]
    #: The mounts of each mount namespace, with a process in it; None for our own.
    live: list[tuple[int | None, list[Mount]]]


def in_use(forget: bool = True) -> list[tuple[DetachedMount, list[Process]]]:
    """Return the recorded overlays that are still in use, oldest first, each with its users, and forget the others if told so."""
    return look(forget).recorded if _read() else []


def look(forget: bool = True) -> Observed:
    """Find out what is in use of detached overlays, and forget the records of those that are not, if told so.

    An overlay without users is in use as long as it is mounted somewhere, such as in the mount namespace of a container.
    """
    # Read before the processes are looked at, so that a record that is written meanwhile is not taken for unused.
    records = _read()
    holders = processes.by_mount()
    # Read after the processes were looked at: what has got the number of a recorded mount since, and was found to be held, is seen now.
    everywhere = list(namespaces.everywhere())
    live = [mount for _pid, mounts in everywhere for mount in mounts]
    found = []
    current = detached_records.brought_up_to_date([entry for entry, _path in records], live)
    for entry, (_old, path) in zip(current, records):
        # Without its file system it is gone, and what has the number of its mount is another one.
        exists = syscalls.has_superblock(entry.device) is not False
        users = {process for number in entry.mounts if exists for process in holders.get(number, ())}
        if users or detached_records.is_seen(entry, live):
            found.append((entry, sorted(users)))
        elif forget:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    listed = {mount.id for mount in live}.union(*(entry.mounts for entry, _users in found))
    unlisted = {number: users for number, users in holders.items() if number >= 0 and number not in listed}
    return Observed(found, unlisted, everywhere)


def _entry(path: str) -> DetachedMount:
    """Return a record. Raises OverlayError for what is none: layers that somebody may use would be taken for unused."""
    try:
        return detached_records.from_json(record_files.read(path, detached_records.LARGEST_RECORD))
    except RecordError as error:
        raise OverlayError(
            f"{path} should say which layers a detached overlay has, and does not: {error}; remove it when no process of an earlier"
            " view is left"
        ) from None


def _read() -> list[tuple[DetachedMount, str]]:
    """Return the records with their files, oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(FOLDER):
            if name.endswith(".json") and not name.startswith(ASIDE_PREFIX):
                path = os.path.join(FOLDER, name)
                with contextlib.suppress(FileNotFoundError):
                    found.append((_entry(path), path))
    return sorted(found, key=lambda pair: pair[0].time)
