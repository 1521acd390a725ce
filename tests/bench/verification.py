"""Compare verifying the metadata of a layer with `find -printf` and `getfattr -R` over the same layer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import disks

MODULE = Path(__file__).resolve().parent / "module.py"
VIEW = "bench"


@dataclass
class Comparison:
    """Hold the seconds of each round."""

    files: int
    system: str
    ours: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        return [mine / theirs for mine, theirs in zip(self.ours, self.commands, strict=True)]


def check_programs() -> None:
    """End the program if one that is compared with is missing, before anything is measured."""
    if shutil.which("getfattr") is None:
        sys.exit("make bench: getfattr is missing: install the package attr, or leave out the part verify with --only")


def compare(
    files: int,
    rounds: int,
    build: Callable[[Path], object],
    store: Path,
    system: disks.FileSystem,
    disk: Path,
    backing: Path,
) -> Comparison:
    """Read one layer by the module and by the two programs in turns. All of it is in the page cache."""
    found = Comparison(files, system.name)
    with disks.mounted(system, disk, backing):
        state_dir = disk / "state"
        state_dir.mkdir(mode=0o700)
        build(state_dir)
        subprocess.run(("sync", "-f", disk), check=True)
        (layer,) = (state_dir / "views" / VIEW / "generations").glob("*/layer")
        _read(layer)
        for turn in range(rounds):
            for is_ours in (True, False) if turn % 2 == 0 else (False, True):
                if is_ours:
                    found.ours.append(_verify(state_dir, layer, store, files))
                else:
                    found.commands.append(_read(layer))
    return found


def _verify(state_dir: Path, layer: Path, store: Path, files: int) -> float:
    generation = layer.parent.name.partition("-")[0]
    given = json.dumps({"name": VIEW, "generation": generation, "state_dir": str(state_dir), "store": str(store)})
    done = subprocess.run(
        [sys.executable, MODULE, "overlay_verify", given], stdout=subprocess.PIPE, text=True, check=False
    )
    found = json.loads(done.stdout)
    if not found["outcome"].get("ok") or found["outcome"]["checked"] <= files:
        sys.exit(f"make bench: overlay_verify: {found['outcome']}")
    return float(found["inside"])


def _read(layer: Path) -> float:
    started = time.perf_counter()
    with open(os.devnull, "wb") as null:
        for command in (
            ("find", layer, "-printf", r"%p %m %U %G %s %T@ %n %l\n"),
            ("getfattr", "-R", "-h", "-d", "-m", "-", "--absolute-names", layer),
        ):
            subprocess.run(command, stdout=null, check=True)
    return time.perf_counter() - started
