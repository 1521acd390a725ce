"""Find the Pythons on this machine that really run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# For the controller, best first. 3.14 is last because the pinned tools were not tested with it.
CONTROLLER = ((3, 13), (3, 12), (3, 11), (3, 10), (3, 14))
# Managed nodes, as in tests/config.yml.
MANAGED = ((3, 9), (3, 10), (3, 11), (3, 12), (3, 13), (3, 14))

PROBE = """
import json, os, sys, sysconfig
try:
    import ensurepip, venv
    fit = True
except ImportError:
    fit = False
is_venv = sys.prefix != sys.base_prefix
print(json.dumps([sys.executable, sys.version_info[:3], fit, sysconfig.get_path("include"), is_venv]))
"""


@dataclass(frozen=True)
class Python:
    """Describe an interpreter that ran. `path` is its own path, not that of a shim that started it."""

    path: str
    version: tuple[int, ...]
    has_venv: bool
    include: str

    @property
    def minor(self) -> tuple[int, int]:
        return (self.version[0], self.version[1])

    @property
    def name(self) -> str:
        return ".".join(map(str, self.minor))


def run_probe(path: str, allow_venv: bool = False) -> Python | None:
    """Run the interpreter at `path` and describe it. Return None if it does not run, or is in a virtual environment and
    `allow_venv` is false.
    """
    try:
        # A pyenv shim exists, and fails, for a version that is not selected.
        done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=30, check=True)
        executable, version, has_venv, include, is_venv = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return None if is_venv and not allow_venv else Python(executable, tuple(version), has_venv, include)


def candidates() -> Iterator[str]:
    """Yield paths of interpreters in the order of PATH, then those of pyenv's versions."""
    names = ["python3", *(f"python{major}.{minor}" for major, minor in MANAGED)]
    directories = [Path(directory) for directory in os.environ.get("PATH", "").split(os.pathsep) if directory]
    pyenv = os.environ.get("PYENV_ROOT")
    if pyenv:
        directories += sorted(Path(pyenv, "versions").glob("*/bin"))
    for directory in directories:
        for name in names:
            if os.access(directory / name, os.X_OK):
                yield str(directory / name)


def find_all() -> dict[tuple[int, int], Python]:
    """Return the first interpreter of each minor version, preferring one with venv."""
    found: dict[tuple[int, int], Python] = {}
    seen = set()
    for path in candidates():
        real = os.path.realpath(path)
        if real in seen:
            continue
        python = run_probe(path)
        if python is None:
            continue
        # All names share one shim script, and its name decides what it runs.
        seen.add(real if real == os.path.realpath(python.path) else path)
        if python.minor not in found or (python.has_venv and not found[python.minor].has_venv):
            found[python.minor] = python
    return found
