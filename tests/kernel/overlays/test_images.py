"""EROFS images as lower layers: only the overlay sees their mounts, and they go with it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.tests.kernel import support


def make_layer(path: Path, content: dict[str, bytes]) -> Path:
    """Create a metadata layer of files with this content; return its path."""
    path.mkdir(parents=True)
    for name, text in content.items():
        support.write(path / name)
        os.setxattr(path / name, "trusted.overlay.metacopy", b"")
        os.setxattr(path / name, "trusted.overlay.redirect", b"/" + name.encode())
        os.truncate(path / name, len(text))
    return path


def make_data(path: Path, content: dict[str, bytes]) -> Path:
    """Create a data layer of files with this content; return its path."""
    path.mkdir(parents=True)
    for name, text in content.items():
        support.write(path / name, text)
    return path


def make_image(image: Path, content: dict[str, bytes]) -> Path:
    """Build an image of a metadata layer of files with this content; return its path."""
    layer = make_layer(image.parent / "source", content)
    support.image_of(layer, image)
    support.command("rm", "-r", layer)
    return image


def over_empty(view: Path, image: Path) -> MountSpec:
    """Declare an overlay of an image over an empty directory, since the kernel needs two layers."""
    empty = view.parent / "empty"
    empty.mkdir(exist_ok=True)
    return support.declared(view, [image, empty])


def erofs_mounts() -> list[bytes]:
    return [one.path for one in namespaces.own_mounts() if one.fstype == b"erofs"]


CONTENT = {"one": b"content one", "two": b"the second"}


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_only_the_overlay_of_an_image_is_visible(area: Path, on_disk: Path, place: str) -> None:
    base = on_disk if place == "disk" else area
    image = make_image(base / "generations" / "layer.erofs", CONTENT)
    data = make_data(area / "data", CONTENT)
    before = len(namespaces.own_mounts())
    spec = support.declared(area / "view", [image], [data])
    assert support.carried_out(spec) == ["CreateMountpoint", "MountOverlay"]
    for name, text in CONTENT.items():
        assert (area / "view" / name).read_bytes() == text
    live = support.live(area / "view")
    assert live
    assert overlay_layers(live).lower == (os.fsencode(base / "generations" / "layer"),)
    assert len(namespaces.own_mounts()) == before + 1
    assert os.listdir(image.parent) == ["layer.erofs"]
    # On a disk, Linux 6.12 needs no loop device.
    assert len(support.loops_on(base)) == (0 if place == "disk" else 1)
    support.unmount_all(area / "view")
    assert support.loops_gone(base)


def test_a_loop_device_is_freed_with_the_last_overlay_on_it(area: Path) -> None:
    first, second = (make_image(area / f"g{n}" / "layer.erofs", {"file": b"x" * n}) for n in (1, 2))
    data = make_data(area / "data", {"file": b"xx"})
    support.carried_out(support.declared(area / "view", [first], [data]))
    assert len(support.loops_on(area)) == 1
    with open(area / "view" / "file") as held:
        assert support.carried_out(support.declared(area / "view", [second], [data])) == ["SwitchOverlay"]
        assert len(support.loops_on(area)) == 2
        assert held.readable()
    for _attempt in range(100):
        if len(support.loops_on(area)) == 1:
            break
        time.sleep(0.05)
    assert len(support.loops_on(area)) == 1
    support.unmount_all(area / "view")
    assert support.loops_gone(area)


def test_directories_images_and_data_layers_may_share_a_directory(area: Path) -> None:
    both = area / "layers"
    one = make_image(both / "one.erofs", {"one": b"content one"})
    two = make_image(both / "inner" / "two.erofs", {"two": b"the second"})
    three = make_layer(both / "three", {"three": b"third"})
    (both / "four").mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", both / "four")
    data = make_data(both / "four" / "data", {"one": b"content one", "three": b"third"})
    more = make_data(both / "inner" / "data", {"two": b"the second"})
    spec = support.declared(area / "view", [one, three, two], [data, more])
    support.carried_out(spec)
    assert {name: (area / "view" / name).read_bytes() for name in os.listdir(area / "view")} == {
        "one": b"content one",
        "two": b"the second",
        "three": b"third",
    }
    support.unmount_all(area / "view")


def test_an_image_next_to_an_empty_directory_of_its_layer_name_is_mounted(area: Path) -> None:
    image = make_image(area / "g" / "layer.erofs", CONTENT)
    (area / "g" / "layer").mkdir()
    support.carried_out(support.declared(area / "view", [image], [make_data(area / "data", CONTENT)]))
    assert (area / "view" / "one").read_bytes() == CONTENT["one"]
    assert os.listdir(area / "g" / "layer") == []


def test_an_image_on_a_read_only_file_system_is_mounted(area: Path) -> None:
    (area / "share").mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", area / "share")
    image = make_image(area / "share" / "layer.erofs", {"one": b""})
    support.command("mount", "-o", "remount,ro", area / "share")
    support.carried_out(over_empty(area / "view", image))
    assert os.listdir(area / "view") == ["one"]


def test_only_the_overlay_propagates_from_a_shared_mount(area: Path) -> None:
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", "--make-shared", place)
    image = make_image(place / "g" / "layer.erofs", {"one": b""})
    with support.namespace() as pid:
        support.carried_out(over_empty(place / "view", image))
        with open(f"/proc/{pid}/mountinfo", "rb") as stream:
            seen = [one.path for one in mountinfo.parse(stream.read())]
    assert [os.fsdecode(path) for path in seen if path.startswith(os.fsencode(place) + b"/")] == [f"{place}/view"]


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.002, 0.004, 0.006, 0.008])
def test_a_run_that_is_killed_leaves_no_mount_and_no_loop_device(area: Path, moment: float) -> None:
    image = make_image(area / "g" / "layer.erofs", {"one": b""})
    spec = over_empty(area / "view", image)
    (area / "view").mkdir()
    child = os.fork()
    if child == 0:
        try:
            support.carried_out(spec)
        finally:
            os._exit(0)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    support.unmount_all(area / "view")
    assert support.loops_gone(area)
    assert erofs_mounts() == []


def test_a_mounted_image_may_be_replaced_or_removed(area: Path) -> None:
    image = make_image(area / "g" / "layer.erofs", {"one": b"1"})
    (area / "data").mkdir()
    arguments: dict[str, Any] = {"path": str(area / "view"), "lower": [str(image)], "data": [str(area / "data")]}
    assert support.module("overlay_mount", **arguments).ok["changed"]
    make_image(area / "other" / "layer.erofs", {"two": b"2"}).rename(image)
    assert not support.module("overlay_mount", **arguments).ok["changed"]
    image.unlink()
    again = support.module("overlay_mount", **arguments).ok
    assert not again["changed"]
    assert "does not exist" in str(again["warnings"])
    assert os.listdir(area / "view") == ["one"]
    # It cannot be mounted again.
    support.unmount_all(area / "view")
    assert "layer.erofs of the overlay" in support.module("overlay_mount", **arguments).message


def test_a_removed_layer_of_a_live_overlay_is_only_a_warning(area: Path) -> None:
    for name in ("layer", "data"):
        (area / name).mkdir()
    arguments: dict[str, Any] = {
        "path": str(area / "view"),
        "lower": [str(area / "layer")],
        "data": [str(area / "data")],
    }
    assert support.module("overlay_mount", **arguments).ok["changed"]
    (area / "layer").rmdir()
    again = support.module("overlay_mount", **arguments).ok
    assert not again["changed"]
    assert "does not exist" in str(again["warnings"])


def test_a_file_that_is_no_image_is_refused_by_name(area: Path) -> None:
    support.write(area / "noise.erofs", b"x" * 8192)
    support.write(area / "empty.erofs")
    support.write(area / "layer.img", b"x")
    data = make_data(area / "data", {})
    for name in ("noise.erofs", "empty.erofs"):
        with pytest.raises(OverlayError, match=rf"image .*/{name}: the kernel cannot mount it"):
            support.carried_out(support.declared(area / "view", [area / name], [data]))
    with pytest.raises(OverlayError, match=r"layer\.img is a file and has no name of an image: .* ends in \.erofs"):
        support.declared(area / "view", [area / "layer.img"])
    assert support.loops_gone(area)


def test_a_layer_with_an_image_in_it_is_refused_by_name(area: Path) -> None:
    image = make_image(area / "g" / "layer.erofs", {"one": b""})
    with pytest.raises(OverlayError, match=r"layer .*/g has images in it: move them out"):
        support.carried_out(support.declared(area / "view", [image], [area / "g"]))


def test_an_image_next_to_a_directory_of_its_layer_name_with_entries_is_refused(area: Path) -> None:
    image = make_image(area / "g" / "layer.erofs", {"one": b""})
    (area / "g" / "layer" / "else").mkdir(parents=True)
    ran = support.module("overlay_mount", path=str(area / "view"), lower=[str(image)])
    assert f"image {image} is next to directory {area}/g/layer, which is not empty" in ran.message
    assert not (area / "view").exists()


def test_an_image_is_mounted_in_a_chroot(area: Path) -> None:
    top = area / "top"
    image = make_image(top / "g" / "layer.erofs", {"one": b"1"})
    for name in ("proc", "dev", "tmp", "view"):
        (top / name).mkdir()
    support.command("mount", "-t", "proc", "proc", top / "proc")
    support.command("mount", "--bind", "/dev", top / "dev")
    inside = Path("/") / image.relative_to(top)

    def mount_there(_progress: deadline.Progress) -> list[str]:
        os.chroot(top)
        os.chdir("/")
        support.carried_out(over_empty(Path("/view"), inside))
        return os.listdir("/view")

    assert deadline.run(mount_there, 30) == ["one"]
    assert os.listdir(top / "view") == ["one"]
    support.unmount_all(top / "view")
    assert support.loops_gone(area)


def test_a_private_namespace_keeps_the_chroot(area: Path) -> None:
    top = area / "top"
    (top / "below").mkdir(parents=True)

    def look(_progress: deadline.Progress) -> tuple[list[str], str]:
        os.chroot(top)
        os.chdir("/below")
        namespaces.make_private()
        return os.listdir("/"), os.getcwd()

    assert deadline.run(look, 30) == (["below"], "/below")


def test_images_are_the_files_and_the_missing_paths_with_the_suffix(area: Path) -> None:
    (area / "directory.erofs").mkdir()
    support.write(area / "file")
    layers = [os.fsencode(area / name) for name in ("directory.erofs", "gone.erofs", "gone", "file")]
    assert images.among(layers) == [layers[1], layers[3]]
