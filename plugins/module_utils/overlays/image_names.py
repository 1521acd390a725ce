# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of image files.

A layer that is an image is known by its path without the suffix: that is where its content is mounted when the kernel is given the
layers, so it is also what the kernel reports.
"""

from __future__ import annotations

from typing import AnyStr

#: How the name of an image file ends.
IMAGE_SUFFIX = ".erofs"

_SUFFIX_BYTES = IMAGE_SUFFIX.encode("ascii")


def is_image_path(path: bytes) -> bool:
    """Tell whether a path may be that of an image: its last part ends in the suffix and has something before it."""
    return path.endswith(_SUFFIX_BYTES) and not path.endswith(b"/" + _SUFFIX_BYTES) and path != _SUFFIX_BYTES


def without_suffix(image: AnyStr) -> AnyStr:
    """Return the path of an image without its suffix, under which it is known as a layer."""
    return image[: -len(IMAGE_SUFFIX)]


def image_path(name: bytes) -> bytes:
    """Return the path of the image that is known by a name: the inverse of ``without_suffix``."""
    return name + _SUFFIX_BYTES
