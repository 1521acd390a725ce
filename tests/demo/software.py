"""Publish Python packages that are installed anyway as releases of a software root.

Each is laid out as publishing tools do: ``package/version`` with programs in ``bin`` and the rest in ``lib``, some names of programs
as symbolic links, and identical files, also those of another version, as hard links. A release is put together aside and renamed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

READY_MARKER = ".ready"
#: What is published, from the environment that runs this, and from one that has other versions.
PACKAGES = ("ansible-core", "cryptography", "jinja2", "jmespath", "pyyaml")
OTHER_PACKAGES = ("jmespath",)
#: Published without its marker, as while it is still being copied.
UNFINISHED = ("packaging",)


def publish_all(root: Path, environment: Path, other: Path) -> int:
    """Publish whatever is not on the software root yet; return how many releases that were."""
    root.mkdir(parents=True, exist_ok=True)
    wanted = [
        *((package, environment, True) for package in PACKAGES),
        *((package, other, True) for package in OTHER_PACKAGES),
        *((package, environment, False) for package in UNFINISHED),
    ]
    return sum(publish(root, package, place, ready) for package, place, ready in wanted)


def publish(root: Path, package: str, environment: Path, ready: bool) -> bool:
    """Publish one release; False when it is there already."""
    site = next((environment / "lib").glob("python3.*/site-packages"))
    distribution = next(iter(importlib.metadata.distributions(name=package, path=[str(site)])))
    release = root / package / distribution.version
    if release.exists():
        return False
    release.parent.mkdir(exist_ok=True)
    aside = release.parent / f".incoming-{release.name}"
    shutil.rmtree(aside, ignore_errors=True)
    library = aside / "lib" / "python"
    library.mkdir(parents=True)
    (aside / "lib64").symlink_to("lib")
    for file in distribution.files or ():
        if "__pycache__" in file.parts:
            continue
        source = Path(os.path.normpath(site / file))
        target = library / file if source.is_relative_to(site) else aside / "bin" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
        if target.parent.name == "bin" and target.suffix:
            target.with_suffix("").symlink_to(target.name)
    link_identical(release.parent, aside)
    if ready:
        (aside / READY_MARKER).touch()
    aside.rename(release)
    return True


def link_identical(*folders: Path) -> None:
    """Make one file of those that have the same content and the same mode."""
    known: dict[tuple[str, int], Path] = {}
    for path in files(*folders):
        key = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode)
        first = known.setdefault(key, path)
        if first != path and not first.samefile(path):
            path.unlink()
            os.link(first, path)


def files(*folders: Path) -> Iterator[Path]:
    seen = set()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path not in seen:
                seen.add(path)
                yield path
