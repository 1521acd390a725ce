# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe the formats of layers: how each is stored, and which layers it can hold.

What a host has to do with a format, such as finding a program that builds it, is in format_support.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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
class StoredFile:
    """A file of an image store."""

    #: ``sha256:`` and the hexadecimal SHA-256 of the file.
    digest: str
    #: The length of the file in bytes.
    bytes: int


@dataclass(frozen=True)
class StoredDelta(StoredFile):
    """A file of an image store that makes an image from another one."""

    #: The digest of the other image.
    base: str


@dataclass(frozen=True)
class Image:
    """What is known about an image without reading it."""

    #: ``sha256:`` and the hexadecimal SHA-256 of the file.
    digest: str
    #: The length of the file in bytes.
    bytes: int
    #: The name of the program that built it.
    builder: str
    #: The compressed image in the image store. None if it is not compressed there, or if this is an image on a host.
    packed: StoredFile | None = None
    #: The deltas in the image store that make this image.
    deltas: tuple[StoredDelta, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return what is recorded. What is None or empty is left out, as earlier versions of the collection do not know it."""
        fields: dict[str, Any] = {"digest": self.digest, "bytes": self.bytes, "builder": self.builder}
        if self.packed:
            fields["packed"] = asdict(self.packed)
        if self.deltas:
            fields["deltas"] = [asdict(delta) for delta in self.deltas]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Image:
        """Return the image that ``as_dict`` gave these fields."""
        packed = fields.get("packed")
        return cls(
            fields["digest"],
            fields["bytes"],
            fields["builder"],
            StoredFile(**packed) if packed else None,
            tuple(StoredDelta(**delta) for delta in fields.get("deltas", ())),
        )
