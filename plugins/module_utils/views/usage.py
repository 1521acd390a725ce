# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who needs the generations of a view: mounts in any mount namespace, processes, loop devices, and what is mounted at boot.

Everything that removes something of a view asks here first. Only what the kernel says of paths is looked at, never a file of a data
layer: its server may be gone. Where it cannot be told which generation somebody uses, all of them count as used.
"""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces, processes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    containing_mount,
    in_namespace,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import boot, detached, strangers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import CURRENT, PREVIOUS, ViewPaths

#: Seconds in which a mount that is being made gets its place.
_MOMENT_SECONDS = 2.0
POLL_SECONDS = 0.1
#: Seconds after which a use is not one that ends by itself.
_LASTING_SECONDS = 3.0

#: What a process has open that is about to mount something.
_MOUNTING = b"anon_inode:[fscontext]"


@dataclass(frozen=True)
class _Use:
    #: Who uses it and where, as a clause of a sentence.
    words: str
    #: What is used; None where that cannot be told.
    path: bytes | None
    #: Whether the path may be one of another mount namespace.
    foreign: bool = False


def of_generations(paths: ViewPaths, forget: bool) -> dict[str, list[str]]:
    """Return for the folder of each generation that is in use by whom, in words.

    A generation that is being made or removed counts as well, under the same name. ``forget`` tells whether records of detached
    overlays that nobody uses any more may be removed.
    """
    view = _View(paths)
    found: dict[str, list[str]] = {}
    for use in (*_settled(forget), *_bound(view)):
        for folder in view.folders_of(use):
            known = found.setdefault(os.fsdecode(folder), [])
            if use.words not in known:
                known.append(use.words)
    for folder in _at_boot(view):
        found.setdefault(os.fsdecode(folder), []).append("it is mounted at boot")
    return found


def lasting(paths: ViewPaths, progress: Progress = no_progress) -> dict[str, list[str]]:
    """Return who uses the generations of a view, as ``of_generations`` does, once uses that end in a moment have ended.

    A module that mounts something has a copy of all mounts in a mount namespace of its own while it does that, and one that looks at what
    is in use opens it.
    """
    end = time.monotonic() + _LASTING_SECONDS
    while True:
        found = of_generations(paths, forget=False)
        if not found or time.monotonic() > end:
            return found
        progress()
        time.sleep(POLL_SECONDS)


def of_image(image: str) -> list[str]:
    """Return who on this host uses an image in an image store, in words."""
    found = {os.fsencode(image), os.fsencode(os.path.realpath(image))}
    # The kernel reports an image that is a layer under its path without the suffix.
    found |= {without_suffix(path) for path in found}
    return sorted({use.words for use in _all(forget=False) if use.path in found})


class _View:
    """Where the generations of a view are, by each name that they may have."""

    def __init__(self, paths: ViewPaths) -> None:
        self.paths = paths
        self.tops = {os.fsencode(path) + b"/" for path in (paths.root, os.path.realpath(paths.root))}
        self.folders: set[bytes] = set()
        for place in (paths.generations, paths.removing, paths.staging, paths.incoming):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.folders.update(os.listdir(os.fsencode(place)))
        self._places = {os.fsencode(os.path.basename(place)) for place in (paths.generations, paths.removing)}
        self._places |= {os.fsencode(os.path.basename(place)) for place in (paths.staging, paths.incoming)}

    def folders_of(self, use: _Use) -> set[bytes]:
        """Return the folders that a use is of."""
        if use.path is None:
            return self.folders
        rest = self._within(use)
        if rest is None:
            return set()
        place, _slash, inner = rest.partition(b"/")
        if place in self._places:
            folder = inner.partition(b"/")[0]
            return self.folders & {folder} if folder else self.folders
        # A link, which may have led elsewhere when it was used.
        return self.folders if place in (CURRENT.encode(), PREVIOUS.encode()) else set()

    def _within(self, use: _Use) -> bytes | None:
        """Return the path of what is used within the view's own folder; None where it is outside."""
        path = use.path or b""
        for top in self.tops:
            if path.startswith(top):
                return path[len(top) :]
        # The end of the path is the same wherever the state directory is, or is reached through a link.
        tail = b"/views/" + os.fsencode(os.path.basename(self.paths.root)) + b"/"
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
    """Return what is in use. A use of which it cannot be told what it is of is given a moment to end: another mount may just be made."""
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
        words = f"it is used by {listed}" if users else "it is mounted elsewhere"
        for path in record.lower:
            yield _Use(words, path)
    yield from _unrecorded(observed)
    yield from _on_loop_devices()
    yield from _held_open()


def _mounted(live: Sequence[tuple[int | None, Sequence[Mount]]]) -> Iterator[_Use]:
    # A file system that is seen here too names its parts as they are called here.
    here = {mount.device for pid, mounts in live if pid is None for mount in mounts}
    for pid, mounts in live:
        for mount in mounts:
            where = f"it is mounted at {show(mount.path)}{in_namespace(pid)}"
            for path in _layers(mount):
                yield _Use(where, path, foreign=mount.device not in here)


def _layers(mount: Mount) -> tuple[bytes, ...]:
    """Return the paths that a mount needs; of an image that is mounted where it can be seen that is the place."""
    if mount.fstype == b"overlay":
        layers = overlay_layers(mount)
        return (*layers.lower, *layers.data)
    return mount.path, mount.source


def _unrecorded(observed: detached.Observed) -> Iterator[_Use]:
    """Yield the uses of overlays that were detached by others."""
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
    """Yield what processes hold of the layers themselves, not through an overlay."""
    for process, path in processes.paths():
        who = f"{process.name} ({process.pid})"
        if path != _MOUNTING:
            yield _Use(f"it is open in {who}", path, foreign=_is_elsewhere(process.pid, "mnt"))
        elif not _is_elsewhere(process.pid, "user"):
            # Whoever may mount things only in a user namespace cannot reach the state directory.
            yield _Use(f"it may be about to be mounted by {who}", None)


def _is_elsewhere(pid: int, kind: str) -> bool:
    """Tell whether a process is in another namespace of a kind; one that has ended is not."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return False


def _bound(view: _View) -> Iterator[_Use]:
    """Yield the bind mounts that show a generation's files at another place."""
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
    """Return the folders that are mounted at boot."""
    stored = boot.read()
    texts = [stored.fstab, *(unit.text for unit in stored.units)]
    # The name of a folder is a digest, so nothing else has it in it.
    found = {folder for folder in view.folders if any(folder in text for text in texts)}
    for name in (CURRENT, PREVIOUS):
        link = f"views/{os.path.basename(view.paths.root)}/{name}/".encode()
        if any(link in text for text in texts):
            with contextlib.suppress(OSError):
                found.add(os.fsencode(os.path.basename(os.readlink(view.paths.link(name)))))
    return found
