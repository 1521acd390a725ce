"""Provide the collection awx.awx in .build/collections, so that the playbooks of examples/awx can be checked and run.

pip downloads the package `ansible`, which contains it, and checks its digest. Only the collection is unpacked.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / ".build"
REQUIREMENT = CHECKOUT / "tests" / "requirements" / "awx-collection.txt"
NAMESPACE = BUILD / "collections" / "ansible_collections" / "awx"
STAMP = NAMESPACE / "stamp"
MEMBERS = "ansible_collections/awx/awx/"


class DownloadError(Exception):
    """Raised with the output of pip."""


def download(directory: Path) -> Path:
    """Download the package into `directory` and return its path. Raises DownloadError if pip fails."""
    argv: list[str | Path] = [
        *(BUILD / "venv" / "bin" / "python", "-m", "pip", "download", "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"),
        *("--require-hashes", "--dest", directory, "--requirement", REQUIREMENT),
    ]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise DownloadError(f"{done.stdout.rstrip()}\nfailed: {' '.join(map(str, argv))}")
    return next(directory.glob("*.whl"))


def main() -> int:
    wanted = hashlib.sha256(REQUIREMENT.read_bytes()).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return 0
    print("setup: the collection awx.awx into .build/collections", flush=True)
    shutil.rmtree(NAMESPACE, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        try:
            package = download(Path(directory))
        except DownloadError as error:
            print(error, file=sys.stderr)
            return 1
        with zipfile.ZipFile(package) as archive:
            names = [name for name in archive.namelist() if name.startswith(MEMBERS)]
            archive.extractall(BUILD / "collections", names)
    # Written last, so that the next run repeats an interrupted one.
    STAMP.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
