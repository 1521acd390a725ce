"""What is damaged on a host is made again while readers have the views open, and nothing that is not whole takes its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing, published
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, image_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.data_images.test_install import published_image
from ansible_collections.renderfarm.overlay.tests.kernel.verify.test_overlay_verify import View, make_view

READER = """
import os, sys
view, stop, wanted, least = sys.argv[1:]
names = [os.path.join(place, name) for place, _names, files in os.walk(view) for name in files if wanted in ("", name)]
opens = failed = 0
print("ready", flush=True)
while opens < int(least) or not os.path.exists(stop):
    for name in names:
        opens += 1
        try:
            with open(name, "rb") as stream:
                stream.read(1)
        except OSError as error:
            failed += 1
            print(error)
print(opens, failed, flush=True)
"""


@contextlib.contextmanager
def opening(mountpoint: Path, stop: Path, name: str = "") -> Iterator[None]:
    """Open the files of a view, or those of one name, all the time while the block runs, and check that each open succeeds.

    ``stop`` is made at the end.
    """
    with support.background(READER, mountpoint, stop, name, 1000) as process:
        try:
            yield
        finally:
            stop.touch()
        output, _none = process.communicate(timeout=120)
    assert output.split()[-1] == "0", output


def rot(path: Path) -> None:
    """Replace a file by one that differs in its last bit. A mounted image may not be changed itself."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    aside = path.with_name("aside")
    aside.write_bytes(content)
    aside.chmod(path.stat().st_mode & 0o777)
    aside.rename(path)


def states_of(view: View) -> list[str]:
    """Return what is in the directory of the view besides its generations."""
    return sorted(path.name for path in (view.area / "state/views/view").iterdir() if "verified" not in path.name)


def test_a_directory_is_built_again_under_a_reader(area: Path) -> None:
    view = make_view(area)
    before = states_of(view)
    with support.mounted(support.declared(view.mountpoint, [view.layer], [view.root])):
        view.file().chmod(0o777)
        with opening(view.mountpoint, view.area / "stop"):
            assert view.verify(repair=True).ok["actions"][1].startswith("switch")
        assert view.codes("content") == {}
        assert states_of(view) == before


# ---- images of layers


@pytest.fixture
def image_view(area: Path, with_programs: None) -> Iterator[View]:  # noqa: ARG001
    """Provide a view of an image that is in an image store too."""
    builder = erofs_layer.find_builder()
    view = make_view(area, builder=builder)
    placements = [support.scanned(view.store, view.root, f"tool/{version}", checksum=True) for version in ("1", "2")]
    spec = LayerSpec("view", tuple(placements), "erofs", "data_only", "trusted")
    (area / "images").mkdir()
    image_store.publish(str(area / "images"), spec, builder, generations.composed(spec))
    with support.mounted(support.declared(view.mountpoint, [view.layer], [view.root])):
        assert view.codes("content") == {}
        rot(view.layer)
        assert view.codes() == {"digest_differs": 1}
        yield view


def test_an_image_is_copied_again_under_a_reader(image_view: View) -> None:
    # Neither manifests nor a program that makes images are needed for that.
    options: dict[str, Any] = {"store": None, "image_store": str(image_view.area / "images"), "repair": True}
    before = states_of(image_view)
    inode = image_view.layer.stat().st_ino
    would = image_view.verify(check=True, **options).ok
    assert image_view.layer.stat().st_ino == inode
    with opening(image_view.mountpoint, image_view.area / "stop"):
        done = image_view.verify(**options).ok
    assert [action.split()[0] for action in done["actions"]] == ["copy", "switch"]
    assert done["actions"] == would["actions"]
    assert done["ok"], done
    assert [one["code"] for one in done["repaired"]] == ["digest_differs"]
    assert image_view.codes("content") == {}
    assert states_of(image_view) == before


def test_an_image_that_the_store_does_not_have_is_built_again(image_view: View) -> None:
    support.command("sh", "-c", f"rm {image_view.area}/images/*")
    options: dict[str, Any] = {"image_store": str(image_view.area / "images"), "repair": True}
    refused = image_view.verify(store=None, **options)
    assert "give 'store' with all of its manifests, or 'image_store' with its image; image " in refused.message
    assert refused.result["counts"] == {"digest_differs": 1}
    with opening(image_view.mountpoint, image_view.area / "stop"):
        assert [action.split()[0] for action in image_view.verify(**options).ok["actions"]] == ["build", "switch"]
    assert image_view.codes("content") == {}


