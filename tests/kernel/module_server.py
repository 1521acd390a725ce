"""Modules in processes of their own, without the half second in which Python starts and imports: forked by a process that has.

The process that forks runs no module itself, so that each begins with nothing that another, or a test, has left in memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ansible.module_utils import basic

from ansible_collections.renderfarm.overlay.plugins import modules
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls

#: Seconds after which a module has failed.
SECONDS = 120
#: The usual limit of open files, whatever the tests have raised theirs to.
LIMITS = ("prlimit", "--nofile=1024:")


def run(name: str, arguments: bytes) -> tuple[int, bytes]:
    """Run a module; return its exit status and what it printed."""
    answers, answer = os.pipe()
    outputs, output = os.pipe()
    given = os.memfd_create("arguments")
    try:
        os.write(given, arguments)
        os.lseek(given, 0, os.SEEK_SET)
        umask = os.umask(0)
        os.umask(umask)
        request = json.dumps({"name": name, "folder": os.getcwd(), "environment": dict(os.environ), "umask": umask})
        socket.send_fds(_servers[-1], [request.encode()], [given, output, answer])
    finally:
        for fd in (given, output, answer):
            os.close(fd)
    with open(answers, "rb") as status, open(outputs, "rb") as printed:
        text = _all_of(printed.fileno())
        # The exit status, or nothing where a signal ended it.
        return int(status.readline() or -1), text


def _all_of(fd: int) -> bytes:
    """Read to the end, which comes when the module and all that it has started have closed it."""
    end = time.monotonic() + SECONDS
    parts: list[bytes] = []
    # Not select(), which takes no high numbers.
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
    """Start what forks; ``run`` is for within the block."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        argv = [*LIMITS, sys.executable, "-W", "ignore", "-m", __name__, str(there.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        # Nowhere that a test wants to unmount.
        process = subprocess.Popen(argv, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, cwd="/", env=environment)
    _servers.append(here)
    try:
        yield
    finally:
        _servers.remove(here)
        here.close()
        process.wait()


def _serve(requests: socket.socket) -> None:
    for found in pkgutil.iter_modules(modules.__path__, f"{modules.__name__}."):
        importlib.import_module(found.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that none is left as a zombie
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
    with open(given, "rb") as stream:
        arguments = stream.read()
    for target in (1, 2):
        os.dup2(output, target)
    os.close(output)
    os.set_inheritable(answer, False)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    status = 1
    try:
        status = be_the_module(importlib.import_module(request["name"]).main, arguments)
    finally:
        os.write(answer, b"%d\n" % status)
        os.close(answer)
    sys.exit(status)


def be_the_module(main: Callable[[], None], arguments: bytes) -> int:
    """Run a module in this process, which is to end with the status that is returned."""
    setattr(basic, "_ANSIBLE_ARGS", arguments)  # noqa: B010 (mypy does not know it)
    setattr(basic, "_ANSIBLE_PROFILE", "legacy")  # noqa: B010
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
