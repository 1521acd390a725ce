# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delete a release from the software root.

Other users may write to the software root, so the release is opened once by descriptor, beneath the root, without symbolic links and on
the same mount, and what is deleted is what was opened. Its directory is renamed first, beside itself and to a name that begins with a dot,
so that no run takes a part of it for the release.

Whoever may rename directories beside the release can put another one in its place. So the inode that was checked is noted in the manifest
store before the directory is renamed, and nothing but the directory with this inode is deleted, by this run or by a later one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement import retired_notes

#: The most bytes of the name of a release in the name that it gets.
_NAME_KEPT = 100


@dataclass(frozen=True)
class ReleaseOnRoot:
    """What there is of a release on the software root."""

    #: The inode number of its directory; None if it is not there.
    inode: int | None = None
    has_marker: bool = False
    #: Whether an earlier run has renamed it, and may have deleted a part of it.
    is_aside: bool = False

    @property
    def is_there(self) -> bool:
        """Whether it has its name."""
        return self.inode is not None


@dataclass(frozen=True)
class DeletedRelease:
    """A release that is to be deleted from a software root."""

    root: bytes
    #: Its name in the manifest store, and its path below the root.
    release: bytes
    below: bytes
    #: The path of its ready marker, relative to it; empty if it has none.
    marker: bytes
    #: The manifest store.
    store: str

    @property
    def path(self) -> bytes:
        """The absolute path of its directory."""
        return os.path.join(self.root, self.below)

    @property
    def name(self) -> bytes:
        """The name of its directory."""
        return os.path.basename(self.below)

    @property
    def aside(self) -> bytes:
        """The absolute path that its directory gets before it is deleted."""
        return os.path.join(os.path.dirname(self.path), aside_name(self.release))


def aside_name(release: bytes) -> bytes:
    """Return the name that the directory of a release gets before it is deleted."""
    digest = hashlib.sha256(release).hexdigest()[:16].encode("ascii")
    return b".retired-%s-%s" % (os.path.basename(release)[:_NAME_KEPT], digest)


def observe(deleted: DeletedRelease, check: Callable[[int], None]) -> ReleaseOnRoot:
    """Return what there is of a release. ``check`` is called with a descriptor of its directory, and raises OverlayError if it is another.

    Raises OverlayError if it is not a directory, if its path leads through a symbolic link or to another mount, if something is mounted
    inside of it, or if the directory that an earlier run has renamed is not the noted one.
    """
    noted = retired_notes.read(deleted.store, deleted.release)
    with contextlib.ExitStack() as opened:
        try:
            parent = opened.enter_context(_parent(deleted))
        except FileNotFoundError:
            return ReleaseOnRoot(is_aside=noted is not None)
        is_there = beneath.has(parent, deleted.name)
        if beneath.has(parent, aside_name(deleted.release)):
            if is_there:
                raise _there_again(deleted)
            _check_noted(opened.enter_context(_checked(parent, deleted.aside)), noted, deleted)
        if not is_there:
            return ReleaseOnRoot(is_aside=noted is not None)
        fd = opened.enter_context(_checked(parent, deleted.path))
        files.check_nothing_mounted(fd)
        check(fd)
        has_marker = False
        if deleted.marker:
            with contextlib.suppress(FileNotFoundError), beneath.opened(fd, os.path.dirname(deleted.marker)) as place:
                has_marker = beneath.has(place, os.path.basename(deleted.marker))
        return ReleaseOnRoot(os.fstat(fd).st_ino, has_marker)


def remove_marker(deleted: DeletedRelease, inode: int) -> None:
    """Remove the ready marker of a release, and sync its directory, so that other hosts see that it is gone.

    Raises OverlayError if its directory does not have the inode number ``inode``.
    """
    with _parent(deleted) as parent, _checked(parent, deleted.path) as fd:
        _check_same(fd, inode, deleted.path)
        with beneath.opened(fd, os.path.dirname(deleted.marker)) as place:
            with contextlib.suppress(FileNotFoundError):
                beneath.unlink(place, os.path.basename(deleted.marker))
            os.fsync(place)


def set_aside(deleted: DeletedRelease, inode: int) -> None:
    """Rename the directory of a release. Raises OverlayError if the new name is taken, or if another directory was renamed."""
    with _parent(deleted) as parent:
        aside = aside_name(deleted.release)
        if beneath.has(parent, aside):
            raise _there_again(deleted)
        retired_notes.write(deleted.store, deleted.release, inode)
        beneath.rename(parent, deleted.name, aside)
        try:
            with _checked(parent, deleted.aside) as fd:
                _check_same(fd, inode, deleted.path)
        except OverlayError:
            beneath.rename(parent, aside, deleted.name)
            retired_notes.remove(deleted.store, deleted.release)
            raise
        os.fsync(parent)


def delete(deleted: DeletedRelease, progress: Progress = no_progress) -> None:
    """Delete the directory of a release that was renamed. Raises OverlayError if it is another one, or if something is mounted in it."""
    noted = retired_notes.read(deleted.store, deleted.release)
    with contextlib.suppress(FileNotFoundError), _parent(deleted) as parent:
        with _checked(parent, deleted.aside) as fd:
            _check_noted(fd, noted, deleted)
            files.empty(fd, show(deleted.aside), progress)
        beneath.remove_directory(parent, aside_name(deleted.release))
        os.fsync(parent)
    retired_notes.remove(deleted.store, deleted.release)


def _there_again(deleted: DeletedRelease) -> OverlayError:
    return OverlayError(
        f"{show(deleted.aside)} is what an earlier run has left of release {show(deleted.release)}, which is there again: remove it by hand"
    )


def _check_noted(fd: int, noted: int | None, deleted: DeletedRelease) -> None:
    """Check that the directory that was renamed is the noted one. Raises OverlayError if it is not."""
    if noted != os.fstat(fd).st_ino:
        raise OverlayError(
            f"{show(deleted.aside)} is not the directory of release {show(deleted.release)} that an earlier run has renamed: nothing was"
            " deleted; find out what it is, and rename it or remove it by hand"
        )


def _check_same(fd: int, inode: int, path: bytes) -> None:
    if os.fstat(fd).st_ino != inode:
        raise OverlayError(
            f"{show(path)} was replaced by another directory while it was being retired: nothing was deleted"
        )


@contextlib.contextmanager
def _parent(deleted: DeletedRelease) -> Iterator[int]:
    """Provide the directory that has a release. Raises FileNotFoundError if it does not exist."""
    fd = scan.open_root(deleted.root)
    try:
        with _explained(os.path.dirname(deleted.path)):
            parent = beneath.open_at(fd, os.path.dirname(deleted.below), same_mount=True)
    finally:
        os.close(fd)
    try:
        yield parent
    finally:
        os.close(parent)


@contextlib.contextmanager
def _checked(parent: int, path: bytes) -> Iterator[int]:
    """Provide the directory at an absolute path in an open directory. Raises OverlayError if it is something else, or another mount."""
    name = os.path.basename(path)
    if not stat.S_ISDIR(beneath.status(parent, name).st_mode):
        raise OverlayError(f"{show(path)} is not a directory, and so no release: nothing was deleted")
    with _explained(path):
        fd = beneath.open_at(parent, name, same_mount=True)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _explained(path: bytes) -> Iterator[None]:
    """Raise OverlayError for a path that leads elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OverlayError(
                f"{show(path)} is on another mount than the software root: nothing was deleted"
            ) from None
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OverlayError(
                f"{show(path)} has a symbolic link or a file in its path: give the path of the release itself; nothing was deleted"
            ) from None
        raise
