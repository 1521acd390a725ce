"""Layers as EROFS images: their content, builds, installation from an image store, and going back to earlier generations."""

from __future__ import annotations

import gzip
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
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, image_store, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support

BUILDERS = ("mkcomposefs", "mkfs.erofs")
KILLS = 25


def builder(name: str) -> Builder:
    return Builder(name, str(support.PROGRAMS / name))


@pytest.fixture
def disk() -> Iterator[Path]:
    """Yield a directory on a disk: the kernel mounts an image without a loop device only from there."""
    parent = support.PROGRAMS.parents[1] / "kernel-tests"
    parent.mkdir(mode=0o755, exist_ok=True)
    place = parent / f"{os.getpid()}-{random.randrange(10**9)}"
    place.mkdir(mode=0o755)
    yield place
    shutil.rmtree(place)


def composed(placements: list[Placement]) -> list[bytes]:
    return [manifest.encode(entry) for entry in compose(placements, manifest_store.entries)]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_view_from_an_image_equals_its_releases(
    disk: Path, area: Path, root: Path, odd: Placement, tools: tuple[Placement, ...], name: str
) -> None:
    elsewhere = replace(tools[1], at=b"tool/new name, with: odd")
    image, generation, report = support.build(disk, [odd, tools[0], elsewhere], builder=builder(name))
    assert generation.image is not None
    assert generation.image.bytes == image.stat().st_size
    assert generation.image.builder == name
    # 20,000 files take about 5 MB, whatever their size.
    assert image.stat().st_size < 300 * generation.entries.total
    assert report.tally.counts() == generation.entries
    with support.mounted(support.declared(area / "view", [image], [root])) as view:
        for placement in (odd, tools[0], elsewhere):
            shown = Path(os.fsdecode(os.fsencode(view) + b"/" + placement.at))
            assert support.compare_trees(shown, root / placement.record.release) == []


@pytest.mark.parametrize("name", BUILDERS)
def test_the_same_releases_give_the_same_image_and_generation(
    disk: Path, area: Path, odd: Placement, tools: tuple[Placement, ...], name: str
) -> None:
    built = [support.build(disk / str(turn), [odd, *tools], builder=builder(name))[1] for turn in range(2)]
    assert built[0] == built[1]
    directory = support.build(area / "directory", [*tools, odd])[1]
    assert directory.id == built[0].id
    assert directory.directory != built[0].directory
    assert directory.entries == built[0].entries
    assert directory.bytes == built[0].bytes


def test_composefs_reads_from_an_image_what_was_composed(
    disk: Path, odd: Placement, tools: tuple[Placement, ...]
) -> None:
    image, _generation, _report = support.build(disk, [odd, *tools], builder=builder("mkcomposefs"))
    dumped = subprocess.run(
        [support.PROGRAMS / "composefs-info", "dump", image], capture_output=True, check=True
    ).stdout
    expected = {line.split(b" ")[0]: line for line in composed([odd, *tools])}
    found = {line.split(b" ")[0]: _normalised(line) for line in dumped.splitlines(keepends=True)}
    assert found == expected


def _normalised(line: bytes) -> bytes:
    """Return a line of composefs-info in the form in which mkcomposefs reads it.

    Directories have a size in EROFS, and composefs-info 1.0.8 prints the padding behind a redirect as if it were part of it.
    """
    path, size, mode, *fields = line.rstrip(b"\n").split(b" ")
    # It sorts xattrs by their length, and repeats them at each name of a file.
    attributes = sorted(fields[8:]) if not mode.startswith(b"@") else []
    size = b"0" if mode.startswith(b"4") else size
    line = b" ".join((path, size, mode, *fields[:8], *attributes)) + b"\n"
    return re.sub(rb"(?:\\xff|\\x00){1,3}(?= - -)", b"", line)


def test_an_image_is_built_from_text_as_from_entries(disk: Path, tools: tuple[Placement, ...]) -> None:
    """A view with a new owner is built from entries. Here the new owner is the one that all entries have."""
    plain = LayerSpec("view", tools, "erofs", "data_only", "trusted")
    slow = replace(plain, owner=0, group=0)
    built = []
    for number, spec in enumerate((plain, slow)):
        place = disk / str(number)
        place.mkdir()
        built.append(generations.build_layer(str(place), spec, builder("mkcomposefs"), generations.composed(spec))[0])
    assert built[0].image == built[1].image


