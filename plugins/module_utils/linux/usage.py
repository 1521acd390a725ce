# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who needs the generations of a view: mounts in any mount namespace, processes, loop devices, and what is mounted at boot.

Only what the kernel says of paths is looked at, never a file of a data layer: its server may be gone.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.generation import ViewPaths
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import detached, namespaces, persistence, users

#: A use, in words, and a path that tells of which generation.
_Use = tuple[str, bytes]


def of_generations(paths: ViewPaths, forget: bool) -> dict[str, list[str]]:
    """Return for the folder of each generation that is needed by whom, in words.

    ``forget`` tells whether notes of detached overlays that nobody uses any more may be removed.
    """
    inside = os.fsencode(os.path.realpath(paths.generations)) + b"/"
    found: dict[str, list[str]] = {}

    def add(folder: bytes, words: str) -> None:
        known = found.setdefault(os.fsdecode(folder), [])
        if words not in known:
            known.append(words)

    for words, path in (*_mounted(), *_detached(forget), *_on_loop_devices(), *_held_open()):
        if path.startswith(inside):
            add(path[len(inside) :].partition(b"/")[0], words)
    at_boot = _at_boot()
    with contextlib.suppress(FileNotFoundError):
        for folder in os.listdir(inside):
            # The name is a digest, so nothing else has it in it.
            if any(folder in text for text in at_boot):
                add(folder, "it is mounted at boot")
    return found


def _mounted() -> Iterator[_Use]:
    for pid, live in namespaces.everywhere():
        for mount in live:
            where = f"it is mounted at {show(mount.path)}"
            if pid is not None:
                where += f" in the mount namespace of process {pid}"
            for path in _layers(mount):
                yield where, path


def _layers(mount: Mount) -> tuple[bytes, ...]:
    """Return the paths that a mount needs; of an image that is mounted where it can be seen that is the place."""
    if mount.fstype != b"overlay":
        return mount.path, mount.source
    layers = overlay_layers(mount)
    return (*layers.lower, *layers.data)


def _detached(forget: bool) -> Iterator[_Use]:
    for record, processes in detached.in_use(forget):
        listed = ", ".join(f"{process.name} ({process.pid})" for process in processes[:10])
        words = f"it is used by {listed}" if processes else "it is mounted elsewhere"
        for path in record.lower:
            yield words, path


def _on_loop_devices() -> Iterator[_Use]:
    for name in glob.glob("/sys/block/loop*/loop/backing_file"):
        with contextlib.suppress(OSError), open(name, "rb") as stream:
            yield f"it is on {name.split('/')[3]}", stream.read().rstrip(b"\n")


def _held_open() -> Iterator[_Use]:
    """Yield what processes hold of the layers themselves, not through an overlay."""
    for process, path in users.paths():
        yield f"it is open in {process.name} ({process.pid})", path


def _at_boot() -> list[bytes]:
    stored = persistence.read()
    return [stored.fstab, *(unit.text for unit in stored.units)]
