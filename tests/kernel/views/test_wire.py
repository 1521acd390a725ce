"""What a host copies from an image store: compressed images, and deltas from an image that it has."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.tests.kernel import support

pytestmark = pytest.mark.usefixtures("with_programs")

RELEASES = 30
FILES = 60
KILLS = 20


@pytest.fixture(scope="module")
def manifests(arena: Path) -> Path:
    """Scan a software root whose releases have many small files."""
    root, store = arena / "wire-root", arena / "wire-manifests"
    dice = random.Random(1)
    store.mkdir()
    names = [f"tool/{number}" for number in range(RELEASES + 4)]
    for name in names:
        for number in range(FILES + dice.randrange(5)):
            path = root / name / "lib" / f"part_{number // 20}" / f"{dice.randrange(1 << 40):x}_{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * dice.randrange(2, 200))
        (root / name / "latest").symlink_to("lib")
    assert support.module("release_manifest", root=str(root), store=str(store), releases=names).ok["changed"]
    return store


@dataclass(frozen=True)
class Site:
    """An image store, and a host that installs a view from there."""

    area: Path
    manifests: Path

    @property
    def images(self) -> Path:
        return self.area / "images"

    def releases(self, turn: int) -> list[dict[str, str]]:
        """Return the releases of a generation. One of them is another one each time."""
        numbers = [*range(10), *range(11, RELEASES), RELEASES + turn]
        return [{"release": f"tool/{number}"} for number in numbers]

    def publish(self, turn: int) -> dict[str, Any]:
        self.images.mkdir(exist_ok=True)
        built = support.module(
            "metadata_layer",
            name="view",
            store=str(self.manifests),
            releases=self.releases(turn),
            image_store=str(self.images),
        )
        return built.ok

    def arguments(self, built: dict[str, Any], host: str = "host") -> dict[str, Any]:
        return {
            "name": "view",
            "state_dir": str(self.area / host),
            "image": built["image"],
            "image_digest": built["image_digest"],
        }

    def install(self, built: dict[str, Any], host: str = "host") -> support.Ran:
        return support.module("metadata_layer", **self.arguments(built, host))

    def packed(self, built: dict[str, Any]) -> Path:
        return Path(f"{built['image']}.gz")

    def record_path(self, built: dict[str, Any]) -> Path:
        return self.images / f"{built['generation']}.json"

    def record(self, built: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.record_path(built).read_text())
        return found

    def delta(self, built: dict[str, Any], base: dict[str, Any]) -> Path:
        digest = base["image_digest"].partition(":")[2]
        return self.images / f"{built['generation']}.{digest[:16]}.delta"


@pytest.fixture
def site(area: Path, manifests: Path) -> Site:
    return Site(area, manifests)


def digest(path: Path | str) -> str:
    return "sha256:" + hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_installed(found: dict[str, Any], built: dict[str, Any]) -> None:
    assert digest(found["layer"]) == built["image_digest"] == found["image_digest"]
    record = json.loads((Path(found["layer"]).parent / "view.json").read_text())
    assert record["image"].keys() == {"digest", "bytes", "builder"}
    view = Path(found["layer"]).parents[2]
    assert not list(view.glob("incoming/*"))


def spoil(path: Path) -> None:
    """Replace a file by another one of the same length."""
    path.write_bytes(random.Random(5).randbytes(path.stat().st_size))


def test_a_host_copies_a_compressed_image_and_then_only_a_delta(site: Site) -> None:
    first = site.publish(0)
    found = site.install(first).ok
    check_installed(found, first)
    assert (found["installed_from"], found["bytes_copied"]) == ("image", site.packed(first).stat().st_size)
    assert found["bytes_copied"] * 4 < Path(found["layer"]).stat().st_size
    second = site.publish(1)
    delta = site.delta(second, first)
    assert delta.stat().st_size * 5 < site.packed(second).stat().st_size
    # The whole image is not read: it would be refused.
    spoil(site.packed(second))
    found = site.install(second).ok
    check_installed(found, second)
    assert (found["installed_from"], found["bytes_copied"]) == ("delta", delta.stat().st_size)
    assert not found.get("warnings")
    again = site.install(second).ok
    assert (again["changed"], "bytes_copied" in again) == (False, False)
    # The same image is built from the manifests.
    local = support.module(
        "metadata_layer",
        name="view",
        state_dir=str(site.area / "local"),
        store=str(site.manifests),
        releases=site.releases(1),
        format="erofs",
    ).ok
    assert local["image_digest"] == second["image_digest"]


def test_a_store_is_the_same_however_often_it_is_published(site: Site) -> None:
    def contents() -> dict[str, str]:
        for turn in range(2):
            site.publish(turn)
        return {path.name: digest(path) for path in sorted(site.images.iterdir())}

    once = contents()
    assert [name.rpartition(".")[2] for name in once if name.endswith("delta")] == ["delta"]
    shutil.rmtree(site.images)
    assert contents() == once
    assert contents() == once


def test_deltas_are_made_from_the_two_newest_generations_with_most_releases_in_common(site: Site) -> None:
    built = []
    for turn in range(4):
        built.append(site.publish(turn))
        os.utime(site.record_path(built[-1]), (turn, turn))
        assert site.install(built[-1], f"host{turn}").ok["installed_from"] == "image"
    bases = {delta["base"] for delta in site.record(built[3])["image"]["deltas"]}
    assert bases == {one["image_digest"] for one in built[1:3]}
    for turn, expected in ((2, "delta"), (1, "delta"), (0, "image")):
        found = site.install(built[3], f"host{turn}").ok
        assert found["installed_from"] == expected
        check_installed(found, built[3])


def test_there_is_no_delta_between_views_that_have_little_in_common(site: Site) -> None:
    site.publish(0)
    other = support.module(
        "metadata_layer",
        name="other",
        store=str(site.manifests),
        releases=[{"release": "tool/10"}],
        image_store=str(site.images),
    ).ok
    assert not list(site.images.glob("*.delta"))
    assert "deltas" not in site.record(other)["image"]
    assert site.install(other).ok["installed_from"] == "image"


@pytest.mark.parametrize(
    "damage", ["flipped", "truncated", "missing", "of another base", "a FIFO", "old image", "bomb"]
)
def test_the_whole_image_is_copied_if_a_delta_cannot_be_used(site: Site, damage: str) -> None:
    first, second, third = (site.publish(turn) for turn in range(3))
    old = Path(site.install(first).ok["layer"])
    delta = site.delta(third, first)
    content = bytearray(delta.read_bytes())
    record = site.record(third)
    (recorded,) = (one for one in record["image"]["deltas"] if one["base"] == first["image_digest"])
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        delta.write_bytes(content)
    elif damage == "truncated":
        delta.write_bytes(content[:-1])
    elif damage == "missing":
        delta.unlink()
    elif damage == "a FIFO":
        delta.unlink()
        os.mkfifo(delta)
    elif damage == "old image":
        with old.open("r+b") as stream:
            stream.seek(old.stat().st_size // 2)
            stream.write(b"rotten" * 100)
    else:
        # Someone who can write to the store can also write a record that fits.
        text = gzip.compress(bytes(1 << 20)) if damage == "bomb" else site.delta(third, second).read_bytes()
        delta.write_bytes(text)
        recorded.update(digest=digest(delta), bytes=len(text))
        site.record_path(third).write_text(json.dumps(record))
    found = site.install(third).ok
    check_installed(found, third)
    assert found["installed_from"] == "image"
    (warning,) = found["warnings"]
    assert str(delta) in str(warning)
    assert "the whole image was copied" in str(warning)
    assert "nothing was installed" not in str(warning)


def test_an_interrupted_copy_of_a_delta_continues(site: Site) -> None:
    first, second = site.publish(0), site.publish(1)
    site.install(first)
    content = site.delta(second, first).read_bytes()
    incoming = site.area / "host" / "views" / "view" / "incoming"
    incoming.mkdir()
    part = incoming / digest(site.delta(second, first)).partition(":")[2]
    part.write_bytes(content[:100])
    (incoming / second["image_digest"].partition(":")[2]).write_bytes(b"the beginning of an image")
    spoil(site.packed(second))
    found = site.install(second).ok
    check_installed(found, second)
    assert (found["installed_from"], found["bytes_copied"]) == ("delta", len(content) - 100)


@pytest.mark.parametrize("has_base", [True, False])
def test_a_killed_installation_leaves_the_old_generation_and_can_be_repeated(site: Site, has_base: bool) -> None:
    first, second = site.publish(0), site.publish(1)
    assert site.install(first, "before").ok["changed"]
    started = time.monotonic()
    assert site.install(second, "timed").ok["changed"]
    usual = time.monotonic() - started
    dice = random.Random(6)
    for turn in range(KILLS):
        host = f"host{turn}"
        if has_base:
            shutil.copytree(site.area / "before", site.area / host, symlinks=True)
        with support.forked_module("metadata_layer", site.arguments(second, host)) as running:
            running.go()
            time.sleep(dice.uniform(0, usual))
        view = site.area / host / "views" / "view"
        current = Path(os.readlink(view / "current")).name if (view / "current").exists() else None
        assert current in ((f"{first['generation']}-erofs" if has_base else None), f"{second['generation']}-erofs")
        for layer in view.glob("generations/*/layer.erofs"):
            assert digest(layer) in (first["image_digest"], second["image_digest"])
        check_installed(site.install(second, host).ok, second)


def test_two_runs_that_install_at_once_both_succeed(site: Site) -> None:
    first, second = site.publish(0), site.publish(1)
    site.install(first)
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(support.forked_module("metadata_layer", site.arguments(second))) for _turn in range(2)
        ]
        for one in running:
            one.go()
        results = [one.finish().ok for one in running]
    for found in results:
        check_installed(found, second)
    assert any(found.get("installed_from") == "delta" for found in results)


def unpack_store(site: Site, built: dict[str, Any]) -> None:
    """Make an image in the store what an earlier version of the collection would have written."""
    packed = site.packed(built)
    Path(built["image"]).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    record = site.record(built)
    del record["image"]["packed"]
    record["image"].pop("deltas", None)
    site.record_path(built).write_text(json.dumps(record))


def test_stores_of_earlier_versions_stay_usable(site: Site) -> None:
    first = site.publish(0)
    unpack_store(site, first)
    assert not site.publish(0)["changed"]
    found = site.install(first).ok
    check_installed(found, first)
    assert (found["installed_from"], found["bytes_copied"]) == ("image", Path(first["image"]).stat().st_size)
    second = site.publish(1)
    assert site.install(second).ok["installed_from"] == "delta"
    # One that has lost its record is built again, and compressed.
    site.record_path(first).unlink()
    assert site.publish(0)["changed"]
    assert not Path(first["image"]).exists()
    assert site.install(first, "other").ok["bytes_copied"] == site.packed(first).stat().st_size


@pytest.mark.parametrize("damage", ["not gzip", "ends early", "another image", "bomb"])
def test_a_compressed_image_that_does_not_give_the_recorded_one_is_refused(site: Site, damage: str) -> None:
    """Whoever can write to the store can write a record that fits, but the lock has the digest of the image."""
    built = site.publish(0)
    packed = site.packed(built)
    image = gzip.decompress(packed.read_bytes())
    text, words = {
        "not gzip": (b"x" * 1000, "cannot be decompressed"),
        "ends early": (packed.read_bytes()[:-20], "ends early"),
        "another image": (gzip.compress(image[:-1] + b"x"), "does not make an image with the recorded digest"),
        "bomb": (gzip.compress(image + bytes(1 << 26)), "makes an image of more than the recorded"),
    }[damage]
    packed.write_bytes(text)
    record = site.record(built)
    record["image"]["packed"] = {"digest": digest(packed), "bytes": len(text)}
    site.record_path(built).write_text(json.dumps(record))
    message = site.install(built).message
    assert f"{packed} {words}" in message
    assert "nothing was installed" in message
    left = [path for path in (site.area / "host").rglob("*") if path.is_file() and path.name != "lock"]
    assert left == []
