# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong for reasons that a user can mend, and how paths are shown in messages."""

from __future__ import annotations


class OverlayError(Exception):
    """A refusal or a failure with a message for the user: it names the path or name, the reason, and what to do."""


class ManifestError(OverlayError):
    """A manifest is not what it should be: malformed, truncated or altered."""


def show(path: bytes) -> str:
    """Return a path for a message: UTF-8 as it is, control characters and other bytes as backslash escapes."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