@pytest.mark.parametrize("name", BUILDERS)
def test_no_image_is_built_from_a_damaged_manifest(
    disk: Path, area: Path, tools: tuple[Placement, ...], name: str
) -> None:
    damaged = area / "store" / "tool" / "1.0.dump.gz"
    damaged.parent.mkdir(parents=True)
    content = bytearray(Path(tools[0].manifest).read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ManifestError, match="scan the release again"):
        support.build(disk, [replace(tools[0], manifest=str(damaged))], builder=builder(name))
    assert view_state.observe(ViewPaths.of(str(disk), "view")).generations == frozenset()


def test_the_output_of_a_program_that_fails_is_reported(disk: Path, tools: tuple[Placement, ...]) -> None:
    program = disk / "mkcomposefs"
    program.write_text("#!/bin/sh\necho 'no room left' >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(OverlayError, match=rf"{program} could not build the image \(exit status 3\): no room left"):
        support.build(disk / "state", list(tools), builder=Builder("mkcomposefs", str(program)))


# ---- image stores


@dataclass(frozen=True)
class Published:
    """An image in a store, and a view to install it in."""

    image: Path
    digest: str
    paths: ViewPaths

    @property
    def packed(self) -> Path:
        """The file in the store."""
        return Path(f"{self.image}.gz")

    @property
    def packed_digest(self) -> str:
        image = image_store.read(str(self.image), self.digest).image
        assert image is not None
        assert image.packed is not None
        return image.packed.digest

    def install(self, **more: str) -> Generation:
        arguments = {"digest": self.digest, **more}
        generation = image_store.read(str(self.image), arguments["digest"])
        with view_state.locked(self.paths, 10):
            installed = image_store.install(self.paths, str(self.image), generation)
        assert installed.installed_from == "image"
        assert installed.generation is not None
        return installed.generation


@pytest.fixture
def published(area: Path, tools: tuple[Placement, ...]) -> Published:
    spec = LayerSpec("view", tools, "erofs", "data_only", "trusted")
    store = str(area / "images")
    os.mkdir(store)
    generation = image_store.publish(store, spec, builder("mkcomposefs"), generations.composed(spec))
    assert generation.image is not None
    image = Path(image_store.image_path(store, generation.id))
    return Published(image, generation.image.digest, ViewPaths.of(str(area / "state"), "view"))


def test_an_image_is_installed_unchanged(published: Published) -> None:
    assert sorted(path.name for path in published.image.parent.iterdir()) == sorted(
        [published.packed.name, f"{published.image.stem}.json"]
    )
    generation = published.install()
    installed = Path(published.paths.generation(generation.directory)) / "layer.erofs"
    assert installed.read_bytes() == gzip.decompress(published.packed.read_bytes())
    assert view_state.read_generation(published.paths, generation.directory) == generation
    assert view_state.observe(published.paths).generations == {generation.directory}
    assert not os.path.lexists(published.paths.incoming)


@pytest.mark.parametrize("kept", ["half", "all", "damaged", "too much"])
def test_an_interrupted_copy_continues(published: Published, kept: str) -> None:
    content = published.packed.read_bytes()
    half = len(content) // 2
    part = Path(published.paths.incoming) / published.packed_digest.partition(":")[2]
    part.parent.mkdir(parents=True, mode=0o700)
    for directory in (part.parent.parent.parent.parent, part.parent.parent.parent):
        directory.chmod(0o700)
    left = {"half": content[:half], "all": content, "damaged": b"x" * half, "too much": content + b"x"}[kept]
    part.write_bytes(left)
    (part.parent / "of another image").write_bytes(b"x")
    if kept == "half":
        # If the first half were read from the store again, its digest would be wrong.
        with published.packed.open("r+b") as stream:
            stream.write(b"damage")
    generation = published.install()
    installed = Path(published.paths.generation(generation.directory)) / "layer.erofs"
    assert installed.read_bytes() == gzip.decompress(content)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "no record", "no image", "other record"])
