"""An installed data image is checked before it is mounted, and is removed only when nothing uses it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing, pruning_images
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import boot_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import (
    DataImage,
    data_image_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import usage
from ansible_collections.renderfarm.overlay.tests.kernel import support

TOOL = "tool/1/bin/tool"
NO_DIGEST = "sha256:" + "0" * 64


@dataclass
class Host:
    """A software root, a state directory with the layer of a view, and a mountpoint."""

    area: Path
    state_dir: Path
    root: Path
    layer: Path
    manifest_digest: str

    @property
    def view(self) -> Path:
        return self.area / "view"

    def record(self, **more: Any) -> DataImage:
        image = DataImage(
            *("tool/1", "tool/1", str(self.root), self.manifest_digest, "trace", NO_DIGEST, False),
            *(1, 0, 10, 1, NO_DIGEST, 1),
        )
        return replace(image, **more)

    def install(self, content: bytes = b"", age: float = 7200.0, **more: Any) -> Path:
        """Install a data image with one file and a record; return its path. The content makes it another image."""
        place = self.state_dir / "data"
        place.mkdir(mode=0o700, exist_ok=True)
        source = self.area / "source"
        (source / TOOL).parent.mkdir(parents=True)
        support.write(source / TOOL, (self.root / TOOL).read_bytes(), 0o755)
        os.utime(source / TOOL, ns=(0, os.stat(self.root / TOOL).st_mtime_ns))
        if content:
            support.write(source / "tool/1/more", content)
        made = support.image_of(source, self.area / "made.erofs")
        support.command("rm", "-r", source)
        text = made.read_bytes()
        digest = "sha256:" + hashlib.sha256(text).hexdigest()
        image = self.record(**{"digest": digest, "bytes_on_disk": len(text), **more})
        path = place / f"{digest[7:23]}.erofs"
        made.rename(path)
        path.chmod(0o644)
        record = path.with_suffix(".json")
        record.write_bytes(data_image_to_json(image))
        os.utime(record, (time.time() - age, time.time() - age))
        return path

    def mount(self, *images: Path, root: bool = True, check: bool = False, **more: Any) -> support.Ran:
        data = [*map(str, images), *([str(self.root)] if root else [])]
        arguments = {"path": str(self.view), "lower": [str(self.layer)], "data": data, **more}
        return support.module("overlay_mount", check=check, **arguments)

    def prune(self, check: bool = False, **more: Any) -> dict[str, Any]:
        arguments = {"state_dir": str(self.state_dir), "min_age": 3600, **more}
        return support.module("overlay_prune", check=check, **arguments).ok

    def kept(self, image: Path) -> str:
        """Return why pruning keeps an image."""
        found = pruning_images.prune_data_images(str(self.state_dir), {}, 3600, check_mode=True)
        assert not found.removed
        return found.kept[image.stem][1]


@pytest.fixture
def host(area: Path) -> Host:
    state_dir, root = area / "state", area / "root"
    state_dir.mkdir(mode=0o700)
    support.make_small_release(root / "tool/1", "one")
    support.make_small_release(root / "tool/2", "two")
    placement = support.scanned(area / "store", root, "tool/1")
    layer, generation, _report = support.build(state_dir, [placement])
    return Host(area, state_dir, root, layer, generation.releases[0]["digest"])


# ---- the check before a mount


def test_an_image_with_a_record_of_a_release_of_the_view_is_mounted(host: Host) -> None:
    image = host.install()
    os.truncate(host.root / TOOL, 0)
    assert host.mount(image).ok["changed"]
    assert (host.view / TOOL).read_bytes() == b"#!/bin/sh\necho one\n"
    (found,) = [
        one for one in support.module("overlay_info", probe=False).ok["mounts"] if one["path"] == str(host.view)
    ]
    assert found["data"] == [str(image.with_suffix("")), str(host.root)]
    shown = {"path": str(image), "release": "tool/1", "kind": "trace", "complete": False}
    assert (found["data_images"], found["data_layers"], found["roots"]) == ([shown], "copies", [str(host.root)])
    support.unmount_all(host.view)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"release": "tool/2", "source": "tool/2"},
            "is of release tool/2, which the view does not show: leave the image out",
        ),
        (
            {"root_name": "/net/other"},
            "is of release tool/1 of the software root /net/other, and the view shows releases of",
        ),
        ({"manifest_digest": NO_DIGEST}, "was made with another manifest of release tool/1 than the view"),
        ({"bytes_on_disk": 7}, "bytes, and its record says 7"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_an_image_that_does_not_fit_the_view_is_refused_by_name(
    host: Host, fields: dict[str, Any], words: str, check: bool
) -> None:
    image = host.install(**fields)
    message = host.mount(image, check=check).message
    assert f"data image {image}" in message
    assert words in message
    assert not host.view.exists()


def test_a_damaged_record_is_refused_by_name(host: Host) -> None:
    image = host.install()
    image.with_suffix(".json").write_text("{}")
    assert f"{image.with_suffix('.json')}, beside data image {image}" in host.mount(image).message


def test_an_image_without_a_record_is_compared_with_the_software_root(host: Host) -> None:
    image = host.install()
    image.with_suffix(".json").unlink()
    assert host.mount(image).ok["changed"]
    support.unmount_all(host.view)
    support.write(host.root / TOOL, b"another program")
    message = host.mount(image).message
    assert f"data layers {image.with_suffix('')} and {host.root}" in message
    assert "have different files at tool/1/bin/tool" in message


# ---- what is in use


@contextmanager
def mounted(host: Host, image: Path) -> Iterator[None]:
    assert host.mount(image).ok["changed"]
    yield
    support.unmount_all(host.view)


@contextmanager
def mounted_in_a_container(host: Host, image: Path) -> Iterator[None]:
    assert host.mount(image).ok["changed"]
    with support.namespace("private"):
        support.unmount_all(host.view)
        yield


@contextmanager
def mapped_in_a_detached_overlay(host: Host, image: Path) -> Iterator[None]:
    assert host.mount(image).ok["changed"]
    code = (
        "import mmap, sys\nfd = open(sys.argv[1], 'rb')\nheld = mmap.mmap(fd.fileno(), 0, prot=mmap.PROT_READ)\nfd.close()\n"
        "print('ready', flush=True)\nsys.stdin.read()\nassert held[:2] == b'#!'\n"
    )
    with support.background(code, host.view / TOOL) as process:
        assert host.mount().ok["switched"]
        yield
        process.communicate()
        assert process.returncode == 0
    support.unmount_all(host.view)


@contextmanager
def visible_at_its_layer_name(host: Host, image: Path) -> Iterator[None]:
    del host
    image.with_suffix("").mkdir()
    support.command("mount", "-t", "erofs", "-o", "ro", image, image.with_suffix(""))
    yield
    support.unmount_all(image.with_suffix(""))
    image.with_suffix("").rmdir()


@contextmanager
def opened(host: Host, image: Path) -> Iterator[None]:
    del host
    with support.background("import sys\nf = open(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.read()", image):
        yield


@contextmanager
def mounted_at_boot(host: Host, image: Path) -> Iterator[None]:
    del host
    with open(boot_files.FSTAB, "rb") as stream:
        before = stream.read()
    place = Path(boot_files.FSTAB)
    support.command("mount", "--bind", make_copy(place, image), place)
    assert before != place.read_bytes()
    yield
    support.command("umount", place)


def make_copy(fstab: Path, image: Path) -> Path:
    copy = image.parent.parent / "fstab"
    copy.write_bytes(
        fstab.read_bytes() + b"%s %s erofs ro 0 0\n" % (os.fsencode(image), os.fsencode(image.with_suffix("")))
    )
    return copy


WAYS: list[tuple[Callable[..., Any], str]] = [
    (mounted, "it is mounted at"),
    (mounted_in_a_container, "in the mount namespace of process"),
    (mapped_in_a_detached_overlay, "it is used by python"),
    (visible_at_its_layer_name, "it is mounted at"),
    (opened, "it is open in python"),
    (mounted_at_boot, "it is mounted at boot"),
]


@pytest.mark.parametrize(("way", "reason"), WAYS, ids=[way.__name__ for way, _reason in WAYS])
def test_an_image_in_use_is_not_removed(host: Host, way: Callable[..., Any], reason: str) -> None:
    image = host.install()
    with way(host, image):
        assert reason in host.kept(image)
        found = pruning_images.prune_data_images(str(host.state_dir), {}, 0)
        assert (list(found.removed), list(found.kept)) == ([], [image.stem])
        assert image.exists()
    detached.in_use()
    assert support.loops_gone(host.area)
    found = pruning_images.prune_data_images(str(host.state_dir), {}, 0)
    assert list(found.removed) == [image.stem]
    assert sorted(os.listdir(image.parent)) == ["lock"]


def test_an_image_that_comes_into_use_meanwhile_is_put_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    image, other = host.install(), host.install(b"other")
    looks = iter([{}, {image.stem: ["it is mounted at /software"]}])
    monkeypatch.setattr(usage, "of_data_images", lambda _ids, **_forget: next(looks))
    found = pruning_images.prune_data_images(str(host.state_dir), {}, 0)
    assert (list(found.removed), found.kept[image.stem][1]) == ([other.stem], "it is mounted at /software")
    assert sorted(os.listdir(image.parent)) == sorted(["lock", image.name, f"{image.stem}.json"])


# ---- pruning


def test_images_that_no_view_needs_are_removed(host: Host) -> None:
    older, newer = host.install(b"older", age=9000), host.install(b"newer", age=8000)
    young = host.install(b"young", age=10, release="tool/2", source="tool/2")
    left = host.install(b"left", age=8000, release="tool/2", source="tool/2")
    checked = host.prune(check=True)
    assert {one["id"] for one in checked["removed_images"]} == {older.stem, left.stem}
    assert older.exists()
    done = host.prune()
    assert {one["id"] for one in done["removed_images"]} == {older.stem, left.stem}
    reasons = {one["id"]: one["reason"] for one in done["kept_images"]}
    assert reasons == {newer.stem: "view view shows its release", young.stem: "it is younger than 3600 seconds"}
    assert done["bytes_freed"] == sum(one["bytes"] for one in done["removed_images"])
    assert done["diff"]["before"]["data_images"] != done["diff"]["after"]["data_images"]
    assert installing.installed(str(host.state_dir)).keys() == {newer.stem, young.stem}
    assert not host.prune()["changed"]
    # With the name of a view, only its generations are pruned.
    assert host.prune(name="view", min_age=0)["kept_images"] == []


def test_what_a_caller_keeps_is_kept(host: Host) -> None:
    image = host.install()
    found = pruning_images.prune_data_images(str(host.state_dir), {image.stem: "view tools uses it"}, 0)
    assert found.kept[image.stem][1] == "view tools uses it"


def test_what_killed_runs_have_left_is_removed(host: Host) -> None:
    image = host.install()
    place = image.parent
    (place / "incoming").mkdir()
    (place / "incoming" / ("5" * 64)).write_bytes(b"part")
    (place / "removing").mkdir()
    (place / "removing" / ("6" * 16 + ".erofs")).write_bytes(b"")
    for name in ("7" * 16 + ".erofs", "8" * 16 + ".json", ".new-x", "notes.txt"):
        (place / name).write_bytes(b"")
    (place / ("9" * 16)).mkdir()
    first = host.prune()
    gone = {"6" * 16 + ".erofs", "7" * 16 + ".erofs", "8" * 16 + ".json", ".new-x", "9" * 16}
    assert {os.path.basename(path) for path in first["remains"]} == gone
    # An interrupted copy may be continued.
    assert (place / "incoming" / ("5" * 64)).exists()
    os.utime(place / "incoming" / ("5" * 64), (0, 0))
    os.utime(place / "incoming", (0, 0))
    assert host.prune()["remains"] == [str(place / "incoming")]
    assert not host.prune()["changed"]
    assert (place / "notes.txt").exists()
    assert image.exists()


def test_an_image_in_use_that_a_killed_run_moved_aside_gets_its_name_back(host: Host) -> None:
    image = host.install()
    with mounted(host, image):
        (image.parent / "removing").mkdir()
        image.rename(image.parent / "removing" / image.name)
        found = pruning_images.prune_data_images(str(host.state_dir), {}, 0)
        assert (list(found.kept), found.remains) == ([image.stem], [])
        assert image.exists()


def test_a_damaged_record_keeps_all_images(host: Host) -> None:
    image = host.install()
    image.with_suffix(".json").write_text("{}")
    with pytest.raises(OverlayError, match="not the record of a data image"):
        pruning_images.prune_data_images(str(host.state_dir), {}, 0)
    assert image.exists()


def test_a_host_without_data_images_has_none_to_remove(host: Host) -> None:
    assert host.prune()["kept_images"] == []
    assert not (host.state_dir / "data").exists()
