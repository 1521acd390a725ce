"""Data images are found in an image store, and installed by their digests."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing, published
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import (
    DataImage,
    data_image_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import support

CONTENT = os.urandom(3 << 20)
NO_DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def images(area: Path) -> Path:
    return area / "store"


@pytest.fixture
def image(images: Path) -> DataImage:
    return published_image(images, CONTENT)


def published_image(images: Path, content: bytes, kind: str = "trace", release: str = "tool/1.0") -> DataImage:
    """Put a file and its records into a store, as a published image has them."""
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    image = DataImage(release, release, "/net", NO_DIGEST, kind, NO_DIGEST, False, 1, 0, 5, 2, digest, len(content))
    place = Path(published.release_directory(str(images), release))
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{image.id}.erofs").write_bytes(content)
    for name in (image.id, kind):
        (place / f"{name}.json").write_bytes(data_image_to_json(image))
    return image


def files_in(state_dir: Path) -> list[str]:
    return sorted(str(path.relative_to(state_dir)) for path in state_dir.rglob("*") if path.is_file())


def test_the_current_image_of_a_kind_is_found(images: Path, image: DataImage) -> None:
    assert published.find(str(images), "tool/1.0", "trace") == image
    assert published.find_by_id(str(images), "tool/1.0", image.id) == image
    assert published.find(str(images), "tool/1.0", "everything") is None
    assert published.find(str(images), "tool/2.0", "trace") is None


def test_an_image_that_is_not_whole_is_not_found(images: Path, image: DataImage) -> None:
    os.truncate(published.image_path(str(images), image), 5)
    assert published.find(str(images), "tool/1.0", "trace") is None
    os.unlink(published.image_path(str(images), image))
    assert published.find_by_id(str(images), "tool/1.0", image.id) is None


def test_the_record_of_another_release_is_refused(images: Path, image: DataImage) -> None:
    place = Path(published.release_directory(str(images), "tool/1.0"))
    (place / "trace.json").write_bytes(data_image_to_json(replace(image, release="tool/2.0")))
    with pytest.raises(OverlayError, match=r"tool/2\.0"):
        published.find(str(images), "tool/1.0", "trace")
    (place / "trace.json").write_bytes(b"{")
    with pytest.raises(OverlayError, match="not the record"):
        published.find(str(images), "tool/1.0", "trace")


def test_an_installed_image_equals_the_published_one(area: Path, images: Path, image: DataImage) -> None:
    state_dir = str(area / "state")
    assert installing.installed(state_dir) == {}
    installing.install(str(images), image, state_dir)
    assert installing.installed(state_dir) == {image.id: image}
    path = Path(installing.data_image_path(state_dir, image.id))
    assert path.read_bytes() == CONTENT
    assert path.parent.stat().st_mode & 0o777 == 0o700
    before = path.stat()
    os.rename(images, area / "gone")
    installing.install(str(images), image, state_dir)
    assert path.stat() == before


def test_an_interrupted_copy_continues(area: Path, images: Path, image: DataImage) -> None:
    incoming = area / "state" / "data" / "incoming"
    incoming.mkdir(parents=True, mode=0o700)
    part = incoming / image.digest.partition(":")[2]
    part.write_bytes(CONTENT[: 1 << 20])
    inode = part.stat().st_ino
    installing.install(str(images), image, str(area / "state"))
    path = Path(installing.data_image_path(str(area / "state"), image.id))
    assert (path.read_bytes(), path.stat().st_ino) == (CONTENT, inode)


def test_a_damaged_copy_is_made_again(area: Path, images: Path, image: DataImage) -> None:
    incoming = area / "state" / "data" / "incoming"
    incoming.mkdir(parents=True, mode=0o700)
    (incoming / image.digest.partition(":")[2]).write_bytes(b"wrong")
    installing.install(str(images), image, str(area / "state"))
    assert Path(installing.data_image_path(str(area / "state"), image.id)).read_bytes() == CONTENT


def test_an_image_with_another_digest_is_refused(area: Path, images: Path, image: DataImage) -> None:
    Path(published.image_path(str(images), image)).write_bytes(CONTENT[::-1])
    with pytest.raises(OverlayError, match="digest"):
        installing.install(str(images), image, str(area / "state"))
    assert files_in(area / "state") == ["data/lock"]


@pytest.fixture
def small_disk(area: Path) -> Iterator[Path]:
    place = area / "small"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "-o", "mode=0755,size=2m", "tmpfs", place)
    yield place
    support.command("umount", "--lazy", place)


def test_an_image_that_does_not_fit_leaves_nothing(small_disk: Path, images: Path, image: DataImage) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        installing.install(str(images), image, str(small_disk / "state"))
    assert caught.value.errno == errno.ENOSPC
    assert files_in(small_disk / "state") == ["data/lock"]
    assert installing.installed(str(small_disk / "state")) == {}


def test_an_installed_image_without_its_record_is_installed_again(area: Path, images: Path, image: DataImage) -> None:
    state_dir = str(area / "state")
    installing.install(str(images), image, state_dir)
    os.unlink(installing.record_path(state_dir, image.id))
    assert installing.installed(state_dir) == {}
    installing.install(str(images), image, state_dir)
    assert installing.installed(state_dir) == {image.id: image}


def test_an_image_that_others_can_write_to_is_refused(area: Path, images: Path, image: DataImage) -> None:
    state_dir = str(area / "state")
    installing.install(str(images), image, state_dir)
    os.chmod(installing.data_image_path(state_dir, image.id), 0o666)
    with pytest.raises(OverlayError, match="only root"):
        installing.installed(state_dir)


def test_verity_that_the_file_system_lacks_is_refused_only_if_it_is_required(
    area: Path, images: Path, image: DataImage
) -> None:
    # Images are installed to tmpfs here, which has no fs-verity.
    state_dir = str(area / "state")
    with pytest.raises(OverlayError, match=r"cannot have fs-verity, which require_verity asks for"):
        installing.install(str(images), image, state_dir, require_verity=True)
    assert installing.installed(state_dir) == {}
    installing.install(str(images), image, state_dir)
    assert not files.has_verity(installing.data_image_path(state_dir, image.id))
    with pytest.raises(OverlayError, match="require_verity"):
        installing.install(str(images), image, state_dir, require_verity=True)
    assert installing.installed(state_dir) == {image.id: image}


@pytest.mark.usefixtures("with_programs")
def test_a_layer_without_required_verity_is_refused(area: Path, odd: Placement) -> None:
    built = support.module(
        "metadata_layer", name="v", releases=[{"manifest": odd.manifest}], image_store=str(area / "store")
    ).ok
    options = {"name": "v", "image": built["image"], "image_digest": built["image_digest"]}
    options["state_dir"] = str(area / "state")
    refused = support.module("metadata_layer", require_verity=True, **options)
    assert "cannot have fs-verity" in refused.message
    assert support.module("metadata_layer", **options).ok["changed"]
    refused = support.module("metadata_layer", require_verity=True, **options)
    assert "was installed without fs-verity" in refused.message
    refused = support.module(
        "metadata_layer",
        name="v",
        state_dir=str(area / "state"),
        releases=[{"manifest": odd.manifest}],
        require_verity=True,
    )
    assert "require_verity is for layers that are installed from an image" in refused.message
