# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read files of a release into a staging directory, and compare each with the manifest."""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import os
import stat
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import selection
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.selection import ChosenFile
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.staging import LastDirectory, Staging
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_CHUNK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

#: The most parts in which processes take the files, so that they end at the same time. Their numbers fit into any pipe (pipe(7)).
_PARTS = 1000
_NUMBER = struct.Struct("=I")
_TIME = struct.Struct("=d")
#: Bytes that take as long to read as a file takes to open.
_BYTES_OF_FILE = 1 << 16

#: Errors of opening a file that the release no longer has where the manifest has it.
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE, errno.ENXIO))


class _LeftOutError(Exception):
    """A file is not as the manifest says. The argument is the reason."""


class Bandwidth:
    """Limit the bytes per second that several processes read together."""

    def __init__(self, limit: int | None) -> None:
        """Make the limit before the processes are started."""
        self._limit = limit
        #: Has the time from which on more may be read. All processes share and lock it.
        self._free_at = tempfile.TemporaryFile() if limit is not None else None  # noqa: SIM115 (it ends with this object)

    def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may be read."""
        if self._limit is None or self._free_at is None:
            return
        fd = self._free_at.fileno()
        fcntl.lockf(fd, fcntl.LOCK_EX)
        try:
            now = time.monotonic()
            start = max(now, *_TIME.unpack(os.pread(fd, _TIME.size, 0) or _TIME.pack(now)))
            os.pwrite(fd, _TIME.pack(start + count / self._limit), 0)
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN)
        time.sleep(start - now)

    def chunk(self) -> int:
        """Return the number of bytes to read at once: at most what may be read in a fifth of a second."""
        return _CHUNK if self._limit is None else max(1, min(_CHUNK, self._limit // 5))


@dataclass
class _Found:
    """What was read: see ``ReleaseReader``."""

    digests: dict[bytes, bytes | None] = field(default_factory=dict)
    left_out: list[tuple[str, bytes]] = field(default_factory=list)


class _Process:
    """What each process has for itself."""

    def __init__(self, release_fd: int, staging_fd: int, progress: Progress) -> None:
        #: Directories of the release, and of the staging directory.
        self.sources = LastDirectory(release_fd, same_mount=True)
        self.targets = LastDirectory(staging_fd, same_mount=True)
        self.buffer = bytearray(_CHUNK)
        self.progress = progress


class ReleaseReader:
    """Read files of one release with several processes. Threads of Python would wait for each other at each system call."""

    def __init__(self, release_fd: int, staging: Staging, bandwidth: Bandwidth) -> None:
        """Read below the open directory of the release, into ``staging``."""
        self._release_fd = release_fd
        self._staging = staging
        self._bandwidth = bandwidth
        #: How many of the files have a size.
        self._sizes: Counter[int] = Counter()
        self.digests: dict[bytes, bytes | None] = {}
        self.left_out: list[tuple[str, bytes]] = []

    def read(self, chosen: Sequence[ChosenFile], jobs: int, progress: Progress = no_progress) -> None:
        """Read all files that are not staged yet.

        ``digests`` has the SHA-256 of the files that are staged afterwards, by their paths, and None for a file that no other one can
        equal. ``left_out`` has the reasons and paths of those that are missing, changed or unreadable. Raises OSError if a file cannot be
        read or written for another reason.
        """
        self._sizes = Counter(file.size for file in chosen)
        parts = _parts(chosen)
        queue, sender = os.pipe()
        try:
            # It is full and at its end before a process reads from it.
            with open(sender, "wb") as stream:
                for number in _scattered(len(parts), jobs):
                    stream.write(_NUMBER.pack(number))

            def work(progress: Progress) -> _Found:
                return self._work(chosen, parts, queue, progress)

            for found in deadline.run_together([work] * min(jobs, len(parts)), progress):
                self.digests.update(found.digests)
                self.left_out += found.left_out
        finally:
            os.close(queue)
        self.left_out.sort(key=lambda pair: pair[1])

    def _work(self, chosen: Sequence[ChosenFile], parts: Sequence[range], queue: int, progress: Progress) -> _Found:
        """Read parts of the files until none is waiting."""
        # The collector would write to all objects, and so copy the memory of the parent.
        gc.freeze()
        process = _Process(self._release_fd, self._staging.release_fd, progress)
        found = _Found()
        while True:
            number = os.read(queue, _NUMBER.size)
            if not number:
                return found
            for index in parts[_NUMBER.unpack(number)[0]]:
                self._read_one(chosen[index], process, found)

    def _read_one(self, file: ChosenFile, process: _Process, found: _Found) -> None:
        """Stage a file, and note its digest or the reason why it is left out."""
        try:
            is_staged, digest = self._staged_digest(file, process)
            found.digests[file.path] = digest if is_staged else self._copied_digest(file, process)
        except _LeftOutError as error:
            found.left_out.append((str(error), file.path))

    def _staged_digest(self, file: ChosenFile, process: _Process) -> tuple[bool, bytes | None]:
        """Return whether an earlier run has left the complete copy of a file, and its digest."""
        fd = self._staging.find(file)
        if fd is None:
            return False, None
        try:
            digest = self._digest(file, fd, None, process)
        finally:
            os.close(fd)
        return file.sha256 in (None, digest), digest

    def _copied_digest(self, file: ChosenFile, process: _Process) -> bytes | None:
        """Copy a file, and return its digest. Raises _LeftOutError if the file is not as the manifest says."""
        source = self._opened(file, process.sources)
        try:
            self._compare(file, source)
            target = self._staging.create(file, process.targets)
            try:
                digest = self._digest(file, source, target, process)
                # Attributes may be cached for an hour, so the server is asked, after the content was read.
                self._compare(file, source, fresh=True)
                if file.sha256 not in (None, digest):
                    raise _LeftOutError(selection.CHANGED)
                self._staging.complete(target, file)
            except _LeftOutError:
                self._staging.discard(file, process.targets)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)
        return digest

    def _opened(self, file: ChosenFile, directories: LastDirectory) -> int:
        directory, base = os.path.split(file.path)
        try:
            return beneath.open_at(directories.open(directory), base, _FLAGS, same_mount=True)
        except OSError as error:
            if error.errno in _GONE:
                raise _LeftOutError(selection.MISSING) from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise _LeftOutError(selection.UNREADABLE) from None
            raise

    def _compare(self, file: ChosenFile, source: int, fresh: bool = False) -> None:
        """Raises _LeftOutError if the attributes of an open file are not those of the manifest."""
        try:
            if fresh:
                syscalls.refresh(source)
            status = os.fstat(source)
        except OSError as error:
            raise self._vanished(error) from None
        if not stat.S_ISREG(status.st_mode):
            raise _LeftOutError(selection.CHANGED)
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise _LeftOutError(selection.CHANGED)

    def _digest(self, file: ChosenFile, source: int, target: int | None, process: _Process) -> bytes | None:
        """Read an open file, copy it to ``target`` if there is one, and return its SHA-256 as hexadecimal text.

        Return None without computing it if the manifest has none, and no other selected file has the same size. Raises _LeftOutError if
        the file is shorter than the manifest says.
        """
        is_needed = file.sha256 is not None or self._sizes[file.size] > 1
        if target is None and not is_needed:
            return None
        digest = hashlib.sha256()
        size = self._bandwidth.chunk() if target is not None else _CHUNK
        left = file.size
        with memoryview(process.buffer) as buffer:
            while left:
                try:
                    count = os.readv(source, [buffer[: min(size, left)]])
                except OSError as error:
                    raise self._vanished(error) from None
                if not count:
                    raise _LeftOutError(selection.CHANGED)
                left -= count
                if is_needed:
                    digest.update(buffer[:count])
                if target is not None:
                    self._bandwidth.take(count)
                    self._write(target, process.buffer, buffer[:count])
                process.progress()
        return digest.hexdigest().encode("ascii") if is_needed else None

    def _write(self, target: int, buffer: bytearray, chunk: memoryview) -> None:
        """Write the beginning of a buffer to a file. Zeros become a hole, since some files have gigabytes of them."""
        try:
            if not buffer[0] and buffer.startswith(bytes(len(chunk))):
                os.ftruncate(target, os.lseek(target, len(chunk), os.SEEK_CUR))
                return
            written = 0
            while written < len(chunk):
                written += os.write(target, chunk[written:])
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._staging.path) from None

    def _vanished(self, error: OSError) -> Exception:
        """Return what an error of reading an open file means: it was deleted on the server, or the error itself."""
        return _LeftOutError(selection.MISSING) if error.errno == errno.ESTALE else error


def _parts(chosen: Sequence[ChosenFile]) -> list[range]:
    """Return the indexes of the files in parts that take about the same time."""
    limit = sum(file.size + _BYTES_OF_FILE for file in chosen) / _PARTS
    parts = []
    start = cost = 0
    for index, file in enumerate(chosen, 1):
        cost += file.size + _BYTES_OF_FILE
        if cost >= limit or index == len(chosen):
            parts.append(range(start, index))
            start, cost = index, 0
    return parts


def _scattered(count: int, ways: int) -> list[int]:
    """Return the numbers below ``count``, so that those that follow each other are far apart.

    Processes that make files in the same directory at the same time would wait for each other.
    """
    step = -(-count // ways)
    return [number for start in range(step) for number in range(start, count, step)]
