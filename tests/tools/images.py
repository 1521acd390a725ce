"""Put mkcomposefs, composefs-info and a recent mkfs.erofs into .build/images/bin, whatever this machine's release has.

What is on PATH is taken. Else, on Debian and Ubuntu, the packages of Debian's testing suite are fetched by apt, which checks their
signatures, and unpacked beside their own C library: nothing of the machine is changed.
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
    """What is missing."""


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise ImagesError(f"{done.stdout.rstrip()}\nfailed: {' '.join(map(str, argv))}")
    return done.stdout


def found(program: str) -> str | None:
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path and program == "mkfs.erofs":
        # Releases before 1.8 have no --tar=headerball, and no --help that succeeds.
        usage = subprocess.run(
            [path, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        return path if "headerball" in usage.stdout else None
    return path


def apt(directory: Path) -> list[str | Path]:
    """An apt-get that knows nothing but the suite: no package of this machine is looked at or changed."""
    mirrors = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    mirror = next((uri for uri in mirrors if "debian" in uri and "security" not in uri), None)
    if mirror is None or not Path(KEYRING).exists():
        raise ImagesError("apt has no source of Debian packages here, or the package debian-archive-keyring is missing")
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
    """Fetch the packages and give each program a script that starts it with its own C library."""
    if shutil.which("apt-get") is None:
        raise ImagesError("mkcomposefs and mkfs.erofs are missing: dnf install composefs erofs-utils")
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
        raise ImagesError(f"the packages of Debian's {SUITE} suite have no {program}")
    libraries = ":".join(sorted({str(path.parent) for path in root.glob("**/lib*.so.*")}))
    return f'#!/bin/sh\nexec "{loader}" --library-path "{libraries}" "{binary}" "$@"\n'


def set_up() -> None:
    """Make the directory with the programs, or leave it where it is whole. Raises ImagesError with what is missing."""
    programs = DIRECTORY / "bin"
    if all((programs / name).exists() for name in PROGRAMS):
        return
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    here = {name: found(name) for name in PROGRAMS}
    if not all(here.values()):
        print(f"setup: {', '.join(name for name in PROGRAMS if not here[name])} of Debian's {SUITE} suite", flush=True)
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
