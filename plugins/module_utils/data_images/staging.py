# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the files of a data image in a staging directory until its image is built.

A file gets its mtime when it is complete and as the manifest says. Until then its mtime equals its ctime, since each write sets both. So
a later run knows the complete files that an interrupted run has left. The staging directory belongs to one boot of the host: when a host
crashes, attributes may be on the disk before the content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.selection import ChosenFile
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, record_files, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

#: The mode of files in an image. Users are checked against the metadata layer.
_FILE_MODE = 0o444

_TREE = "tree"
_LINK = "link"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
#: The name of a staging directory: 16 hexadecimal digits.
_NAME = re.compile("[0-9a-f]{16}")
_BOOT = "boot"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_LONGEST_ID = 64


class LastDirectory:
    """Open directories of a tree one after the other, and keep the last one open: most files are in the directory of the file before."""

    def __init__(self, top: int, same_mount: bool) -> None:
        self._top = top
        self._same_mount = same_mount
        self._last: tuple[bytes, int] | None = None

    def open(self, path: bytes) -> int:
        """Return a descriptor of a directory, which is valid until the next call. Raises OSError as ``beneath.open_at`` does."""
        if self._last is None or self._last[0] != path:
            self.close()
            self._last = path, beneath.open_at(self._top, path, same_mount=self._same_mount)
        return self._last[1]

    def close(self) -> None:
        """Close the directory that is open."""
        if self._last is not None:
            os.close(self._last[1])
            self._last = None


