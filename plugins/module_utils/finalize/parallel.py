# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on many directories with several processes.

Some of it is waiting for a file server, and the rest is divided between Python and the kernel, which serializes much of its part;
threads would wait for each other in Python as well.
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

#: Does the work on one item, calling what it is given whenever it gets further; returns what came of it, and further items.
Visit = Callable[[Item, Progress], "tuple[Result, list[Item]]"]

#: Seconds that are worked alone at first: starting others takes longer than what there usually is to do.
_ALONE = 0.05
#: Seconds after which a process says what it has done, and hands back what is left.
_SHIFT = 0.1


class Lock:
    """Keeps processes that are started later from doing something at the same time."""

    def __init__(self) -> None:
        self._file = os.memfd_create("lock")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        # Opened anew, since a lock belongs to the opening and not to the process.
        fd = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def walk(first: Sequence[Item], visit: Visit[Item, Result], workers: int, progress: Progress) -> list[Result]:
    """Visit the items, and all that the visits find, with so many processes at a time; return the results in no order.

    Items and results have to be picklable. Raises what the first visit that fails raises, OverlayError or OSError.
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


def _shift(waiting: list[Item], visit: Visit[Item, Result], progress: Progress, seconds: float | None) -> list[Result]:
    """Visit items for some time, or until none is waiting; return the results."""
    results: list[Result] = []
    started = time.monotonic()
    while waiting:
        if seconds is not None and time.monotonic() - started > seconds:
            break
        # The newest one, so that few are waiting: a walk goes down before it goes on.
        result, further = visit(waiting.pop(), progress)
        results.append(result)
        waiting.extend(further)
    return results


class _Team:
    def __init__(self, visit: Visit[Any, Any], workers: int) -> None:
        self._children: list[int] = []
        #: Of multiprocessing.connection, whose types differ between versions of Python.
        self._connections: list[Any] = []
        for _number in range(workers):
            ours, theirs = pipes.Pipe()
            parent = os.getpid()
            child = os.fork()
            if child == 0:
                _be_the_worker(visit, theirs, [*self._connections, ours], parent)
            theirs.close()
            self._children.append(child)
            self._connections.append(ours)

    def work(self, waiting: list[Any], results: list[Any], progress: Progress) -> None:
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
                    raise OverlayError("a process of the work was ended from outside") from None
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


def _be_the_worker(visit: Visit[Any, Any], connection: Any, others: Sequence[Any], parent: int) -> None:
    """Work until the connection ends, and end this process, whatever happens."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        # What was there before is not searched for garbage, which would copy all of its memory.
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
