"""Set up what `make` needs: virtual environments with pinned versions, and the collection on Ansible's search path.

`setup.py LEVEL...` brings the named levels (see LEVELS) up to date. As root it installs missing system packages and names them;
for other users it prints one line for each package that says how to install it.
It uses only the standard library of Python 3.9, so that any `python3` can run it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pythons

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / ".build"
REQUIREMENTS = CHECKOUT / "tests" / "requirements"
LINK = BUILD / "collections" / "ansible_collections" / "renderfarm" / "overlay"
STAMP = "stamp.json"
#: How many environments are installed at a time: pip uses one processor, or waits for downloads.
AT_A_TIME = 2
#: Only one package manager can run.
_system = threading.Lock()


class SetupError(Exception):
    """Raised with one line for each missing item."""


@dataclass(frozen=True)
class Level:
    """Describe a requirements file, its virtual environment, and the accepted Pythons, best first."""

    requirements: str
    venv: str
    pythons: tuple[tuple[int, int], ...] = pythons.CONTROLLER
    # Without an accepted Python, skip this level instead of failing.
    optional: bool = False


LEVELS = {
    "demo": Level("demo.txt", "venv"),
    "software": Level("software.txt", "venv-software"),
    "test": Level("test.txt", "venv"),
    "importer": Level("importer.txt", "venv-importer"),
    "oldest": Level("oldest.txt", "venv-oldest", ((3, 10), (3, 11), (3, 12)), optional=True),
    "rez": Level("rez.txt", "venv-rez"),
    "conda": Level("conda.txt", "venv-conda"),
    "eda": Level("eda.txt", "venv-eda"),
    "awx": Level("awx.txt", "venv-awx"),
    # atheris has wheels for these Pythons only.
    "fuzz": Level("fuzz.txt", "venv-fuzz", ((3, 13), (3, 12), (3, 14))),
    "requirements": Level("uv.txt", "venv-requirements"),
}


def missing(what: str, debian: str, rocky: str) -> str:
    return f"missing: {what} (Debian, Ubuntu: apt-get install {debian}; Rocky: dnf install {rocky})"


class NoPythonError(SetupError):
    """Raised if no Python is accepted for a level. ``packages`` lists the packages that provide one, by package manager."""

    def __init__(self, what: str, debian: str, rocky: str) -> None:
        super().__init__(missing(what, debian, rocky))
        self.packages = {"apt": debian.split(), "dnf": rocky.split()}


def choose_python(found: dict[tuple[int, int], pythons.Python], level: Level) -> pythons.Python:
    """Return the best Python for a level. Raises NoPythonError if there is none."""
    present = [found[minor] for minor in level.pythons if minor in found]
    for python in present:
        if python.has_venv:
            return python
    if present:
        name = f"python{present[0].name}"
        raise NoPythonError(f"venv of {present[0].path}", f"{name}-venv", name)
    raise NoPythonError("Python 3.10 to 3.14", "python3 python3-venv", "python3.12")


def provide_python(found: dict[tuple[int, int], pythons.Python] | None, level: Level) -> pythons.Python:
    """Return the best Python for a level. As root, install one if there is none and PYTHON does not choose one.

    Raises NoPythonError if there is none.
    """
    try:
        return choose_python(pythons.find_all() if found is None else found, level)
    except NoPythonError as error:
        manager = package_manager()
        if found is not None or level.optional or os.geteuid() != 0 or manager is None:
            raise
        install_packages(manager, error.packages[manager])
        return choose_python(pythons.find_all(), level)


def missing_packages(python: pythons.Python, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield probe, Debian package and Rocky package for each missing requirement of a level."""
    # mkfs is in a directory that is not on every user's PATH.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    for line in (REQUIREMENTS / "system.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        probe, debian, rocky, level = line.split()
        if level != name:
            continue
        kind, _, header = probe.partition(":")
        if kind != "header":
            if shutil.which(probe, path=path) is None:
                yield probe, debian, rocky
        elif not Path(python.include, header).exists():
            versioned = f"python{python.name}"
            yield (
                f"{header} of {python.path}",
                debian.replace("python3", versioned),
                rocky.replace("python3", versioned),
            )


def check_system(python: pythons.Python, name: str) -> None:
    """As root, install the missing system packages of a level. Raises SetupError with a line for each that is still missing."""
    lacking = list(missing_packages(python, name))
    manager = package_manager()
    if lacking and os.geteuid() == 0 and manager:
        install_packages(manager, sorted({debian if manager == "apt" else rocky for _, debian, rocky in lacking}))
        lacking = list(missing_packages(python, name))
    if lacking:
        raise SetupError("\n".join(missing(*package) for package in lacking))


def package_manager() -> str | None:
    """Return the package manager of this machine, apt or dnf, or None."""
    return next((name for name, program in (("apt", "apt-get"), ("dnf", "dnf")) if shutil.which(program)), None)


