# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record which files are opened, for a time or while a command runs."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.fanotify import Opened, OpenListener
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    deadline,
    namespaces,
    processes,
    syscalls,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import top_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import CommandResult, UserCommand

#: Milliseconds to wait for an event before progress is reported.
_POLL_MILLISECONDS = 200


@dataclass(frozen=True)
class Listening:
    """Where to listen for opens."""

    #: A path on the mount or file system.
    path: bytes
    #: Listen on the whole file system, not on one mount.
    whole: bool


@dataclass
class Recording:
    """What was recorded."""

    opened: Opened = field(default_factory=Opened)
    #: How the command ended; None if there was none.
    result: CommandResult | None = None
    #: Whether another mount was at the path at the end.
    switched: bool = False


def record_time(listening: Listening, seconds: float, progress: Progress) -> Recording:
    """Record the opens of all processes for ``seconds``. Raises OverlayError if opens cannot be traced."""
    recording = Recording()
    with _listener(listening, recording) as listener:
        poll = select.poll()
        poll.register(listener.fd, select.POLLIN)
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            poll.poll(min(_POLL_MILLISECONDS, max(0, int((limit - time.monotonic()) * 1000))))
            listener.read()
            progress()
    return recording


def record_command(listening: Listening, command: UserCommand, seconds: float, progress: Progress) -> Recording:
    """Record opens while a command runs. It is given up after ``seconds`` without progress.

    The command runs in a mount namespace of its own, so that a mark on a mount there sees the opens of the command alone, and in a PID
    namespace, so that nothing of it is left. Raises OverlayError if opens cannot be traced or there is no such user, and OSError if the
    command cannot be run.
    """
    return deadline.run(lambda tick: _record_command(listening, command, tick), seconds, progress)


def _record_command(listening: Listening, command: UserCommand, progress: Progress) -> Recording:
    namespaces.make_private(propagation=syscalls.MS_SLAVE)
    recording = Recording()
    with _listener(listening, recording) as listener, _started(command) as answer:
        poll = select.poll()
        poll.register(listener.fd, select.POLLIN)
        poll.register(answer, select.POLLIN)
        received = b""
        while True:
            ready = {fd for fd, _events in poll.poll(_POLL_MILLISECONDS)}
            listener.read()
            progress()
            if answer in ready:
                chunk = os.read(answer, 1 << 16)
                received += chunk
                if not chunk:
                    break
    recording.result = _result(received)
    return recording


def _result(received: bytes) -> CommandResult:
    """Return what the process that ran the command sent. Raises OverlayError or OSError if the command could not be run."""
    if not received:
        raise OverlayError("the process that ran the command was killed; run the task again")
    found = pickle.loads(received)  # noqa: S301 (it comes from our own child)
    if isinstance(found, CommandResult):
        return found
    raise found


@contextlib.contextmanager
def _listener(listening: Listening, recording: Recording) -> Iterator[OpenListener]:
    """Provide a listener. At the end, complete the recording with what it has heard."""
    listener = OpenListener()
    # A mount that is held keeps its mount ID, which the kernel would use again.
    held = os.open(listening.path, syscalls.HOLD_DIRECTORY)
    try:
        listener.mark(listening.path, listening.whole)
        before = top_mount(namespaces.own_mounts(), listening.path)
        yield listener
        listener.read()
        after = top_mount(namespaces.own_mounts(), listening.path)
        recording.switched = (before and before.id) != (after and after.id)
        recording.opened = listener.opened
    finally:
        os.close(held)
        listener.close()


@contextlib.contextmanager
def _started(command: UserCommand) -> Iterator[int]:
    """Run a command in a PID namespace while the block runs. Provide a descriptor that its pickled result can be read from."""
    receiver, sender = os.pipe()
    # The next child is the first process of the namespace. When it ends, the kernel kills all others there.
    syscalls.unshare(syscalls.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        os.close(receiver)
        _be_first(command, sender)
    os.close(sender)
    try:
        yield receiver
    finally:
        os.close(receiver)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _be_first(command: UserCommand, sender: int) -> None:
    """Run a command, send how it ended, and end this process, whatever happens."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        answer: CommandResult | Exception
        try:
            answer = processes.run_as_user(command, deadline.no_progress)
        except (OverlayError, OSError) as error:
            answer = deadline.picklable(error)
        with open(sender, "wb") as stream:
            stream.write(pickle.dumps(answer))
    finally:
        os._exit(0)
