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
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import BinaryIO

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import selection
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.selection import ChosenFile
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.staging import LastDirectory, Staging
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress

_CHUNK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY

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


@dataclass(frozen=True)
class _Thread:
    """What each thread has for itself."""

    #: The name of its incoming file.
    name: str
    #: Directories of the release, and of the staging directory.
    sources: LastDirectory
    targets: LastDirectory


class ReleaseReader:
    """Read files of one release with several threads."""

    def __init__(self, release_fd: int, staging: Staging, bandwidth: Bandwidth) -> None:
        """Read below the open directory of the release, into ``staging``."""
        self._release_fd = release_fd
        self._staging = staging
        self._bandwidth = bandwidth
        self._lock = threading.Lock()
        self._waiting: Iterator[ChosenFile] = iter(())
        self._stopped = False
        #: Increased whenever a thread makes progress.
        self._steps = 0
        self.digests: dict[bytes, bytes] = {}
        self.left_out: list[tuple[str, bytes]] = []

    def read(self, chosen: Sequence[ChosenFile], jobs: int, progress: Progress = no_progress) -> None:
        """Read all files that are not staged yet.

        ``digests`` has the SHA-256 of the files that are staged afterwards, by their paths, and ``left_out`` has the reasons and paths of
        those that are missing, changed or unreadable. Raises OSError if a file cannot be read or written for another reason.
        """
        self._waiting = iter(chosen)
        with futures.ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(self._work, f"{number}") for number in range(jobs)}
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

    def _work(self, name: str) -> None:
        """Read files until none is waiting. ``name`` is that of this thread."""
        thread = _Thread(
            name,
            LastDirectory(self._release_fd, same_mount=True),
            LastDirectory(self._staging.release_fd, same_mount=True),
        )
        try:
            while True:
                with self._lock:
                    file = next(self._waiting, None)
                if file is None:
                    return
                try:
                    self.digests[file.path] = self._staged_digest(file) or self._copied_digest(file, thread)
                except _LeftOutError as error:
                    self.left_out.append((str(error), file.path))
        except _StoppedError:
            return
        finally:
            thread.sources.close()
            thread.targets.close()

    def _staged_digest(self, file: ChosenFile) -> bytes | None:
        """Return the SHA-256 of the complete copy of a file that an earlier run has left; None if there is none."""
        fd = self._staging.find(file)
        if fd is None:
            return None
        with open(fd, "rb", buffering=0) as stream:
            digest = self._digest(stream, None, file.size)
        return digest if file.sha256 in (None, digest) else None

    def _copied_digest(self, file: ChosenFile, thread: _Thread) -> bytes:
        """Copy a file, and return its SHA-256. Raises _LeftOutError if the file is not as the manifest says."""
        with (
            open(self._opened(file, thread.sources), "rb", buffering=0) as source,
            self._staging.incoming(thread.name) as target,
        ):
            self._compare(file, source)
            digest = self._digest(source, target, file.size)
            # Attributes may be cached for an hour, so the server is asked, after the content was read.
            self._compare(file, source, fresh=True)
            if file.sha256 not in (None, digest):
                raise _LeftOutError(selection.CHANGED)
            self._staging.keep(thread.name, target, file, thread.targets)
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

    def _compare(self, file: ChosenFile, source: BinaryIO, fresh: bool = False) -> None:
        """Raises _LeftOutError if the attributes of an open file are not those of the manifest."""
        try:
            if fresh:
                syscalls.refresh(source.fileno())
            status = os.fstat(source.fileno())
        except OSError as error:
            raise self._vanished(error) from None
        if not stat.S_ISREG(status.st_mode):
            raise _LeftOutError(selection.CHANGED)
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            raise _LeftOutError(selection.CHANGED)

    def _digest(self, source: BinaryIO, target: BinaryIO | None, left: int) -> bytes:
        """Return the SHA-256 of the first ``left`` bytes of an open file as hexadecimal text; copy them to ``target`` if there is one.

        Raises _LeftOutError if the file is shorter.
        """
        digest = hashlib.sha256()
        size = self._bandwidth.chunk() if target else _CHUNK
        while left:
            try:
                chunk = source.read(min(size, left))
            except OSError as error:
                raise self._vanished(error) from None
            if self._stopped:
                raise _StoppedError
            if not chunk:
                raise _LeftOutError(selection.CHANGED)
            left -= len(chunk)
            digest.update(chunk)
            if target:
                self._bandwidth.take(len(chunk))
                self._write(target, chunk)
            self._steps += 1
        return digest.hexdigest().encode("ascii")

    def _write(self, target: BinaryIO, chunk: bytes) -> None:
        """Write a part of a file. Zeros become a hole, since some files have gigabytes of them."""
        if not chunk[0] and chunk == bytes(len(chunk)):
            os.ftruncate(target.fileno(), target.seek(len(chunk), os.SEEK_CUR))
        else:
            files.write(target, chunk, self._staging.path)

    def _vanished(self, error: OSError) -> Exception:
        """Return what an error of reading an open file means: it was deleted on the server, or the error itself."""
        return _LeftOutError(selection.MISSING) if error.errno == errno.ESTALE else error
