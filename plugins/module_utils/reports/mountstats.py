# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the NFS calls of mounts from /proc/self/mountstats (Linux net/sunrpc/stats.c), and find the NFS mounts below views."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import NFS_TYPES, Mount

_DEVICE = re.compile(rb"device .* mounted on (\S+) with fstype (\S+)")
#: An operation, and at least the eight numbers that every kernel prints for it. The first number counts the calls.
_OPERATION = re.compile(rb"\s*([A-Z0-9_]+):((?: \d{1,20}){8,})\s*")
#: Where the number of calls that ended in an error is. Kernels before Linux 5.3 do not print it.
_ERRORS = 8


@dataclass(frozen=True)
class NfsCalls:
    """The NFS calls of one operation since its file system was mounted."""

    calls: int
    #: Those that ended in an error, as a LOOKUP of a missing name does. None if the kernel does not count them.
    errors: int | None


def parse_mountstats(text: bytes) -> dict[bytes, dict[str, NfsCalls]]:
    """Return the calls of each operation, for each NFS mount by its mountpoint. The last mount at a mountpoint counts."""
    found: dict[bytes, dict[str, NfsCalls]] = {}
    current: dict[str, NfsCalls] | None = None
    for line in text.split(b"\n"):
        device = _DEVICE.match(line)
        if device:
            current = {} if device[2] in NFS_TYPES else None
            if current is not None:
                found[mountinfo.unescape(device[1])] = current
            continue
        operation = _OPERATION.fullmatch(line)
        if operation and current is not None:
            numbers = [int(number) for number in operation[2].split()]
            errors = numbers[_ERRORS] if len(numbers) > _ERRORS else None
            current[operation[1].decode("ascii")] = NfsCalls(numbers[0], errors)
    return found


def nfs_mounts_below(mountpoints: Iterable[bytes], mounts: Sequence[Mount]) -> list[bytes]:
    """Return the mountpoints of the NFS mounts that hold layers of the overlays at ``mountpoints``, sorted.

    Mounts of one file system share their counts, so only the first of them is returned.
    """
    found: dict[tuple[int, int], bytes] = {}
    for path in mountpoints:
        overlay = mountinfo.top_mount(mounts, path)
        if overlay is None or overlay.fstype != b"overlay":
            continue
        layers = mountinfo.overlay_layers(overlay)
        for layer in (*layers.lower, *layers.data):
            mount = mountinfo.containing_mount(mounts, layer)
            if mount is not None and mount.fstype in NFS_TYPES:
                found[mount.device] = min(mount.path, found.get(mount.device, mount.path))
    return sorted(found.values())


def calls_below(
    mountpoints: Iterable[bytes], mounts: Sequence[Mount], mountstats: bytes
) -> Mapping[bytes, Mapping[str, NfsCalls]]:
    """Return the calls of the NFS mounts below the overlays at ``mountpoints``, by the mountpoints of the NFS mounts."""
    calls = parse_mountstats(mountstats)
    return {path: calls[path] for path in nfs_mounts_below(mountpoints, mounts) if path in calls}
