# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read files of a release into a staging directory, and compare each with the manifest."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent import futures

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import selection
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.selection import ChosenFile
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.staging import LastDirectory, Staging
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_CHUNK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

#: The most files and bytes that a thread takes at once. Files that follow each other are in the same directories, which it then opens once.
_BATCH_FILES = 16
_BATCH_BYTES = 1 << 20

#: Errors of opening a file that the release no longer has where the manifest has it.
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE, errno.ENXIO))

_POLL_SECONDS = 0.2


class _LeftOutError(Exception):
    """A file is not as the manifest says. The argument is the reason."""


class _StoppedError(Exception):
    """Another thread failed."""


class Bandwidth:
    """Limit the bytes per second that several threads read together."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may be read."""
        if self._limit is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._free_at, now)
            self._free_at = start + count / self._limit
        time.sleep(start - now)

    def chunk(self) -> int:
        """Return the number of bytes to read at once: at most what may be read in a fifth of a second."""
        return _CHUNK if self._limit is None else max(1, min(_CHUNK, self._limit // 5))


class _Thread:
    """What each thread has for itself."""

    def __init__(self, release_fd: int, staging_fd: int) -> None:
        #: Directories of the release, and of the staging directory.
        self.sources = LastDirectory(release_fd, same_mount=True)
        self.targets = LastDirectory(staging_fd, same_mount=True)
        self.buffer = bytearray(_CHUNK)

    def close(self) -> None:
        """Close the directories that are open."""
        self.sources.close()
        self.targets.close()


class ReleaseReader:
    """Read files of one release with several threads."""

    def __init__(self, release_fd: int, staging: Staging, bandwidth: Bandwidth) -> None:
        """Read below the open directory of the release, into ``staging``."""
        self._release_fd = release_fd
        self._staging = staging
        self._bandwidth = bandwidth
        self._lock = threading.Lock()
        self._waiting: Iterator[list[ChosenFile]] = iter(())
        #: How many of the files have a size.
        self._sizes: Counter[int] = Counter()
        self._stopped = False
        #: Increased whenever a thread makes progress.
        self._steps = 0
        self.digests: dict[bytes, bytes | None] = {}
        self.left_out: list[tuple[str, bytes]] = []

    def read(self, chosen: Sequence[ChosenFile], jobs: int, progress: Progress = no_progress) -> None:
        """Read all files that are not staged yet.

        ``digests`` has the SHA-256 of the files that are staged afterwards, by their paths, and None for a file that no other one can
        equal. ``left_out`` has the reasons and paths of those that are missing, changed or unreadable. Raises OSError if a file cannot be
        read or written for another reason.
        """
        self._waiting = _batches(chosen)
        self._sizes = Counter(file.size for file in chosen)
        with futures.ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(self._work) for _number in range(jobs)}
            seen = -1
            try:
                while running:
                    done, running = futures.wait(running, _POLL_SECONDS, futures.FIRST_EXCEPTION)
                    if self._steps != seen:
                        seen = self._steps
                        progress()
                    for one in done:
                        one.result()
            finally:
                self._stopped = True
        self.left_out.sort(key=lambda pair: pair[1])

    def _work(self) -> None:
        """Read files until none is waiting."""
        thread = _Thread(self._release_fd, self._staging.release_fd)
        try:
            while True:
                with self._lock:
                    batch = next(self._waiting, None)
                if batch is None:
                    return
                for file in batch:
                    self._read_one(file, thread)
        except _StoppedError:
            return
        finally:
            thread.close()

    def _read_one(self, file: ChosenFile, thread: _Thread) -> None:
        """Stage a file, and note its digest or the reason why it is left out."""
        is_staged, digest = self._staged_digest(file, thread)
        try:
            self.digests[file.path] = digest if is_staged else self._copied_digest(file, thread)
        except _LeftOutError as error:
            self.left_out.append((str(error), file.path))

    def _staged_digest(self, file: ChosenFile, thread: _Thread) -> tuple[bool, bytes | None]:
        """Return whether an earlier run has left the complete copy of a file, and its digest."""
        fd = self._staging.find(file)
        if fd is None:
            return False, None
        try:
            digest = self._digest(file, fd, None, thread)
        finally:
            os.close(fd)
        return file.sha256 in (None, digest), digest

    def _copied_digest(self, file: ChosenFile, thread: _Thread) -> bytes | None:
        """Copy a file, and return its digest. Raises _LeftOutError if the file is not as the manifest says."""
        source = self._opened(file, thread.sources)
        try:
            self._compare(file, source)
            target = self._staging.create(file, thread.targets)
            try:
                digest = self._digest(file, source, target, thread)
                # Attributes may be cached for an hour, so the server is asked, after the content was read.
                self._compare(file, source, fresh=True)
                if file.sha256 not in (None, digest):
                    raise _LeftOutError(selection.CHANGED)
                self._staging.complete(target, file)
            except _LeftOutError:
                self._staging.discard(file, thread.targets)
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

    def _digest(self, file: ChosenFile, source: int, target: int | None, thread: _Thread) -> bytes | None:
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
        with memoryview(thread.buffer) as buffer:
            while left:
                try:
                    count = os.readv(source, [buffer[: min(size, left)]])
                except OSError as error:
                    raise self._vanished(error) from None
                if self._stopped:
                    raise _StoppedError
                if not count:
                    raise _LeftOutError(selection.CHANGED)
                left -= count
                if is_needed:
                    digest.update(buffer[:count])
                if target is not None:
                    self._bandwidth.take(count)
                    self._write(target, thread.buffer, buffer[:count])
                self._steps += 1
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


def _batches(chosen: Sequence[ChosenFile]) -> Iterator[list[ChosenFile]]:
    """Yield the files in order, those that a thread takes at once in a list."""
    batch: list[ChosenFile] = []
    size = 0
    for file in chosen:
        batch.append(file)
        size += file.size
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
