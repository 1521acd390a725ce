# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run work that may hang in a child process, and give it up when it makes no progress.

A process that waits for an unreachable NFS server cannot be interrupted from within, and a waiting thread keeps its process alive. A child
process can be killed, or at worst left behind.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Sequence
from typing import Any, Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError

_TICK = b"."
_RESULT = b"="

#: Seconds between two signs of progress that are really sent.
_TICK_INTERVAL = 0.2

#: Seconds between two calls of ``forward``, at most.
_FORWARD_INTERVAL = 0.5

#: Seconds to wait for killed children. One in an uninterruptible sleep is left behind.
_REAP_SECONDS = 2.0

_CHUNK = 1 << 20

Result = TypeVar("Result")
Progress = Callable[[], None]


class TimeLimitError(OverlayError):
    """The work made no progress within its time limit."""


class WorkError(Exception):
    """The work raised an unexpected exception. The message is its traceback."""


class Note:
    """A short text in memory that a child shares with its parent: the item being worked on, shown on timeout."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def write(self, text: str) -> None:
        """Replace the text. It is cut at one page."""
        self._memory[:] = text.encode("utf-8", "backslashreplace")[: mmap.PAGESIZE].ljust(mmap.PAGESIZE, b"\0")

    def read(self) -> str:
        """Return the text; empty if none was written."""
        return self._memory[:].rstrip(b"\0").decode("utf-8", "replace")


def no_progress() -> None:
    """Do nothing: the progress callback of work without a time limit."""


def run(work: Callable[[Progress], Result], seconds: float, forward: Progress = no_progress) -> Result:
    """Run ``work`` in a child process and return its result, which must be picklable.

    ``work`` receives a callback to call whenever it makes progress. Meanwhile ``forward`` is called in this process, so that a process
    which is itself the child of another one is not given up before its own child is. Raises TimeLimitError after ``seconds`` without a
    call, OverlayError and OSError as the work raised them, and WorkError for any other exception.
    """
    child = _Child(work)
    try:
        _receive(child, seconds, forward)
    except BaseException:
        child.kill()
        _reap([child], forward)
        raise
    finally:
        os.close(child.receiver)
    _reap([child], forward)
    return child.value()  # type: ignore[no-any-return]


def run_together(works: Sequence[Callable[[Progress], Result]], progress: Progress = no_progress) -> list[Result]:
    """Run several works at the same time, each in a child process, and return their results, which must be picklable, in the same order.

    Each work receives a callback to call whenever it makes progress, and ``progress`` is called then in this process. There is no time
    limit. As soon as one work fails, the others are killed. Raises what that work raised, as ``run`` does.
    """
    children: list[_Child] = []
    try:
        for work in works:
            # If one cannot be started, those before it are killed.
            children.append(_Child(work))  # noqa: PERF401
        running = {child.receiver: child for child in children}
        while running:
            for receiver in select.select(list(running), [], [])[0]:
                if not running[receiver].receive():
                    # Raise the error of one that failed, before the others have ended.
                    running.pop(receiver).value()
                progress()
    except BaseException:
        for child in children:
            child.kill()
        raise
    finally:
        for child in children:
            os.close(child.receiver)
        _reap(children, progress)
    return [child.value() for child in children]


class _Child:
    """A child process that does work, and sends ticks and its outcome through a pipe."""

    def __init__(self, work: Callable[[Progress], Any]) -> None:
        """Start it."""
        self.receiver, sender = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.receiver)
            _be_the_child(work, sender, parent)
        os.close(sender)
        self._received = bytearray()
        #: The wait status; None if it has not been reaped.
        self.status: int | None = None

    def receive(self) -> bool:
        """Read what it has sent, waiting for it, and return whether it may send more."""
        chunk = os.read(self.receiver, _CHUNK)
        self._received += chunk
        if self._received.startswith(_TICK):
            self._received = self._received.lstrip(_TICK)
        return bool(chunk)

    def value(self) -> Any:
        """Return the result of the work, or raise its error. It has sent all."""
        if not self._received:
            _reap([self], no_progress)
            raise OverlayError(f"the worker process was killed (wait status {self.status}); run the task again")
        succeeded, value = pickle.loads(memoryview(self._received)[1:])  # noqa: S301 (it comes from our own child)
        if not succeeded:
            raise value
        return value

    def kill(self) -> None:
        """Kill it, unless it was reaped, since its PID may be that of another process by now."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)


def _be_the_child(work: Callable[[Progress], Result], sender: int, parent: int) -> None:
    """Run the work, send its outcome and end this process, whatever happens."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        # A parent in another PID namespace has the number 0 here.
        if os.getppid() not in (parent, 0):
            os._exit(1)
        # Whoever started the parent reads its output to the end, so a child that is left behind must not hold that open.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        outcome = _outcome(work, _ticker(sender))
        with open(sender, "wb") as stream:
            stream.write(_RESULT + pickle.dumps(outcome))
    finally:
        os._exit(0)


def _outcome(work: Callable[[Progress], Result], progress: Progress) -> tuple[bool, object]:
    """Return whether the work succeeded, and its result or its error."""
    try:
        return True, work(progress)
    except (OverlayError, OSError) as error:
        return False, picklable(error)
    except Exception:
        return False, WorkError(traceback.format_exc())


def picklable(error: Exception) -> Exception:
    """Return a copy of an error that can be sent to another process."""
    if isinstance(error, OSError):
        # Subclasses and unusual file names may not survive pickling.
        return OSError(error.errno, error.strerror, error.filename, None, error.filename2)
    return error


def _ticker(sender: int) -> Progress:
    """Return a progress callback that writes ticks to a pipe."""

    def tick() -> None:
        os.write(sender, _TICK)

    return at_intervals(tick)


def at_intervals(tell: Callable[[], None]) -> Progress:
    """Return a progress callback that calls ``tell`` at most once in each interval."""
    last = time.monotonic()

    def progress() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _TICK_INTERVAL:
            last = now
            tell()

    return progress


def _receive(child: _Child, seconds: float, forward: Progress) -> None:
    """Receive until the child has sent all. Raises TimeLimitError after ``seconds`` without a tick."""
    limit = time.monotonic() + seconds
    while True:
        rest = limit - time.monotonic()
        readable, _writable, _exceptional = select.select(
            [child.receiver], [], [], min(_FORWARD_INTERVAL, max(rest, 0))
        )
        forward()
        if not readable:
            if rest > 0:
                continue
            raise TimeLimitError(f"no progress for {seconds:g} seconds")
        limit = time.monotonic() + seconds
        if not child.receive():
            return
        forward()


def _reap(children: Sequence[_Child], forward: Progress) -> None:
    """Wait until the children have ended, which were killed or have sent all. One that does not end is left behind."""
    limit = time.monotonic() + _REAP_SECONDS
    for child in children:
        while child.status is None:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.status = status
            elif time.monotonic() >= limit:
                break
            else:
                forward()
                time.sleep(0.005)
