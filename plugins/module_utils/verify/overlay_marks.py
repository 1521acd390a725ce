# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the xattrs of overlayfs of one file of a layer (Documentation/filesystems/overlayfs.rst, Linux 6.12)."""

from __future__ import annotations


def redirect_problem(redirect: bytes) -> str | None:
    """Return the code of what is wrong with the redirect of a file; None if the kernel can follow it in a data layer."""
    if not redirect.startswith(b"/"):
        return "relative_redirect"
    parts = redirect.split(b"/")[1:]
    if b".." in parts:
        return "escaping_redirect"
    if b"" in parts or b"." in parts:
        return "double_slash_redirect"
    return None


def file_problem(metacopy: bytes | None, redirect: bytes | None) -> str | None:
    """Return the code of what is wrong with the xattrs of a file of a metadata layer; None if nothing is.

    ``metacopy`` and ``redirect`` are their values, None if the file does not have them.
    """
    if metacopy is None:
        return None if redirect is None else "redirect_without_metacopy"
    if redirect is None:
        return "metacopy_without_redirect"
    return redirect_problem(redirect) or ("invalid_metacopy" if not is_metacopy(metacopy) else None)


def is_metacopy(value: bytes) -> bool:
    """Return whether the kernel takes the value: empty, or struct ovl_metacopy with its length and version 0."""
    return not value or (4 <= len(value) <= 36 and value[0] == 0 and value[1] == len(value))
