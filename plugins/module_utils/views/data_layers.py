# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that the data layers of an overlay are copies of one software root.

A redirect does not name a data layer: the kernel looks its path up in each data layer in order, and takes the first file that it finds.
So each data layer must be a copy of one software root, whole or in part. If two have different files at one path, a view shows the name
of one root with the content of the other.

A data image has a record beside it, which says what it holds. Without a record it is mounted out of sight, and examined like a directory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    containing_mount,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images, strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.creating import CHILD_SECONDS
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    image_path,
    without_suffix,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import MountOverlay, SwitchOverlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import data_image_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import NO_DATA
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_record, view_paths
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation

#: How many files of one release, and of all releases together, are compared between two data layers. A few files of each are compared.
_MOST_FILES = 32
_MOST_FILES_OF_ALL = 2000
_FEWEST_FILES = 4
#: How many names of a release are read to find these files.
_MOST_NAMES = 1000
#: How many names are read if no record says which releases a layer has.
_MOST_COMMON_NAMES = 10_000

#: File systems without a server. No other file system is examined if the caller must not wait for one.
_LOCAL = frozenset(
    (b"btrfs", b"erofs", b"ext2", b"ext3", b"ext4", b"f2fs", b"ramfs", b"squashfs", b"tmpfs", b"xfs", b"zfs")
)

_IN_IMAGE_STORE = re.compile(rb"[0-9a-f]{16}")

_Recorded = TypeVar("_Recorded")


@dataclass(frozen=True)
class _DataLayer:
    """A directory of a data layer, open."""

    path: bytes
    fd: int


def check(spec: MountSpec, plan: Plan) -> None:
    """Check the data layers of an overlay, if the plan mounts it.

    Raises OverlayError if its layers show releases of different software roots, if a data image is of another root or of a release that
    the layers do not show, if two data layers have different files of a release or at one path, or if a data layer that is not empty has
    none of the releases.
    """
    if not any(isinstance(action, (MountOverlay, SwitchOverlay)) for action in plan):
        return
    known = [(layer, generation_of(layer)) for layer in spec.lower]
    if spec.parts or any(found and len(found.roots) > 1 for _layer, found in known):
        _check_several_roots(spec, known)
        return
    _check_roots(spec, known)
    recorded = _check_images(spec, known)
    compared = [layer for layer in spec.data if layer not in recorded]
    if len(compared) < 2:
        return
    # In check mode an image may not exist yet.
    unseen = [image for image in spec.data_images if without_suffix(image) in compared and os.path.isfile(image)]
    if not unseen:
        _compare(spec, compared, known)
        return

    def compare_unseen(_progress: deadline.Progress) -> None:
        images.mount_unseen(unseen, compared)
        _compare(spec, compared, known)

    deadline.run(compare_unseen, CHILD_SECONDS)


def _check_images(spec: MountSpec, known: Sequence[tuple[bytes, Generation | None]]) -> set[bytes]:
    """Check the data images that have records against the releases of the lower layers; return the layer names of those that are right.

    An image of a release that no lower layer has is left to a comparison if a lower layer has no record. Raises OverlayError naming an
    image that is of another release or root, that was made of other files than the release has, or whose file is not complete.
    """
    shown = [release for _layer, found in known if found for release in found.releases]
    unknown = any(found is None for _layer, found in known)
    right = set()
    for image in spec.data_images:
        record = recorded_image(without_suffix(image))
        if record is None:
            continue
        _check_complete(image, record)
        of_release = [one for one in shown if (one["root"], one["source"]) == (record.root_name, record.source)]
        if any(one["digest"] == record.manifest_digest for one in of_release):
            right.add(without_suffix(image))
        elif of_release or not unknown:
            raise OverlayError(_unfit(spec, image, record, bool(of_release), sorted({one["root"] for one in shown})))
    return right


def _unfit(spec: MountSpec, image: bytes, record: DataImage, is_shown: bool, roots: Sequence[str]) -> str:
    """Return the message about a data image that does not fit the releases of an overlay. ``roots`` are their software roots."""
    about = f"data image {show(image)} of the overlay at {show(spec.path)}"
    release = show(os.fsencode(record.release))
    if is_shown:
        return (
            f"{about} was made with another manifest of release {release} than the view, so files could have the wrong content: build the"
            " image again with data_image, or leave it out"
        )
    if roots and record.root_name not in roots:
        listed = ", ".join(show(os.fsencode(root)) for root in roots)
        return (
            f"{about} is of release {release} of the software root {show(os.fsencode(record.root_name))}, and the view shows releases of"
            f" {listed}: leave the image out"
        )
    return f"{about} is of release {release}, which the view does not show: leave the image out"


