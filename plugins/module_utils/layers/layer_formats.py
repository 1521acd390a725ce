# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe the formats of layers: how each is stored, and which layers it can hold.

What a host has to do with a format, such as finding a program that builds it, is in format_support.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import IMAGE_SUFFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.strategies import DATA_ONLY, REDIRECT, TRUSTED

USER = "user"

#: What a strategy needs that not every format has.
_NEEDS = {DATA_ONLY: "metadata-only files", REDIRECT: "opaque directories"}


@dataclass(frozen=True)
class LayerFormat:
    """One way to store a layer on disk."""

    #: The word for it in options, records and names of directories.
    name: str
    #: The end of the name of a layer.
    suffix: str
    #: The type of the file system that the kernel mounts a layer with. Empty if a layer is a directory, and not an image.
    filesystem: str
    #: Strategies and xattr namespaces of the layers that it can hold.
    strategies: tuple[str, ...]
    xattr_namespaces: tuple[str, ...]

    @property
    def is_image(self) -> bool:
        """Whether a layer is one file, which can be published in an image store."""
        return bool(self.filesystem)

    def obstacle(self, strategy: str, xattr_namespace: str) -> str | None:
        """Return why the format cannot hold a layer of a strategy and an xattr namespace; None if it can."""
        if strategy not in self.strategies:
            return f"strategy {strategy} needs {_NEEDS[strategy]}, which the format {self.name} lacks; use the format directory or auto"
        if xattr_namespace not in self.xattr_namespaces:
            namespaces = " and ".join(self.xattr_namespaces)
            return f"the format {self.name} holds overlay xattrs of the namespace {namespaces} only"
        return None


DIRECTORY = LayerFormat("directory", "", "", (DATA_ONLY, REDIRECT), (TRUSTED, USER))
EROFS = LayerFormat("erofs", IMAGE_SUFFIX, "erofs", (DATA_ONLY,), (TRUSTED,))

#: Every format by its name, the most desirable one first.
FORMATS = {one.name: one for one in (EROFS, DIRECTORY)}


def published_format() -> LayerFormat:
    """Return the format of the images that are published in image stores."""
    return next(one for one in FORMATS.values() if one.is_image)


@dataclass(frozen=True)
class Image:
    """What is known about an image without reading it."""

    #: ``sha256:`` and the hexadecimal SHA-256 of the file.
    digest: str
    #: The length of the file in bytes.
    bytes: int
    #: The name of the program that built it.
    builder: str
