# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which data layer answers: the kernel looks a redirect up in one data layer after the other, and takes the first that has the path.

A redirect has no word for which data layer it means. So the data layers of one overlay have to be copies of one software root, whole or
in part: where two of them have different files at one path, a view shows one root's name with the other root's content.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    containing_mount,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import MountOverlay, SwitchOverlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import Generation

#: Files that are compared between two data layers, of one release and, but for a few of each, of all; names that are read to find them.
_MOST_FILES = 32
_MOST_FILES_OF_ALL = 2000
_FEWEST_FILES = 4
_MOST_NAMES = 1000
#: Names that are read where nothing says which releases a layer has.
_MOST_COMMON_NAMES = 10_000

#: File systems that no server is asked for. Others are left alone by whoever may not wait for one.
_LOCAL = frozenset(
    (b"btrfs", b"erofs", b"ext2", b"ext3", b"ext4", b"f2fs", b"ramfs", b"squashfs", b"tmpfs", b"xfs", b"zfs")
)

_IN_IMAGE_STORE = re.compile(rb"[0-9a-f]{16}")


@dataclass(frozen=True)
class _DataLayer:
    path: bytes
    fd: int


def check(spec: MountSpec, plan: Plan) -> None:
    """Raises OverlayError where data layers of an overlay that is to be mounted can answer for each other with different files.

    Nothing is looked at where the plan mounts nothing.
    """
    if not any(isinstance(action, (MountOverlay, SwitchOverlay)) for action in plan):
        return
    known = [(layer, generation_of(layer)) for layer in spec.lower]
    _check_roots(spec, known)
    if len(spec.data) < 2:
        return
    with contextlib.ExitStack() as stack:
        data = []
        for path in dict.fromkeys(spec.data):
            # In check mode one may not be there yet.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                data.append(_DataLayer(path, os.open(path, beneath.LISTING)))
                stack.callback(os.close, data[-1].fd)
        sources = {os.fsencode(release["source"]) for _layer, found in known if found for release in found.releases}
        _check_releases(spec, data, sorted(sources))
        if any(found is None for _layer, found in known):
            for one, other in itertools.combinations(data, 2):
                _check_common(spec, one, other)


def generation_of(layer: bytes) -> Generation | None:
    """Return which generation a lower layer is; None for one that no record of ours is beside.

    Raises OverlayError for a record that is none.
    """
    folder, name = os.path.split(layer)
    if name == b"layer":
        path = names.record_path(os.fsdecode(folder))
    elif _IN_IMAGE_STORE.fullmatch(name):
        path = os.fsdecode(layer) + ".json"
    else:
        return None
    try:
        return names.generation_from_json(record_files.read(path, names.LARGEST_RECORD), path)
    except (FileNotFoundError, NotADirectoryError, OutdatedError):
        return None


def _check_roots(spec: MountSpec, known: Sequence[tuple[bytes, Generation | None]]) -> None:
    of_root: dict[str, bytes] = {}
    for layer, found in known:
        if found and found.root is not None:
            of_root.setdefault(found.root, layer)
    if len(of_root) > 1:
        listed = ", ".join(f"{show(layer)} of {show(os.fsencode(root))}" for root, layer in of_root.items())
        raise OverlayError(
            f"the layers of the overlay at {show(spec.path)} show releases of different software roots ({listed}): give each root a"
            " mountpoint of its own"
        )


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
                f"data layer {show(layer.path)} of the overlay at {show(spec.path)} has none of the releases that the view shows. A release"
                " that appears there later would be read instead of that of the view: leave it out, and mount a view of another software"
                " root at a mountpoint of its own"
            )


def _ambiguous(spec: MountSpec, one: _DataLayer, other: _DataLayer, path: bytes) -> str:
    return (
        f"data layers {show(one.path)} and {show(other.path)} of the overlay at {show(spec.path)} do not have the same {show(path)}, and"
        " the kernel reads what the first of them has. Data layers of one overlay have to be copies of one software root: mount a view of"
        " another root at a mountpoint of its own"
    )