class Staging:
    """A staging directory. Only root can enter it, so paths in it are safe."""

    def __init__(self, path: str, source: bytes) -> None:
        """Open the staging directory at ``path``; make it if it is missing. ``source`` is the path of the release in the image."""
        self.path = path
        self._source = source
        #: The directory with the files at their paths on the software root.
        self.tree = os.path.join(path, _TREE)
        #: Whether an earlier run may have left files. Asking for each file takes time.
        self._is_resumed = self._open()
        release = os.path.join(os.fsencode(self.tree), source)
        files.make_directories(release, 0o755)
        #: The open directory of the release in the tree.
        self.release_fd = os.open(release, syscalls.LIST_DIRECTORY)

    def _open(self) -> bool:
        """Make the directory unless it is usable, and return whether it was."""
        now = _this_boot()
        if os.path.isdir(self.path):
            if _boot_of(self.path) == now:
                return True
            files.remove_tree(self.path)
        files.make_directories(self.path, 0o700)
        with files.written_aside(os.path.join(self.path, _BOOT), 0o600) as aside:
            aside.write(now)
        return False

    def close(self) -> None:
        """Close the directory. What is in it stays."""
        os.close(self.release_fd)

    def remove(self, progress: Progress = no_progress) -> None:
        """Remove the staging directory with everything in it."""
        files.remove_tree(self.path, progress)

    def find(self, file: ChosenFile) -> int | None:
        """Return a descriptor of the complete copy of a file that an earlier run has left; None if there is none."""
        if not self._is_resumed:
            return None
        try:
            fd = beneath.open_at(self.release_fd, file.path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        status = os.fstat(fd)
        is_complete = status.st_mtime_ns != status.st_ctime_ns
        if (
            stat.S_ISREG(status.st_mode)
            and is_complete
            and (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)
        ):
            return fd
        os.close(fd)
        return None

    def has(self, file: ChosenFile) -> bool:
        """Return whether an earlier run has left the complete copy of a file."""
        fd = self.find(file)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def prepare(self, chosen: Sequence[ChosenFile], progress: Progress = no_progress) -> None:
        """Make the directories of the tree."""
        for directory in sorted({os.path.dirname(name) for file in chosen for name in file.names}):
            os.close(beneath.make_directories(self.release_fd, directory))
            progress()

    def create(self, file: ChosenFile, directories: LastDirectory) -> int:
        """Make a file at its path in the tree, and return a descriptor to write it.

        ``directories`` is that of the calling process, within ``release_fd``.
        """
        directory, base = os.path.split(file.path)
        parent = directories.open(directory)
        if self._is_resumed:
            # What is there may have other names by now, so it is not written to.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(base, dir_fd=parent)
        fd = os.open(base, _NEW, _FILE_MODE, dir_fd=parent)
        # The umask or a default ACL may have narrowed the mode. Setting it takes as long as making the file.
        if stat.S_IMODE(os.fstat(fd).st_mode) != _FILE_MODE:
            os.fchmod(fd, _FILE_MODE)
        return fd

    def complete(self, fd: int, file: ChosenFile) -> None:
        """Mark a file of ``create`` as complete."""
        beneath.set_times(fd, file.mtime_ns)

    def discard(self, file: ChosenFile, directories: LastDirectory) -> None:
        """Remove a file of ``create``."""
        directory, base = os.path.split(file.path)
        os.unlink(base, dir_fd=directories.open(directory))

    def _link(self, first: bytes, name: bytes, sources: LastDirectory, targets: LastDirectory) -> None:
        """Make ``name`` another name of the file at ``first``, both relative to the release. Raises OSError: EMLINK if it has too many."""
        from_directory, from_base = os.path.split(first)
        to_directory, base = os.path.split(name)
        source, to = sources.open(from_directory), targets.open(to_directory)
        try:
            os.link(from_base, base, src_dir_fd=source, dst_dir_fd=to)
        except FileExistsError:
            if not os.path.samestat(beneath.status(to, base), beneath.status(source, from_base)):
                aside = os.path.join(self.path, _LINK)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside)
                os.link(from_base, aside, src_dir_fd=source)
                os.rename(aside, base, dst_dir_fd=to)

    def finish(self, kept: Sequence[ChosenFile], digests: Mapping[bytes, bytes | None], progress: Progress) -> None:
        """Make files with equal content names of one file; remove all other files; give directories a fixed mtime.

        ``digests`` are those of the files, by their paths; None for a file that no other one equals. A file with several names has the
        mtime of the first one. Users see the mtime of the metadata layer.
        """
        names = {name for file in kept for name in file.names}
        if self._is_resumed:
            self._remove_others(names, progress)
        sources, targets = (
            LastDirectory(self.release_fd, same_mount=True),
            LastDirectory(self.release_fd, same_mount=True),
        )
        try:
            self._link_equal(kept, digests, sources, targets, progress)
        finally:
            sources.close()
            targets.close()
        self._fix_times(names, progress)

    def _link_equal(
        self,
        kept: Sequence[ChosenFile],
        digests: Mapping[bytes, bytes | None],
        sources: LastDirectory,
        targets: LastDirectory,
        progress: Progress,
    ) -> None:
        firsts: dict[bytes, bytes] = {}
        for file in kept:
            content = digests[file.path]
            first = firsts.setdefault(content, file.path) if content else file.path
            for name in file.names if first != file.path else file.names[1:]:
                try:
                    self._link(first, name, sources, targets)
                except OSError as error:
                    if content is None or error.errno != errno.EMLINK or name != file.path:
                        raise
                    # The file system allows no more names of one file. The copy of this one has the same content.
                    first = firsts[content] = file.path
            progress()

    def _remove_others(self, names: set[bytes], progress: Progress) -> None:
        """Remove everything from the tree but the files with these names, relative to the release."""
        waiting = [b""]
        directories = _directories_of(names)
        while waiting:
            directory = waiting.pop()
            progress()
            with beneath.opened(self.release_fd, directory) as fd:
                for item in beneath.entries(fd):
                    path = os.path.join(directory, item.name)
                    if not item.is_dir(follow_symlinks=False):
                        if path not in names:
                            beneath.unlink(fd, item.name)
                    elif path in directories:
                        waiting.append(path)
                    else:
                        with beneath.opened(fd, item.name) as inner:
                            files.empty(inner, os.fsdecode(path), progress)
                        beneath.remove_directory(fd, item.name)

    def _fix_times(self, names: set[bytes], progress: Progress) -> None:
        """Give the directories of the tree a fixed mtime: images of equal files have equal bytes."""
        for directory in _directories_of(names):
            with beneath.opened(self.release_fd, directory) as fd:
                beneath.set_times(fd, 0)
            progress()
        here = os.path.join(os.fsencode(self.tree), self._source)
        while len(here) >= len(self.tree):
            os.utime(here, ns=(0, 0))
            here = os.path.dirname(here)


def remove_outdated(place: str, progress: Progress = no_progress) -> None:
    """Remove the staging directories in ``place`` that interrupted runs left before the last boot, since no run continues with them.

    The caller holds the lock of ``place``.
    """
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if _NAME.fullmatch(name) and _boot_of(path) not in (None, _this_boot()):
            files.remove_tree(path, progress)


def _this_boot() -> bytes:
    return record_files.read(_BOOT_ID, _LONGEST_ID)


def _boot_of(path: str) -> bytes | None:
    """Return the boot to which a staging directory belongs; None if it does not say so."""
    try:
        return record_files.read(os.path.join(path, _BOOT), _LONGEST_ID)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _directories_of(names: Iterable[bytes]) -> set[bytes]:
    """Return the directories above relative paths, without the empty path."""
    found: set[bytes] = set()
    for name in names:
        directory = os.path.dirname(name)
        while directory and directory not in found:
            found.add(directory)
            directory = os.path.dirname(directory)
    return found
