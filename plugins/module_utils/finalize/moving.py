# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Move a directory within a mounted overlay entry by entry, as planned by finalize/move_plan.py.

Users may write to both places meanwhile. So each directory is opened once, beneath the overlay's root, and all work goes through its
descriptor. A new directory gets its owner and mode where only root can reach it, and then its name. Otherwise a user who may write to
its parent directory could put another directory in its place, and become the owner of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.move_plan import (
    MARKER,
    MoveSpec,
    MoveState,
    TreeSize,
    marker_of,
    parse_marker,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    containing_mount,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import live_setting

_REDIRECT_MAX = "/sys/module/overlay/parameters/redirect_max"
_DEFAULT_REDIRECT_MAX = 256

#: How often the entries of a directory are moved if users keep adding some.
_MOST_PASSES = 20

#: Prefix of the directory in the overlay's root in which new directories are made. Only root can enter it.
ASIDE = b".renderfarm-overlay-moving-"

#: Errors of opening a path that is no directory, or is on another mount.
_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


def observe(spec: MoveSpec, progress: Progress = no_progress) -> MoveState:
    """Return what there is at the source and at the destination. Read each directory below the source once."""
    live = namespaces.own_mounts()
    mount = containing_mount(live, spec.source)
    other = containing_mount(live, spec.destination)
    defaults = creating.overlay_defaults()
    settings: list[tuple[bytes, bytes]] = []
    if mount is not None and mount.fstype == b"overlay":
        settings = [
            (name, live_setting(overlay_layers(mount), name, defaults)) for name in (b"metacopy", b"redirect_dir")
        ]
    return MoveState(
        mount,
        other,
        tuple(found.path for found in live if found.path.startswith(spec.source + b"/")),
        None if mount is None else _tree(spec.source, mount, progress),
        "none" if other is None else _destination(spec, other),
        _longest_redirect(),
        tuple(settings),
    )


def mountpoint_of(path: bytes) -> bytes:
    """Return the mountpoint of the mount that a path is on. The path need not exist."""
    mount = containing_mount(namespaces.own_mounts(), path)
    return path if mount is None else mount.path


@contextlib.contextmanager
def _root(mount: Mount) -> Iterator[int]:
    """Open the root of a mount while the block runs. Raises OverlayError if another mount is there now."""
    fd = beneath.open_root(mount.path)
    try:
        if beneath.mount_of(fd) != mount.id:
            raise OverlayError(f"another mount appeared at {show(mount.path)} just now: run this again")
        yield fd
    finally:
        os.close(fd)


def _inside(path: bytes, mount: Mount) -> bytes:
    """Return a path relative to the root of the mount that it is on."""
    return path[len(mount.path.rstrip(b"/")) :].lstrip(b"/")


def _tree(top: bytes, mount: Mount, progress: Progress) -> TreeSize | None:
    """Count what is below a directory; return None if it does not exist. Raises OverlayError if it is no directory."""
    directories = count = 0
    longest = b""
    start = _inside(top, mount)
    with _root(mount) as root:
        try:
            os.close(beneath.open_at(root, start, same_mount=True))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NO_DIRECTORY:
                raise OverlayError(f"{show(top)} is not a directory: give the path of one") from None
            raise
        waiting = [start]
        while waiting:
            here = waiting.pop()
            progress()
            for entry in _entries_of(root, here):
                path = os.path.join(here, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    directories += 1
                    waiting.append(path)
                else:
                    count += 1
                    longest = max(longest, b"/" + path, key=len)
    return TreeSize(count, directories, longest)


def _entries_of(root: int, path: bytes) -> list[os.DirEntry[bytes]]:
    """Return the entries of a directory, or none if it is on another mount. Such a mount is refused by its path."""
    try:
        with beneath.opened(root, path, same_mount=True) as fd:
            return beneath.entries(fd)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return []
        raise


def _destination(spec: MoveSpec, mount: Mount) -> str:
    """Return the value of ``MoveState.destination``."""
    with _root(mount) as root:
        try:
            with beneath.opened(root, _inside(spec.destination, mount), same_mount=True) as fd:
                return _kind(spec.source, spec.destination, fd)
        except FileNotFoundError:
            return "none"
        except OSError as error:
            if error.errno in _NO_DIRECTORY:
                return "other"
            raise


def _kind(source: bytes, destination: bytes, fd: int) -> str:
    """Return whether the open destination is ``empty``, ``moving`` or ``other``."""
    marker = parse_marker(beneath.attribute(fd, MARKER) or b"")
    if marker is not None and marker[:2] == (source, destination):
        return "moving"
    return "other" if beneath.names(fd) else "empty"


def _longest_redirect() -> int:
    try:
        with open(_REDIRECT_MAX, encoding="ascii") as stream:
            return int(stream.read())
    except OSError:
        return _DEFAULT_REDIRECT_MAX


def move(spec: MoveSpec, progress: Progress) -> None:
    """Move a directory. After a killed run, the same call continues the move.

    Raises OverlayError if another entry of the same name is at the destination.
    """
    files.allow_deep_trees()
    mount = _overlay_of(spec.source)
    source, destination = os.path.split(spec.source), os.path.split(spec.destination)
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(_root(mount))
        old = stack.enter_context(beneath.opened(root, _inside(source[0], mount), same_mount=True))
        new = beneath.make_directories(root, _inside(destination[0], mount))
        stack.callback(os.close, new)
        _Move(stack.enter_context(_aside(root)), progress).move(
            (old, source[1]), (new, destination[1]), spec.source, spec.destination
        )


def finish(spec: MoveSpec) -> None:
    """Finish a move whose source is gone: set the mtime of the destination."""
    mount = _overlay_of(spec.destination)
    with _root(mount) as root:
        _remove_aside(root)
        with beneath.opened(root, _inside(spec.destination, mount), same_mount=True) as fd:
            if _kind(spec.source, spec.destination, fd) == "moving":
                _finish(fd)


def _overlay_of(path: bytes) -> Mount:
    mount = containing_mount(namespaces.own_mounts(), path)
    if mount is None or mount.fstype != b"overlay":
        raise OverlayError(f"{show(path)} is no longer in an overlay: mount the overlay, and run this again")
    return mount


@contextlib.contextmanager
def _aside(root: int) -> Iterator[int]:
    """Make a directory in the overlay's root that only root can enter, open it while the block runs, and remove it."""
    _remove_aside(root)
    name = ASIDE + secrets.token_hex(8).encode("ascii")
    beneath.make_directory(root, name, 0o700)
    fd = beneath.open_at(root, name, same_mount=True)
    try:
        if not _is_ours(fd):
            raise OverlayError(
                f"{show(name)}, in which new directories are made, was replaced by another directory just now: run this again"
            )
        yield fd
    finally:
        os.close(fd)
        _remove_aside(root)


def _is_ours(fd: int) -> bool:
    """Return whether only root can enter a directory. A user may have put another one in the place of ours."""
    status = os.fstat(fd)
    return status.st_uid == 0 and not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _remove_aside(root: int) -> None:
    """Remove what a killed run has left in such directories: empty directories without a place yet."""
    for name in beneath.names(root):
        if name.startswith(ASIDE):
            # Leave directories that are not empty.
            with contextlib.suppress(OSError), beneath.opened(root, name, same_mount=True) as fd:
                if _is_ours(fd):
                    for inner in beneath.names(fd):
                        beneath.remove_directory(fd, inner)
                    beneath.remove_directory(root, name)


#: A name in an open directory.
_At = tuple[int, bytes]


class _Move:
    """One move. ``aside`` is the open directory in which new directories are made."""

    def __init__(self, aside: int, progress: Progress) -> None:
        self._aside = aside
        self._progress = progress

    def move(self, old: _At, new: _At, source: bytes, destination: bytes) -> None:
        """Move the directory ``old`` to ``new``. The two paths are for messages and markers."""
        with beneath.opened(*old, same_mount=True) as fd:
            to = self._ready(fd, new, source, destination)
            try:
                for _pass in range(_MOST_PASSES):
                    self._move_entries(fd, to, source, destination)
                    try:
                        beneath.remove_directory(*old)
                    except OSError as error:
                        # A user added something to it meanwhile.
                        if error.errno != errno.ENOTEMPTY:
                            raise
                    else:
                        _finish(to)
                        return
            finally:
                os.close(to)
        raise OverlayError(
            f"{show(source)} is still being written to after {_MOST_PASSES} passes: stop that, and run this again; what was moved is"
            f" at {show(destination)}"
        )

    def _move_entries(self, fd: int, to: int, source: bytes, destination: bytes) -> None:
        for entry in beneath.entries(fd):
            old, new = os.path.join(source, entry.name), os.path.join(destination, entry.name)
            if entry.is_dir(follow_symlinks=False):
                self.move((fd, entry.name), (to, entry.name), old, new)
            else:
                _rename((fd, entry.name), (to, entry.name), old, new)
            self._progress()
        _finish_inner(to, source, destination)

    def _ready(self, fd: int, new: _At, source: bytes, destination: bytes) -> int:
        """Open the destination of a directory, which is made unless an earlier run made it; return the descriptor.

        Raises OverlayError if something else is there.
        """
        existing = self._existing(new, source, destination)
        if existing is not None:
            return existing
        name = secrets.token_hex(8).encode("ascii")
        beneath.make_directory(self._aside, name, 0o700)
        made = beneath.open_at(self._aside, name, same_mount=True)
        try:
            status = os.fstat(fd)
            beneath.set_attribute(made, MARKER, marker_of(source, destination, status.st_mtime_ns))
            os.fchown(made, status.st_uid, status.st_gid)
            os.fchmod(made, stat.S_IMODE(status.st_mode))
            _copy_attributes(fd, made)
            beneath.rename_new(self._aside, name, *new)
        except OSError as error:
            os.close(made)
            if error.errno == errno.EEXIST:
                raise _in_the_way(destination, source) from None
            raise
        return made

    @staticmethod
    def _existing(new: _At, source: bytes, destination: bytes) -> int | None:
        """Open the destination that an earlier run made; return the descriptor, or None if there is none.

        Remove an empty directory of another origin. It is not used, since a user may replace it before its owner is changed.
        Raises OverlayError if something else is there.
        """
        try:
            fd = beneath.open_at(*new, same_mount=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _NO_DIRECTORY:
                raise _in_the_way(destination, source) from None
            raise
        kind = _kind(source, destination, fd)
        if kind == "moving":
            return fd
        os.close(fd)
        if kind == "other":
            raise _in_the_way(destination, source)
        beneath.remove_directory(*new)
        return None


def _copy_attributes(fd: int, to: int) -> None:
    """Give an open directory the xattrs of another one, without the marker."""
    names = list(map(os.fsencode, beneath.attribute_names(fd)))
    for name in map(os.fsencode, beneath.attribute_names(to)):
        if name not in names and not name.startswith(b"trusted."):
            beneath.remove_attribute(to, name)
    for name in names:
        value = None if name == MARKER else beneath.attribute(fd, name)
        if value is not None:
            beneath.set_attribute(to, name, value)


def _finish_inner(to: int, source: bytes, destination: bytes) -> None:
    """Finish the directories in an open one that a killed run moved and did not finish."""
    for entry in beneath.entries(to):
        if entry.is_dir(follow_symlinks=False):
            paths = os.path.join(source, entry.name), os.path.join(destination, entry.name)
            with beneath.opened(to, entry.name, same_mount=True) as fd:
                if _kind(*paths, fd) == "moving":
                    _finish(fd)


def _finish(fd: int) -> None:
    """Give a destination the mtime of its source, and remove its marker."""
    marker = parse_marker(beneath.attribute(fd, MARKER) or b"")
    if marker is not None:
        beneath.set_times(fd, marker[2])
        beneath.remove_attribute(fd, MARKER)


def _rename(old: _At, new: _At, source: bytes, destination: bytes) -> None:
    """Rename an entry. Raises OverlayError if something is at the destination, or if the kernel would have to copy it."""
    try:
        beneath.rename_new(*old, *new)
    except FileNotFoundError:
        # A user removed the entry meanwhile, or the destination. Only the former is no error.
        if beneath.has(*old):
            raise
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise _in_the_way(destination, source) from None
        if error.errno == errno.EXDEV:
            raise OverlayError(
                f"the kernel cannot rename {show(source)} without copying it, since its path is too long for a redirect: raise"
                f" {_REDIRECT_MAX}"
            ) from None
        raise


def _in_the_way(destination: bytes, source: bytes) -> OverlayError:
    return OverlayError(f"{show(destination)} is in the way of {show(source)}: rename it, and run this again to go on")
