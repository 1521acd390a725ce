# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look up the content of the files of a layer in the layers below it as the kernel does, and compare size, mtime and SHA-256."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Note, Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlace, DataPlaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import Findings, FoundProblem

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
#: The files that one thread looks up before it takes the next ones.
_BATCH = 32
#: The codes of errors of a lookup that the kernel reports to the user of the view.
REFUSALS = {
    errno.ELOOP: "redirect_through_symlink",
    errno.EXDEV: "redirect_across_mount",
    errno.EACCES: "unreadable_target",
    errno.EPERM: "unreadable_target",
}
#: The codes of errors of open(2) of a file that was found.
_FAILURES = {
    errno.EACCES: "unreadable_target",
    errno.EPERM: "unreadable_target",
    errno.EIO: "unreadable_target",
    errno.ESTALE: "missing_target",
    errno.ENOENT: "missing_target",
}
#: The errors of a path that a data layer does not have.
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ESTALE)


class File:
    """A file of a layer: its path in the view, the path of its content in the data layers, its size and its mtime in nanoseconds.

    The mtime is None if it is not to be compared.
    """

    __slots__ = ("mtime_ns", "path", "size", "target")

    def __init__(self, path: bytes, target: bytes, size: int, mtime_ns: int | None) -> None:
        self.path = path
        self.target = target
        self.size = size
        self.mtime_ns = mtime_ns


class DataLayers:
    """The data layers of a view. Each is open in ``opened``, by its path.

    ``note`` names the path that is being looked up, for the message about a server that does not answer. ``kind`` is what messages
    call such a layer. ``images`` are those that are data images: they store equal files once, so their mtimes are not those of the release.
    """

    def __init__(
        self,
        places: DataPlaces,
        opened: Mapping[bytes, int],
        note: Note,
        kind: str = "data layer",
        images: Collection[bytes] = (),
    ) -> None:
        self._images = images
        self._kind = kind
        #: Directories of data layers whose names are looked up as the file server has them now.
        self._fresh: set[tuple[bytes, bytes]] = set()
        self._places = places
        self._opened_layers = opened
        self._note = note

    def problem(self, file: File, checksum: str | None, progress: Progress) -> FoundProblem | None:
        """Return what is wrong with the content of a file; None if nothing is. With ``checksum``, its content is read.

        Opening needs the rights of the mount, which are those of root. Raises OSError if the server fails.
        """
        place = self._places.of(file.path)
        root = place.root_for(file.target)
        try:
            layer, fd = self._hold(place, file.target)
        except OSError as error:
            code = REFUSALS.get(error.errno or 0)
            if code is None:
                raise
            return FoundProblem(file.path, code, f"{self._place(file)}: {os.strerror(error.errno or 0)}")
        if fd is None:
            owner = f"; the software root of its release is {show(root)}" if root is not None else ""
            return FoundProblem(file.path, "missing_target", f"no {self._kind} has /{show(file.target)}{owner}")
        try:
            if root not in (None, layer):
                read = f"the kernel reads /{show(file.target)} from {show(layer)}"
                return FoundProblem(file.path, "wrong_root", f"{read}, and its release is on {show(root or b'')}")
            return self._compared(file, os.fstat(fd), layer not in self._images) or self._opened(
                file, fd, checksum, progress
            )
        finally:
            os.close(fd)

    def _hold(self, place: DataPlace, target: bytes) -> tuple[bytes, int | None]:
        """Return the first data layer that has a file, and an O_PATH descriptor of the file; None if no data layer has it.

        The attributes of the file were just fetched from the file server.
        """
        for path in place.layers:
            self._note.write(f"/{show(target)} in {self._kind} {show(path)}")
            self._refresh(path, target)
            try:
                return path, beneath.hold_fresh(self._opened_layers[path], target)
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
        return b"", None

    def _refresh(self, layer: bytes, target: bytes) -> None:
        """Have the names on the way to a file looked up again, once, where a directory has changed on the file server.

        A client with a long ``actimeo`` otherwise finds a release that was moved away, and does not find one that was restored.
        """
        missing = []
        directory = target
        while directory:
            directory = directory.rpartition(b"/")[0]
            if (layer, directory) in self._fresh:
                break
            missing.append(directory)
        for directory in reversed(missing):
            try:
                os.close(beneath.hold_fresh(self._opened_layers[layer], directory))
            except OSError as error:
                # A directory that is gone is known to be gone now. Others are reported when the file is looked up.
                if error.errno not in (*_MISSING, *REFUSALS):
                    raise
            self._fresh.add((layer, directory))

    def _place(self, file: File) -> str:
        return f"/{show(file.target)} in {self._kind} {', '.join(map(show, self._places.of(file.path).layers))}"

    def _compared(self, file: File, status: os.stat_result, has_mtime: bool) -> FoundProblem | None:
        if stat.S_ISLNK(status.st_mode):
            return FoundProblem(file.path, "redirect_through_symlink", f"{self._place(file)} is a symbolic link")
        if not stat.S_ISREG(status.st_mode):
            return FoundProblem(file.path, "target_not_file", f"{self._place(file)} is not a regular file")
        if status.st_size != file.size:
            return FoundProblem(
                file.path, "wrong_size", f"{self._place(file)} has {status.st_size} bytes instead of {file.size}"
            )
        if has_mtime and file.mtime_ns is not None and status.st_mtime_ns != file.mtime_ns:
            times = "mtime {}.{:09} instead of {}.{:09}".format(
                *divmod(status.st_mtime_ns, 10**9), *divmod(file.mtime_ns, 10**9)
            )
            return FoundProblem(file.path, "wrong_time", f"{self._place(file)} has {times}")
        return None

    def _opened(self, file: File, held: int, checksum: str | None, progress: Progress) -> FoundProblem | None:
        try:
            fd = os.open(beneath.name_of(held), _OPEN & ~os.O_NOFOLLOW)
        except OSError as error:
            code = _FAILURES.get(error.errno or 0)
            if code is None:
                raise
            return FoundProblem(file.path, code, f"{self._place(file)}: {os.strerror(error.errno or 0)}")
        try:
            if checksum is not None and files.sha256(fd, progress) != checksum:
                return FoundProblem(
                    file.path, "content_differs", f"{self._place(file)} has another SHA-256 than its manifest"
                )
        finally:
            os.close(fd)
        return None


