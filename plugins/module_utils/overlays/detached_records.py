# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of detached overlays.

The kernel lists a detached mount nowhere. Its record, written before it is detached, is the only way to find the processes that use it
and the layers that they keep in use. A record is one JSON object::

    {"path": "/software", "device": "0:42", "mounts": [90, 131], "lower": ["/var/lib/.../layer"], "data": ["/net/software"],
     "time": 1767225600.0}

``mounts`` are the mount IDs of the overlay in all mount namespaces. ``lower`` and ``data`` are its layers as the kernel reports them.
Records of earlier versions lack ``data``. ``time`` is in seconds since the epoch. Paths are UTF-8; other bytes are kept as lone
surrogates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordKind

#: The largest record that is read, in bytes.
LARGEST_RECORD = 1 << 26


@dataclass(frozen=True)
class DetachedMount:
    """An overlay that was detached."""

    path: bytes
    device: tuple[int, int]
    mounts: frozenset[int]
    lower: tuple[bytes, ...]
    time: float
    data: tuple[bytes, ...] = ()


def record_of(mount: Mount, mounts: Collection[int], time: float) -> DetachedMount:
    """Return the record of an overlay. ``mounts`` are the IDs of all its mounts, ``time`` is in seconds since the epoch."""
    layers = overlay_layers(mount)
    return DetachedMount(mount.path, mount.device, frozenset(mounts), layers.lower, time, layers.data)


def to_json(record: DetachedMount) -> bytes:
    """Return a record as JSON."""
    value = {
        "path": to_text(record.path),
        "device": f"{record.device[0]}:{record.device[1]}",
        "mounts": sorted(record.mounts),
        "lower": [to_text(path) for path in record.lower],
        "data": [to_text(path) for path in record.data],
        "time": record.time,
    }
    return _RECORD.dump(value)


_LAYERS = records.list_of(records.text(), 1 << 12)
_RECORD = RecordKind(
    records.fields(
        {
            "path": records.absolute,
            "device": records.form("[0-9]{1,10}:[0-9]{1,10}"),
            "mounts": records.list_of(records.integer(0, records.LARGEST_SIZE), 1 << 20),
            "lower": _LAYERS,
            "time": records.number(0, 1 << 40),
        },
        {"data": _LAYERS},
    ),
    LARGEST_RECORD,
)


def from_json(text: bytes) -> DetachedMount:
    """Return the record that a text holds. Raises RecordError if it holds none."""
    value = _RECORD.load(text)
    major, minor = value["device"].split(":")
    return DetachedMount(
        path=to_bytes(value["path"]),
        device=(int(major), int(minor)),
        mounts=frozenset(value["mounts"]),
        lower=tuple(to_bytes(path) for path in value["lower"]),
        time=float(value["time"]),
        data=tuple(to_bytes(path) for path in value.get("data", ())),
    )


def brought_up_to_date(records: Sequence[DetachedMount], live: Sequence[Mount]) -> list[DetachedMount]:
    """Return the records with their current mount IDs. ``live`` are the mounts of all mount namespaces.

    The kernel reuses the ID of a mount that is gone. A mount ID that another mount or a later record has is therefore removed from a
    record. Where the overlay is still mounted, its mount IDs there are added.
    """
    mounts = {mount.id: mount for mount in live}
    found = []
    for record in records:
        later = {mount_id for other in records if other.time > record.time for mount_id in other.mounts}
        kept = {
            mount_id for mount_id in record.mounts - later if mount_id not in mounts or _is_of(mounts[mount_id], record)
        }
        kept.update(mount.id for mount in live if _is_of(mount, record))
        found.append(replace(record, mounts=frozenset(kept)))
    return found


def is_mounted(record: DetachedMount, live: Sequence[Mount]) -> bool:
    """Return whether a recorded overlay is still mounted. ``live`` are the mounts of all mount namespaces."""
    return any(_is_of(mount, record) for mount in live)


def _is_of(mount: Mount, record: DetachedMount) -> bool:
    return mount.device == record.device and mount.fstype == b"overlay" and overlay_layers(mount).lower == record.lower