def install_packages(manager: str, names: list[str]) -> None:
    """Install system packages as root, and print their names."""
    print(f"setup: system packages: {' '.join(names)}", flush=True)
    if manager == "dnf":
        run("dnf", "-q", "-y", "install", *names)
        return
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq")
    run(*apt, "update")
    run(*apt, "install", "--no-install-recommends", "-y", *names)


def check_directory() -> None:
    """Check that the path of the checkout works in Ansible's search paths and in a script's first line.

    Raises SetupError if it does not.
    """
    bad = re.search(r"[^\w./+@=,~-]", str(CHECKOUT))
    if bad:
        raise SetupError(
            f"the path of the checkout contains {bad.group()!r}: move {CHECKOUT} to a path of letters, digits and _./+@=,~-"
        )


def read_stamp(venv: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((venv / STAMP).read_text())
        stamp["python"]["version"] = tuple(stamp["python"]["version"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return cast("dict[str, Any]", stamp)


def write_stamp(venv: Path, stamp: dict[str, Any]) -> None:
    aside = venv / f"{STAMP}.new"
    aside.write_text(json.dumps(stamp, indent=2) + "\n")
    aside.replace(venv / STAMP)


def run(*argv: str | Path) -> None:
    """Run a command. Raises SetupError with its output if it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SetupError(f"{done.stdout.rstrip()}\nfailed: {' '.join(map(str, argv))}")


def digest(name: str) -> str:
    return hashlib.sha256((REQUIREMENTS / name).read_bytes()).hexdigest()


def install(name: str, found: dict[tuple[int, int], pythons.Python] | None) -> bool:
    """Bring a level up to date. Return False if it is optional and there is no Python for it.

    The stamp is written last and names everything that the environment depends on, so that an environment that is incomplete,
    moved, or built from other inputs is rebuilt. Raises NoPythonError if there is no Python for a level that is not optional.
    """
    level = LEVELS[name]
    venv = BUILD / level.venv
    stamp = read_stamp(venv)
    wanted = digest(level.requirements)
    place = {"folder": str(venv), "chosen": os.environ.get("PYTHON", "")}
    usable = place.items() <= stamp.items() and os.access(stamp["python"]["path"], os.X_OK)
    if usable:
        python = pythons.Python(**stamp["python"])
    else:
        try:
            with _system:
                python = provide_python(found, level)
        except NoPythonError:
            if not level.optional:
                raise
            shutil.rmtree(venv, ignore_errors=True)
            return False
    with _system:
        check_system(python, name)
    if usable and stamp.get(name) == wanted:
        return True
    if not usable or name in stamp:
        print(f"setup: {venv.relative_to(CHECKOUT)} with Python {python.name}", flush=True)
        shutil.rmtree(venv, ignore_errors=True)
        run(python.path, "-m", "venv", venv)
        stamp = {"python": asdict(python), **place}
    print(f"setup: {level.requirements} into {venv.relative_to(CHECKOUT)}", flush=True)
    pip: list[str | Path] = [
        venv / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    run(*pip, "--requirement", REQUIREMENTS / level.requirements)
    write_stamp(venv, {**stamp, name: wanted})
    return True


def link_collection() -> None:
    """Link the checkout to the path where Ansible looks for renderfarm.overlay."""
    target = os.path.relpath(CHECKOUT, LINK.parent)
    if LINK.is_symlink() and os.readlink(LINK) == target:
        return
    LINK.parent.mkdir(parents=True, exist_ok=True)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(target)


def set_up(names: list[str]) -> None:
    check_directory()
    BUILD.mkdir(exist_ok=True)
    # Parallel runs of make take turns.
    with (BUILD / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        link_collection()
        chosen = os.environ.get("PYTHON")
        found = None
        if chosen:
            python = pythons.run_probe(shutil.which(chosen) or chosen)
            if python is None:
                raise SetupError(f"PYTHON={chosen} does not run or is in a virtual environment: choose another Python")
            found = {python.minor: python}
        by_venv: dict[str, list[str]] = {}
        for name in names:
            by_venv.setdefault(LEVELS[name].venv, []).append(name)
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for done in [pool.submit(install_all, group, found) for group in by_venv.values()]:
                done.result()


def install_all(names: Sequence[str], found: dict[tuple[int, int], pythons.Python] | None) -> None:
    """Bring the levels of one environment up to date, one after the other, and say if an optional one is left out."""
    for name in names:
        if not install(name, None if LEVELS[name].optional else found):
            wanted = ", ".join(f"{major}.{minor}" for major, minor in LEVELS[name].pythons)
            print(f"setup: no Python {wanted} on this machine: checks with {LEVELS[name].requirements} are left out")


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up what make needs.")
    parser.add_argument("levels", nargs="*", metavar="LEVEL", help=", ".join(LEVELS))
    args = parser.parse_args()
    if not set(args.levels) <= set(LEVELS):
        parser.error(f"the levels are {', '.join(LEVELS)}")
    try:
        set_up(args.levels)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
