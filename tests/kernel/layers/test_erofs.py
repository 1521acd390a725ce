"""Layers as EROFS images: what is in them, building them, installing them from a store, and going back to earlier ones."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import compose
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError, OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, image_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import (
    Generation,
    LayerSpec,
    ViewPaths,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support

BUILDERS = ("mkcomposefs", "mkfs.erofs")
KILLS = 25


def builder(name: str) -> Builder:
    return Builder(name, str(support.PROGRAMS / name))


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a disk: the kernel mounts an image from its file only there."""
    folder = support.PROGRAMS.parents[1] / "kernel-tests"
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
    dumped = subprocess.run(
        [support.PROGRAMS / "composefs-info", "dump", image], capture_output=True, check=True
    ).stdout
    expected = {line.split(b" ")[0]: line for line in composed([odd, *tools])}
    found = {line.split(b" ")[0]: _mended(line) for line in dumped.splitlines(keepends=True)}
    assert found == expected


def _mended(line: bytes) -> bytes:
    """Return a line of composefs-info as mkcomposefs would have been given it.

    Directories have a size in EROFS, and composefs-info 1.0.8 prints the padding behind a redirect as if it were part of it.
    """
    path, size, mode, *fields = line.rstrip(b"\n").split(b" ")
    # It sorts attributes by their length, and has them at each name of a file.
    attributes = sorted(fields[8:]) if not mode.startswith(b"@") else []
    size = b"0" if mode.startswith(b"4") else size
    line = b" ".join((path, size, mode, *fields[:8], *attributes)) + b"\n"
    return re.sub(rb"(?:\\xff|\\x00){1,3}(?= - -)", b"", line)


def test_an_image_is_built_from_text_as_from_entries(disk: Path, tools: tuple[Placement, ...]) -> None:
    """Views whose owner is given go the slow way; here it is the owner that everything has."""
    plain = LayerSpec("view", tools, "erofs", "data_only", "trusted")
    slow = replace(plain, owner=0, group=0)
    built = []
    for number, spec in enumerate((plain, slow)):
        place = disk / str(number)
        place.mkdir()
        built.append(generations.build_layer(str(place), spec, builder("mkcomposefs"), generations.composed(spec))[0])
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
    assert generations.observe(ViewPaths.of(str(disk), "view")).generations == frozenset()


