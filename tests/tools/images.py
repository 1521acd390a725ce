"""Provide mkcomposefs, composefs-info and a recent mkfs.erofs in .build/images/bin.

Use programs on PATH. For others, on Debian and Ubuntu, apt fetches packages of Debian's testing suite and checks their signatures.
They are unpacked with their own C library, and nothing on the machine changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / ".build"
DIRECTORY = BUILD / "images"
PROGRAMS = ("mkcomposefs", "composefs-info", "mkfs.erofs")
SUITE = "testing"
PACKAGES = ("composefs", "erofs-utils")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class ImagesError(Exception):
    """Raised with a message that names what is missing."""


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ImagesError(f"{done.stdout.rstrip()}\nfailed: {' '.join(map(str, argv))}")
    return done.stdout


def found(program: str) -> str | None:
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path and program == "mkfs.erofs":
        # Releases before 1.8 have no --tar=headerball, and their --help fails.
        usage = subprocess.run(
            [path, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return path if "headerball" in usage.stdout else None
    return path


def apt(directory: Path) -> list[str | Path]:
    """Return an apt-get command that knows only SUITE and keeps its state in `directory`, apart from this machine's packages.

    Raises ImagesError if apt has no Debian mirror or Debian's keyring is missing.
    """
    mirrors = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    mirror = next((uri for uri in mirrors if "debian" in uri and "security" not in uri), None)
    if mirror is None or not Path(KEYRING).exists():
        raise ImagesError(
            "apt has no source of Debian packages, or debian-archive-keyring is missing: add it, or install composefs and erofs-utils 1.8"
        )
    for name in ("state/lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    (directory / "state" / "status").touch()
    sources = directory / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    settings = {
        "Dir::State": directory / "state",
        "Dir::State::status": directory / "state" / "status",
        "Dir::Cache": directory / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/nonexistent",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
        "Acquire::Languages": "none",
    }
    return ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]


def unpack(directory: Path) -> None:
    """Fetch the packages and unpack them below `directory`. Raises ImagesError if there is no apt-get."""
    if shutil.which("apt-get") is None:
        raise ImagesError("missing: mkcomposefs and mkfs.erofs 1.8 (dnf install composefs erofs-utils)")
    command = apt(directory)
    run(*command, "update")
    run(*command, "--yes", "--no-install-recommends", "--download-only", "install", *PACKAGES)
    root = directory / "root"
    for package in sorted((directory / "cache" / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, root)
    for name in ("state", "cache"):
        shutil.rmtree(directory / name)


def start_script(program: str) -> str:
    root = DIRECTORY / "root"
    loader = next((path for path in sorted(root.glob("**/ld-linux-*.so.*")) if path.is_file()), None)
    binary = next((path for path in sorted(root.glob(f"usr/*bin/{program}")) if path.is_file()), None)
    if loader is None or binary is None:
        raise ImagesError(f"the packages of Debian's {SUITE} suite do not contain {program}")
    libraries = ":".join(sorted({str(path.parent) for path in root.glob("**/lib*.so.*")}))
    return f'#!/bin/sh\nexec "{loader}" --library-path "{libraries}" "{binary}" "$@"\n'


def set_up() -> None:
    """Create the directory of programs unless it is complete. Raises ImagesError naming what is missing."""
    programs = DIRECTORY / "bin"
    if all((programs / name).exists() for name in PROGRAMS):
        return
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    here = {name: found(name) for name in PROGRAMS}
    if not all(here.values()):
        print(
            f"setup: {', '.join(name for name in PROGRAMS if not here[name])} from Debian's {SUITE} suite", flush=True
        )
        unpack(DIRECTORY)
    aside = DIRECTORY / "bin.new"
    aside.mkdir()
    for name, path in here.items():
        script = aside / name
        script.write_text(f'#!/bin/sh\nexec "{path}" "$@"\n' if path else start_script(name))
        script.chmod(0o755)
    aside.rename(programs)


if __name__ == "__main__":
    try:
        set_up()
    except ImagesError as error:
        sys.exit(str(error))
