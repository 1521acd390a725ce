# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of image files and of the layers that they are.

The layer name of an image is its path without the suffix. The image is mounted there when the kernel takes the layers, so the kernel
reports it under that name.
"""

from __future__ import annotations

from typing import AnyStr

#: The suffix of an image file.
IMAGE_SUFFIX = ".erofs"

_SUFFIX_BYTES = IMAGE_SUFFIX.encode("ascii")


def is_image_path(path: bytes) -> bool:
    """Return whether a path has the name of an image: the suffix with something before it."""
    return path.endswith(_SUFFIX_BYTES) and not path.endswith(b"/" + _SUFFIX_BYTES) and path != _SUFFIX_BYTES


def without_suffix(image: AnyStr) -> AnyStr:
    """Return the layer name of an image: its path without the suffix."""
    return image[: -len(IMAGE_SUFFIX)]


def image_path(name: bytes) -> bytes:
    """Return the path of the image with a layer name: the inverse of ``without_suffix``."""
    return name + _SUFFIX_BYTES
