# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moving a directory within a mounted overlay, entry by entry, as core/move.py says."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.mountinfo import (
    Mount,
    containing_mount,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.move import (
    MARKER,
    MoveSpec,
    MoveState,
    Tree,
    marker_of,
    parse_marker,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.options import live_setting
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mounts, syscalls, xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_REDIRECT_MAX = "/sys/module/overlay/parameters/redirect_max"
_DEFAULT_REDIRECT_MAX = 256

#: How often a directory is looked through again when something has been added to it meanwhile.
_MOST_PASSES = 20


def observe(spec: MoveSpec, progress: Progress = no_progress) -> MoveState:
    """Return what is there. Reads each directory of the old place once."""
    live = mounts.read_mounts()
    mount = containing_mount(live, spec.source)
    defaults = mounts.overlay_defaults()
    settings: list[tuple[bytes, bytes]] = []
    if mount is not None and mount.fstype == b"overlay":
        settings = [
            (name, live_setting(overlay_layers(mount), name, defaults)) for name in (b"metacopy", b"redirect_dir")
        ]
    return MoveState(
        mount,
        containing_mount(live, spec.destination),
        tuple(other.path for other in live if other.path.startswith(spec.source + b"/")),
        _tree(spec.source, mount, progress),
        _destination(spec),
        _longest_redirect(),
        tuple(settings),
    )


def _tree(top: bytes, mount: Mount | None, progress: Progress) -> Tree | None:
    try:
        mode = os.lstat(top).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(mode):
        raise OverlayError(f"{show(top)} is not a directory")
    files = directories = 0
    longest = b""
    start = len(mount.path.rstrip(b"/")) if mount else 0
    for folder, folders, others in os.walk(top, onerror=_raise):
        progress()
        directories += len(folders)
        files += len(others)
        for name in others:
            path = os.path.join(folder, name)[start:]
            longest = max(longest, path, key=len)
    return Tree(files, directories, longest)


def _raise(error: OSError) -> None:
    raise error


def _destination(spec: MoveSpec) -> str:
    try:
        status = os.lstat(spec.destination)
    except FileNotFoundError:
        return "none"
    if not stat.S_ISDIR(status.st_mode):
        return "other"
    return _kind(spec.source, spec.destination)


def _kind(source: bytes, destination: bytes) -> str:
    marker = xattrs.read(destination, MARKER)
    if marker is not None and parse_marker(marker)[0] == source:
        return "moving"
    with os.scandir(destination) as listing:
        return "empty" if next(listing, None) is None else "other"


def _longest_redirect() -> int:
    try:
        with open(_REDIRECT_MAX, encoding="ascii") as stream:
            return int(stream.read())
    except OSError:
        return _DEFAULT_REDIRECT_MAX


def move(spec: MoveSpec, progress: Progress) -> None:
    """Move a directory. Where it was killed, the same call goes on.

    Raises OverlayError where somebody has put something of the same name into the new place.
    """
    files.make_directories(os.path.dirname(spec.destination), 0o755)
    _move(spec.source, spec.destination, progress)


def _move(source: bytes, destination: bytes, progress: Progress) -> None:
    for _pass in range(_MOST_PASSES):
        with os.scandir(source) as listing:
            entries = list(listing)
        _have_ready(source, destination)
        for entry in entries:
            to = os.path.join(destination, entry.name)
            if entry.is_dir(follow_symlinks=False):
                _move(entry.path, to, progress)
            else:
                _rename(entry.path, to)
            progress()
        _finish_inner(source, destination)
        try:
            os.rmdir(source)
        except OSError as error:
            # Something was added to it meanwhile.
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            finish(destination)
            return
    raise OverlayError(
        f"{show(source)} is being written to: after {_MOST_PASSES} times there still was something new in it; what was moved is at"
        f" {show(destination)}"
    )


def _have_ready(source: bytes, destination: bytes) -> None:
    """Have a directory that entries can be moved to. Raises OverlayError where there is something else."""
    status = os.lstat(source)
    try:
        # Nobody is to see anything in it before it has the right mode.
        os.mkdir(destination, 0o700)
        kind = "none"
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(destination).st_mode):
            raise _in_the_way(destination, source) from None
        kind = _kind(source, destination)
    if kind == "other":
        raise _in_the_way(destination, source)
    if kind != "moving":
        xattrs.write(destination, MARKER, marker_of(source, status.st_mtime_ns))
    os.chown(destination, status.st_uid, status.st_gid)
    os.chmod(destination, stat.S_IMODE(status.st_mode))
    _copy_attributes(source, destination)


def _copy_attributes(source: bytes, destination: bytes) -> None:
    names = os.listxattr(source)
    for name in os.listxattr(destination):
        if name not in names and not name.startswith("trusted."):
            os.removexattr(destination, name)
    for name in names:
        if os.fsencode(name) != MARKER:
            os.setxattr(destination, name, os.getxattr(source, name))


def _finish_inner(source: bytes, destination: bytes) -> None:
    """Finish the directory in another one that a killed run had moved, and not finished."""
    with os.scandir(destination) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                marker = xattrs.read(entry.path, MARKER)
                if marker is not None and parse_marker(marker)[0] == os.path.join(source, entry.name):
                    finish(entry.path)


def finish(destination: bytes) -> None:
    """Give a directory that all was moved to the time that the old one had, and take its marker away."""
    marker = xattrs.read(destination, MARKER)
    if marker is not None:
        mtime_ns = parse_marker(marker)[1]
        os.utime(destination, ns=(mtime_ns, mtime_ns))
        os.removexattr(destination, MARKER)


def _rename(source: bytes, destination: bytes) -> None:
    try:
        syscalls.rename_new(source, destination)
    except FileNotFoundError:
        # Somebody has removed it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.lstat(source)
            raise
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise _in_the_way(destination, source) from None
        if error.errno == errno.EXDEV:
            raise OverlayError(
                f"{show(source)}: the kernel cannot rename it without copying it, as its path is too long for a redirect: raise"
                f" {_REDIRECT_MAX}"
            ) from None
        raise


def _in_the_way(destination: bytes, source: bytes) -> OverlayError:
    return OverlayError(
        f"{show(destination)} is in the way of {show(source)}: it was not moved there; rename it, and run this again to go on"
    )
