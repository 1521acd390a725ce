"""Install this checkout's mkcomposefs, with its C library, on a machine of the farm. The guests' Debian has none."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from farmlib import host
from farmlib.machines import Machine

SCRIPT = host.CHECKOUT / ".build" / "images" / "bin" / "mkcomposefs"
DIRECTORY = "/opt/mkcomposefs"
#: Modules look for it here, whatever the PATH of a task is.
PLACE = "/usr/local/sbin/mkcomposefs"


def install(machine: Machine) -> None:
    """Copy the program to a machine. Raises FarmError if it is missing in the checkout."""
    if not SCRIPT.exists():
        raise host.FarmError(f"{SCRIPT.relative_to(host.CHECKOUT)} is missing: run make setup-test")
    libraries = _libraries()
    for name, path in libraries.items():
        machine.copy(path.resolve(), f"{DIRECTORY}/{name}")
    loader = next(name for name in libraries if name.startswith("ld-linux"))
    script = f'#!/bin/sh\nexec {DIRECTORY}/{loader} --library-path {DIRECTORY} {DIRECTORY}/mkcomposefs "$@"\n'
    machine.write(PLACE, script, mode=0o755)


def remove(machine: Machine) -> None:
    machine.ssh(["rm", "-rf", PLACE, DIRECTORY])


def _libraries() -> dict[str, Path]:
    """Return the paths of the program and of the libraries that it is linked with, by name."""
    # The last line is `exec PROGRAM "$@"`, or `exec LOADER --library-path DIRECTORIES PROGRAM "$@"`.
    words = shlex.split(SCRIPT.read_text(encoding="utf-8").splitlines()[-1])[1:-1]
    lister = [*words[:-1], "--list"] if words[:-1] else ["ldd"]
    listed = [Path(path) for path in re.findall(r"(/\S+) \(0x", host.run([*lister, words[-1]]))]
    return {"mkcomposefs": Path(words[-1]), **{path.name: path for path in listed}}
