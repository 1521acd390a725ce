"""Build the disk with the release tree: real software from PyPI wheels, laid out as in a studio."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import stat
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from farmlib import host

DISK_SIZE = "3G"
EPOCH = 1735689600
READY_MARKER = ".ready"
# The guests' Python, whatever the host's is.
PYTHON = "3.11"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Release:
    package: str
    version: str
    sha256: str

    @property
    def path(self) -> str:
        return f"{self.package}/{self.version}"

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


def releases() -> list[Release]:
    found = []
    for line in (host.FARM_SOURCE / "releases.txt").read_text(encoding="ascii").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"(\S+)==(\S+) --hash=sha256:([0-9a-f]{64})", line)
            if match is None:
                raise host.FarmError(
                    f"tests/farm/releases.txt: write PACKAGE==VERSION --hash=sha256:DIGEST instead of: {line}"
                )
            found.append(Release(*match.groups()))
    return found


def newest(all_releases: Iterable[Release]) -> list[Release]:
    """Return the newest release of each package."""
    chosen: dict[str, Release] = {}
    for release in all_releases:
        kept = chosen.get(release.package)
        if kept is None or _version_key(kept.version) < _version_key(release.version):
            chosen[release.package] = release
    return list(chosen.values())


def _version_key(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def build() -> Path:
    """Return the disk with the release tree. Build it if it is missing. Raises FarmError if a wheel cannot be downloaded."""
    inputs = Path(__file__).read_bytes() + "\n".join(release.requirement for release in releases()).encode()
    directory = host.BUILD / "software" / hashlib.sha256(inputs).hexdigest()[:16]
    if not directory.exists():
        wheels = _wheels(releases())
        host.say("making the disk with the release tree")
        with host.built_aside(directory) as aside:
            tree = aside / "tree"
            for release in releases():
                _lay_out(wheels[release], tree / release.path, release)
            _settle(tree)
            host.run(
                [
                    "mke2fs",
                    "-q",
                    "-t",
                    "ext4",
                    "-m",
                    "0",
                    "-L",
                    "farm-software",
                    "-N",
                    "120000",
                    "-U",
                    "6661726d-0000-4000-8000-000000000003",
                    "-E",
                    "hash_seed=6661726d-0000-4000-8000-000000000004,lazy_itable_init=1,root_owner=0:0",
                    "-d",
                    str(tree),
                    str(aside / "software.ext4"),
                    DISK_SIZE,
                ],
                env={"E2FSPROGS_FAKE_TIME": str(EPOCH)},
            )
            # Only root can read lost+found, so a walk of the export would fail there.
            host.run(
                ["debugfs", "-w", "-R", "rmdir lost+found", str(aside / "software.ext4")],
                env={"E2FSPROGS_FAKE_TIME": str(EPOCH)},
            )
            host.remove_tree(tree)
        for other in directory.parent.iterdir():
            if other != directory:
                host.remove_tree(other)
    return directory / "software.ext4"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _wheels(wanted: list[Release]) -> dict[Release, Path]:
    """Return a wheel with the pinned digest for each release, from the cache or downloaded."""
    cache = host.BUILD / "wheels"
    cache.mkdir(parents=True, exist_ok=True)
    by_digest = {release.sha256: release for release in wanted}
    have: dict[Release, Path] = {}

    def look() -> None:
        for path in cache.glob("*.whl"):
            release = by_digest.get(_digest(path))
            if release is not None:
                have[release] = path

    look()
    missing = [release for release in wanted if release not in have]
    if missing:
        host.say(f"downloading {len(missing)} wheels")
    while missing:
        # pip accepts one version of a package at a time.
        batch = {release.package: release for release in reversed(missing)}
        missing = [release for release in missing if batch[release.package] != release]
        listing = host.BUILD / "wheels" / "batch.txt"
        listing.write_text("".join(f"{release.requirement}\n" for release in batch.values()), encoding="ascii")
        host.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
                "--require-hashes",
                "--python-version",
                PYTHON,
                "--implementation",
                "cp",
                *(f"--platform={platform}" for platform in PLATFORMS),
                "--dest",
                str(cache),
                "-r",
                str(listing),
            ],
            timeout=1200,
            purpose="downloading the wheels of tests/farm/releases.txt",
        )
        listing.unlink()
    look()
    absent = [release.path for release in wanted if release not in have]
    if absent:
        raise host.FarmError(f"no wheel for {', '.join(absent)}")
    return have


def _lay_out(wheel: Path, root: Path, release: Release) -> None:
    """Lay out python/ as in the wheel, bin/ with its programs, lib/ with links to its libraries, and a ready marker."""
    python = root / "python"
    programs: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            parts = Path(member.filename).parts
            place = python.joinpath(*parts)
            if parts[0].endswith(".data"):
                below = {"scripts": "bin", "data": "."}.get(parts[1], "python")
                place = root.joinpath(below, *parts[2:])
            if root not in Path(os.path.normpath(place)).parents:
                raise host.FarmError(f"{wheel.name}: {member.filename} is outside of the release")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(member))
            executable = (member.external_attr >> 16) & 0o111 or place.parent == root / "bin"
            place.chmod(0o755 if executable else 0o644)
            if member.filename.endswith(".dist-info/entry_points.txt"):
                programs = _programs(place.read_text(encoding="utf-8"))
    for name, target in programs.items():
        _program(root / "bin" / name, target, release)
    _library_links(root)
    (root / READY_MARKER).write_text(f"{release.package} {release.version}\n", encoding="ascii")


def _programs(entry_points: str) -> dict[str, str]:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(entry_points)
    return dict(parser["console_scripts"]) if parser.has_section("console_scripts") else {}


def _program(path: Path, target: str, release: Release) -> None:
    module, _, function = target.partition("[")[0].strip().partition(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/usr/bin/env python3\nimport sys\nfrom {module} import {function.split('.')[0]}\nsys.exit({function}())\n",
        encoding="ascii",
    )
    path.chmod(0o755)
    # A hard link under the versioned name, since release trees have hard links.
    os.link(path, path.with_name(f"{path.name}-{release.version}"))


def _library_links(root: Path) -> None:
    """Link lib/libX.so.N to each shared library of the release, and lib/libX.so for the linker."""
    for library in sorted((root / "python").rglob("*.so*")):
        match = re.fullmatch(r"(lib.+?)(-[0-9a-f]{8})?\.so((?:\.\d+)*)", library.name)
        if match is None or not library.is_file():
            continue
        stem, _, version = match.groups()
        lib = root / "lib"
        lib.mkdir(exist_ok=True)
        major = f"{stem}.so" + (f".{version.split('.')[1]}" if version else "")
        if not (lib / major).is_symlink():
            (lib / major).symlink_to(os.path.relpath(library, lib))
        if version and not (lib / f"{stem}.so").is_symlink():
            (lib / f"{stem}.so").symlink_to(major)


def _settle(tree: Path) -> None:
    for base, directories, files in os.walk(tree, topdown=False):
        for name in files:
            os.utime(os.path.join(base, name), (EPOCH, EPOCH), follow_symlinks=False)
        for name in directories:
            path = os.path.join(base, name)
            if not stat.S_ISLNK(os.lstat(path).st_mode):
                os.chmod(path, 0o755)
            os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
