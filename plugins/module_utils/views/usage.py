# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what uses generations of a view and data images.

Mounts in any mount namespace, processes, loop devices, mounts at boot, and what was written to a generation count as uses. Call this
before anything of a view or a data image is removed. It reads what the kernel reports about paths, and never looks up a file in a data
layer, whose server may not answer. If it is unknown which generation or image is in use, all of them count as used.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import boot_files, namespaces, processes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    containing_mount,
    in_namespace,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached, strangers, uppers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    is_image_path,
    without_suffix,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import CURRENT, PREVIOUS, ViewPaths

#: Seconds within which a new mount is attached after its creation.
_MOMENT_SECONDS = 2.0
POLL_SECONDS = 0.1
#: Seconds after which a use is taken for one that does not end by itself.
_LASTING_SECONDS = 3.0

#: What a process that is about to mount something has open.
_MOUNTING = b"anon_inode:[fscontext]"

#: The ID of a data image, between other characters.
_IMAGE_ID = re.compile(rb"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")


@dataclass(frozen=True)
class _Use:
    #: The reason, as a clause: what uses it, and where.
    reason: str
    #: What is used; None if that is unknown.
    path: bytes | None
    #: Whether the path may be that of another mount namespace.
    foreign: bool = False


def of_generations(paths: ViewPaths, forget: bool) -> dict[str, list[str]]:
    """Map the directory of each generation that is in use to the reasons.

    Generations that are being built or removed are included, by the same names. If ``forget`` is true, records of detached overlays that
    are not in use any more are removed.
    """
    view = _View(paths)
    found: dict[str, list[str]] = {}
    for use in (*_settled(forget), *_bound(view)):
        for name in view.directories_of(use):
            reasons = found.setdefault(os.fsdecode(name), [])
            if use.reason not in reasons:
                reasons.append(use.reason)
    for name in _at_boot(view):
        found.setdefault(os.fsdecode(name), []).append("it is mounted at boot")
    for directory in written_to(paths):
        found.setdefault(directory, []).append(f"what was written to it is in {paths.upper(directory)}; move it away")
    return found


def written_to(paths: ViewPaths) -> list[str]:
    """Return the directories of the generations that something was written to. A generation may be gone and what was written not."""
    try:
        names = sorted(os.listdir(paths.changes))
    except FileNotFoundError:
        return []
    return [name for name in names if uppers.has_changes(os.fsencode(paths.upper(name)))]


def lasting(paths: ViewPaths, progress: Progress = no_progress) -> dict[str, list[str]]:
    """Map generations to reasons as ``of_generations`` does, after waiting for uses that end by themselves.

    A module that mounts something holds a copy of all mounts in a private mount namespace meanwhile, and this function may see it.
    """
    end = time.monotonic() + _LASTING_SECONDS
    while True:
        found = of_generations(paths, forget=False)
        if not found or time.monotonic() > end:
            return found
        progress()
        time.sleep(POLL_SECONDS)


def of_image(image: str) -> list[str]:
    """Return the reasons why an image in an image store is in use on this host."""
    return of_images([image])[image]


def of_images(images: Collection[str]) -> dict[str, list[str]]:
    """Map each of these images in an image store to the reasons why it is in use on this host."""
    uses: dict[bytes, set[str]] = {}
    for use in _all(forget=False) if images else ():
        if use.path is not None:
            uses.setdefault(use.path, set()).add(use.reason)
    found = {}
    for image in images:
        paths = {os.fsencode(image), os.fsencode(os.path.realpath(image))}
        # The kernel reports an image that is a layer by its path without the suffix.
        paths |= {without_suffix(path) for path in paths if is_image_path(path)}
        found[image] = sorted(set().union(*(uses.get(path, ()) for path in paths)))
    return found


def of_data_images(ids: Collection[str], forget: bool) -> dict[str, list[str]]:
    """Map the ID of each of these data images that is in use on this host to the reasons.

    A path that contains an ID is that of the image: an ID is a part of a digest. If ``forget`` is true, records of detached overlays that
    are not in use any more are removed.
    """
    found: dict[str, list[str]] = {}
    known = frozenset(ids)
    if not known:
        return found
    for use in (*_settled(forget), *_bound_anywhere()):
        named = known if use.path is None else known.intersection(_ids_in(use.path))
        for image_id in named:
            reasons = found.setdefault(image_id, [])
            if use.reason not in reasons:
                reasons.append(use.reason)
    for image_id in known & _ids_in(b"\n".join(boot_files.texts())):
        found.setdefault(image_id, []).append("it is mounted at boot")
    return found


def _ids_in(text: bytes) -> set[str]:
    """Return what may be IDs of data images in a text."""
    return {match.decode("ascii") for match in _IMAGE_ID.findall(text)}


def _bound_anywhere() -> Iterator[_Use]:
    """Yield the mounts that show a part of a file system."""
    for pid, mounts in namespaces.everywhere():
        for mount in mounts:
            if mount.root != b"/":
                yield _Use(f"it is bound to {show(mount.path)}{in_namespace(pid)}", mount.root)


