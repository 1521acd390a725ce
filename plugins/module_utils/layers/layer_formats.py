# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The formats of layers."""

from __future__ import annotations

from dataclasses import dataclass

#: Formats of layers: a directory tree with overlayfs attributes, or an EROFS image of one.
DIRECTORY = "directory"


EROFS = "erofs"


@dataclass(frozen=True)
class Image:
    """An EROFS image: what is known of it without reading it."""

    #: ``sha256:`` and the hexadecimal SHA-256 of the file.
    digest: str
    #: Length of the file in bytes.
    bytes: int
    #: The program that made it.
    builder: str
