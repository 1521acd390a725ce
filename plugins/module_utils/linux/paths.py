# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths as values: converted between bytes and text, and compared without looking anything up."""

from __future__ import annotations


def to_text(path: bytes) -> str:
    """Return a path or name as text, from which ``to_bytes`` makes the same bytes again, whatever they are."""
    return path.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Return the bytes of a path or name."""
    return text.encode("utf-8", "surrogateescape")


def overlap(one: bytes, other: bytes) -> bool:
    """Return whether two paths are equal, or one is inside the other."""
    return is_inside(one, other) or is_inside(other, one)


def is_inside(path: bytes, directory: bytes) -> bool:
    """Return whether a path is a directory itself or inside it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
