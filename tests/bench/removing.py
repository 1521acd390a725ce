"""Compare removing a view with `rm -rf` of the same layer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import disks

MODULE = Path(__file__).resolve().parent / "module.py"


@dataclass
class Comparison:
    """Hold the seconds of each round."""

    files: int
    system: str
    #: The module's own work, without the start of Python and Ansible.
    ours: list[float] = field(default_factory=list)
    rm: list[float] = field(default_factory=list)


def compare(
    files: int, rounds: int, build: Callable[[Path], object], system: disks.FileSystem, disk: Path, backing: Path
) -> Comparison:
    """Remove a view by the module and by rm in turns. ``build`` builds the view in the given state directory."""
    found = Comparison(files, system.name)
    for turn in range(rounds):
        for is_ours in (True, False) if turn % 2 == 0 else (False, True):
            with disks.mounted(system, disk, backing):
                state_dir = disk / "state"
                state_dir.mkdir(mode=0o700)
                build(state_dir)
                subprocess.run(("sync", "-f", disk), check=True)
                if is_ours:
                    found.ours.append(_remove(state_dir))
                else:
                    found.rm.append(_seconds_of(["rm", "-rf", state_dir / "views" / "bench"]))
                if list((state_dir / "views").iterdir()):
                    sys.exit("make bench: the view was not removed completely")
    return found


def _remove(state_dir: Path) -> float:
    given = json.dumps({"name": "bench", "state_dir": str(state_dir), "state": "absent"})
    done = subprocess.run(
        [sys.executable, MODULE, "metadata_layer", given], stdout=subprocess.PIPE, text=True, check=False
    )
    found = json.loads(done.stdout)
    if not found["outcome"].get("changed"):
        sys.exit(f"make bench: metadata_layer: {found['outcome']}")
    return float(found["inside"])


def _seconds_of(command: Sequence[str | Path]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started
