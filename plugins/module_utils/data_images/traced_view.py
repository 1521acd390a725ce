# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the release and path of each file that was opened in a view.

The redirect of a file in the metadata layer is the path of its content on the software root. It is exact, whatever releases were merged
at its place.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.fanotify import Opened
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.open_recorder import Listening
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.trace_results import (
    OpenedReleases,
    ReleasePlaces,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers, top_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images, strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import image_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import data_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation

#: Files that are looked up between two reports of progress.
_FILES_PER_STEP = 100


@dataclass(frozen=True)
class _Layer:
    """A metadata layer of a view."""

    path: bytes
    generation: Generation


@dataclass(frozen=True)
class TracedView:
    """A mounted view."""

    mount: Mount
    #: The metadata layers, in the order in which the kernel looks names up.
    layers: tuple[_Layer, ...]
    #: The last data layer, which is the software root.
    software_root: bytes

    @property
    def releases(self) -> dict[str, str]:
        """Return the digest of the manifest of each release that the view shows."""
        return {one["release"]: one["digest"] for layer in self.layers for one in layer.generation.releases}

    def places(self) -> ReleasePlaces:
        """Return the places of the releases."""
        return ReleasePlaces(one for layer in self.layers for one in layer.generation.releases)


def observe(path: bytes) -> TracedView:
    """Return the view that is mounted at ``path``, a path without symbolic links. Raises OverlayError if there is none."""
    mount = top_mount(namespaces.own_mounts(), path)
    if mount is None or mount.fstype != b"overlay":
        raise OverlayError(f"no view is mounted at {show(path)}: give the mountpoint of a view")
    layers = overlay_layers(mount)
    known = [(layer, data_layers.generation_of(layer)) for layer in layers.lower]
    found = tuple(_Layer(layer, generation) for layer, generation in known if generation)
    if not found:
        raise OverlayError(
            f"the overlay at {show(path)} is not a view: none of its layers has the record of a generation: give the mountpoint of a view"
        )
    # With strategy redirect the kernel reports the software root as an ordinary lower layer.
    return TracedView(mount, found, (layers.data or layers.lower)[-1])


def listening(view: TracedView, misses: bool, alone: bool) -> Listening:
    """Return where to listen for opens in a view, or with ``misses`` for those that reach the software root.

    ``alone`` is true if all processes that matter see the mount of the view in this mount namespace. Raises OverlayError if the view has no
    software root.
    """
    if not misses:
        return Listening(view.mount.path, whole=not alone)
    if not os.path.isdir(view.software_root):
        raise OverlayError(
            f"the view at {show(view.mount.path)} reads from images alone, so no open reaches a software root: use mode: opens"
        )
    return Listening(view.software_root, whole=True)


def attributed(view: TracedView, opened: Opened, misses: bool, seconds: float, progress: Progress) -> OpenedReleases:
    """Return the files of each release that were opened. Files without content are left out: the metadata layer has all of them.

    Gives up after ``seconds`` without progress. Raises OverlayError if a layer cannot be read.
    """
    find = _missed if misses else _in_layers
    return deadline.run(lambda tick: find(view, opened, tick), seconds, progress)


def _in_layers(view: TracedView, opened: Opened, progress: Progress) -> OpenedReleases:
    """Look opened files up in the metadata layers. Call this in a child process, since it mounts images."""
    paths = [layer.path for layer in view.layers]
    as_images = [image_path(path) for path in paths if not os.path.isdir(path)]
    if as_images:
        images.mount_unseen(as_images, paths)
    tops = [os.open(layer.path, beneath.LISTING) for layer in view.layers]
    shown, places = view.mount.root.strip(b"/"), view.places()
    found = OpenedReleases(unmapped=opened.lost)
    for number, (path, file) in enumerate(opened.files.items()):
        if number % _FILES_PER_STEP == 0:
            progress()
        # In a mount namespace that has ended, a path is relative to the mount.
        inner = _relative(path, view.mount.path) or path.lstrip(b"/")
        name = os.path.join(shown, inner) if shown else inner
        contents = (_content(top, name, layer.generation) for top, layer in zip(tops, view.layers))
        content = next(filter(None, contents), None)
        if content is None:
            found.unmapped += file.opens
        elif content.size:
            place = places.find(content.path, content.name)
            if place:
                found.add(*place, content.size, file.opens, file.processes)
            else:
                found.unmapped += file.opens
    return found


@dataclass(frozen=True)
class _Content:
    """The content of a file in a view."""

    #: The path of the file, relative to the root of the view.
    name: bytes
    #: The path of its content, relative to the software root; empty if it has no content.
    path: bytes
    #: Bytes of content.
    size: int


def _content(top: int, name: bytes, generation: Generation) -> _Content | None:
    """Return the content of a regular file in a metadata layer, given its name there; None if the layer has no such file."""
    try:
        fd = beneath.open_at(top, name, beneath.HOLD, same_mount=True)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        if not status.st_size:
            return _Content(name, b"", 0)
        redirect = os.getxattr(b"/proc/self/fd/%d" % fd, f"{generation.xattr_namespace}.overlay.redirect")
        if generation.strategy == strategies.REDIRECT:
            name = name.partition(b"/")[2]
        return _Content(name, redirect.lstrip(b"/"), status.st_size)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise
    finally:
        os.close(fd)


def _missed(view: TracedView, opened: Opened, progress: Progress) -> OpenedReleases:
    """Look up opens that reached the software root. Those through its own mounts are not of a view, and are left out."""
    places = view.places()
    found = OpenedReleases(unmapped=opened.lost)
    for path, file in opened.files.items():
        progress()
        if _relative(path, view.software_root) is not None:
            continue
        # The mount that an overlay holds of a data layer is attached nowhere, so paths are relative to it.
        content = path.lstrip(b"/")
        place = places.find(content)
        size = _size(os.path.join(view.software_root, content)) if place else None
        if place and size is not None:
            found.add(*place, size, file.opens, file.processes)
        else:
            found.unmapped += file.opens
    return found


def _size(path: bytes) -> int | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _relative(path: bytes, directory: bytes) -> bytes | None:
    """Return a path relative to a directory; None if it is not inside."""
    prefix = directory.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None
