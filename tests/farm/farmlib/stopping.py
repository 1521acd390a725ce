"""Check that a farm that is stopped leaves nothing behind, at several moments and by several signals."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from farmlib import beside, host

#: A stopped farm keeps these in its directory, and nothing else.
KEPT = frozenset(
    {"hosts.yml", "images", "keys", "known_hosts", "lock", "logs", "results", "software", "ssh_config", "tmp", "wheels"}
)
LIMIT = 300  # seconds to wait for a moment


@dataclass(frozen=True)
class Moment:
    """Describe when to stop a farm: it is started with `arguments`, and gets the signal `delay` seconds after a line with `text`.

    With `group`, the signal goes to the whole process group, as with Ctrl-C, else only to make. A `fresh` farm has no images
    yet.
    """

    name: str
    signal: signal.Signals
    text: str
    delay: float
    arguments: str = ""
    group: bool = False
    fresh: bool = False


MOMENTS = (
    Moment("while the root image is made", signal.SIGTERM, "making the guests' root image", 8, "build", fresh=True),
    Moment("while the machines start", signal.SIGINT, "starting the farm", 3, "shell", group=True),
    Moment("in a test", signal.SIGINT, "::test_a_command_that_does_not_end", 1, "test -k does_not_end", group=True),
    Moment("while a command works", signal.SIGTERM, "at work", 0, "with sh -c 'echo at work; exec sleep 600'"),
    # A killed farm cannot clean up, but no process may survive. The next start clears its directory.
    Moment("without a chance to end", signal.SIGKILL, "at work", 0, "with sh -c 'echo at work; exec sleep 600'"),
)


def check() -> None:
    """Stop a farm at each moment. Raises FarmError naming what is left."""
    left = [f"{moment.signal.name} {moment.name}: left {what}" for moment in MOMENTS for what in _stopped(moment)]
    if left:
        raise host.FarmError("a stopped farm left something behind: " + "; ".join(left))
    host.say(f"stopped at {len(MOMENTS)} moments, nothing is left")


def _stopped(moment: Moment) -> list[str]:
    with _directory(moment) as directory:
        temporary = directory / "temporary"
        temporary.mkdir()
        # Do not pass on the variables of the make that started this process.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        process = host.spawn(
            ["make", "-C", str(host.CHECKOUT), "farm", f"ARGS={moment.arguments}"],
            env={**environment, beside.VARIABLE: str(directory), "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(process, moment)
            (os.killpg if moment.group else os.kill)(process.pid, moment.signal)
            return _left(directory, temporary, moment)
        finally:
            host.kill_session(process)
            for pid in _processes(directory):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _directory(moment: Moment) -> Iterator[Path]:
    """Yield a separate directory for a farm, with the existing images unless the moment is fresh."""
    directory = host.BUILD / "stop"
    host.remove_tree(directory)
    directory.mkdir()
    if not moment.fresh:
        beside.use_what_is_made(directory)
    try:
        yield directory
    finally:
        host.remove_tree(directory)


def _wait_for(process: subprocess.Popen[bytes], moment: Moment) -> None:
    """Wait for the line and for the delay after it. Raises FarmError if the line does not come."""
    assert process.stdout is not None
    said = b""
    end = time.monotonic() + LIMIT
    while moment.text.encode() not in said:
        if time.monotonic() > end:
            raise host.FarmError(
                f"the farm did not print {moment.text!r} within {LIMIT} s: {said[-600:].decode(errors='replace')}"
            )
        if not select.select([process.stdout], [], [], 1)[0]:
            continue
        block = os.read(process.stdout.fileno(), 65536)
        if not block:
            raise host.FarmError(
                f"the farm ended before it printed {moment.text!r}: {said[-600:].decode(errors='replace')}"
            )
        said += block
    time.sleep(moment.delay)


def _left(directory: Path, temporary: Path, moment: Moment) -> list[str]:
    end = time.monotonic() + beside.PATIENCE
    while _processes(directory) and time.monotonic() < end:
        time.sleep(0.2)
    left = [f"process {pid} ({_words(pid)})" for pid in _processes(directory)]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    left += [f"mount {line.split()[4]}" for line in mounts if str(directory) in line]
    if moment.signal != signal.SIGKILL:
        files = [path for path in directory.iterdir() if path.name not in KEPT and path != temporary]
        files += [path for place in (temporary, directory / "tmp") if place.exists() for path in place.iterdir()]
        left += [f"file {path.relative_to(directory)}" for path in files]
    return left


def _processes(directory: Path) -> list[int]:
    """Return the processes of the farm in this directory: its path is in their environment or arguments."""
    wanted = os.fsencode(directory)
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                known = (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
            except OSError:
                continue
            if wanted in known:
                found.append(int(place.name))
    return found


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:120]
    except OSError:
        return "ended"