def test_a_program_that_fails_is_quoted(disk: Path, tools: tuple[Placement, ...]) -> None:
    program = disk / "mkcomposefs"
    program.write_text("#!/bin/sh\necho 'no room left' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(OverlayError, match=rf"{program} could not make the image \(exit status 3\): no room left"):
        support.build(disk / "state", list(tools), builder=Builder("mkcomposefs", str(program)))


# ---- image stores


@dataclass(frozen=True)
class Published:
    """An image in a store, and a state directory to install it in."""

    image: Path
    digest: str
    paths: ViewPaths

    def install(self, **more: str) -> Generation:
        arguments = {"digest": self.digest, **more}
        generation = image_store.read(str(self.image), arguments["digest"])
        with generations.locked(self.paths, 10):
            return image_store.install(self.paths, str(self.image), generation)


@pytest.fixture
def published(folder: Path, tools: tuple[Placement, ...]) -> Published:
    spec = LayerSpec("view", tools, "erofs", "data_only", "trusted")
    store = str(folder / "images")
    os.mkdir(store)
    generation = image_store.publish(store, spec, builder("mkcomposefs"), generations.composed(spec))
    assert generation.image is not None
    image = Path(image_store.image_path(store, generation.id))
    return Published(image, generation.image.digest, ViewPaths.of(str(folder / "state"), "view"))


def test_an_image_is_installed_as_it_was_built(published: Published) -> None:
    assert sorted(path.name for path in published.image.parent.iterdir()) == sorted(
        [published.image.name, f"{published.image.stem}.json"]
    )
    generation = published.install()
    there = Path(published.paths.generation(generation.folder)) / "layer.erofs"
    assert there.read_bytes() == published.image.read_bytes()
    assert generations.read_generation(published.paths, generation.folder) == generation
    assert generations.observe(published.paths).generations == {generation.folder}
    assert not os.path.lexists(published.paths.incoming)


@pytest.mark.parametrize("kept", ["half", "all", "damaged", "too much"])
def test_a_copy_that_was_interrupted_goes_on(published: Published, kept: str) -> None:
    content = published.image.read_bytes()
    half = len(content) // 2
    part = Path(published.paths.incoming) / published.digest.partition(":")[2]
    part.parent.mkdir(parents=True, mode=0o700)
    for folder in (part.parent.parent.parent.parent, part.parent.parent.parent):
        folder.chmod(0o700)
    left = {"half": content[:half], "all": content, "damaged": b"x" * half, "too much": content + b"x"}[kept]
    part.write_bytes(left)
    (part.parent / "of another image").write_bytes(b"x")
    if kept == "half":
        # What is there already is not read from the store again: were it, this would be found out.
        with published.image.open("r+b") as stream:
            stream.write(b"damage")
    generation = published.install()
    assert (Path(published.paths.generation(generation.folder)) / "layer.erofs").read_bytes() == content


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "no record", "no image", "other record"])
def test_an_image_that_is_not_what_was_asked_for_is_refused(published: Published, damage: str) -> None:
    content = bytearray(published.image.read_bytes())
    record = published.image.with_suffix(".json")
    digest = published.digest
    if damage == "flipped":
        content[-1] ^= 1
        published.image.write_bytes(content)
    elif damage == "truncated":
        published.image.write_bytes(content[:-1])
    elif damage == "longer":
        published.image.write_bytes(content + b"x")
    elif damage == "no record":
        record.unlink()
    elif damage == "no image":
        published.image.unlink()
    else:
        digest = "sha256:" + "0" * 64
    with pytest.raises(OverlayError, match=re.escape(str(published.image))) as raised:
        published.install(digest=digest)
    words = "nothing was installed" if damage in ("flipped", "other record") else "there is no whole image"
    assert words in str(raised.value)
    assert generations.observe(published.paths).generations == frozenset()
    assert not any(files for _folder, _folders, files in os.walk(published.paths.incoming))


def test_the_remains_of_a_killed_publisher_are_removed_when_they_are_old(
    published: Published, tools: tuple[Placement, ...]
) -> None:
    old, young = (published.image.parent / f".new-{name}" for name in ("old", "young"))
    for path in (old, young):
        # As mkdtemp makes them: others than root have put nothing into it.
        path.mkdir(0o700)
        (path / "layer.erofs").write_bytes(b"x")
    os.utime(old, (0, 0))
    spec = LayerSpec("view", tools[:1], "erofs", "data_only", "trusted")
    image_store.publish(str(published.image.parent), spec, builder("mkfs.erofs"), generations.composed(spec))
    assert (old.exists(), young.exists()) == (False, True)


# ---- the module


def module(state_dir: Path, check: bool = False, **more: Any) -> support.Ran:
    return support.module("metadata_layer", check=check, name="view", state_dir=str(state_dir), **more)


