# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check file capabilities in the form in which the kernel keeps them: ``security.capability`` (struct vfs_cap_data, linux/capability.h)."""

from __future__ import annotations

_EFFECTIVE = 1
#: Length in bytes of each revision that the kernel writes. Revision 3 ends in the uid of the root of a user namespace.
_LENGTHS = {0x02000000: 20, 0x03000000: 24}


def problem(value: bytes) -> str | None:
    """Return why the kernel would refuse ``value`` as file capabilities or would return another value; None if it keeps ``value``."""
    revision = int.from_bytes(value[:4], "little") & ~_EFFECTIVE
    if _LENGTHS.get(revision) != len(value):
        return f"the kernel writes no capabilities of revision {revision:#x} and {len(value)} bytes"
    if revision == 0x03000000 and int.from_bytes(value[20:], "little") in (0, (1 << 32) - 1):
        return "its user namespace has no valid root uid"
    return None
