# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""File capabilities as the kernel keeps them in ``security.capability`` (struct vfs_cap_data of linux/capability.h)."""

from __future__ import annotations

_EFFECTIVE = 1
#: The length of each revision that the kernel writes. The last four bytes of the third are the uid of a user namespace's root.
_LENGTHS = {0x02000000: 20, 0x03000000: 24}


def problem(value: bytes) -> str | None:
    """Return why the kernel would not take ``value`` as the capabilities of a file, or would give back another one; None if it does."""
    revision = int.from_bytes(value[:4], "little") & ~_EFFECTIVE
    if _LENGTHS.get(revision) != len(value):
        return f"{len(value)} bytes of revision {revision:#x} are none that the kernel writes"
    if revision == 0x03000000 and int.from_bytes(value[20:], "little") in (0, (1 << 32) - 1):
        return "the user namespace that it is for has no root"
    return None
