"""Provide directories, tools, and child processes that never outlive the farm."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1

FARM_SOURCE = Path(__file__).resolve().parent.parent
CHECKOUT = FARM_SOURCE.parent.parent
#: Output that is kept. The variable is for farms beside the checkout's own one, such as those of `make farm ARGS=stop`.
BUILD = Path(os.environ.get("RENDERFARM_FARM_BUILD") or CHECKOUT / ".build" / "farm")

# Programs, and the Debian packages that provide them.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


class FarmError(Exception):
    """Raised for an error that the user can act on. It is printed as one line, without a traceback."""


class Stopped(KeyboardInterrupt):
    """Raised when a signal asks the farm to end. As a KeyboardInterrupt, it is not taken for a failed test."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


def say(text: str) -> None:
    print(f"[farm {time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def shown(path: Path) -> str:
    """Return a path relative to the working directory, for messages."""
    return os.path.relpath(path)


def tool_path(name: str) -> str | None:
    # mke2fs is in sbin, which is not on the PATH of an ordinary Debian user.
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def require_tools() -> None:
    missing = {tool: package for tool, package in TOOLS.items() if tool_path(tool) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise FarmError(
            f"the farm needs {', '.join(sorted(missing))}: on Debian, apt-get install {packages} "
            "(all of them are in tests/farm/debian-packages.txt)"
        )
    if os.uname().machine != "x86_64":
        raise FarmError(f"the farm's guests are x86_64, this machine is {os.uname().machine}")


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def signal_when_parent_ends(signum: int) -> None:
    """Make the kernel send this process a signal when its parent ends, however it ends. Raises OSError if prctl(2) fails."""
    if _libc.prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def spawn(argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a child in a new session. The kernel kills it when the thread that started it ends, however it ends.

    The session keeps Ctrl-C from the child. Raises FarmError if the program is missing.
    """
    tool = tool_path(argv[0])
    if tool is None:
        raise FarmError(f"{argv[0]} is not installed")
    # setpriv makes the request in the child: preexec_fn is unsafe with threads.
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", tool, *argv[1:]], start_new_session=True, **options
    )


def run(
    argv: Sequence[str],
    *,
    timeout: float | None = None,
    env: dict[str, str] | None = None,
    purpose: str = "",
    **options: Any,
) -> str:
    """Run a command and return its output.

    Raises FarmError with its purpose and its last lines if it fails, or if it does not end within `timeout` seconds.
    """
    what = f"{purpose}: {argv[0]}" if purpose else argv[0]
    process = spawn(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        **options,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        kill_session(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise FarmError(f"{what} did not end within {timeout:.0f} s") from None
        raise
    if process.returncode != 0:
        tail = " | ".join(output.strip().splitlines()[-6:])
        raise FarmError(f"{what} failed ({process.returncode}): {tail}")
    return str(output)


def kill_session(process: subprocess.Popen[Any]) -> None:
    """Kill all processes in the session of a child, and the child."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def contained(argv: Sequence[str], *, proc: bool = False) -> list[str]:
    """Return the command with a prefix that runs it in new mount and PID namespaces, so that none of its mounts or processes remain.

    With `proc` it has a /proc of its PID namespace, which programs need that read about their own processes.
    """
    return ["unshare", *(["--mount-proc"] if proc else ["--mount"]), "--pid", "--fork", "--kill-child", "--", *argv]


@contextmanager
def only_one() -> Iterator[None]:
    """Allow one farm at a time in a checkout. Raises FarmError if another one is running."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FarmError("a farm of this checkout is already running: stop it first") from None
        yield


@contextmanager
def signals_end_the_block() -> Iterator[None]:
    """Turn signals into an exception, so that everything is cleaned up as after a failure.

    This includes SIGINT, which a shell ignores in its background jobs, and a farm may be one.
    """

    def end(number: int, _frame: Any) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def built_aside(target: Path) -> Iterator[Path]:
    """Yield a temporary directory to build in, and rename it to `target` when the block has succeeded."""
    aside = BUILD / "tmp" / target.name
    remove_tree(aside)
    aside.mkdir(parents=True)
    try:
        yield aside
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(target)
        os.rename(aside, target)
    finally:
        remove_tree(aside)
