# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delete a release from the software root.

Other users may write to the software root, so the release is opened once by descriptor, beneath the root, without symbolic links and on
the same mount, and what is deleted is what was opened. Its directory is renamed first, beside itself and to a name that begins with a dot,
so that no run takes a part of it for the release. A later run continues with a directory of that name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import scan

#: The most bytes of the name of a release in the name that it gets.
_NAME_KEPT = 100


@dataclass(frozen=True)
class ReleaseOnRoot:
    """What there is of a release on the software root."""

    is_there: bool = False
    has_marker: bool = False
    is_aside: bool = False


def aside_name(release: bytes) -> bytes:
    """Return the name that the directory of a release gets before it is deleted."""
    digest = hashlib.sha256(release).hexdigest()[:16].encode("ascii")
    return b".retired-%s-%s" % (os.path.basename(release)[:_NAME_KEPT], digest)


def observe(root: bytes, release: bytes, marker: bytes) -> ReleaseOnRoot:
    """Return what there is of a release. ``marker`` is the path of its ready marker, relative to it; empty if it has none.

    Raises OverlayError if it is not a directory, if its path leads through a symbolic link or to another mount, or if something is mounted
    inside of it.
    """
    name = os.path.basename(release)
    with contextlib.ExitStack() as opened:
        try:
            parent = opened.enter_context(_parent(root, release))
        except FileNotFoundError:
            return ReleaseOnRoot()
        found = {}
        for one in (name, aside_name(release)):
            found[one] = beneath.has(parent, one)
            if found[one]:
                fd = opened.enter_context(_checked(parent, one, os.path.join(root, os.path.dirname(release), one)))
                files.check_nothing_mounted(fd)
                if one == name and marker:
                    with contextlib.suppress(FileNotFoundError), beneath.opened(fd, os.path.dirname(marker)) as place:
                        has_marker = beneath.has(place, os.path.basename(marker))
                        return ReleaseOnRoot(True, has_marker, beneath.has(parent, aside_name(release)))
        return ReleaseOnRoot(found[name], False, found[aside_name(release)])


def remove_marker(root: bytes, release: bytes, marker: bytes) -> None:
    """Remove the ready marker of a release, and sync its directory, so that other hosts see that it is gone."""
    with (
        _parent(root, release) as parent,
        _checked(parent, os.path.basename(release), os.path.join(root, release)) as fd,
        beneath.opened(fd, os.path.dirname(marker)) as place,
    ):
        with contextlib.suppress(FileNotFoundError):
            beneath.unlink(place, os.path.basename(marker))
        os.fsync(place)


def set_aside(root: bytes, release: bytes) -> None:
    """Rename the directory of a release. Raises OverlayError if the new name is taken."""
    with _parent(root, release) as parent:
        aside = aside_name(release)
        if beneath.has(parent, aside):
            place = show(os.path.join(root, os.path.dirname(release), aside))
            raise OverlayError(
                f"{place} is what an earlier run has left of release {show(release)}, which is there again: remove it by hand"
            )
        beneath.rename(parent, os.path.basename(release), aside)
        os.fsync(parent)


def delete(root: bytes, release: bytes, progress: Progress = no_progress) -> None:
    """Delete the directory of a release that was renamed. Raises OverlayError if something is mounted inside of it."""
    aside = aside_name(release)
    place = os.path.join(root, os.path.dirname(release), aside)
    with _parent(root, release) as parent:
        with _checked(parent, aside, place) as fd:
            files.empty(fd, show(place), progress)
        beneath.remove_directory(parent, aside)
        os.fsync(parent)


@contextlib.contextmanager
def _parent(root: bytes, release: bytes) -> Iterator[int]:
    """Provide the directory that has a release. Raises FileNotFoundError if it does not exist."""
    fd = scan.open_root(root)
    try:
        with _explained(os.path.join(root, os.path.dirname(release))):
            parent = beneath.open_at(fd, os.path.dirname(release), same_mount=True)
    finally:
        os.close(fd)
    try:
        yield parent
    finally:
        os.close(parent)


@contextlib.contextmanager
def _checked(parent: int, name: bytes, path: bytes) -> Iterator[int]:
    """Provide the directory ``name``; ``path`` is for messages. Raises OverlayError if it is something else, or another mount."""
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
