"""Layers as EROFS images: what is in them, building and installing them, and what becomes of runs that are killed."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.core import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.compose import compose
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import ManifestError, OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.generation import LayerSpec, ViewPaths
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import manifest_store, views
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.tests.kernel import support

PROGRAMS = Path(__file__).resolve().parents[2] / ".build" / "images" / "bin"
BUILDERS = ("mkcomposefs", "mkfs.erofs")
KILLS = 25


def builder(name: str) -> Builder:
    return Builder(name, str(PROGRAMS / name))


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a disk: the kernel mounts an image from its file only there."""
    folder = PROGRAMS.parents[1] / "kernel-tests"
    folder.mkdir(mode=0o755, exist_ok=True)
    place = folder / f"{os.getpid()}-{random.randrange(10**9)}"
    place.mkdir(mode=0o755)
    yield place
    shutil.rmtree(place)


def composed(placements: list[Placement]) -> list[bytes]:
    return [manifest.encode(entry) for entry in compose(placements, manifest_store.entries)]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_view_of_an_image_is_the_release(
    disk: Path, folder: Path, root: Path, odd: Placement, tools: tuple[Placement, ...], name: str
) -> None:
    elsewhere = replace(tools[1], at=b"tool/new name, with: odd")
    image, generation, report = support.build(disk, [odd, tools[0], elsewhere], builder=builder(name))
    assert generation.image is not None
    assert generation.image.bytes == image.stat().st_size
    assert generation.image.builder == name
    # 20,000 files take about 5 MB, however large they are.
    assert image.stat().st_size < 300 * generation.entries.total
    assert report.tally.counts() == generation.entries
    with support.mounted(support.declared(folder / "view", [image], [root])) as view:
        for placement in (odd, tools[0], elsewhere):
            shown = Path(os.fsdecode(os.fsencode(view) + b"/" + placement.at))
            assert support.compare_trees(shown, root / placement.record.release) == []


@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_releases_give_the_same_image_and_the_same_name(
    disk: Path, folder: Path, odd: Placement, tools: tuple[Placement, ...], name: str
) -> None:
    built = [support.build(disk / str(turn), [odd, *tools], builder=builder(name))[1] for turn in range(2)]
    assert built[0] == built[1]
    directory = support.build(folder / "directory", [*tools, odd])[1]
    assert directory.id == built[0].id
    assert directory.folder != built[0].folder
    assert directory.entries == built[0].entries
    assert directory.bytes == built[0].bytes


def test_composefs_finds_in_an_image_what_was_composed(
    disk: Path, odd: Placement, tools: tuple[Placement, ...]
) -> None:
    image, _generation, _report = support.build(disk, [odd, *tools], builder=builder("mkcomposefs"))
    dumped = subprocess.run([PROGRAMS / "composefs-info", "dump", image], capture_output=True, check=True).stdout
    expected = {line.split(b" ")[0]: line for line in composed([odd, *tools])}
    found = {line.split(b" ")[0]: _mended(line) for line in dumped.splitlines(keepends=True)}
    assert found == expected


def _mended(line: bytes) -> bytes:
    """Return a line of composefs-info as mkcomposefs would have been given it.

    Directories have a size in EROFS, and composefs-info 1.0.8 prints the padding behind a redirect as if it were part of it.
    """
    path, _size, mode, *fields = line.split(b" ")
    if mode.startswith(b"4"):
        return b" ".join((path, b"0", mode, *fields))
    return re.sub(rb"(?:\\xff|\\x00){1,3}(?= - -)", b"", line)


def test_an_image_is_built_from_text_as_from_entries(disk: Path, tools: tuple[Placement, ...]) -> None:
    """Views whose owner is given go the slow way; here it is the owner that everything has."""
    plain = LayerSpec("view", tools, "erofs", "data_only", "trusted")
    slow = replace(plain, owner=0, group=0)
    built = []
    for number, spec in enumerate((plain, slow)):
        place = disk / str(number)
        place.mkdir()
        built.append(views.build_layer(str(place), spec, builder("mkcomposefs"), views.composed(spec))[0])
    assert built[0].image == built[1].image


@pytest.mark.parametrize("name", BUILDERS)
def test_a_damaged_manifest_makes_no_image(disk: Path, folder: Path, tools: tuple[Placement, ...], name: str) -> None:
    damaged = folder / "store" / "tool" / "1.0.dump.gz"
    damaged.parent.mkdir(parents=True)
    content = bytearray(Path(tools[0].manifest).read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ManifestError, match="scan the release again"):
        support.build(disk, [replace(tools[0], manifest=str(damaged))], builder=builder(name))
    assert views.observe(ViewPaths.of(str(disk), "view")).generations == frozenset()


def test_a_program_that_fails_is_quoted(disk: Path, tools: tuple[Placement, ...]) -> None:
    program = disk / "mkcomposefs"
    program.write_text("#!/bin/sh\necho 'no room left' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(OverlayError, match=rf"{program} could not make the image \(exit status 3\): no room left"):
        support.build(disk / "state", list(tools), builder=Builder("mkcomposefs", str(program)))
