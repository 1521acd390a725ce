"""Install packages of Python with pip, with `--target` and into a virtual environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

NAME = "imgmath"
#: Versions of which only the directories exist, beside the two that pip installs.
TARGET, ENVIRONMENT = "1.10.0", "1.9.0+studio.1"
VERSIONS = ("1.2.0", "1.10.0rc1", "1.10.0.dev3", "1.9.0.post1", "2.0.0a1", "0!0.9", "not-a-version")
#: A release with a directory where a virtual environment has a symbolic link, and both merged in one directory.
PLUGINS = "plugins/1.0"
MERGED = [{"release": f"{NAME}/{ENVIRONMENT}", "at": "/"}, {"release": PLUGINS, "at": "/"}]


def wheel(directory: Path, version: str) -> Path:
    """Write a wheel of a package with a program, and return its path."""
    path = directory / f"{NAME}-{version}-py3-none-any.whl"
    information = f"{NAME}-{version}.dist-info"
    files = {
        f"{NAME}/__init__.py": "def main():\n    print(__file__)\n",
        f"{NAME}/data/names with spaces @2x=1.txt": "data\n",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/entry_points.txt": f"[console_scripts]\n{NAME} = {NAME}:main\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{information}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{information}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def make(root: Path, wheels: Path) -> None:
    """Install one version with `--target`, and one into a virtual environment."""
    wheels.mkdir()
    target, environment = root / NAME / TARGET, root / NAME / ENVIRONMENT
    options = ("--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--root-user-action=ignore")
    pip_command = [sys.executable, "-m", "pip"]
    subprocess.run([*pip_command, "install", *options, "--target", target, wheel(wheels, TARGET)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*pip_command, "--python", python, "install", *options, wheel(wheels, ENVIRONMENT)], check=True)
    for version in VERSIONS:
        (root / NAME / version).mkdir()
        (root / NAME / version / "README").write_text(f"{version}\n")
    for name in ("one", "two"):
        plugin = root / PLUGINS / "lib64" / name / "plugin.so"
        plugin.parent.mkdir(parents=True)
        plugin.write_text(name)