def _check_complete(image: bytes, record: DataImage) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        size = os.stat(image).st_size
        if size != record.bytes_on_disk:
            raise OverlayError(
                f"data image {show(image)} has {size} bytes, and its record says {record.bytes_on_disk}: remove it, and install it again"
            )


def recorded_image(layer: bytes) -> DataImage | None:
    """Return the data image with a layer name, from the record beside it; None if there is no record, or one of an older version.

    Raises OverlayError if the record is not valid.
    """
    path = os.fsdecode(layer) + ".json"
    try:
        return data_image_record.data_image_from_json(record_files.read(path, data_image_record.LARGEST_RECORD))
    except (FileNotFoundError, NotADirectoryError, OutdatedError):
        return None
    except OverlayError as error:
        raise OverlayError(
            f"{show(os.fsencode(path))}, beside data image {show(image_path(layer))}: {error}; remove both files, and install the image"
            " again"
        ) from None


def _compare(spec: MountSpec, compared: Sequence[bytes], known: Sequence[tuple[bytes, Generation | None]]) -> None:
    """Compare data layers that are directories, or mounted images, by samples of their files. Raises OverlayError if they do not fit."""
    with contextlib.ExitStack() as stack:
        data = []
        for path in dict.fromkeys(compared):
            # In check mode a data layer may not exist yet.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                data.append(_DataLayer(path, os.open(path, beneath.LISTING)))
                stack.callback(os.close, data[-1].fd)
        sources = {os.fsencode(release["source"]) for _layer, found in known if found for release in found.releases}
        _check_releases(spec, data, sorted(sources))
        if any(found is None for _layer, found in known):
            for one, other in itertools.combinations(data, 2):
                _check_common(spec, one, other)


def generation_of(layer: bytes) -> Generation | None:
    """Return the generation that a lower layer is, from the record next to it; None if there is no record.

    Raises OverlayError if the record is not valid.
    """
    directory, name = os.path.split(layer)
    if name == b"layer":
        path = view_paths.record_path(os.fsdecode(directory))
    elif _IN_IMAGE_STORE.fullmatch(name):
        path = os.fsdecode(layer) + ".json"
    else:
        return None
    try:
        return generation_record.generation_from_json(record_files.read(path, generation_record.LARGEST_RECORD), path)
    except (FileNotFoundError, NotADirectoryError, OutdatedError):
        return None


def _check_roots(spec: MountSpec, known: Sequence[tuple[bytes, Generation | None]]) -> None:
    of_root: dict[str, bytes] = {}
    for layer, found in known:
        for root in found.roots if found else ():
            of_root.setdefault(root, layer)
    if len(of_root) > 1:
        listed = ", ".join(f"{show(layer)} of {show(os.fsencode(root))}" for root, layer in of_root.items())
        raise OverlayError(
            f"the layers of the overlay at {show(spec.path)} show releases of different software roots ({listed}): give each root a"
            " view and a mountpoint of its own"
        )


def _check_several_roots(spec: MountSpec, known: Sequence[tuple[bytes, Generation | None]]) -> None:
    """Check the data layers of a view over several software roots, which may be a tree of overlays.

    Raises OverlayError if an overlay has releases of more roots than it has data layers, or if a release is in two of its data layers.
    """
    releases = [release for _layer, found in known if found for release in found.releases]
    for overlay in spec.overlays:
        inner = [part.place for part in spec.parts] if overlay.path == spec.path else []
        shown = [
            one
            for one in releases
            for at in [os.fsencode(one["at"])]
            if (not overlay.place or is_inside(at, overlay.place)) and not any(is_inside(at, place) for place in inner)
        ]
        roots = sorted({one["root"] for one in shown})
        if len(roots) > len([layer for layer in overlay.data if layer != NO_DATA]):
            listed = ", ".join(show(os.fsencode(root)) for root in roots)
            raise OverlayError(
                f"the overlay at {show(overlay.path)} shows releases of the software roots {listed}, and does not have a data layer for"
                " each: use the module view with 'roots', which mounts such a view"
            )
        if len(overlay.data) > 1:
            _check_in_one_layer(overlay, [os.fsencode(one["source"]) for one in shown])


