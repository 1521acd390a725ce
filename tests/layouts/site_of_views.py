"""A site with software roots that rez, conda, Spack and pip wrote, and a view of each."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.renderfarm.overlay.tests.layouts import python_installs, spack_tree

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
BUILD = CHECKOUT / ".build"

REZ_PACKAGE = """
name = "imgtool"
version = "{version}"
variants = [["python-3.9"], ["python-3.11"]]
hashed_variants = True
build_command = "sh {{root}}/build.sh {{install}}"
def commands():
    env.PATH.prepend("{{root}}/bin")
"""
REZ_BUILD = """
[ "$1" = install ] || exit 0
mkdir -p "$REZ_BUILD_INSTALL_PATH/bin"
printf '#!/bin/sh\\necho "$0"\\n' > "$REZ_BUILD_INSTALL_PATH/bin/imgtool"
chmod 755 "$REZ_BUILD_INSTALL_PATH/bin/imgtool"
"""

#: What file servers and clients leave between files.
JUNK = (".nfs000000000c0ffee00000001", ".DS_Store", ".snapshot/hourly.0/old", "@eaDir/thumbs", "a.cpython-311.pyc.140")


class Site:
    """Software roots below ``roots``, and views of them below ``shown``."""

    def __init__(self, place: Path) -> None:
        self.place, self.roots, self.shown = place, place / "net", place / "view"
        self.log = self.first_log = ""
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("REZ_", "PYTHON", "CONDA_"))},
            "HOME": str(place / "home"),
            "REZ_DISABLE_HOME_CONFIG": "1",
            "REZ_QUIET": "1",
        }
        for directory in (place / "home", self.roots, self.shown, place / "stores"):
            directory.mkdir()

    # ---- the layouts

    def make(self) -> None:
        self._make_rez()
        self._make_conda()
        self.spack = spack_tree.make(self.roots / "spack")
        python_installs.make(self.roots / "python", self.place / "wheels")

    def rez(self, *argv: str | Path, repository: Path, cwd: Path | None = None, works: bool = True) -> str:
        """Run a program of rez with a package repository, and return its output."""
        bin_ = BUILD / "venv-rez" / "bin"
        assert bin_.is_dir(), f"there is no {bin_}: make setup-test"
        return self.run(bin_ / argv[0], *argv[1:], cwd=cwd, works=works, REZ_PACKAGES_PATH=str(repository))

    def found_by_rez(self, repository: Path) -> dict[str, Any]:
        """Return what make_rez.find returns for a package repository."""
        found: dict[str, Any] = json.loads(
            self.rez("python", HERE / "make_rez.py", "find", repository, repository=repository)
        )
        return found

    def _make_rez(self) -> None:
        repository, source = self.roots / "rez", self.place / "imgtool"
        repository.mkdir()
        self.rez("python", HERE / "make_rez.py", "make", repository, repository=repository)
        source.mkdir()
        (source / "build.sh").write_text(REZ_BUILD)
        (source / "package.py").write_text(REZ_PACKAGE.format(version="2.0.0"))
        build = ("rez-build", "--install", "--clean", "--prefix", repository)
        self.rez(*build, repository=repository, cwd=source)
        # A build that fails leaves its marker.
        (source / "package.py").write_text(REZ_PACKAGE.format(version="2.1.0"))
        (source / "build.sh").write_text("exit 3\n")
        self.rez(*build, repository=repository, cwd=source, works=False)
        assert (repository / "imgtool" / ".building2.1.0").exists()
        for name in JUNK:
            path = repository / "imgtool" / "2.0.0" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("junk")
        shutil.copytree(repository / "imgtool" / "2.0.0" / ".snapshot", repository / ".snapshot")

    def _make_conda(self) -> None:
        bin_ = BUILD / "venv-conda" / "bin"
        assert bin_.is_dir(), f"there is no {bin_}: make setup-test"
        # The cache is on the file system of the prefixes, so files in them are hard links to it.
        channel, cache = self.place / "channel", self.place / "cache"
        single, whole = self.roots / "conda", self.roots / "environments"
        names = ("ld_impl_linux-64-2.40-h41732ed_0", "ld_impl_linux-64-2.43-h712a8e2_2", "imgkit-1.2.0-pyhd8ed1ab_0")
        specs = ("!ld_impl_linux-64 ==2.40", "!ld_impl_linux-64 ==2.43", "!python ==3.11.9,imgkit ==1.2.0")
        environment = whole / "pipeline" / "1.0"
        prefixes = [f"{single / name}={spec}" for name, spec in zip(names, specs)]
        program = (bin_ / "python", HERE / "make_conda.py", channel, cache)
        self.run(*program, *prefixes, f"{environment}=imgkit,ld_impl_linux-64")
        packed = whole / "pipeline" / "1.1"
        pack = (bin_ / "conda-pack", "--quiet", "--dest-prefix", packed, "--output", self.place / "pipeline.tar")
        self.run(*pack, "--prefix", environment)
        packed.mkdir()
        self.run("tar", "-C", packed, "-xf", self.place / "pipeline.tar")
        for prefix in (environment, packed, *(single / name for name in names)):
            (prefix / ".ready").touch()

    def run(self, *argv: str | Path, cwd: Path | None = None, works: bool = True, **environment: str) -> str:
        """Run a program, and return its output. ``works`` is whether it is to succeed."""
        done = subprocess.run(
            argv,
            cwd=cwd or self.place,
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode == 0) == works, done.stdout + done.stderr
        return done.stdout

    # ---- the views

    def declared(self) -> list[dict[str, Any]]:
        """Return the views of docs/layouts.md, one of the newest packages of rez, and one of merged releases."""
        text = (CHECKOUT / "docs" / "layouts.md").read_text(encoding="utf-8")
        blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        views = [self._here(view) for block in blocks for view in yaml.safe_load(block)["overlay_views"]]
        rez, python = (next(view for view in views if view["name"] == name) for name in ("rez", "python"))
        newest = {"name": "rez-newest", "query": "newest(@)", "mountpoint": str(self.shown / "rez-newest")}
        releases = {"releases": python_installs.MERGED, "on_conflict": "first", "query": ""}
        merged = {"name": "merged", "mountpoint": str(self.shown / "merged"), **releases}
        return [*views, {**rez, **newest}, {**python, **merged}]

    def _here(self, view: dict[str, Any]) -> dict[str, Any]:
        """Return a view of the page with the paths of this site."""
        places = {"root": self.roots, "store": self.place / "stores", "mountpoint": self.shown}
        here = {key: str(place / Path(view[key]).name) for key, place in places.items()}
        Path(here["store"]).mkdir(exist_ok=True)
        return {**view, **here}

    def deploy(self) -> str:
        """Deploy the views, and return the output."""
        return self.play("deploy", self.declared())

    def play(self, playbook: str, views: list[dict[str, Any]]) -> str:
        """Run a playbook with views of this machine, and return its output."""
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "overlay_become": False,
            "overlay_state_dir": str(self.place / "state"),
            "overlay_linger": 0,
            "overlay_views": views,
        }
        inventory = {"all": {"hosts": {"node": {}}, "vars": variables}}
        (self.place / "inventory.yml").write_text(yaml.safe_dump(inventory), encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        argv = ["ansible-playbook", "-i", "inventory.yml", "-e", "overlay_hosts=all", f"renderfarm.overlay.{playbook}"]
        done = subprocess.run(
            argv,
            cwd=self.place,
            env={**kept, "ANSIBLE_HOME": str(self.place / "home"), "ANSIBLE_NOCOLOR": "1", "COLUMNS": "4000"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        self.log = done.stdout
        self.first_log = self.first_log or self.log
        assert done.returncode == 0, done.stdout
        return done.stdout

    def chosen(self, view: str) -> list[str]:
        """Return the releases of the generation that a view shows."""
        lock = json.loads((self.place / "state" / "views" / view / "lock.json").read_text())
        return sorted(release["release"] for release in lock["views"][0]["releases"])
