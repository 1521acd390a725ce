"""Install conda packages with rattler, the library of pixi. Runs in the environment of rattler.

    python make_conda.py CHANNEL CACHE PREFIX=SPEC,SPEC... ...

Makes a channel of a few packages first. Each prefix gets the packages that the specs need, or, with a ! before the first spec, these
packages alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rattler  # type: ignore[import-not-found]
import rattler.index  # type: ignore[import-not-found]

#: Stands in a package for the prefix that it will be installed in.
PLACEHOLDER = "/opt/placehold_placehold_placehold_placehold_placehold_placehold"
TIME = 1_735_689_600


@dataclass(frozen=True)
class Item:
    """A file of a package, or a symbolic link if it has a target."""

    path: str
    text: str = ""
    mode: int = 0o644
    target: str = ""

    @property
    def data(self) -> bytes:
        return self.text.encode()

    def described(self) -> dict[str, Any]:
        """Return what info/paths.json says of it."""
        values: dict[str, Any] = {
            "_path": self.path,
            "path_type": "softlink" if self.target else "hardlink",
            "sha256": hashlib.sha256(self.data).hexdigest(),
            "size_in_bytes": len(self.data),
        }
        if PLACEHOLDER in self.text:
            values |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "text"}
        return values


@dataclass(frozen=True)
class Package:
    """A package in the format .tar.bz2."""

    name: str
    version: str
    build: str
    items: tuple[Item, ...]
    depends: tuple[str, ...] = ()
    #: The entry points of a package of Python that fits every platform.
    entry_points: tuple[str, ...] = ()

    def write(self, channel: Path) -> None:
        subdir = "noarch" if self.entry_points else "linux-64"
        index: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": list(self.depends),
            "subdir": subdir,
            "timestamp": TIME * 1000,
        }
        info: dict[str, Any] = {
            "paths.json": {"paths": [item.described() for item in self.items], "paths_version": 1},
            "files": "".join(f"{item.path}\n" for item in self.items),
            "has_prefix": "".join(
                f"{PLACEHOLDER} text {item.path}\n" for item in self.items if PLACEHOLDER in item.text
            ),
        }
        if self.entry_points:
            index["noarch"] = "python"
            link = {"noarch": {"type": "python", "entry_points": self.entry_points}, "package_metadata_version": 1}
            info["link.json"] = link
        info["index.json"] = index
        texts = {name: text if isinstance(text, str) else json.dumps(text) for name, text in info.items()}
        members = (*(Item(f"info/{name}", text) for name, text in texts.items() if text), *self.items)
        (channel / subdir).mkdir(parents=True, exist_ok=True)
        with tarfile.open(channel / subdir / f"{self.name}-{self.version}-{self.build}.tar.bz2", "w:bz2") as archive:
            for item in members:
                member = tarfile.TarInfo(item.path)
                member.mode, member.mtime = item.mode, TIME
                if item.target:
                    member.type, member.linkname = tarfile.SYMTYPE, item.target
                member.size = len(item.data)
                archive.addfile(member, io.BytesIO(item.data))


#: What stands for Python is a script that starts this Python with the modules of the prefix.
PYTHON = (
    f'#!/bin/sh\nexport PYTHONPATH="{PLACEHOLDER}/lib/python3.11/site-packages"\n'
    f'exec "{os.path.realpath(sys.executable)}" -B "$@"\n'
)
PACKAGES = (
    Package(
        "python",
        "3.11.9",
        "h1_0_cpython",
        (
            Item("bin/python3.11", PYTHON, 0o755),
            Item("bin/python3", target="python3.11"),
            Item("bin/python", target="python3.11"),
            Item("lib/python3.11/LICENSE.txt", "license\n"),
            Item("lib/libpython3.11.so.1.0", "library\n", 0o755),
            Item("lib/libpython3.11.so", target="libpython3.11.so.1.0"),
        ),
    ),
    # The name of this package ends with a number.
    Package("ld_impl_linux-64", "2.40", "h41732ed_0", (Item("bin/x86_64-conda-linux-gnu-ld", "linker\n", 0o755),)),
    Package("ld_impl_linux-64", "2.43", "h712a8e2_2", (Item("bin/x86_64-conda-linux-gnu-ld", "new linker\n", 0o755),)),
    Package(
        "imgkit",
        "1.2.0",
        "pyhd8ed1ab_0",
        (
            Item("site-packages/imgkit/__init__.py", "def main():\n    print('imgkit of', __file__)\n"),
            Item("site-packages/imgkit-1.2.0.dist-info/METADATA", "Name: imgkit\n"),
        ),
        ("python >=3.11",),
        ("imgkit = imgkit:main",),
    ),
)


async def install(channel: Path, cache: Path, prefixes: Sequence[str]) -> None:
    for package in PACKAGES:
        package.write(channel)
    await rattler.index.index_fs(channel)
    for one in prefixes:
        prefix, _equals, specs = one.partition("=")
        alone = specs.startswith("!")
        wanted = specs.lstrip("!").split(",")
        records = await rattler.solve(
            sources=[channel.as_uri()], specs=wanted, platforms=["linux-64", "noarch"], virtual_packages=[]
        )
        if alone:
            names = {spec.split()[0] for spec in wanted}
            records = [record for record in records if record.name.normalized in names]
        await rattler.install(
            records, prefix, cache_dir=cache, show_progress=False, platform=rattler.Subdir("linux-64")
        )


if __name__ == "__main__":
    asyncio.run(install(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
    # Threads of rattler that are still running while Python ends can abort the process.
    os._exit(0)