def test_a_damaged_image_of_the_store_is_not_installed(image_view: View) -> None:
    before, inode = states_of(image_view), image_view.layer.stat().st_ino
    [packed] = (image_view.area / "images").glob("*.gz")
    rot(packed)
    failed = image_view.verify(image_store=str(image_view.area / "images"), repair=True)
    assert "does not have the recorded digest" in failed.message
    assert failed.result["counts"] == {"digest_differs": 1}
    assert failed.result["repaired"] == []
    assert image_view.layer.stat().st_ino == inode
    support.command("rm", "-rf", str(image_view.area / "state/views/view/incoming"))
    assert states_of(image_view) == before


# ---- data images


@pytest.fixture
def data_view(area: Path) -> Iterator[View]:
    """Provide a view with a data image, from which alone its first release can be read, and a second view with the same image."""
    view = make_view(area)
    made = support.image_of(view.root, area / "made.erofs").read_bytes()
    image = published_image(area / "images", made, "everything", "tool/1")
    installing.install(str(area / "images"), image, str(area / "state"))
    placements = [support.scanned(view.store, view.root, "tool/2", checksum=True)]
    other, _generation, _report = support.build(area / "state", placements, name="other")
    data = [path_of(view, image), view.root]
    with (
        support.mounted(support.declared(view.mountpoint, [view.layer], data)),
        support.mounted(support.declared(area / "other", [other], data)),
    ):
        (view.root / "tool/1/bin/tool").unlink()
        assert set(view.codes("content")) == {"release_differs"}
        yield view


def image_of(view: View) -> DataImage:
    found = published.find(str(view.area / "images"), "tool/1", "everything")
    assert found is not None
    return found


def path_of(view: View, image: DataImage) -> Path:
    return Path(installing.data_image_path(str(view.area / "state"), image.id))


def test_a_data_image_is_copied_again_under_a_reader(data_view: View) -> None:
    image = path_of(data_view, image_of(data_view))
    options: dict[str, Any] = {"image_store": str(data_view.area / "images"), "repair": True}
    before = sorted(image.parent.iterdir())
    assert not data_view.verify("content", **options).ok["changed"]
    for lost in (0, 512):
        rot(image)
        os.truncate(image, image.stat().st_size - lost)
        assert data_view.codes("content")["data_image_differs"] == 1
        with opening(data_view.mountpoint, data_view.area / "stop"):
            done = data_view.verify("content", **options).ok
        # The other view has this image too.
        assert [action.split()[0] for action in done["actions"]] == ["copy", "switch", "switch"]
        assert [one["code"] for one in done["repaired"]] == ["data_image_differs"]
        assert "data_image_differs" not in done["counts"]
        assert sorted(image.parent.iterdir()) == before
        for place in ("view", "other"):
            assert (data_view.area / place / "tool/2/bin/tool").read_text().endswith("version 2\n")
        (data_view.area / "stop").unlink()


def test_a_data_image_that_the_kernel_does_not_mount_any_more_does_not_keep_a_layer_from_its_repair(
    data_view: View,
) -> None:
    image = path_of(data_view, image_of(data_view))
    damaged = image.with_name("damaged")
    damaged.write_bytes(bytes(image.stat().st_size))
    damaged.rename(image)
    data_view.file().chmod(0o777)
    # Without a repair, the level has nothing to do with data images.
    assert "data_image_differs" not in data_view.codes("metadata")
    refused = data_view.verify("metadata", repair=True)
    assert f"data image {image} cannot be repaired: give 'image_store'" in refused.message
    with opening(data_view.mountpoint, data_view.area / "stop"):
        done = data_view.verify("metadata", repair=True, image_store=str(data_view.area / "images")).ok
    assert [action.split()[0] for action in done["actions"]] == ["build", "copy", "switch", "switch"]
    assert done["ok"], done


def test_a_data_image_that_no_store_has_is_only_reported(data_view: View) -> None:
    image = path_of(data_view, image_of(data_view))
    rot(image)
    refused = data_view.verify("content", repair=True)
    assert f"data image {image} cannot be repaired: give 'image_store'" in refused.message
    support.command("rm", "-r", str(data_view.area / "images/.data"))
    refused = data_view.verify("content", repair=True, image_store=str(data_view.area / "images"))
    assert "is missing, incomplete or another image" in refused.message
    image.with_suffix(".json").unlink()
    assert data_view.codes("content") == {"record_damaged": 1}
