"""Damaged or foreign records, manifests and images are refused by path, within the time limit, and before anything is changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import remount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    composition_digest,
    generation_from_json,
    generation_id,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support

RELEASE = "tool/1.0"
#: The time limit of modules in these tests, in seconds.
LIMIT = 5.0


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    """Make a device node like /dev/zero."""
    os.mknod(path, 0o20644, os.makedev(1, 5))


def make_link(path: Path) -> None:
    target = path.parent / "target of a link"
    os.rename(original(path), target)
    path.symlink_to(target.name)


def original(path: Path) -> Path:
    """Return the path of the original of a file that was replaced."""
    return path.with_name(path.name + ".kept")


#: What replaces a file.
INSTEAD: dict[str, Callable[[Path], None]] = {
    "a FIFO": make_fifo,
    "an endless device": make_endless,
    "a link": make_link,
    "a directory": Path.mkdir,
}
#: What replaces the text of a record.
TEXTS = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "a long number": b'{"format": ' + b"1" * 1_000_000 + b', "layer_format": ' + b"1" * 1_000_000 + b"}",
    "a list": b"[]",
    "nothing": b"",
    "zeros": b"\0" * 100_000_000,
    "not UTF-8": b'{"\xff": 1}',
    "lone surrogates": b'{"format": 2, "layer_format": 2, "\\ud800": "\\udfff"}',
}


def replaced(path: Path, instead: str) -> None:
    """Replace a file by something else."""
    os.rename(path, original(path))
    if instead in INSTEAD:
        INSTEAD[instead](path)
    else:
        path.write_bytes(TEXTS[instead])


def refused(name: str, /, *words: str, **arguments: Any) -> str:
    """Run a module that has to fail soon, with a short message that contains ``words``, and return the message."""
    started = time.monotonic()
    message = support.module(name, timeout=LIMIT, **arguments).message
    assert "bug of the module" not in message
    assert "gave up" not in message
    assert time.monotonic() - started < LIMIT
    assert len(message) < 2000
    for word in words:
        assert word in message
    return message


@dataclass
class Site:
    """A software root with one release, and the arguments of modules for it."""

    area: Path

    @property
    def manifest(self) -> Path:
        return self.area / "store" / f"{RELEASE}.dump.gz"

    @property
    def record(self) -> Path:
        return self.area / "store" / f"{RELEASE}.json"

    @property
    def scan(self) -> dict[str, Any]:
        return {"root": str(self.area / "root"), "store": str(self.area / "store"), "release": RELEASE}

    @property
    def layer(self) -> dict[str, Any]:
        return {
            "name": "view",
            "state_dir": str(self.area / "state"),
            "store": str(self.area / "store"),
            "releases": [{"release": RELEASE}],
        }

    def image(self, digest: str) -> dict[str, Any]:
        state_dir = str(self.area / "state")
        return {"name": "view", "state_dir": state_dir, "image": str(self.published), "image_digest": digest}

    @property
    def published(self) -> Path:
        (record,) = (self.area / "images").glob("*.json")
        return record.with_suffix(".erofs")

    def publish(self) -> str:
        (self.area / "images").mkdir(exist_ok=True)
        done = support.module("metadata_layer", **self.layer, image_store=str(self.area / "images")).ok
        return str(done["image_digest"])


@pytest.fixture
def site(area: Path) -> Site:
    support.make_small_release(area / "root" / RELEASE, "one")
    found = Site(area)
    assert support.module("release_manifest", **found.scan).ok["changed"]
    return found


def everything(area: Path) -> dict[str, tuple[int, float]]:
    """Map every file below a directory to its inode number and mtime."""
    return {
        str(path): (status.st_ino, status.st_mtime)
        for path in area.rglob("*")
        for status in (path.lstat(),)
        if not path.is_dir()
    }


@pytest.mark.parametrize("instead", [*INSTEAD, *TEXTS])
def test_what_is_no_record_of_a_manifest_is_refused(site: Site, instead: str) -> None:
    replaced(site.record, instead)
    before = everything(site.area)
    refused("release_manifest", str(site.record), **site.scan)
    refused("metadata_layer", str(site.record), **site.layer)
    if instead != "a directory":
        refused("release_info", str(site.record), store=site.scan["store"])
    assert everything(site.area) == before
    if instead != "a directory":
        # The module that the message names can remove it.
        assert support.module("release_manifest", **site.scan, state="absent").ok["changed"]
        assert not os.path.lexists(site.record)


@pytest.mark.parametrize("instead", INSTEAD)
def test_a_manifest_that_is_not_a_regular_file_is_refused(site: Site, instead: str) -> None:
    replaced(site.manifest, instead)
    record = json.loads(site.record.read_bytes())
    site.record.write_text(json.dumps({**record, "stored_bytes": os.stat(site.manifest).st_size}))
    refused("metadata_layer", str(site.manifest), **site.layer)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"release": "tool/2.0"}, "does not belong there"),
        ({"release": "1.0"}, "does not belong there"),
        ({"release": "../../etc"}, "'..'"),
        ({"release": ["tool/1.0"]}, "'release'"),
        ({"digest": "sha256:../../x"}, "'digest'"),
        ({"stored_bytes": -1}, "'stored_bytes'"),
        ({"stored_bytes": 1 << 70}, "too many digits"),
        ({"entries": {"files": 1}}, "'entries'"),
        ({"root": 1}, "'root'"),
        ({"checksums": "yes"}, "'checksums'"),
        ({"more": 1}, "unknown field 'more'"),
        ({"format": 3}, "newer version"),
    ],
)
def test_a_record_of_a_manifest_with_a_wrong_field_is_refused(site: Site, change: dict[str, Any], word: str) -> None:
    record = json.loads(site.record.read_bytes())
    site.record.write_text(json.dumps({**record, **change}))
    refused("metadata_layer", str(site.record), word, **site.layer)
    refused("release_manifest", str(site.record), word, **site.scan)


def test_a_manifest_of_an_older_version_is_scanned_again(site: Site) -> None:
    record = json.loads(site.record.read_bytes())
    del record["root"]
    site.record.write_text(json.dumps({**record, "format": 1}))
    refused("metadata_layer", str(site.record), "an older version", "release_manifest", **site.layer)
    (listed,) = support.module("release_info", store=site.scan["store"]).ok["releases"]
    assert listed["manifest"] is None
    for check in (True, False):
        done = support.module("release_manifest", **site.scan, check=check).ok
        assert done["actions"] == [
            f"scan release {RELEASE} again, since an older version of the collection made its manifest"
        ]
    assert not support.module("release_manifest", **site.scan).ok["changed"]
    assert support.module("metadata_layer", **site.layer).ok["changed"]


def bomb() -> Iterator[bytes]:
    """Yield lines of a manifest that compress to almost nothing."""
    yield b"/ 0 40755 2 0 0 0 0.0 - - -\n"
    for number in range(200_000):
        yield b"/%09d%0200d 0 100644 1 0 0 0 0.0 - - -\n" % (number, 0)


def test_a_manifest_that_is_endless_when_it_is_not_compressed_ends_where_its_record_does(site: Site) -> None:
    with gzip.GzipFile(site.manifest, "wb", 9) as stream:
        stream.writelines(bomb())
    record = json.loads(site.record.read_bytes())
    record["stored_bytes"] = site.manifest.stat().st_size
    site.record.write_text(json.dumps(record))
    refused("metadata_layer", str(site.manifest), "more lines than the", **site.layer)
    assert not list((site.area / "state").glob("views/view/generations/*"))


@pytest.mark.usefixtures("with_programs")
@pytest.mark.parametrize("instead", [*INSTEAD, *TEXTS])
def test_a_damaged_record_of_an_image_is_refused(site: Site, instead: str) -> None:
    digest = site.publish()
    record = site.published.with_suffix(".json")
    replaced(record, instead)
    refused("metadata_layer", str(record), **site.image(digest))
    refused("metadata_layer", str(record), **site.layer, image_store=str(site.area / "images"))
    assert not (site.area / "state").exists()


@pytest.mark.usefixtures("with_programs")
@pytest.mark.parametrize("instead", ["a FIFO", "a link", "a list", "nothing", "an older version"])
def test_a_damaged_record_is_no_obstacle_if_it_is_not_needed(site: Site, instead: str) -> None:
    """A record without its image is replaced, and records of other images in the store are not read."""
    images = site.area / "images"
    digest = site.publish()
    image, record = site.published, site.published.with_suffix(".json")
    other = images / f"{'0' * 16}.json"
    other.write_bytes(b"{}")
    assert not support.module("metadata_layer", **site.layer, image_store=str(images)).ok["changed"]
    other.rename(images / "other")
    Path(f"{image}.gz").unlink()
    if instead == "an older version":
        record.write_text(json.dumps({**json.loads(record.read_bytes()), "layer_format": 1}))
    else:
        replaced(record, instead)
    built = support.module("metadata_layer", **site.layer, image_store=str(images)).ok
    assert (built["image"], built["image_digest"], built["changed"]) == (str(image), digest, True)
    assert record.is_file()
    assert support.module("metadata_layer", **site.image(digest)).ok["changed"]
    # An installed generation needs neither the image nor its record.
    record.write_bytes(b"{}")
    assert not support.module("metadata_layer", **site.image(digest)).ok["changed"]


@pytest.mark.usefixtures("with_programs")
@pytest.mark.parametrize("instead", INSTEAD)
def test_what_is_no_image_is_refused(site: Site, instead: str) -> None:
    digest = site.publish()
    image = site.published
    record = json.loads(image.with_suffix(".json").read_bytes())
    packed = Path(f"{image}.gz")
    replaced(packed, instead)
    record["image"]["packed"]["bytes"] = os.stat(packed).st_size
    image.with_suffix(".json").write_text(json.dumps(record))
    refused("metadata_layer", str(image), **site.image(digest))
    assert not list((site.area / "state").glob("views/view/generations/*"))


@pytest.mark.usefixtures("with_programs")
@pytest.mark.parametrize(
    "change",
    [
        {"generation": "../../../../outside"},
        {"generation": "0" * 16},
        {"format": "erofs/../../../../../outside"},
        {"strategy": "../x"},
        {"xattr_namespace": "user/../../../x"},
        {"releases": []},
        {"owner": 0},
    ],
)
def test_nothing_of_a_record_leads_out_of_the_state_directory(site: Site, change: dict[str, Any]) -> None:
    digest = site.publish()
    record = site.published.with_suffix(".json")
    fields = json.loads(record.read_bytes())
    record.write_text(json.dumps({**fields, **change}))
    before = everything(site.area)
    refused("metadata_layer", str(record), "is not the record of a generation", **site.image(digest))
    assert everything(site.area) == before
    assert not (site.area / "outside").exists()
    assert not (site.area / "state").exists()


@pytest.mark.usefixtures("with_programs")
def test_a_record_of_another_generation_gives_an_image_no_other_name(site: Site) -> None:
    """A user who can write to the store may write a valid record with the digest of the image and another name."""
    digest = site.publish()
    record = site.published.with_suffix(".json")
    fields = json.loads(record.read_bytes())
    generation = generation_from_json(record.read_bytes(), str(record))
    composition = {**generation.composition, "owner": 4711}
    fields.update(owner=4711, digest=composition_digest(composition))
    fields["generation"] = generation_id(fields["digest"])
    record.write_text(json.dumps(fields))
    refused("metadata_layer", fields["generation"], "whose image is called", **site.image(digest))
    assert not (site.area / "state").exists()


@pytest.mark.parametrize("instead", [*INSTEAD, *TEXTS])
def test_a_damaged_record_of_a_generation_is_refused(site: Site, instead: str) -> None:
    layer = Path(support.module("metadata_layer", **site.layer, format="directory").ok["layer"])
    record = layer.parent / "view.json"
    replaced(record, instead)
    for name, arguments in (
        ("metadata_layer", site.layer),
        ("overlay_prune", {"name": "view", "state_dir": site.layer["state_dir"]}),
        ("overlay_mount", {"path": str(site.area / "view"), "lower": [str(layer)], "data": [site.scan["root"]]}),
    ):
        refused(name, str(record), **arguments)
    assert layer.is_dir()


def test_a_damaged_record_of_a_generation_fails_only_what_needs_it(site: Site) -> None:
    old = support.module("metadata_layer", **site.layer, format="directory").ok
    record = Path(old["layer"]).parent / "view.json"
    text = record.read_bytes()
    record.write_bytes(b"{}")
    view = {"name": "view", "state_dir": site.layer["state_dir"]}
    wanted = {**site.layer, "format": "directory", "mode": "go-w"}
    for check in (True, False):
        new = support.module("metadata_layer", check=check, **wanted).ok
        assert (new["changed"], new["previous"]) == (True, old["generation"])
    assert not support.module("metadata_layer", **wanted).ok["changed"]
    for generation in ("previous", old["generation"], Path(old["layer"]).parent.name):
        refused("metadata_layer", str(record), **view, generation=generation)
    record.write_bytes(text)
    assert support.module("metadata_layer", **view, generation="previous").ok["layer"] == old["layer"]
    record.write_bytes(b"{}")
    assert support.module("metadata_layer", **view, state="absent").ok["changed"]
    assert not Path(old["layer"]).exists()


def test_a_generation_of_an_older_version_is_built_again_and_kept_while_it_is_mounted(site: Site) -> None:
    done = support.module("metadata_layer", **site.layer, format="directory").ok
    layer = Path(done["layer"])
    mount: dict[str, Any] = {"path": str(site.area / "view"), "data": [site.scan["root"]]}
    assert support.module("overlay_mount", **mount, lower=[str(layer)]).ok["changed"]
    record = layer.parent / "view.json"
    record.write_text(json.dumps({**json.loads(record.read_bytes()), "layer_format": 1}))
    # The number of the format is part of the digest, so a real new version gives another ID. Here another manifest does.
    support.write(site.area / "root" / RELEASE / "more", b"x")
    assert support.module("release_manifest", **site.scan, state="absent").ok["changed"]
    assert support.module("release_manifest", **site.scan).ok["changed"]
    new = support.module("metadata_layer", **site.layer, format="directory").ok
    assert new["layer"] != str(layer)
    prune: dict[str, Any] = {"name": "view", "state_dir": site.layer["state_dir"], "keep": 0, "min_age": 0}
    assert not support.module("overlay_prune", **prune).ok["changed"]
    assert os.listdir(site.area / "view" / RELEASE)
    assert support.module("overlay_mount", **mount, lower=[new["layer"]]).ok["switched"]
    assert support.module("overlay_prune", **prune).ok["changed"]
    assert not layer.exists()


@pytest.mark.parametrize("instead", [*INSTEAD, *TEXTS])
def test_a_damaged_note_of_a_detached_overlay_is_refused(site: Site, instead: str) -> None:
    """A process may still use the layers, so they are not removed."""
    layer = Path(support.module("metadata_layer", **site.layer).ok["layer"])
    notes = Path(detached.DIRECTORY)
    notes.mkdir(parents=True, exist_ok=True)
    note = notes / "0-99-1.json"
    note.write_bytes(b"{}")
    try:
        replaced(note, instead)
        refused("overlay_prune", str(note), name="view", state_dir=site.layer["state_dir"], keep=0, min_age=0)
        assert os.path.lexists(layer)
    finally:
        for path in (note, original(note), notes / "target of a link"):
            if os.path.lexists(path):
                path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("instead", [*INSTEAD, *TEXTS, "another overlay"])
def test_a_damaged_note_of_an_unmounted_overlay_is_refused(area: Path, instead: str) -> None:
    path = os.fsencode(area / "overlay")
    note = Path(remount.DIRECTORY) / (hashlib.sha256(path).hexdigest()[:32] + ".json")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_bytes(b"{}")
    (area / "overlay").mkdir()
    other = {
        "path": "/elsewhere",
        "lower": ["/l"],
        "data": [],
        "settings": [],
        "flags": [],
        "images": [],
        "upper": "/u",
    }
    try:
        if instead == "another overlay":
            note.write_text(json.dumps({**other, "work": "/w", "source": "overlay", "shared": False}))
        else:
            replaced(note, instead)
        refused("overlay_finalize", str(note), path=str(area / "overlay"))
        assert support.live(path) is None
    finally:
        for place in (note, original(note), note.parent / "target of a link"):
            if os.path.lexists(place):
                place.rmdir() if place.is_dir() else place.unlink()


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["[\ud800]"], ["surrogates"]),
        (["a/**/" * 300 + "b"], ["'include' of release", "at most"]),
        (["x"] * 300, ["300 patterns"]),
        (["a/" * 5000], ["'include' of release", "at most"]),
    ],
)
def test_patterns_that_would_take_too_long_are_refused(site: Site, patterns: list[str], words: list[str]) -> None:
    release = {"release": RELEASE, "include": patterns}
    refused("metadata_layer", *words, **dict(site.layer, releases=[release]))


def test_many_long_patterns_are_matched_within_seconds(site: Site) -> None:
    for number in range(2000):
        support.write(site.area / "root" / RELEASE / f"file-{number}")
    assert support.module("release_manifest", **site.scan, state="absent").ok["changed"]
    assert support.module("release_manifest", **site.scan).ok["changed"]
    patterns = ["/".join(["**"] * 300 + [f"x{number}*y*z*w*q"]) for number in range(200)]
    release = {"release": RELEASE, "exclude": patterns}
    started = time.monotonic()
    assert support.module("metadata_layer", **dict(site.layer, releases=[release])).ok["changed"]
    assert time.monotonic() - started < 20


def test_a_store_asked_for_a_release_takes_no_record_of_another_one(site: Site) -> None:
    record = json.loads(site.record.read_bytes())
    site.record.write_text(json.dumps({**record, "release": "1.0"}))
    with pytest.raises(Exception, match="does not belong there"):
        manifest_store.read_record(str(site.manifest), RELEASE)
    with pytest.raises(Exception, match="does not belong there"):
        manifest_store.find_record(str(site.manifest), RELEASE)
