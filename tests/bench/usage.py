"""Measure `release_usage_info` on a host with many processes that use a view."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MODULE = Path(__file__).resolve().parent / "module.py"
PROCESSES = 500
#: Files of one release that each process has mapped, and that it has open: those of a program with its plug-ins.
MAPPED = 40
OPEN = 10

#: Maps and opens files, and forks processes that keep them until the input ends.
_PROGRAM = """
import ctypes, os, signal, sys
count, mapped, *paths = sys.argv[1:]
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
for number, path in enumerate(paths):
    fd = os.open(path, os.O_RDONLY)
    if number < int(mapped):
        libc.mmap(None, 4096, 1, 2, fd, 0)
        os.close(fd)
children = []
for _number in range(int(count)):
    children.append(os.fork())
    if children[-1] == 0:
        signal.pause()
print('ready', flush=True)
sys.stdin.read()
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@dataclass
class Found:
    """Hold the figures of each round."""

    files: int
    #: All processes of this machine, and those that the module found.
    processes: int
    users: int = 0
    #: The module's own work, without the start of Python and Ansible.
    inside: list[float] = field(default_factory=list)
    #: Processor time of the whole process, with the start of Python and Ansible, in seconds.
    processor: list[float] = field(default_factory=list)


def measure(files: int, rounds: int, layer: Path, state_dir: Path, root: Path, view: Path) -> Found:
    """Mount a layer and let processes use files of its first release; call the module. ``root`` becomes the data layer."""
    release = min(path.relative_to(layer) for path in layer.glob("*/*"))
    paths = [path for path in sorted((layer / release).rglob("*")) if not path.is_symlink() and path.is_file()]
    chosen = [path.relative_to(layer) for path in paths[: MAPPED + OPEN]]
    for path in chosen:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    view.mkdir()
    options = f"ro,metacopy=on,lowerdir={layer}::{root}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, view], check=True)
    try:
        with _using([view / path for path in chosen]):
            found = Found(files, sum(name.isdigit() for name in os.listdir("/proc")))
            for _turn in range(rounds):
                found.inside.append(_call(str(release), state_dir, found))
    finally:
        subprocess.run(["umount", view], check=True)
    return found


def _call(release: str, state_dir: Path, found: Found) -> float:
    before = _processor_seconds()
    given = json.dumps({"releases": [release], "state_dirs": [str(state_dir)]})
    done = subprocess.run(
        [sys.executable, MODULE, "release_usage_info", given], stdout=subprocess.PIPE, text=True, check=False
    )
    found.processor.append(_processor_seconds() - before)
    result = json.loads(done.stdout)
    if "releases" not in result["outcome"]:
        sys.exit(f"make bench: release_usage_info: {result['outcome']}")
    users = result["outcome"]["releases"][0]["processes"]
    found.users = len(users)
    # The process that has forked them uses the same files.
    if found.users != PROCESSES + 1 or any(user["path_count"] != MAPPED + OPEN for user in users):
        sys.exit(f"make bench: release_usage_info found {found.users} of {PROCESSES + 1} processes, or other files")
    return float(result["inside"])


def _processor_seconds() -> float:
    """Return the processor time of the child processes that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _using(paths: Sequence[Path]) -> Iterator[None]:
    argv = [sys.executable, "-c", _PROGRAM, str(PROCESSES), str(MAPPED), *map(str, paths)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            sys.exit("make bench: the processes that use the view did not start")
        yield
