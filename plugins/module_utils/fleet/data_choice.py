# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose which data images a host has, within a budget and the free space of its disk, and which of them a view is mounted with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MOST_LAYERS

#: The kinds of data images of a view: what ``data_images`` of a view asks for. ``only`` is ``everything`` without the software root.
NONE, TRACE, EVERYTHING, ONLY = "none", "trace", "everything", "only"

#: A size in bytes, as Ansible takes it, and a part of a disk.
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([KMGTPEZYkmgtpezy]?)[bB]?")
_UNITS = ("", *"KMGTPEZY")
_PERCENTAGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,15})?)%")


@dataclass(frozen=True)
class LockedImage:
    """A data image that a lock names."""

    release: str
    #: ``trace`` or ``everything``.
    kind: str
    digest: str
    #: Bytes of the image file.
    bytes_on_disk: int
    #: How often its files were opened in the trace; 0 if there is no trace.
    opens: int
    #: Whether it has every regular file of the release that has content.
    complete: bool

    @property
    def id(self) -> str:
        """The ID of the image, which names its files."""
        return self.digest.partition(":")[2][:16]

    @property
    def heat(self) -> float:
        """The opens per byte."""
        return self.opens / max(self.bytes_on_disk, 1)

    def as_dict(self) -> dict[str, Any]:
        return {
            "release": self.release,
            "kind": self.kind,
            "digest": self.digest,
            "bytes_on_disk": self.bytes_on_disk,
            "opens": self.opens,
            "complete": self.complete,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LockedImage:
        """Return the image that ``as_dict`` described. Raises KeyError if a field is missing."""
        names = ("release", "kind", "digest", "bytes_on_disk", "opens", "complete")
        return cls(**{name: values[name] for name in names})


@dataclass(frozen=True)
class Space:
    """The space for data images on a host, in bytes."""

    #: The most bytes of all data images together; None if there is no budget.
    budget: int | None
    #: Free bytes of the file system, and how many of them stay free.
    free: int
    keep_free: int
    #: Bytes of the data images of views that this choice is not about.
    others: int = 0


@dataclass(frozen=True)
class DataChoice:
    """Which data images a host has."""

    #: Those to install, in this order.
    install: tuple[LockedImage, ...] = ()
    #: Those that are installed and stay.
    keep: tuple[LockedImage, ...] = ()
    #: Those that do not fit, each with the reason. Their files are read from the software root.
    left_out: tuple[tuple[LockedImage, str], ...] = ()

    @property
    def ids(self) -> frozenset[str]:
        """The IDs of the images that the host has when those to install are there."""
        return frozenset(image.id for image in (*self.install, *self.keep))

    def reason(self, image: LockedImage) -> str:
        """Return why an image is left out; an empty text if it is not."""
        return next((reason for one, reason in self.left_out if one.id == image.id), "")


def images_of(kind: str, locked: Iterable[LockedImage]) -> tuple[LockedImage, ...]:
    """Return the data images that a view with ``data_images: KIND`` uses, of those that its lock names: one for each release."""
    found: dict[str, LockedImage] = {}
    for image in locked:
        if image.kind == (EVERYTHING if kind == ONLY else kind):
            found.setdefault(image.release, image)
    return tuple(found.values())


def hottest_first(images: Iterable[LockedImage], installed: Collection[str] = ()) -> list[LockedImage]:
    """Return images by opens per byte, the highest first. Those whose IDs are in ``installed`` precede the others."""
    return sorted(images, key=lambda one: (one.id not in installed, -one.heat, one.bytes_on_disk, one.release))


def as_layers(
    images: Iterable[LockedImage], installed: Collection[str], others: int
) -> tuple[tuple[LockedImage, ...], tuple[LockedImage, ...]]:
    """Return the images that fit into one overlay, which has ``others`` layers besides them, and those that do not.

    Those whose IDs are in ``installed`` precede the others, so that a view does not change its layers from run to run.
    """
    ordered = hottest_first(images, installed)
    most = max(0, MOST_LAYERS - others)
    return tuple(ordered[:most]), tuple(ordered[most:])


def choose(
    required: Sequence[LockedImage], wanted: Sequence[LockedImage], installed: Mapping[str, int], space: Space
) -> DataChoice:
    """Choose among the data images of the views of a host.

    ``required`` are those of views without a software root, which precede ``wanted``, those of other views. Among each, those that are
    installed precede those that are not, so that images do not come and go, and then the hottest are first. ``installed`` has the bytes of
    the installed images by ID. An image that does not fit is left out, and a smaller one after it may fit.
    """
    ordered = {image.id: image for group in (required, wanted) for image in hottest_first(group, installed)}
    install: list[LockedImage] = []
    keep: list[LockedImage] = []
    left_out: list[tuple[LockedImage, str]] = []
    used, free = space.others, space.free
    for image in ordered.values():
        size = installed.get(image.id, image.bytes_on_disk)
        if space.budget is not None and used + size > space.budget:
            left_out.append((image, f"data_budget is {space.budget} bytes, and {used} of them are in use"))
        elif image.id in installed:
            keep.append(image)
            used += size
        elif free - size < space.keep_free:
            left_out.append((image, f"{free} bytes of the disk are free, and data_keep_free keeps {space.keep_free}"))
        else:
            install.append(image)
            used += size
            free -= size
    return DataChoice(tuple(install), tuple(keep), tuple(left_out))


def size_in_bytes(text: str) -> int:
    """Return the bytes of a size such as ``200G``, with the units of 1024. Raises ValueError if it is not a size above 0."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * 1024 ** _UNITS.index(found[2].upper())) if found else 0
    if not size:
        raise ValueError(f"{text!r} is not a size above 0")
    return size


def bytes_to_keep_free(declared: str, size: int) -> int:
    """Return how many bytes of a file system of ``size`` bytes stay free. ``declared`` is a size, ``0``, or a percentage such as ``5%``.

    Raises ValueError if it is none of these.
    """
    percentage = _PERCENTAGE.fullmatch(declared.strip())
    if percentage and float(percentage[1]) <= 100:
        return int(size * float(percentage[1]) / 100)
    return 0 if declared.strip() == "0" else size_in_bytes(declared)
