"""Compare building a data image with mkfs.erofs on the same local files, and installing one with cp and sha256sum."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import disks

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import image_program, installing, published
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_writer

HERE = Path(__file__).resolve().parent
MODULE = HERE / "module.py"
PROGRAMS = HERE.parents[1] / ".build" / "images" / "bin"

#: Directories with shared libraries and programs, which are most of what a start of software reads.
LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/bin")
LEAST_BYTES = 100_000
MOST_BYTES = 200_000_000

RELEASE = "tool/1"


@dataclass
class Comparison:
    """Hold the seconds of each round."""

    what: str
    files: int
    #: Bytes of content, and of the image.
    content: int
    image: int
    ours: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Return our seconds in each round, relative to those of the programs alone in the same round."""
        return [mine / theirs for mine, theirs in zip(self.ours, self.alone, strict=True)]


def compare(rounds: int, work: Path, backing: Path, with_libraries: bool) -> list[Comparison]:
    """Build an image of files of this host, and install it, in turns with the programs alone.

    The release has shared libraries and programs, which are most of what a start of software reads. Or it is Python's own library, which
    has many small files. It is in memory, and everything is written to XFS.
    """
    os.environ["PATH"] = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    root, store, images = work / "root", work / "store", work / "store" / "images"
    if with_libraries:
        _copy_libraries(root / RELEASE)
    else:
        shutil.copytree(sysconfig.get_path("stdlib"), root / RELEASE, symlinks=True)
    images.mkdir(parents=True)
    manifest_writer.write(str(store), str(root), RELEASE, checksum=False)
    disk = work / "disk"
    with disks.mounted(disks.BY_KEY["xfs"], disk, backing):
        built = _compare_building(rounds, root, store, disk)
        return [built, _compare_installing(rounds, root, store, images, disk)]


def _copy_libraries(top: Path) -> None:
    """Copy libraries and programs of this host, the smaller ones first, up to a number of bytes."""
    top.mkdir(parents=True)
    sizes = {
        path: path.stat().st_size
        for directory in LIBRARIES
        for path in Path(directory).glob("*")
        if path.is_file() and not path.is_symlink()
    }
    left = MOST_BYTES
    for path in sorted(sizes, key=lambda path: (sizes[path], path)):
        if LEAST_BYTES <= sizes[path] <= left:
            shutil.copy2(path, top / path.name)
            left -= sizes[path]


def _compare_building(rounds: int, root: Path, store: Path, disk: Path) -> Comparison:
    found = Comparison("building", 0, 0, 0)
    program = image_program.find_image_program()

    def ours(images: Path) -> float:
        outcome, seconds = _build(root, store, images, disk / "staging")
        found.files, found.content, found.image = outcome["files"], outcome["bytes"], outcome["bytes_on_disk"]
        return seconds

    def alone(images: Path) -> float:
        started = time.perf_counter()
        program.build(str(root), str(images / "image.erofs"), image_program.LZ4HC)
        subprocess.run(("sync", images / "image.erofs"), check=True)
        return time.perf_counter() - started

    _take_turns(rounds, found, ours, alone, disk)
    return found


def _build(root: Path, store: Path, images: Path, staging: Path) -> tuple[dict[str, int], float]:
    """Build an image, and return the outcome of the module and its own seconds."""
    given = {"root": root, "store": store, "image_store": images, "staging": staging, "release": RELEASE}
    text = json.dumps({**{name: str(path) for name, path in given.items()}, "select": "everything"})
    done = subprocess.run([sys.executable, MODULE, "data_image", text], stdout=subprocess.PIPE, text=True, check=False)
    answer = json.loads(done.stdout)
    if not answer["outcome"].get("changed"):
        sys.exit(f"make bench: data_image: {answer['outcome']}")
    return answer["outcome"], answer["inside"]


def _compare_installing(rounds: int, root: Path, store: Path, images: Path, disk: Path) -> Comparison:
    _build(root, store, images, disk / "staging")
    image = published.find(str(images), RELEASE, "everything")
    if image is None:
        sys.exit("make bench: the data image was not published")
    found = Comparison("installing", image.files, image.bytes, image.bytes_on_disk)
    path = published.image_path(str(images), image)

    def ours(place: Path) -> float:
        place.chmod(0o700)
        started = time.perf_counter()
        installing.install(str(images), image, str(place))
        return time.perf_counter() - started

    def alone(place: Path) -> float:
        copy = place / "image.erofs"
        started = time.perf_counter()
        subprocess.run(("cp", path, copy), check=True)
        subprocess.run(("sync", copy), check=True)
        subprocess.run(("sha256sum", copy), check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    _take_turns(rounds, found, ours, alone, disk)
    return found


def _take_turns(
    rounds: int, found: Comparison, ours: Callable[[Path], float], alone: Callable[[Path], float], disk: Path
) -> None:
    """Measure both sides in turns, each in a new directory on a synced disk."""
    place = disk / "place"
    for turn in range(rounds):
        sides: Sequence[tuple[list[float], Callable[[Path], float]]] = ((found.ours, ours), (found.alone, alone))
        for seconds, measure in sides if turn % 2 else sides[::-1]:
            place.mkdir()
            os.sync()
            seconds.append(measure(place))
            shutil.rmtree(place)
