"""Compare finalizing a writable overlay with `chown -R -h` and `ls -lR` on another one over the same lower layer."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import disks

MODULE = Path(__file__).resolve().parent / "module.py"
FILES_PER_DIRECTORY = 25
OWNER = "5000"


@dataclass
class Comparison:
    """Hold the seconds of each round."""

    files: int
    system: str
    ours: list[float] = field(default_factory=list)
    #: Without sealing, which the two commands do not do either.
    unsealed: list[float] = field(default_factory=list)
    #: The first and the second run, without the start of Python and Ansible.
    inside: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)


def make_lower(directory: Path, files: int) -> Path:
    """Make a tree of small files like those of releases, and return its root."""
    for number in range(files // FILES_PER_DIRECTORY):
        place = directory / f"package_{number // 400:03}/{number // 40 % 10}.0/lib/module_{number % 40:02}"
        place.mkdir(parents=True)
        for index in range(FILES_PER_DIRECTORY):
            (place / f"file_{index:02}.py").write_bytes(b"content")
    return directory


def compare(files: int, rounds: int, lower: Path, system: disks.FileSystem, disk: Path, backing: Path) -> Comparison:
    found = Comparison(files, system.name)
    for turn in range(rounds):
        # Alternate the order, in case the first one warms a cache for the others.
        order = ("sealed", "unsealed", "commands") if turn % 2 == 0 else ("commands", "unsealed", "sealed")
        for who in order:
            with disks.mounted(system, disk, backing), _overlay(lower, disk) as view:
                os.sync()
                if who == "commands":
                    found.commands.append(_commands(view))
                elif who == "unsealed":
                    found.unsealed.append(_finalize(view, files, passes=["copy_up", "readdir"])[0])
                else:
                    whole, inside = _finalize(view, files)
                    found.ours.append(whole)
                    found.inside.append(inside)
                    found.again.append(_finalize(view, 0)[1])
    return found


@contextlib.contextmanager
def _overlay(lower: Path, disk: Path) -> Iterator[Path]:
    upper, work, view = (disk / name for name in ("upper", "work", "view"))
    for path in (upper, work, view):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work},metacopy=on,redirect_dir=on,index=on"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, view], check=True)
    try:
        yield view
    finally:
        subprocess.run(["umount", view], check=True)


def _commands(view: Path) -> float:
    started = time.perf_counter()
    subprocess.run(["chown", "-R", "-h", OWNER, view], check=True)
    subprocess.run(["ls", "-lR", view], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _finalize(view: Path, files: int, **arguments: object) -> tuple[float, float]:
    """Run the module in a separate process; return the seconds of the process and of the module's own work."""
    given = json.dumps({"path": str(view), "owner": OWNER, "allow_unmount": True, **arguments})
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, MODULE, "overlay_finalize", given], stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - started
    found = json.loads(done.stdout)
    outcome = found["outcome"]
    if not outcome.get("finalized") or bool(files) != outcome["changed"] or outcome["copied_up"] < files:
        sys.exit(f"make bench: overlay_finalize: {outcome}")
    return seconds, float(found["inside"])
