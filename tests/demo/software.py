"""Publish installed Python packages as releases of a software root.

The layout is that of publishing tools: ``package/version`` with programs in ``bin`` and the rest in ``lib``. Some program names are
symbolic links. Identical files are hard links, also between versions. A release is assembled in another directory and renamed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

READY_MARKER = ".ready"
#: Packages to publish: from the running environment, and from one with other versions.
PACKAGES = ("ansible-core", "cryptography", "jinja2", "jmespath", "pyyaml")
OTHER_PACKAGES = ("jmespath",)
#: Packages to publish without the ready marker, like a release that is still being copied.
UNFINISHED = ("packaging",)


def publish_all(root: Path, environment: Path, other: Path) -> int:
    """Publish all releases that are missing on the software root. Return their number."""
    root.mkdir(parents=True, exist_ok=True)
    wanted = [
        *((package, environment, True) for package in PACKAGES),
        *((package, other, True) for package in OTHER_PACKAGES),
        *((package, environment, False) for package in UNFINISHED),
    ]
    return sum(publish(root, package, place, ready) for package, place, ready in wanted)


def publish(root: Path, package: str, environment: Path, ready: bool) -> bool:
    """Publish one release. Return False when it already exists."""
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


def link_identical(*directories: Path) -> None:
    """Replace files of equal content and mode with hard links to one of them."""
    known: dict[tuple[str, int], Path] = {}
    for path in files(*directories):
        key = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode)
        first = known.setdefault(key, path)
        if first != path and not first.samefile(path):
            path.unlink()
            os.link(first, path)


def files(*directories: Path) -> Iterator[Path]:
    """Yield the regular files below some directories, each once."""
    seen = set()
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            if path.is_file() and not path.is_symlink() and path not in seen:
                seen.add(path)
                yield path