class _View:
    """The generations of a view, by every path that they may have."""

    def __init__(self, paths: ViewPaths) -> None:
        self.paths = paths
        self.tops = {os.fsencode(path) + b"/" for path in (paths.root, os.path.realpath(paths.root))}
        #: The names of the directories of generations, also of those that are being built or removed.
        self.directories: set[bytes] = set()
        places = (paths.generations, paths.removing, paths.staging, paths.incoming)
        for place in places:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.directories.update(os.listdir(os.fsencode(place)))
        self._places = {os.fsencode(os.path.basename(place)) for place in places}

    def directories_of(self, use: _Use) -> set[bytes]:
        """Return the names of the directories that are used."""
        if use.path is None:
            return self.directories
        rest = self._within(use)
        if rest is None:
            return set()
        place, _slash, inner = rest.partition(b"/")
        if place in self._places:
            name = inner.partition(b"/")[0]
            return self.directories & {name} if name else self.directories
        # The target of the link may have been another one when it was used.
        return self.directories if place in (CURRENT.encode(), PREVIOUS.encode()) else set()

    def _within(self, use: _Use) -> bytes | None:
        """Return the path of what is used, relative to the view's directory; None if it is outside."""
        path = use.path or b""
        for top in self.tops:
            if path.startswith(top):
                return path[len(top) :]
        # The end of the path is the same, whatever path leads to the state directory.
        tail = b"/views/" + os.fsencode(self.paths.name) + b"/"
        above, found, rest = path.partition(tail)
        if not found or not (use.foreign or self._is_root(above + tail)):
            return None
        return rest

    def _is_root(self, path: bytes) -> bool:
        try:
            return os.path.samefile(path, self.paths.root)
        except OSError:
            return False


def _settled(forget: bool) -> list[_Use]:
    """Return what is in use, after waiting a moment for uses of something unknown to end: another mount may be under way."""
    end = time.monotonic() + _MOMENT_SECONDS
    while True:
        found = list(_all(forget))
        if all(use.path is not None for use in found) or time.monotonic() > end:
            return found
        time.sleep(POLL_SECONDS)


def _all(forget: bool) -> Iterator[_Use]:
    observed = detached.look(forget)
    yield from _mounted(observed.live)
    for record, users in observed.recorded:
        listed = ", ".join(f"{process.name} ({process.pid})" for process in users[:10])
        reason = f"it is used by {listed}" if users else "it is mounted elsewhere"
        for path in (*record.lower, *record.data):
            yield _Use(reason, path)
    yield from _unrecorded(observed)
    yield from _on_loop_devices()
    yield from _held_open()


def _mounted(live: Sequence[tuple[int | None, Sequence[Mount]]]) -> Iterator[_Use]:
    # The layers of an overlay that is mounted here as well are reported by their paths in this mount namespace.
    here = {mount.device for pid, mounts in live if pid is None for mount in mounts}
    for pid, mounts in live:
        for mount in mounts:
            reason = f"it is mounted at {show(mount.path)}{in_namespace(pid)}"
            for path in _layers(mount):
                yield _Use(reason, path, foreign=mount.device not in here)


def _layers(mount: Mount) -> tuple[bytes, ...]:
    """Return the paths that a mount needs. For a visible mount of an image, that is its mountpoint."""
    if mount.fstype == b"overlay":
        layers = overlay_layers(mount)
        return (*layers.lower, *layers.data)
    return mount.path, mount.source


def _unrecorded(observed: detached.Observed) -> Iterator[_Use]:
    """Yield the uses of detached overlays that have no record, because a user detached them."""
    live = [mount for _pid, mounts in observed.live for mount in mounts]
    for process, mount in strangers.overlays(observed.unlisted, live):
        who = f"{process.name} ({process.pid})"
        if mount:
            for path in _layers(mount):
                yield _Use(f"it is used by {who}", path, foreign=True)
        else:
            yield _Use(f"it may be used by {who}, which has files of an overlay that is mounted nowhere any more", None)


def _on_loop_devices() -> Iterator[_Use]:
    for name in glob.glob("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError), open(name, "rb") as stream:
            yield _Use(f"it is on {name.split('/')[3]}", stream.read().rstrip(b"\n"))


def _held_open() -> Iterator[_Use]:
    """Yield what processes have open in the layers themselves, not through an overlay."""
    for process, path in processes.paths():
        who = f"{process.name} ({process.pid})"
        if path != _MOUNTING:
            yield _Use(f"it is open in {who}", path, foreign=_is_elsewhere(process.pid, "mnt"))
        elif not _is_elsewhere(process.pid, "user"):
            # A process in another user namespace cannot reach the state directory.
            yield _Use(f"it may be about to be mounted by {who}", None)


def _is_elsewhere(pid: int, kind: str) -> bool:
    """Return whether a process is in another namespace of a kind. A process that has ended is not."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return False


def _bound(view: _View) -> Iterator[_Use]:
    """Yield the bind mounts that show files of a generation at another path."""
    live = list(namespaces.everywhere())
    top = os.fsencode(os.path.realpath(view.paths.root))
    own = containing_mount(live[0][1], top)
    if own is None:
        return
    # The view's path within its file system.
    inside = own.root.rstrip(b"/") + b"/" + top[len(own.path.rstrip(b"/")) + 1 :] + b"/"
    for pid, mounts in live:
        for mount in mounts:
            if mount.device == own.device and mount.root.startswith(inside):
                yield _Use(
                    f"it is bound to {show(mount.path)}{in_namespace(pid)}", top + b"/" + mount.root[len(inside) :]
                )


def _at_boot(view: _View) -> set[bytes]:
    """Return the names of the directories that are mounted at boot."""
    texts = boot_files.texts()
    # A name contains a digest, so it cannot be a part of anything else.
    found = {name for name in view.directories if any(name in text for text in texts)}
    for name in (CURRENT, PREVIOUS):
        link = f"views/{view.paths.name}/{name}/".encode()
        if any(link in text for text in texts):
            with contextlib.suppress(OSError):
                found.add(os.fsencode(os.path.basename(os.readlink(view.paths.link(name)))))
    return found
