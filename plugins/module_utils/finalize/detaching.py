# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make an upper layer independent of its lower layers.

While the overlay is in use, the content of each file is copied to the upper layer. While it is unmounted, the xattrs are removed by which
the kernel finds the lower file of each copy: it reads the attributes of that file whenever the copy is looked up or its status is read.
The overlay is then mounted over an empty directory.

Directories keep ``overlay.origin``: the kernel lists the whiteouts of an opaque directory that does not have it.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.directories import OverlayDirectory
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import Pending
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.live_overlay import Overlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    MTIME,
    empty_lower,
    lower_path,
    mtime_from_note,
    mtime_to_note,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import live_setting

_AGAIN = "run this again"


def check(overlay: Overlay) -> None:
    """Check that an overlay can be detached. Raises OverlayError if it is exported over NFS, or its empty directory cannot be used."""
    if live_setting(overlay.layers, b"nfs_export", creating.overlay_defaults()) == b"on":
        raise OverlayError(
            f"the overlay at {show(overlay.mount.path)} is mounted with nfs_export=on, so its file handles refer to files of the lower"
            " layers, and would be invalid once it is detached: mount it without nfs_export first"
        )
    try:
        _check_empty(overlay)
    except FileNotFoundError:
        return


def make_empty_lower(overlay: Overlay) -> None:
    """Make the empty directory, if it does not exist. Raises OverlayError if it cannot be used."""
    parent, name = posixpath.split(empty_lower(overlay.upper))
    fd = beneath.open_layer(parent)
    try:
        with contextlib.suppress(FileExistsError):
            beneath.make_directory(fd, name, 0o755)
    finally:
        os.close(fd)
    _check_empty(overlay)


def _check_empty(overlay: Overlay) -> None:
    place = empty_lower(overlay.upper)
    parent, name = posixpath.split(place)
    subject = f"{show(place)} is to be the lower layer of the overlay at {show(overlay.mount.path)}"
    fd = beneath.open_layer(parent)
    try:
        with beneath.opened(fd, name, same_mount=True) as inner:
            status = os.fstat(inner)
            if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise OverlayError(f"{subject}, and others than root can write to it: remove it")
            if beneath.names(inner):
                raise OverlayError(f"{subject} and is not empty: move away what is in it")
    except NotADirectoryError:
        raise OverlayError(f"{subject} and is no directory: move it away") from None
    finally:
        os.close(fd)


def lacks_content(overlay: Overlay, stored: int, name: bytes) -> bool:
    """Return whether a file in an open directory of the upper layer has no content yet, or not its mtime."""
    with beneath.held(stored, name) as fd:
        return not {os.fsdecode(overlay.prefix + b"metacopy"), os.fsdecode(MTIME)}.isdisjoint(
            beneath.held_attribute_names(fd)
        )


def copy_up_whole(held: int, is_new: bool) -> None:
    """Copy a regular file that has no name in the upper layer up with its content. ``held`` holds it in the overlay.

    ``is_new`` is whether the index cannot have its metadata. The kernel then copies everything in one step.
    """
    status = os.fstat(held)
    if not is_new or status.st_nlink > 1:
        copy_content(held)
    elif stat.S_ISREG(status.st_mode):
        beneath.open_for_writing(held)


def copy_content(held: int) -> None:
    """Copy the content of a metadata-only copy to the upper layer. ``held`` holds the regular file in the overlay.

    The kernel sets the mtime of the copy to the current time. The right one is noted in the file, so that a later run can set it if this
    run is killed.
    """
    status = os.fstat(held)
    if not stat.S_ISREG(status.st_mode):
        return
    note = beneath.held_attribute(held, MTIME)
    mtime = None if note is None else mtime_from_note(note, status.st_ino)
    if mtime is None:
        mtime = status.st_mtime_ns
        beneath.set_held_attribute(held, MTIME, mtime_to_note(mtime, status.st_ino))
    beneath.open_for_writing(held)
    beneath.set_held_times(held, status.st_atime_ns, mtime)
    beneath.remove_held_attribute(held, MTIME)


def has_index(overlay: Overlay) -> bool:
    """Return whether the index of an overlay has entries: files whose metadata is copied up, perhaps without a name in the upper layer."""
    with _opened_index(overlay) as index:
        return index >= 0 and bool(beneath.names(index))


