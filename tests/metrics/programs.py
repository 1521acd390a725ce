"""Provide prometheus, promtool and node_exporter, without installing or starting a service.

Use programs on PATH. For others, on Debian and Ubuntu, apt fetches the packages of this machine's own suite and checks their
signatures. They are unpacked in .build/prometheus, and nothing on the machine changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[2] / ".build" / "prometheus"
#: Each program, its other names, and the Debian package that has it.
PROGRAMS = {
    "prometheus": ((), "prometheus"),
    "promtool": ((), "prometheus"),
    "prometheus-node-exporter": (("node_exporter",), "prometheus-node-exporter"),
}
#: Seconds for a command of apt.
PATIENCE = 300


class ProgramsError(Exception):
    """Raised with a message that names what is missing."""


@dataclass(frozen=True)
class Programs:
    """The paths of the programs."""

    prometheus: str
    promtool: str
    node_exporter: str


def provide() -> Programs:
    """Return the paths of the programs, after fetching those that are missing. Raises ProgramsError if they cannot be fetched."""
    missing = [name for name in PROGRAMS if found(name) is None]
    if missing:
        packages = sorted({PROGRAMS[name][1] for name in missing})
        print(f"setup: {', '.join(missing)} from the packages {', '.join(packages)}", flush=True)
        fetch(packages)
    paths = [found(name) for name in PROGRAMS]
    lacking = [name for name, path in zip(PROGRAMS, paths) if path is None]
    if lacking:
        raise ProgramsError(
            f"the packages do not contain {', '.join(lacking)}: install {' and '.join(lacking)} on PATH"
        )
    return Programs(*(str(path) for path in paths))


def found(name: str) -> str | None:
    """Return the path of a program that is on PATH or was fetched; None if it is neither."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(DIRECTORY / "usr" / "bin")])
    return next(filter(None, (shutil.which(one, path=path) for one in (name, *PROGRAMS[name][0]))), None)


def fetch(packages: list[str]) -> None:
    """Fetch Debian packages and unpack them. Raises ProgramsError if that fails."""
    if shutil.which("apt-get") is None:
        raise ProgramsError("missing: prometheus, promtool and node_exporter: install them on PATH")
    aside = DIRECTORY.with_suffix(".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        # _apt, the user who downloads otherwise, need not be able to enter the checkout.
        download = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages)
        try:
            run(*download, cwd=aside)
        except ProgramsError:
            if os.geteuid() != 0:
                raise
            run("apt-get", "-qq", "update", cwd=aside)
            run(*download, cwd=aside)
        root = aside / "root"
        if DIRECTORY.exists():
            shutil.copytree(DIRECTORY, root, symlinks=True)
        for package in sorted(aside.glob("*.deb")):
            run("dpkg-deb", "--extract", package, root, cwd=aside)
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        root.rename(DIRECTORY)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def run(*argv: str | Path, cwd: Path) -> None:
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise ProgramsError(f"no answer for {PATIENCE} seconds: {' '.join(map(str, argv))}") from None
    if done.returncode:
        raise ProgramsError(
            f"{done.stdout.rstrip()}\nfailed: {' '.join(map(str, argv))}\ninstall prometheus and prometheus-node-exporter, or run"
            " apt-get update as root"
        )