def _check_in_one_layer(spec: MountSpec, sources: Sequence[bytes]) -> None:
    with contextlib.ExitStack() as stack:
        data = []
        for path in spec.data:
            # In check mode a data layer may not exist yet.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                data.append(_DataLayer(path, os.open(path, beneath.LISTING)))
                stack.callback(os.close, data[-1].fd)
        for source in sources:
            holders = []
            for layer in data:
                fd = _release_in(layer, source)
                if fd is not None:
                    os.close(fd)
                    holders.append(layer)
            if len(holders) > 1:
                raise OverlayError(_ambiguous(spec, holders[0], holders[1], source))


def _check_releases(spec: MountSpec, data: Sequence[_DataLayer], sources: Sequence[bytes]) -> None:
    unused = {layer.path for layer in data if sources}
    files = max(_FEWEST_FILES, min(_MOST_FILES, _MOST_FILES_OF_ALL // max(1, len(sources))))
    for source in sources:
        with contextlib.ExitStack() as stack:
            holders = []
            for layer in data:
                fd = _release_in(layer, source)
                if fd is not None:
                    stack.callback(os.close, fd)
                    holders.append(_DataLayer(layer.path, fd))
            unused.difference_update(layer.path for layer in holders)
            for one, other in itertools.combinations(holders, 2):
                problem = _unlike(one.fd, other.fd, files)
                if problem is not None:
                    raise OverlayError(_ambiguous(spec, one, other, os.path.join(source, problem)))
    for layer in data:
        if layer.path in unused and not _is_empty(layer.fd):
            raise OverlayError(
                f"data layer {show(layer.path)} of the overlay at {show(spec.path)} has none of the releases that the view shows. If such a"
                " release appears there later, its files would be read instead of those of the view: leave this data layer out, and mount"
                " a view of another software root at its own mountpoint"
            )


def _ambiguous(spec: MountSpec, one: _DataLayer, other: _DataLayer, path: bytes) -> str:
    return (
        f"data layers {show(one.path)} and {show(other.path)} of the overlay at {show(spec.path)} have different files at {show(path)}, and"
        " the kernel reads that of the first one. Data layers of one overlay must be copies of one software root: mount a view of another"
        " root at its own mountpoint"
    )


def _release_in(layer: _DataLayer, source: bytes) -> int | None:
    """Return a descriptor of a release's directory in a data layer; None if the kernel would find no files there."""
    try:
        return beneath.open_at(layer.fd, source, same_mount=True)
    except OSError:
        return None


def _is_empty(fd: int) -> bool:
    with os.scandir(fd) as listing:
        return next(listing, None) is None


def _unlike(one: int, other: int, files: int) -> bytes | None:
    """Compare two directories; return the path of a file that differs, or None if one looks like a copy of the other or of a part of it.

    ``files`` is how many files of each are compared.
    """
    if os.path.samestat(os.fstat(one), os.fstat(other)):
        return None
    lacking = []
    for here, there in ((one, other), (other, one)):
        for path, status in itertools.islice(_files(here, _MOST_NAMES), files):
            found = _status(there, path)
            if found is None:
                lacking.append(path)
                break
            if not _alike(status, found):
                return path
    return lacking[0] if len(lacking) == 2 else None


def _check_common(spec: MountSpec, one: _DataLayer, other: _DataLayer) -> None:
    """Compare files that two data layers have at the same path, within a number of names. Raises OverlayError if two differ."""
    if os.path.samestat(os.fstat(one.fd), os.fstat(other.fd)):
        return
    for path, status in _files(one.fd, _MOST_COMMON_NAMES, other.fd):
        found = _status(other.fd, path)
        if found is not None and not _alike(status, found):
            raise OverlayError(_ambiguous(spec, one, other, path))


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    """Return whether two files look like copies. Some programs that copy files drop the fraction of a second of the mtime."""
    return stat.S_ISREG(other.st_mode) and (one.st_size, int(one.st_mtime)) == (other.st_size, int(other.st_mtime))


def _status(top: int, path: bytes) -> os.stat_result | None:
    try:
        fd = beneath.open_at(top, path, beneath.HOLD, same_mount=True)
    except OSError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _files(top: int, most_names: int, common_with: int | None = None) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield the regular files below a directory, breadth first, with paths relative to it. Read at most ``most_names`` names.

    With ``common_with``, a descriptor of another directory, skip directories that this one does not have.
    """
    waiting = [b""]
    while waiting:
        directory = waiting.pop(0)
        if common_with is not None and not _has_directory(common_with, directory):
            continue
        try:
            fd = beneath.open_at(top, directory, same_mount=True)
        except OSError:
            continue
        try:
            with os.scandir(fd) as listing:
                for item in listing:
                    most_names -= 1
                    if most_names < 0:
                        return
                    path = os.path.join(directory, os.fsencode(item.name))
                    if item.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif item.is_file(follow_symlinks=False):
                        yield path, item.stat(follow_symlinks=False)
        finally:
            os.close(fd)


def _has_directory(top: int, path: bytes) -> bool:
    found = _status(top, path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def answers(mount: Mount, live: Sequence[Mount]) -> dict[str, object]:
    """Return the software roots of a mounted overlay and how its data layers relate, from the records of its layers. Ask no file server.

    ``roots`` are the software roots of the releases, or None if a layer has no record on a local file system. ``data_layers`` is ``none``
    or ``one`` for fewer than two data layers. For several it is ``copies`` if the releases are of one software root, ``separate`` if the
    layer is made for several roots, ``ambiguous`` if the releases are of several otherwise, and ``unknown`` without a record.
    ``data_images`` are the data layers that are images with a record on a local file system, in their order: the ``path`` of each, its
    ``release`` and ``kind``, and whether it is ``complete``.
    """
    layers = overlay_layers(mount)
    lower, data = layers.lower, layers.data
    if not data and mount.root == b"/" + strategies.SHOWN_DIRECTORY.encode():
        # With strategy redirect the kernel reports data layers as lower layers. The first one is the metadata layer.
        lower, data = layers.lower[:1], layers.lower[1:]
    found = [_read_locally(layer, live, generation_of) for layer in lower]
    known = all(one is not None for one in found)
    roots = sorted({root for one in found if one for root in one.roots})
    several = any(one and len(one.roots) > 1 for one in found)
    of_images = [(layer, _read_locally(layer, live, recorded_image)) for layer in data]
    kind = "one" if data else "none"
    if len(data) > 1:
        of_all = {*roots, *(record.root_name for _layer, record in of_images if record)}
        kind = ("separate" if several else "ambiguous" if len(of_all) > 1 else "copies") if known else "unknown"
    return {
        "roots": roots if known else None,
        "data_layers": kind,
        "data_images": [
            {
                "path": show(image_path(layer)),
                "release": show(os.fsencode(record.release)),
                "kind": record.kind,
                "complete": record.complete,
            }
            for layer, record in of_images
            if record
        ],
    }


def _upwards(path: bytes) -> Iterator[bytes]:
    """Yield a path and all directories above it."""
    yield path
    while path not in (b"/", b""):
        path = os.path.dirname(path)
        yield path


def _is_local(live: Sequence[Mount], path: bytes) -> bool:
    """Return whether a lookup at ``path`` asks no file server. An overlay that is the root counts as local: nothing works without it."""
    mount = containing_mount(live, path)
    return mount is not None and (mount.fstype in _LOCAL or (mount.path, mount.fstype) == (b"/", b"overlay"))


def _read_locally(layer: bytes, live: Sequence[Mount], read: Callable[[bytes], _Recorded | None]) -> _Recorded | None:
    """Return what ``read`` reads from the record of a layer; None if that is unknown without asking a file server."""
    place = os.path.dirname(layer)
    if not layer.startswith(b"/") or not all(_is_local(live, path) for path in _upwards(place)):
        return None
    try:
        # A symbolic link could lead to a file server, so none is followed.
        top = os.open("/", beneath.LISTING)
        try:
            os.close(beneath.open_at(top, place[1:]))
        finally:
            os.close(top)
        return read(layer)
    except (OSError, OverlayError):
        return None