def test_an_image_without_the_wanted_digest_or_a_part_is_refused(published: Published, damage: str) -> None:
    content = bytearray(published.packed.read_bytes())
    record = published.image.with_suffix(".json")
    digest = published.digest
    if damage == "flipped":
        content[-1] ^= 1
        published.packed.write_bytes(content)
    elif damage == "truncated":
        published.packed.write_bytes(content[:-1])
    elif damage == "longer":
        published.packed.write_bytes(content + b"x")
    elif damage == "no record":
        record.unlink()
    elif damage == "no image":
        published.packed.unlink()
    else:
        digest = "sha256:" + "0" * 64
    with pytest.raises(OverlayError, match=re.escape(str(published.image))) as raised:
        published.install(digest=digest)
    words = (
        "nothing was installed"
        if damage in ("flipped", "other record")
        else "is missing, incomplete or of an older version"
    )
    assert words in str(raised.value)
    assert view_state.observe(published.paths).generations == frozenset()
    assert not any(files for _path, _directories, files in os.walk(published.paths.incoming))


def test_what_a_killed_publisher_has_left_is_removed_when_it_is_old(
    published: Published, tools: tuple[Placement, ...]
) -> None:
    old, young = (published.image.parent / f".new-{name}" for name in ("old", "young"))
    for path in (old, young):
        # The mode of mkdtemp: only root can have put something into it.
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
def test_auto_is_an_image_if_one_can_be_built_and_keeps_an_existing_format(
    area: Path, tools: tuple[Placement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = [{"manifest": tools[0].manifest}]
    first = module(area / "state", releases=releases).ok
    assert (first["format"], first["layer"].endswith("-erofs/layer.erofs")) == ("erofs", True)
    assert "mkcomposefs makes them" in first["format_reason"]
    # Without a program nothing can be built, but nothing has to be.
    monkeypatch.setenv("PATH", os.environ["PATH"].replace(f"{support.PROGRAMS}{os.pathsep}", ""))
    again = module(area / "state", releases=releases).ok
    assert (again["changed"], again["format"]) == (False, "erofs")
    assert again["format_reason"] == "the generation is there in this format"
    # The other format of the same generation does not make it a previous one.
    other = module(area / "state", releases=releases, format="directory").ok
    assert (other["generation"], other["format"], other["previous"]) == (first["generation"], "directory", None)
    assert module(area / "state", releases=releases).ok["format"] == "directory"


def test_an_impossible_format_is_refused_and_auto_does_not_choose_it(area: Path, tools: tuple[Placement, ...]) -> None:
    releases = [{"manifest": tools[0].manifest}]
    refused = module(area / "state", releases=releases, format="erofs", xattr_namespace="user").message
    assert "namespace trusted only" in refused
    chosen = module(area / "state", releases=releases, xattr_namespace="user").ok
    assert chosen["format"] == "directory"
    assert "namespace trusted only" in chosen["format_reason"]


@pytest.mark.usefixtures("with_programs")
def test_an_image_that_one_host_built_is_installed_by_another(area: Path, tools: tuple[Placement, ...]) -> None:
    releases = [{"manifest": one.manifest} for one in tools]
    store = area / "images"
    store.mkdir()
    asked = module(area / "a", check=True, releases=releases, image_store=str(store)).ok
    assert (asked["changed"], os.listdir(store)) == (True, [])
    built = module(area / "a", releases=releases, image_store=str(store)).ok
    assert (built["image"], built["generation"]) == (asked["image"], asked["generation"])
    assert not (area / "a").exists()
    assert not module(area / "a", releases=releases, image_store=str(store)).ok["changed"]
    wanted = {"image": built["image"], "image_digest": built["image_digest"]}
    expected = module(area / "b", check=True, **wanted).ok
    installed = module(area / "b", **wanted).ok
    # Values that are known only once the generation exists.
    later = {"entries", "bytes", "bytes_on_disk", "bytes_copied", "conflicts", "conflict_count", "installed_from"} | {
        f"{name}{end}" for name in ("privileged", "stripped", "narrowed") for end in ("", "_paths")
    }
    assert {name: value for name, value in installed.items() if name not in later} == {
        **expected,
        "image_digest": built["image_digest"],
    }
    local = module(area / "c", releases=releases, format="directory").ok
    assert installed["generation"] == built["generation"] == local["generation"]
    # An installed generation does not need the store any more.
    shutil.rmtree(store)
    assert not module(area / "b", **wanted).ok["changed"]
    assert "is missing, incomplete or of an older version" in module(area / "d", **wanted).message


@pytest.mark.usefixtures("with_programs")
def test_a_view_goes_back_to_its_previous_generation(area: Path, tools: tuple[Placement, ...]) -> None:
    state_dir = area / "state"
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
    assert "has no previous generation" in module(area / "other", generation="previous").message
    both = module(state_dir, generation="previous", releases=[{"manifest": tools[0].manifest}]).message
    assert "leave out 'releases'" in both