@pytest.mark.usefixtures("with_programs")
def test_auto_is_an_image_where_there_is_a_program_and_stays_what_it_is(
    folder: Path, tools: tuple[Placement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = [{"manifest": tools[0].manifest}]
    first = module(folder / "state", releases=releases).ok
    assert (first["format"], first["layer"].endswith("-erofs/layer.erofs")) == ("erofs", True)
    assert "mkcomposefs makes them" in first["format_reason"]
    # Without a program nothing can be built, and nothing has to be.
    monkeypatch.setenv("PATH", os.environ["PATH"].replace(f"{support.PROGRAMS}{os.pathsep}", ""))
    again = module(folder / "state", releases=releases).ok
    assert (again["changed"], again["format"]) == (False, "erofs")
    assert again["format_reason"] == "the generation is there in this format"
    # The other form of the same generation has the same name, and the view has no other previous one for it.
    other = module(folder / "state", releases=releases, format="directory").ok
    assert (other["generation"], other["format"], other["previous"]) == (first["generation"], "directory", None)
    assert module(folder / "state", releases=releases).ok["format"] == "directory"


def test_a_format_that_cannot_be_is_refused_or_not_chosen(folder: Path, tools: tuple[Placement, ...]) -> None:
    releases = [{"manifest": tools[0].manifest}]
    refused = module(folder / "state", releases=releases, format="erofs", xattr_namespace="user").message
    assert "namespace trusted only" in refused
    chosen = module(folder / "state", releases=releases, xattr_namespace="user").ok
    assert chosen["format"] == "directory"
    assert "namespace trusted only" in chosen["format_reason"]


@pytest.mark.usefixtures("with_programs")
def test_one_host_builds_and_others_install(folder: Path, tools: tuple[Placement, ...]) -> None:
    releases = [{"manifest": one.manifest} for one in tools]
    store = folder / "images"
    store.mkdir()
    asked = module(folder / "a", check=True, releases=releases, image_store=str(store)).ok
    assert (asked["changed"], os.listdir(store)) == (True, [])
    built = module(folder / "a", releases=releases, image_store=str(store)).ok
    assert (built["image"], built["generation"]) == (asked["image"], asked["generation"])
    assert not (folder / "a").exists()
    assert not module(folder / "a", releases=releases, image_store=str(store)).ok["changed"]
    wanted = {"image": built["image"], "image_digest": built["image_digest"]}
    expected = module(folder / "b", check=True, **wanted).ok
    installed = module(folder / "b", **wanted).ok
    # What only a generation that is there tells.
    later = {"entries", "bytes", "bytes_on_disk", "conflicts", "conflict_count"} | {
        f"{name}{end}" for name in ("privileged", "stripped", "narrowed") for end in ("", "_paths")
    }
    assert {name: value for name, value in installed.items() if name not in later} == {
        **expected,
        "image_digest": built["image_digest"],
    }
    local = module(folder / "c", releases=releases, format="directory").ok
    assert installed["generation"] == built["generation"] == local["generation"]
    # What is there needs no store any more.
    shutil.rmtree(store)
    assert not module(folder / "b", **wanted).ok["changed"]
    assert "there is no whole image" in module(folder / "d", **wanted).message


@pytest.mark.usefixtures("with_programs")
def test_a_view_goes_back_to_what_it_was(folder: Path, tools: tuple[Placement, ...]) -> None:
    state_dir = folder / "state"
    first, second = (module(state_dir, releases=[{"manifest": one.manifest}]).ok for one in tools)
    asked = module(state_dir, check=True, generation="previous").ok
    assert (asked["generation"], asked["changed"]) == (first["generation"], True)
    assert asked["diff"]["after"]["releases"].keys() == {"/tool/1.0"}
    assert asked["diff"]["before"]["releases"].keys() == {"/tool/2.0"}
    back = module(state_dir, generation="previous").ok
    assert (back["layer"], back["previous"]) == (first["layer"], second["generation"])
    assert os.readlink(state_dir / "views/view/current") == f"generations/{first['generation']}-erofs"
    named = module(state_dir, generation=first["generation"]).ok
    assert not named["changed"]
    forth = module(state_dir, generation="previous").ok
    assert forth["generation"] == second["generation"]
    message = module(state_dir, generation="0123456789abcdef").message
    assert first["generation"] in message
    assert second["generation"] in message
    assert "has no previous generation" in module(folder / "other", generation="previous").message
    both = module(state_dir, generation="previous", releases=[{"manifest": tools[0].manifest}]).message
    assert "leave out 'releases'" in both