def _release_in(layer: _DataLayer, source: bytes) -> int | None:
    """Return a descriptor of a release's directory in a data layer; None where the kernel would find nothing there."""
    try:
        return beneath.open_at(layer.fd, source, same_mount=True)
    except OSError:
        return None


def _is_empty(fd: int) -> bool:
    with os.scandir(fd) as listing:
        return next(listing, None) is None


def _unlike(one: int, other: int, files: int) -> bytes | None:
    """Return the path of a file that tells two directories apart; None where one of them looks like a copy of the other, or of a part.

    So many ``files`` of each are looked at.
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
    """Raises OverlayError for a file that both data layers have, and that is not the same, as far as a number of names tells."""
    if os.path.samestat(os.fstat(one.fd), os.fstat(other.fd)):
        return
    for path, status in _files(one.fd, _MOST_COMMON_NAMES, other.fd):
        found = _status(other.fd, path)
        if found is not None and not _alike(status, found):
            raise OverlayError(_ambiguous(spec, one, other, path))


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    """Tell whether two files look like copies; not all programs that copy keep the fraction of a second."""
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
    """Yield regular files below a directory, with paths relative to it, those near the top first, from so many names.

    With ``common_with``, directories that are not there too are not listed.
    """
    waiting = [b""]
    while waiting:
        folder = waiting.pop(0)
        if common_with is not None and not _has_directory(common_with, folder):
            continue
        try:
            fd = beneath.open_at(top, folder, same_mount=True)
        except OSError:
            continue
        try:
            with os.scandir(fd) as listing:
                for item in listing:
                    most_names -= 1
                    if most_names < 0:
                        return
                    path = os.path.join(folder, os.fsencode(item.name))
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
    """Return what the records of a mounted overlay's layers tell of its data layers; nothing that a server could be asked is looked at.

    ``roots`` are the software roots of the releases, None where a layer has no record that may be read. ``data_layers`` is ``one``,
    ``copies`` where several data layers answer for one software root, ``ambiguous`` where they do for several, and ``unknown``.
    """
    layers = overlay_layers(mount)
    lower, data = layers.lower, layers.data
    if not data and mount.root == b"/" + strategies.SHOWN_FOLDER.encode():
        # Strategy redirect, of which the kernel does not tell where the data layers begin.
        lower, data = layers.lower[:1], layers.lower[1:]
    found = [_read_locally(layer, live) for layer in lower]
    known = all(one is not None for one in found)
    roots = sorted({one.root for one in found if one and one.root is not None})
    if len(data) < 2:
        return {"roots": roots if known else None, "data_layers": "one" if data else "none"}
    kind = ("ambiguous" if len(roots) > 1 else "copies") if known else "unknown"
    return {"roots": roots if known else None, "data_layers": kind}


def _upwards(path: bytes) -> Iterator[bytes]:
    """Yield a path and all directories above it, up to the root."""
    yield path
    while path not in (b"/", b""):
        path = os.path.dirname(path)
        yield path


def _is_local(live: Sequence[Mount], path: bytes) -> bool:
    """Tell whether looking a name up at ``path`` asks no server. The root itself may be an overlay, and nothing works without it."""
    mount = containing_mount(live, path)
    return mount is not None and (mount.fstype in _LOCAL or (mount.path, mount.fstype) == (b"/", b"overlay"))


def _read_locally(layer: bytes, live: Sequence[Mount]) -> Generation | None:
    """Return which generation a layer is, where that can be told without asking a server."""
    place = os.path.dirname(layer)
    if not layer.startswith(b"/") or not all(_is_local(live, path) for path in _upwards(place)):
        return None
    try:
        # No link may lead to where a server has to be asked.
        top = os.open("/", beneath.LISTING)
        try:
            os.close(beneath.open_at(top, place[1:]))
        finally:
            os.close(top)
        return generation_of(layer)
    except (OSError, OverlayError):
        return None
