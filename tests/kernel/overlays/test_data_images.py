"""Data layers that are EROFS images: what is read from them, how many there may be, and what a switch of them shows."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import (
    boot_mounts,
    mount_task,
    mount_units,
    view_lines,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import health
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, images, mounts, probe
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MOST_LAYERS, MountSpec
from ansible_collections.renderfarm.overlay.tests.kernel import support

#: How many data images a view of a few hundred releases has.
MANY = 400
#: Seconds within which an overlay of so many images has to be mounted, also on a busy machine.
MANY_SECONDS = 20.0


def make_layer(path: Path, files: dict[str, bytes]) -> Path:
    """Create a metadata layer of files with this content, which is not in it; return its path."""
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        support.write(file)
        os.setxattr(file, "trusted.overlay.metacopy", b"")
        os.setxattr(file, "trusted.overlay.redirect", b"/" + name.encode())
        os.truncate(file, len(content))
    return path


def make_tree(path: Path, files: dict[str, bytes]) -> Path:
    """Create a directory of files with this content; return its path."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        support.write(path / name, content)
    return path


def make_image(image: Path, files: dict[str, bytes]) -> Path:
    """Build an image of files with this content; return its path."""
    source = make_tree(image.parent / f"{image.stem}.source", files)
    support.image_of(source, image)
    shutil.rmtree(source)
    return image


FILES = {"tool/1/bin/run": b"a program", "tool/1/lib/part": b"a library"}
#: What the software root has at these paths, to see where a file is read from.
ROOT = {"tool/1/bin/run": b"A PROGRAM", "tool/1/lib/part": b"A LIBRARY"}


def make_view(area: Path, image: Path, chosen: Sequence[str] = ("tool/1/bin/run",), **more: Any) -> MountSpec:
    """Declare a view with an image of some of its files before the software root."""
    layer = make_layer(area / "g" / "layer", FILES)
    make_image(image, {name: FILES[name] for name in chosen})
    return support.declared(area / "view", [layer], [image, make_tree(area / "root", ROOT)], **more)


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_files_of_an_image_are_read_from_it_and_others_from_the_next_data_layer(
    area: Path, on_disk: Path, place: str
) -> None:
    base = on_disk if place == "disk" else area
    image = base / "data" / "0123456789abcdef.erofs"
    spec = make_view(area, image)
    before = len(namespaces.own_mounts())
    assert support.carried_out(spec) == ["CreateMountpoint", "MountOverlay"]
    assert (area / "view/tool/1/bin/run").read_bytes() == b"a program"
    assert (area / "view/tool/1/lib/part").read_bytes() == b"A LIBRARY"
    live = support.live(area / "view")
    assert live
    # Only the overlay is visible, and it goes by the name of the image without its suffix.
    assert overlay_layers(live).data == (os.fsencode(image.with_suffix("")), os.fsencode(area / "root"))
    assert len(namespaces.own_mounts()) == before + 1
    assert os.listdir(image.parent) == [image.name]
    support.unmount_all(area / "view")
    assert support.loops_gone(base)


def test_the_module_mounts_and_switches_data_images_and_changes_nothing_twice(area: Path) -> None:
    spec = make_view(area, area / "data" / "one.erofs")
    make_image(area / "data" / "two.erofs", FILES)
    root, layer = str(area / "root"), os.fsdecode(spec.lower[0])
    for names in (["one"], ["two", "one"], ["two"]):
        data = [str(area / "data" / f"{name}.erofs") for name in names]
        arguments: dict[str, Any] = {"path": str(area / "view"), "lower": [layer], "data": [*data, root]}
        checked = support.module("overlay_mount", True, True, **arguments).ok
        done = support.module("overlay_mount", **arguments).ok
        again = support.module("overlay_mount", **arguments).ok
        assert (checked["changed"], done["changed"], again["changed"]) == (True, True, False)
        shown = [*(path.removesuffix(".erofs") for path in data), root]
        assert checked["diff"]["after"]["data"] == done["diff"]["after"]["data"] == done["mount"]["data"] == shown
    assert (area / "view/tool/1/lib/part").read_bytes() == b"a library"
    support.unmount_all(area / "view")


