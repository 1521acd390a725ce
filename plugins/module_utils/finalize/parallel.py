# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Visit many directories with several processes.

A part of the time is spent waiting for a file server. The rest is shared by Python and by the kernel, which serializes much of its own
part. Threads would wait for each other in Python as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing import connection as pipes
from typing import Any, Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Visit one item, calling the given callback on progress; return the result, and further items to visit.
Visitor = Callable[[Item, Progress], "tuple[Result, list[Item]]"]

#: Seconds to work in this process before others are started. Most walks end earlier than that.
_ALONE = 0.05
#: Seconds after which a worker returns its results and the items that are left.
_SHIFT = 0.1


class Lock:
    """A lock between this process and the processes that it forks later."""

    def __init__(self) -> None:
        self._file = os.memfd_create("lock")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        # Open the file again: a lock belongs to the open file description, which forked processes share.
        fd = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def walk(first: Sequence[Item], visit: Visitor[Item, Result], workers: int, progress: Progress) -> list[Result]:
    """Visit the items, and all further items that visits return, with this many processes; return the results in no order.

    Items and results must be picklable. Raises OverlayError or OSError if a visit does, or if a worker process was killed.
    """
    waiting = list(first)
    results = _shift(waiting, visit, progress, _ALONE if workers > 1 else None)
    if waiting:
        team = _Team(visit, workers)
        try:
            team.work(waiting, results, progress)
        finally:
            team.end()
    return results


def _shift(
    waiting: list[Item], visit: Visitor[Item, Result], progress: Progress, seconds: float | None
) -> list[Result]:
    """Visit items for up to ``seconds``, or until none is waiting; return the results."""
    results: list[Result] = []
    started = time.monotonic()
    while waiting:
        if seconds is not None and time.monotonic() - started > seconds:
            break
        # The newest first: a walk that goes down before it goes on has few waiting.
        result, further = visit(waiting.pop(), progress)
        results.append(result)
        waiting.extend(further)
    return results


class _Team:
    """Worker processes, each with a connection to this one."""

    def __init__(self, visit: Visitor[Any, Any], workers: int) -> None:
        self._children: list[int] = []
        #: Connections of multiprocessing, whose types differ between versions of Python.
        self._connections: list[Any] = []
        for _number in range(workers):
            ours, theirs = pipes.Pipe()
            parent = os.getpid()
            child = os.fork()
            if child == 0:
                _run_worker(visit, theirs, [*self._connections, ours], parent)
            theirs.close()
            self._children.append(child)
            self._connections.append(ours)

    def work(self, waiting: list[Any], results: list[Any], progress: Progress) -> None:
        """Have the workers visit all waiting items, and add to the results. Raises the error of the first visit that fails."""
        idle = list(self._connections)
        while waiting or len(idle) < len(self._connections):
            while waiting and idle:
                share = max(1, len(waiting) // len(self._connections))
                idle.pop().send(waiting[-share:])
                del waiting[-share:]
            connection: Any
            for connection in pipes.wait([one for one in self._connections if one not in idle]):
                try:
                    answer = connection.recv()
                except EOFError:
                    raise OverlayError("a worker process was killed: run this again") from None
                progress()
                if answer is None:
                    continue
                found, left, failure = answer
                if failure is not None:
                    raise failure
                results += found
                waiting += left
                idle.append(connection)

    def end(self) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
        for child in self._children:
            os.waitpid(child, 0)
        for connection in self._connections:
            connection.close()


def _run_worker(visit: Visitor[Any, Any], connection: Any, others: Sequence[Any], parent: int) -> None:
    """Visit items until the connection is closed. Always end this process."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        # Collecting garbage would touch, and so copy, all memory that is shared with the parent.
        gc.disable()
        if os.getppid() != parent:
            os._exit(1)
        for other in others:
            other.close()
        progress = deadline.at_intervals(lambda: connection.send(None))
        while True:
            waiting = connection.recv()
            found: list[Any] = []
            failure: Exception | None = None
            try:
                found = _shift(waiting, visit, progress, _SHIFT)
            except (OverlayError, OSError) as error:
                failure = deadline.picklable(error)
            connection.send((found, waiting, failure))
    finally:
        os._exit(0)
