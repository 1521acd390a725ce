"""Run each module in its own process, forked by a server that has imported all modules. This saves the half second of starting Python.

The server runs no module itself, so that no module sees state that another module or a test has left in memory.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ansible.module_utils import basic

from ansible_collections.renderfarm.overlay.plugins import modules
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls

#: Seconds after which a module counts as failed.
SECONDS = 120
#: The usual limit of open files. The tests may have raised their own.
LIMITS = ("prlimit", "--nofile=1024:")


def run(name: str, arguments: bytes) -> tuple[int, bytes]:
    """Run a module and return its exit status and its output. Raises TimeoutError if it does not end."""
    answers, answer = os.pipe()
    outputs, output = os.pipe()
    given = os.memfd_create("arguments")
    try:
        os.write(given, arguments)
        os.lseek(given, 0, os.SEEK_SET)
        umask = os.umask(0)
        os.umask(umask)
        request = json.dumps({"name": name, "directory": os.getcwd(), "environment": dict(os.environ), "umask": umask})
        socket.send_fds(_servers[-1], [request.encode()], [given, output, answer])
    finally:
        for fd in (given, output, answer):
            os.close(fd)
    with open(answers, "rb") as status, open(outputs, "rb") as printed:
        text = _all_of(printed.fileno())
        # The line is missing if a signal killed the module.
        return int(status.readline() or -1), text


def _all_of(fd: int) -> bytes:
    """Return all output. It ends when the module and its child processes have closed it. Raises TimeoutError if they do not."""
    end = time.monotonic() + SECONDS
    parts: list[bytes] = []
    # select() does not accept high descriptors.
    readable = select.poll()
    readable.register(fd, select.POLLIN)
    while readable.poll(max(0.0, end - time.monotonic()) * 1000):
        part = os.read(fd, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise TimeoutError(f"the module did not end within {SECONDS} seconds: {b''.join(parts)!r}")


_servers: list[socket.socket] = []


@contextlib.contextmanager
def started() -> Iterator[None]:
    """Run the server while the block runs. ``run`` works inside the block only."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        argv = [*LIMITS, sys.executable, "-W", "ignore", "-m", __name__, str(there.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        # The working directory is one that no test unmounts.
        process = subprocess.Popen(argv, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, cwd="/", env=environment)
    _servers.append(here)
    try:
        yield
    finally:
        _servers.remove(here)
        here.close()
        process.wait()


def _reap(_signal: int, _frame: object) -> None:
    """Reap all child processes that have ended. Ignoring SIGCHLD would do that too, and lose their processor time."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request until the socket is closed."""
    for found in pkgutil.iter_modules(modules.__path__, f"{modules.__name__}."):
        importlib.import_module(found.name)
    # Collecting garbage would copy the memory of all that was imported into each module's process.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        request, fds, _flags, _address = socket.recv_fds(requests, 1 << 20, 3)
        if not request:
            return
        if os.fork() == 0:
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            syscalls.die_with_parent(signal.SIGKILL)
            _be(json.loads(request), *fds)
        for fd in fds:
            os.close(fd)


def _be(request: dict[str, Any], given: int, output: int, answer: int) -> NoReturn:
    """Run the module of a request in this process, write its exit status to ``answer``, and exit."""
    with open(given, "rb") as stream:
        arguments = stream.read()
    for target in (1, 2):
        os.dup2(output, target)
    os.close(output)
    os.set_inheritable(answer, False)
    os.chdir(request["directory"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    status = 1
    try:
        status = be_the_module(importlib.import_module(request["name"]).main, arguments)
    except BaseException:
        traceback.print_exc()
    os.write(answer, b"%d\n" % status)
    os.close(answer)
    _end(status)


def _end(status: int) -> NoReturn:
    """Exit as Python does, but leave the memory as it is: clearing it would copy all that was imported."""
    threading._shutdown()  # type: ignore[attr-defined]  # private
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def be_the_module(main: Callable[[], None], arguments: bytes) -> int:
    """Run a module in this process and return the exit status that the process must end with."""
    setattr(basic, "_ANSIBLE_ARGS", arguments)  # noqa: B010 (mypy does not know it)
    setattr(basic, "_ANSIBLE_PROFILE", "legacy")  # noqa: B010
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