def test_an_image_that_others_can_write_to_is_refused(area: Path) -> None:
    spec = make_view(area, area / "data" / "one.erofs")
    (area / "data" / "one.erofs").chmod(0o666)
    arguments: dict[str, Any] = {
        "path": str(area / "view"),
        "lower": [os.fsdecode(spec.lower[0])],
        "data": [str(area / "data/one.erofs")],
    }
    assert "only root may be able to write" in support.module("overlay_mount", **arguments).message
    (area / "data" / "one.erofs").chmod(0o644)
    (area / "data").chmod(0o777)
    assert "only root may be able to write" in support.module("overlay_mount", **arguments).message
    assert not (area / "view").exists()


@pytest.mark.parametrize("way", ["file", "loop"])
def test_an_overlay_can_be_mounted_over_a_view_with_data_images(
    area: Path, on_disk: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "loop":
        monkeypatch.setattr(images, "mounts_well_from_file", lambda _image, _place: False)
    spec = make_view(on_disk, on_disk / "data" / "one.erofs")
    support.carried_out(spec)
    assert len(support.loops_on(on_disk)) == (1 if way == "loop" else 0)
    (area / "empty").mkdir()
    over = support.declared(area / "over", [on_disk / "view", area / "empty"])
    with support.mounted(over) as path:
        assert (path / "tool/1/bin/run").read_bytes() == b"a program"
    support.unmount_all(on_disk / "view")
    assert support.loops_gone(on_disk)


def test_a_loop_device_is_used_where_a_mount_from_the_file_counts_as_a_level(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = syscalls.mount

    def mount(source: bytes, path: bytes, fstype: bytes | None, flags: int, options: bytes | None = None) -> None:
        if path == b"twice":
            raise OSError(errno.EINVAL, "maximum fs stacking depth exceeded")
        real(source, path, fstype, flags, options)

    monkeypatch.setattr(syscalls, "mount", mount)
    support.carried_out(make_view(on_disk, on_disk / "data" / "one.erofs"))
    assert len(support.loops_on(on_disk)) == 1
    assert (on_disk / "view/tool/1/bin/run").read_bytes() == b"a program"
    support.unmount_all(on_disk / "view")
    assert support.loops_gone(on_disk)


def test_an_image_is_mounted_from_its_file_where_no_loop_device_can_be_had(
    on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_loop(_image: int) -> int:
        raise OverlayError("no loop device is free")

    monkeypatch.setattr(images, "mounts_well_from_file", lambda _image, _place: False)
    monkeypatch.setattr(images, "attach_loop", no_loop)
    support.carried_out(make_view(on_disk, on_disk / "data" / "one.erofs"))
    assert (on_disk / "view/tool/1/bin/run").read_bytes() == b"a program"


def many(base: Path) -> tuple[list[Path], MountSpec]:
    """Make an image of each of many releases, and declare a view of them."""
    content = {f"release/{number}/file": b"content %d" % number for number in range(MANY)}
    layer = make_layer(base / "g" / "layer", content)
    found = [
        make_image(base / "data" / f"{number:016x}.erofs", {name: text})
        for number, (name, text) in enumerate(content.items())
    ]
    (base / "root").mkdir()
    return found, support.declared(base / "view", [layer], [*found, base / "root"])


@pytest.mark.parametrize("way", ["file", "loop"])
def test_hundreds_of_images_are_mounted_and_switched_in_seconds(
    on_disk: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, spec = many(on_disk)
    if way == "loop":
        monkeypatch.setattr(images, "mounts_well_from_file", lambda _image, _place: False)
    start = time.monotonic()
    support.carried_out(spec)
    mounted = time.monotonic() - start
    assert len(support.loops_on(on_disk)) == (MANY if way == "loop" else 0)
    for number in range(MANY):
        assert (on_disk / f"view/release/{number}/file").read_bytes() == b"content %d" % number
    fewer = support.declared(on_disk / "view", [on_disk / "g/layer"], [*found[1:], on_disk / "root"])
    start = time.monotonic()
    assert support.carried_out(fewer) == ["SwitchOverlay"]
    switched = time.monotonic() - start
    with pytest.raises(FileNotFoundError):
        (on_disk / "view/release/0/file").read_bytes()
    support.unmount_all(on_disk / "view")
    assert support.loops_gone(on_disk)
    print("seconds", f"{mounted:.2f} {switched:.2f}")
    assert max(mounted, switched) < MANY_SECONDS


def test_the_kernel_takes_as_many_layers_as_the_module(area: Path) -> None:
    layer = make_layer(area / "layer", FILES)
    data = [make_tree(area / f"d{number}", {}) for number in range(MOST_LAYERS)]
    with support.mounted(support.declared(area / "view", [layer], data[1:])) as path:
        assert os.listdir(path) == ["tool"]
    arguments: dict[str, Any] = {
        "path": str(area / "other"),
        "lower": [str(layer)],
        "data": [str(path) for path in data],
    }
    assert "overlayfs takes 500 layers in all" in support.module("overlay_mount", **arguments).message
    assert not (area / "other").exists()


def declared_plan(spec: MountSpec) -> None:
    mount_task.plan_declared(spec, mounts.observe(spec.path), creating.overlay_defaults(), "auto", "carry")


def test_a_kernel_without_data_only_layers_is_named_before_anything_is_changed(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_data_only(_scratch: str) -> str:
        raise probe.TrialError("the kernel refuses it")

    spec = make_view(area, area / "data" / "one.erofs")
    declared_plan(spec)
    monkeypatch.setitem(probe.TRIALS, "data_only", no_data_only)
    with pytest.raises(
        OverlayError, match=r"data image .*/one\.erofs, and data images need data-only layers .*refuses it"
    ):
        declared_plan(spec)
    # Data layers that are directories are tried by mounting, as before.
    declared_plan(support.declared(area / "view", [area / "g/layer"], [area / "root"]))


def test_a_kernel_that_takes_one_option_for_all_layers_is_named_before_anything_is_changed(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_view(area, area / "data" / f"{'x' * 200}.erofs")
    monkeypatch.setattr(creating, "takes_layers_one_by_one", lambda: False)
    with pytest.raises(OverlayError, match=r"and this kernel takes 255 \(Linux 6\.8"):
        declared_plan(spec)
    short = make_view(area / "s", area / "s" / "i.erofs")
    declared_plan(short)
    support.carried_out(short)
    assert (area / "s/view/tool/1/bin/run").read_bytes() == b"a program"


# ---- uses of the view


def test_the_health_check_reads_files_from_data_images(area: Path) -> None:
    spec = make_view(area, area / "data" / "one.erofs", list(FILES))
    shutil.rmtree(area / "root")
    (area / "root").mkdir()
    releases = [{"release": "tool/1", "at": "tool/1"}]
    check = health.HealthCheck("cat tool/1/bin/run", "root", 30.0, {})
    health.try_unseen(spec, "carry", releases, check, 30.0, lambda: None)
    assert not (area / "view").exists()
    without = support.declared(area / "view", [area / "g/layer"], [area / "root"])
    with pytest.raises(OverlayError, match=r"release tool/1: .* cannot be opened"):
        health.try_unseen(without, "carry", releases, check, 30.0, lambda: None)


@pytest.mark.parametrize("kind", ["upper", "scratch"])
def test_a_writable_view_copies_up_from_a_data_image(area: Path, kind: str) -> None:
    make_view(area, area / "data" / "one.erofs")
    arguments: dict[str, Any] = {
        "path": str(area / "view"),
        "lower": [str(area / "g/layer")],
        "data": [str(area / "data/one.erofs"), str(area / "root")],
    }
    if kind == "scratch":
        arguments["scratch"] = "16M"
    else:
        (area / "kept").mkdir(mode=0o700)
        arguments.update(upper=str(area / "kept/upper"), work=str(area / "kept/work"))
    assert support.module("overlay_mount", **arguments).ok["changed"]
    with open(area / "view/tool/1/bin/run", "ab") as stream:
        stream.write(b", changed")
    assert (area / "view/tool/1/bin/run").read_bytes() == b"a program, changed"
    assert not support.module("overlay_mount", **arguments).ok["changed"]
    support.unmount_all(area / "view")


def test_a_finalized_overlay_is_mounted_again_with_its_data_image(area: Path) -> None:
    (area / "kept").mkdir(mode=0o700)
    writable = support.writable(area / "kept/upper", area / "kept/work")
    spec = make_view(area, area / "data" / "one.erofs", list(FILES), writable=writable)
    support.carried_out(spec)
    arguments: dict[str, Any] = {"path": str(area / "view"), "owner": "12", "allow_unmount": True}
    assert support.module("overlay_finalize", **arguments).ok["changed"]
    live = support.live(area / "view")
    assert live
    assert overlay_layers(live).data == spec.data
    assert (area / "view/tool/1/lib/part").read_bytes() == b"a library"
    assert (area / "view/tool/1/lib/part").stat().st_uid == 12
    support.unmount_all(area / "view")


READER = """
import hashlib, os, random, sys
view, listed, stop, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with open(listed) as stream:
    digests = [line.split() for line in stream]
opens = 0
print("ready", flush=True)
while not os.path.exists(stop) or opens < count:
    name, digest = random.choice(digests)
    with open(os.path.join(view, name), "rb") as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == digest, name
    opens += 1
print(opens, flush=True)
"""


def test_a_reader_notices_no_switch_between_the_software_root_and_images(area: Path) -> None:
    content = {f"tool/{number % 7}/file{number}": os.urandom(100 + 37 * number) for number in range(120)}
    layer = make_layer(area / "layer", content)
    root = make_tree(area / "root", content)
    whole = make_image(area / "data" / "whole.erofs", content)
    part = make_image(area / "data" / "part.erofs", dict(list(content.items())[::2]))
    forms = [[root], [part, root], [whole]]
    specs = [support.declared(area / "view", [layer], data) for data in forms]
    support.carried_out(specs[0])
    listed, stop = area / "listed", area / "stop"
    listed.write_text("".join(f"{name} {hashlib.sha256(text).hexdigest()}\n" for name, text in content.items()))
    times = []
    with support.background(READER, area / "view", listed, stop, 100_000) as process:
        for number in range(1, 51):
            start = time.monotonic()
            assert support.carried_out(specs[number % 3]) == ["SwitchOverlay"]
            times.append(time.monotonic() - start)
            time.sleep(0.1)
        stop.touch()
        output, _none = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert int(output) >= 100_000
    print("opens", output.strip())
    print("seconds", f"{statistics.median(times):.3f}")
    support.unmount_all(area / "view")


def test_a_mapped_file_stays_readable_after_its_image_was_switched_away(area: Path) -> None:
    spec = make_view(area, area / "data" / "one.erofs")
    support.carried_out(spec)
    with open(area / "view/tool/1/bin/run", "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
    support.carried_out(support.declared(area / "view", [area / "g/layer"], [area / "root"]))
    assert (area / "view/tool/1/bin/run").read_bytes() == b"A PROGRAM"
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as caches:
        caches.write("3")
    assert mapped[:] == b"a program"
    mapped.close()
    support.unmount_all(area / "view")
    assert support.loops_gone(area)


# ---- at boot


def test_fifty_images_are_mounted_at_boot_before_the_view(on_disk: Path) -> None:
    content = {f"r/{number}/file": b"%d" % number for number in range(50)}
    layer = make_layer(on_disk / "layer", content)
    found = [
        make_image(on_disk / f"{number:02}.erofs", {name: text}) for number, (name, text) in enumerate(content.items())
    ]
    (on_disk / "root").mkdir()
    spec = support.declared(on_disk / "view", [layer], [*found, on_disk / "root"])
    lines = view_lines.desired_lines(spec, append=True, any_length=True)
    units = mount_units.desired_units(spec, append=True)
    assert len(lines) == len(units) == 51
    for where in (spec.path, *boot_mounts.places(spec)):
        os.makedirs(where, exist_ok=True)
    start = time.monotonic()
    for unit in units:
        said = dict(line.split("=", 1) for line in unit.text.decode().splitlines() if "=" in line)
        support.command("mount", said["What"], said["Where"], "-t", said["Type"], "-o", said["Options"])
    print("seconds", f"{time.monotonic() - start:.2f}")
    assert support.planned(spec) == ()
    for name, text in content.items():
        assert (on_disk / "view" / name).read_bytes() == text
