"""Measure one ad-hoc call of each module: its wall time, and the bytes that Ansible sends to the host.

Each call finds nothing to do, so the time is that of Ansible, of Python and of importing the module.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


@dataclass(frozen=True)
class Call:
    module: str
    #: Median of the rounds.
    seconds: float
    #: Bytes of the file with the module and everything that it imports.
    payload: int


def measure(rounds: int) -> list[Call]:
    """Call each module with `ansible localhost -m` and return its costs."""
    with tempfile.TemporaryDirectory() as directory:
        return [_measure(module, Path(directory), rounds) for module in _modules()]


def _modules() -> list[str]:
    """Return the names of the modules that run on hosts. Those with an action plugin run on the controller."""
    names = {path.stem for path in (PLUGINS / "modules").glob("*.py")}
    return sorted(names - {path.stem for path in (PLUGINS / "action").glob("*.py")})


def _measure(module: str, directory: Path, rounds: int) -> Call:
    arguments = _arguments(module, directory)
    kept = directory / module
    _call(module, arguments, {"ANSIBLE_REMOTE_TEMP": str(kept), "ANSIBLE_KEEP_REMOTE_FILES": "1"})
    payloads = [path.stat().st_size for path in kept.rglob("AnsiballZ_*.py")]
    if len(payloads) != 1:
        sys.exit(f"make bench: {module}: Ansible sent {len(payloads)} files instead of one")
    seconds = []
    for _turn in range(rounds):
        started = time.perf_counter()
        _call(module, arguments, {})
        seconds.append(time.perf_counter() - started)
    return Call(module, statistics.median(seconds), payloads[0])


def _arguments(module: str, directory: Path) -> dict[str, object]:
    """Return arguments with which a module has nothing to do. A module that is not listed gets a mountpoint."""
    nothing = str(directory / "nothing")
    known: dict[str, dict[str, object]] = {
        "access_trace": {"path": nothing, "command": "true"},
        "metadata_layer": {"name": "bench", "state_dir": nothing, "state": "absent"},
        "image_store_prune": {"image_store": str(directory), "needed": []},
        "overlay_finalize": {"path": nothing},
        "overlay_info": {"probe": False},
        "overlay_move": {"source": nothing, "destination": f"{nothing}-new"},
        "overlay_prune": {"state_dir": nothing},
        "overlay_verify": {"path": nothing},
        "release_info": {"root": str(directory)},
        "release_manifest": {"root": str(directory), "release": "a/1", "store": str(directory), "state": "absent"},
        "release_retire": {"root": str(directory), "store": str(directory), "releases": ["a/1"]},
        "release_usage_info": {},
        "view_releases": {
            "name": "bench",
            "root": str(directory),
            "store": str(directory),
            "releases": [],
            "linger": 0,
        },
    }
    return known.get(module, {"path": nothing, "state": "unmounted"})


def _call(module: str, arguments: dict[str, object], more: dict[str, str]) -> None:
    command = ["ansible", "localhost", "-c", "local", "-m", f"renderfarm.overlay.{module}", "-a", json.dumps(arguments)]
    environment = {**os.environ, **more, "ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    # A module that reports a missing path has done its work; any other failure is an error.
    if "=>" not in done.stdout or "bug of the module" in done.stdout:
        sys.exit(f"make bench: {module}: {done.stdout}")
