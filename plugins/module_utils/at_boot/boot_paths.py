# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths that systemd and fstab(5) can name, and the names of units (systemd.unit(5))."""

from __future__ import annotations

import re

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

#: The most bytes of a file name.
_LONGEST_NAME = 255


def unit_name(path: bytes, kind: str = "mount") -> str:
    """Return the name of the unit of a kind for a mountpoint, as ``systemd-escape --path --suffix=KIND`` prints it.

    Raises OverlayError if it is too long for a file name.
    """
    inner = path.strip(b"/")
    escaped = "".join(
        "-" if byte == b"/"
        else byte.decode() if re.match(rb"[A-Za-z0-9:_.]", byte) and (position or byte != b".")
        else f"\\x{byte[0]:02x}"
        for position, byte in enumerate(inner[index : index + 1] for index in range(len(inner)))
    )  # fmt: skip
    name = f"{escaped or '-'}.{kind}"
    if len(name) > _LONGEST_NAME:
        raise OverlayError(f"{show(path)} is too long for the name of a unit: use 'persist: fstab' or a shorter path")
    return name


def check_characters(path: bytes) -> None:
    """Check the characters of a path. Raises OverlayError if systemd does not take one of them."""
    if re.search(rb'[\x00-\x1f\x7f"]', path):
        raise OverlayError(
            f"{show(path)} has a control character or a quotation mark in its name, so systemd cannot mount it at boot: use another path,"
            " or 'persist: none'"
        )
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        raise OverlayError(
            f"{show(path)} is not UTF-8, so systemd cannot mount it at boot: use another path, or 'persist: none'"
        ) from None


def check_for_unit(path: bytes) -> None:
    """Check a path for a unit. Raises OverlayError if a unit cannot name it."""
    check_characters(path)
    if path.endswith((b" ", b"\\")):
        raise OverlayError(
            f"{show(path)} ends in a space or a backslash, which a unit of systemd cannot express: use another path"
        )


def check_for_fstab(path: bytes) -> None:
    """Check the path of a layer for fstab. Raises OverlayError if an option cannot name it."""
    check_characters(path)
    if re.search(rb"[ ,\\']", path):
        raise OverlayError(
            f"layer {show(path)} has a space, a comma, a backslash or an apostrophe in its path, so fstab cannot tell systemd that the"
            " overlay needs it: use 'persist: systemd' or another path"
        )