def unready(overlay: Overlay, lowers: Lowers, workers: int, progress: Progress = no_progress) -> list[Pending]:
    """Return what the upper layer still needs from the lower layers. The overlay must not be mounted."""
    metacopy, note = os.fsdecode(overlay.prefix + b"metacopy"), os.fsdecode(MTIME)

    def visit(directory: OverlayDirectory, progress: Progress) -> tuple[list[Pending], list[OverlayDirectory]]:
        progress()
        found: list[Pending] = []
        further: list[OverlayDirectory] = []
        with beneath.opened(overlay.roots.upper, directory.path, same_mount=True) as fd:
            beneath.enter(fd)
            entries = beneath.entries(fd)
            for entry in entries:
                path = directory.child(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    marks = overlay.marks_in(fd, entry.name)
                    further.append(OverlayDirectory(path, lower_path(directory.lower, entry.name, marks), marks))
                elif entry.is_file(follow_symlinks=False) and not {metacopy, note}.isdisjoint(
                    beneath.attribute_names_here(entry.name)
                ):
                    found.append(Pending(path, f"its content is not copied up: {_AGAIN}"))
        # What is below a directory that the kernel sealed is not shown, unless it was when the directory was sealed.
        if directory.lower is not None and not directory.is_sealed_by_kernel:
            missing = (lowers.names(directory.lower) or set()).difference(entry.name for entry in entries)
            reason = f"it appeared in the lower layers during the run: {_AGAIN}"
            found += [Pending(directory.child(name), reason) for name in missing]
        return found, further

    first = [OverlayDirectory(b"", b"/", overlay.marks(overlay.roots.upper))]
    with beneath.working_directory_kept():
        return [one for found in parallel.walk(first, visit, workers, progress) for one in found]


def detach(overlay: Overlay, workers: int, progress: Progress = no_progress) -> None:
    """Remove from all copies what leads the kernel to the lower layers. The overlay must not be mounted, and nothing ``unready``.

    The kernel refuses to mount an overlay with an index entry whose file has no ``overlay.origin``, so the index is emptied first. A copy
    without an entry is a separate file to the kernel, which is right, since all of its names are in the upper layer. So an overlay reads as
    before whenever a run is killed.
    """
    _empty_index(overlay)
    syscalls.syncfs(overlay.roots.upper, overlay.upper)
    _remove_origins(overlay, workers, progress)
    # With index=on, the kernel mounts an upper layer only over the lower layer that its root records, and records one if there is none.
    beneath.remove_attribute(overlay.roots.upper, overlay.prefix + b"origin")
    syscalls.syncfs(overlay.roots.upper, overlay.upper)


def _empty_index(overlay: Overlay) -> None:
    """Remove the index entries of files: each is one more name of the file in the upper layer."""
    with _opened_index(overlay) as index:
        for entry in beneath.entries(index) if index >= 0 else ():
            if entry.is_dir(follow_symlinks=False):
                continue
            if entry.is_file(follow_symlinks=False):
                # The number of names relative to the index, which would be wrong without the entry.
                with beneath.held(index, entry.name) as fd:
                    beneath.remove_held_attribute(fd, overlay.prefix + b"nlink")
            beneath.unlink(index, entry.name)


@contextlib.contextmanager
def _opened_index(overlay: Overlay) -> Iterator[int]:
    """Provide the descriptor of the index while the block runs, or -1 if there is none."""
    work = beneath.open_layer(overlay.layers.work or b"")
    index = -1
    try:
        with contextlib.suppress(FileNotFoundError):
            index = beneath.open_at(work, b"index", same_mount=True)
        yield index
    finally:
        for fd in (index, work):
            if fd >= 0:
                os.close(fd)


def _remove_origins(overlay: Overlay, workers: int, progress: Progress) -> None:
    removed = {os.fsdecode(overlay.prefix + name): overlay.prefix + name for name in (b"origin", b"nlink", b"redirect")}

    def visit(path: bytes, progress: Progress) -> tuple[None, list[bytes]]:
        progress()
        further = []
        with beneath.opened(overlay.roots.upper, path, same_mount=True) as fd:
            beneath.enter(fd)
            for entry in beneath.entries(fd):
                if entry.is_dir(follow_symlinks=False):
                    further.append(posixpath.join(path, entry.name))
                    continue
                for name in beneath.attribute_names_here(entry.name):
                    if name in removed:
                        beneath.remove_attribute_here(entry.name, removed[name])
        return None, further

    with beneath.working_directory_kept():
        parallel.walk([b""], visit, workers, progress)