def check(
    data: DataLayers,
    wanted: Iterator[File],
    checksum_of: Callable[[File], str | None],
    workers: int,
    findings: Findings,
    progress: Progress,
) -> None:
    """Look up the content of the ``wanted`` files with this many threads, and add what is wrong to the findings.

    ``checksum_of`` returns the SHA-256 of the content of a file, None if it is not to be compared. Threads wait for the
    file server at the same time, so its latency counts once for all of them. Raises OSError if the server fails.
    """
    of_one_thread = _one_at_a_time(progress)

    def look(batch: Sequence[File]) -> list[FoundProblem]:
        found = []
        for file in batch:
            problem = data.problem(file, checksum_of(file), of_one_thread)
            found += [problem] if problem else []
            of_one_thread()
        return found

    with ThreadPoolExecutor(workers) as pool:
        while True:
            batches = [list(islice(wanted, _BATCH)) for _number in range(workers * 4)]
            for problems in pool.map(look, filter(None, batches)):
                for problem in problems:
                    findings.add(problem.path, problem.code, problem.detail)
            if not batches[-1]:
                return


def _one_at_a_time(progress: Progress) -> Progress:
    """Return a callback for several threads, since ``progress`` is made for one."""
    lock = threading.Lock()

    def call() -> None:
        if lock.acquire(blocking=False):
            try:
                progress()
            finally:
                lock.release()

    return call
