"""Mount, switch and unmount overlays on the real kernel."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountpoints, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import CreateMountpoint, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import plan_unmounted
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MOST_LAYERS,
    MOUNT_FLAGS,
    SETTINGS,
    MountSpec,
    OptionValue,
    mount_differences,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support

ODD = [
    b"plain",
    b"comma,colon:both,:",
    b"space and\ttab",
    b"back\\slash\\",
    b"new\nline",
    b"\xff\xfe not utf-8",
    b"#=\"'%s $x",
    b"a:b::c",
    b"\\,\\:",
    b" ",
]


def data_layer(path: Path | bytes, content: dict[str, bytes]) -> None:
    os.makedirs(path)
    for name, text in content.items():
        support.write(os.path.join(os.fsencode(path), name.encode()), text)


def metadata_layer(path: Path | bytes, content: dict[str, bytes]) -> None:
    os.makedirs(path)
    for name, text in content.items():
        file = os.path.join(os.fsencode(path), name.encode())
        support.write(file)
        os.setxattr(file, "trusted.overlay.metacopy", b"")
        os.setxattr(file, "trusted.overlay.redirect", b"/" + name.encode())
        os.truncate(file, len(text))


@pytest.mark.parametrize("name", ODD)
def test_layers_and_mountpoints_may_have_any_path(area: Path, name: bytes) -> None:
    base = os.fsencode(area) + b"/" + name
    metadata_layer(base + b"/layer" + name, {"file": b"content"})
    data_layer(base + b"/data" + name, {"file": b"content"})
    spec = support.declared(base + b"/view" + name, [base + b"/layer" + name], [base + b"/data" + name])
    assert support.carried_out(spec) == ["CreateMountpoint", "MountOverlay"]
    with open(spec.path + b"/file", "rb") as stream:
        assert stream.read() == b"content"
    assert support.carried_out(spec) == []
    for action in plan_unmounted(spec.path, mounts.observe(spec.path), absent=True):
        apply(action, mounts.HANDLERS)
    assert not os.path.exists(spec.path)


@pytest.mark.parametrize("name", ODD)
def test_layers_given_in_one_option_are_reported_as_declared(area: Path, name: bytes) -> None:
    base = os.fsencode(area) + b"/" + name
    lower, data = [base + b"/l1", base + b"/l2"], [base + b"/d1", base + b"/d2"]
    metadata_layer(lower[0], {"file": b"content"})
    os.mkdir(lower[1])
    for path in data:
        data_layer(path, {"file": b"content"})
    spec = support.declared(base + b"/view", lower, data)
    os.mkdir(spec.path)
    mount = creating.create_overlay(spec, one_by_one=False)
    creating.attach(mount, spec.path)
    os.close(mount)
    live = support.live(spec.path)
    assert live
    assert mount_differences(spec, live, creating.overlay_defaults()) == {}
    assert support.carried_out(spec) == []
    with open(spec.path + b"/file", "rb") as stream:
        assert stream.read() == b"content"


def test_layers_that_are_too_long_for_one_option_are_refused(area: Path) -> None:
    layers = [area / f"{number}{'x' * 120}" for number in range(2)]
    for layer in layers:
        layer.mkdir()
    spec = support.declared(area / "view", layers)
    with pytest.raises(OverlayError, match=r"have \d+ bytes together, and this kernel takes 255 .* shorter paths"):
        creating.create_overlay(spec, one_by_one=False)


def test_many_lower_layers_and_data_layers_keep_their_order(area: Path) -> None:
    lower, data = [], []
    for number in range(70):
        name = f"only{number}"
        lower.append(area / f"layer, {number}")
        metadata_layer(lower[-1], {name: b"data0 only", "top": b"x" * (number + 1)} if number else {"none": b""})
    for number in range(5):
        data.append(area / f"data:{number}")
        names = [f"only{index}" for index in range(70) if index % 5 == number] + ["top"]
        data_layer(data[-1], dict.fromkeys(names, b"data%d only" % number))
    spec = support.declared(area / "view", lower, data)
    assert support.carried_out(spec) == ["CreateMountpoint", "MountOverlay"]
    for index in range(1, 70):
        assert (area / "view" / f"only{index}").read_bytes() == b"data%d only" % (index % 5)
    # The metadata is that of the topmost layer, the content that of the first data layer.
    assert (area / "view" / "top").stat().st_size == 2
    assert (area / "view" / "top").read_bytes() == b"data0 only"
    assert support.carried_out(spec) == []


def test_a_layer_with_a_long_path_is_mounted(area: Path) -> None:
    base = area / ("a" * 200) / ("b" * 200)
    metadata_layer(base / "layer", {"file": b"content"})
    data_layer(base / "data", {"file": b"content"})
    spec = support.declared(area / "view", [base / "layer"], [base / "data"])
    support.carried_out(spec)
    assert (area / "view" / "file").read_bytes() == b"content"


def single_options() -> Iterator[tuple[str, OptionValue]]:
    """Yield each option with each of its values."""
    for name, choices in SETTINGS.items():
        for choice in choices or (True,):
            yield name, choice
    for name in MOUNT_FLAGS:
        yield name, True


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize(("name", "value"), list(single_options()))
def test_every_option_is_refused_or_reported_as_declared(
    area: Path, name: str, value: OptionValue, with_data: bool
) -> None:
    for layer in ("a", "b", "data"):
        (area / layer).mkdir()
    data = [area / "data"] if with_data else []
    try:
        options: dict[str, Any] = {name: value}
        spec = support.declared(area / "view", [area / "a", area / "b"], data, **options)
    except OverlayError as error:
        # The rules refuse what the kernel would ignore.
        assert with_data or (name, value) in {("index", "on"), ("nfs_export", "on"), ("volatile", True)}, error  # noqa: PT017
        return
    support.carried_out(spec)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_mount_that_differs_from_its_declaration_is_switched(area: Path, read_only: bool) -> None:
    for layer in ("a", "b"):
        (area / layer).mkdir()
    spec = support.declared(area / "view", [area / "a", area / "b"], read_only=read_only)
    assert support.carried_out(spec) == ["CreateMountpoint", "MountOverlay"]
    other = support.declared(area / "view", [area / "b", area / "a"], read_only=read_only)
    assert support.carried_out(other) == ["SwitchOverlay"]
    inverted = support.declared(area / "view", [area / "b", area / "a"], read_only=not read_only)
    assert support.carried_out(inverted) == ["SwitchOverlay"]
    assert support.carried_out(support.declared(area / "view", [area / "b"], [area / "a"])) == ["SwitchOverlay"]
    assert support.carried_out(support.declared(area / "view", [area / "b"], [area / "a"], nosuid=True)) == [
        "SwitchOverlay"
    ]


# ---- switching

READER = """
import os, sys, time
path = sys.argv[1]
held = open(path)
first = held.read()
reads = 0
print("ready", flush=True)
deadline = time.monotonic() + 60
while time.monotonic() < deadline and not os.path.exists(sys.argv[2]):
    with open(path) as stream:
        assert stream.read() in ("generation 0", "generation 1"), "other content"
    os.listdir(os.path.dirname(path))
    reads += 1
held.seek(0)
assert held.read() == first, "an open file changed"
print(reads, flush=True)
"""


@contextmanager
def reader(path: Path, stop: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that reads a file until ``stop`` exists."""
    with support.background(READER, path, stop) as process:
        try:
            yield process
        finally:
            stop.touch()


def two_generations(area: Path, view: Path) -> list[MountSpec]:
    """Create the layers of two overlays, whose file says its generation; return their declarations."""
    specs = []
    for number in range(2):
        content = {"file": b"generation %d" % number}
        metadata_layer(area / f"layer{number}", content)
        data_layer(area / f"data{number}", content)
        specs.append(support.declared(view, [area / f"layer{number}"], [area / f"data{number}"]))
    return specs


@pytest.mark.parametrize("propagation", ["private", "shared"])
def test_readers_do_not_notice_a_switch_beneath(area: Path, propagation: str) -> None:
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", f"--make-{propagation}", place)
    peer = area / "peer"
    peer.mkdir()
    support.command("mount", "--bind", place, peer)
    specs = two_generations(area, place / "view")
    support.carried_out(specs[0])
    with ExitStack() as stack:
        # Also where the mount propagates to.
        readers = [stack.enter_context(reader(place / "view" / "file", area / "stop"))]
        if propagation == "shared":
            readers.append(stack.enter_context(reader(peer / "view" / "file", area / "stop")))
        for turn in range(1, 61):
            assert support.carried_out(specs[turn % 2]) == ["SwitchOverlay"]
            time.sleep(0.002)
        (area / "stop").touch()
        for process in readers:
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 0, output
            assert int(output) > 60
    # The old overlays are gone.
    found = [mount for mount in namespaces.own_mounts() if mount.path == specs[0].path]
    assert len(found) == 1
    if propagation == "shared":
        found = [mount for mount in namespaces.own_mounts() if mount.path == os.fsencode(peer / "view")]
        assert [overlay_layers(mount).lower for mount in found] == [specs[0].lower]


def test_replace_fails_while_the_overlay_is_in_use(area: Path) -> None:
    specs = two_generations(area, area / "view")
    support.carried_out(specs[0])
    with reader(area / "view" / "file", area / "stop") as process:
        with pytest.raises(OverlayError, match=rf"is in use by python.*\({process.pid}\).*nothing was unmounted"):
            support.carried_out(specs[1], "replace")
        live = support.live(area / "view")
        assert live
        assert overlay_layers(live).lower == specs[0].lower
    process.wait()
    assert support.carried_out(specs[1], "replace") == ["SwitchOverlay"]
    assert (area / "view" / "file").read_text() == "generation 1"


def test_never_names_what_differs_and_changes_nothing(area: Path) -> None:
    specs = two_generations(area, area / "view")
    support.carried_out(specs[0])
    with pytest.raises(OverlayError, match=r"differs .*lower: .*layer0.* -> .*layer1.*, and 'switch' is never"):
        support.carried_out(specs[1], "never")
    assert (area / "view" / "file").read_text() == "generation 0"


@pytest.mark.parametrize("holds", ["cwd", "file", "map"])
def test_unmounting_a_busy_view_names_the_process(area: Path, holds: str) -> None:
    (spec, _) = two_generations(area, area / "view, busy")
    support.carried_out(spec)
    file = area / "view, busy" / "file"
    what = {
        "cwd": "os.chdir(os.path.dirname(sys.argv[1]))",
        "file": "held = open(sys.argv[1])",
        "map": "f = open(sys.argv[1], 'rb'); held = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); f.close()",
    }[holds]
    with support.background(f"import mmap, os, sys\n{what}\n{support.WAIT}", file) as process:
        plan = plan_unmounted(spec.path, mounts.observe(spec.path), absent=True)
        with pytest.raises(OverlayError, match=rf"view, busy is in use by .*\({process.pid}\)"):
            apply(plan[0], mounts.HANDLERS)
        assert file.read_text() == "generation 0"
    for action in plan:
        apply(action, mounts.HANDLERS)
    assert not file.parent.exists()


def test_a_mount_of_another_type_is_left_alone(area: Path) -> None:
    (spec, _) = two_generations(area, area / "view")
    (area / "view").mkdir()
    support.command("mount", "-t", "tmpfs", "mine", area / "view")
    for switch in ("auto", "replace"):
        with pytest.raises(OverlayError, match="mount of type tmpfs from mine, which is left alone"):
            support.carried_out(spec, switch)
    with pytest.raises(OverlayError, match="left alone"):
        plan_unmounted(spec.path, mounts.observe(spec.path), absent=False)
    live = support.live(area / "view")
    assert live
    assert live.fstype == b"tmpfs"


def test_an_overlay_below_a_covered_directory_does_not_count_as_mounted(area: Path) -> None:
    (spec, _) = two_generations(area, area / "place" / "view")
    support.carried_out(spec)
    support.command("mount", "-t", "tmpfs", "tmpfs", area / "place")
    assert support.carried_out(spec) == ["CreateMountpoint", "MountOverlay"]
    assert (area / "place" / "view" / "file").read_text() == "generation 0"
    support.command("umount", area / "place" / "view", area / "place", area / "place" / "view")


# ---- refusals


def test_layers_inside_of_each_other_are_refused(area: Path) -> None:
    data_layer(area / "lower" / "data", {"file": b"x"})
    spec = support.declared(area / "view", [area / "lower"], [area / "lower" / "data"])
    (area / "view").mkdir()
    with pytest.raises(
        OverlayError, match=r"overlay at .*/view: the kernel refuses it: .*one layer is inside another one"
    ):
        support.carried_out(spec)
    assert support.live(area / "view") is None


def test_a_missing_layer_is_named(area: Path) -> None:
    (area / "view").mkdir()
    (area / "there").mkdir()
    spec = support.declared(area / "view", [area / "there", area / "gone"])
    with pytest.raises(OverlayError, match=r"layer .*/gone does not exist or is not a directory"):
        support.carried_out(spec)


def test_what_the_kernel_refuses_is_refused_with_its_message(area: Path) -> None:
    layers = [area / f"l{number}" for number in range(MOST_LAYERS + 1)]
    for layer in layers:
        layer.mkdir()
    spec = support.declared(area / "view", layers[1:])
    with pytest.raises(OverlayError, match=r"the kernel refuses it: .*too many"):
        support.carried_out(replace(spec, lower=tuple(map(os.fsencode, layers))))


def test_a_mountpoint_that_is_a_file_is_refused(area: Path) -> None:
    (spec, _) = two_generations(area, area / "view")
    (area / "view").touch()
    with pytest.raises(OverlayError, match="/view is not a directory"):
        support.carried_out(spec)


# ---- a mount that fails


@pytest.mark.parametrize("there", ["", "a", "a/b"])
def test_a_failed_mount_leaves_no_new_directory(area: Path, there: str) -> None:
    data_layer(area / "lower" / "data", {"file": b"x"})
    (area / there).mkdir(parents=True, exist_ok=True)
    before = sorted(area.rglob("*"))
    arguments: dict[str, Any] = {"path": str(area / "a" / "b" / "c" / "view"), "lower": [str(area / "lower")]}
    # The kernel refuses this directory before it writes to the work directory, since it compares names in a way of its own.
    arguments["lower"].append("/proc/sys/kernel")
    assert "the kernel refuses it" in support.module("overlay_mount", **arguments).message
    assert sorted(area.rglob("*")) == before
    # Neither does one with an upper layer.
    kept: dict[str, Any] = {"upper": str(area / "u" / "v" / "upper"), "work": str(area / "u" / "v" / "work")}
    assert "the kernel refuses it" in support.module("overlay_mount", **arguments, **kept).message
    assert sorted(area.rglob("*")) == before


def test_a_failed_mount_keeps_a_new_directory_that_others_have_filled(area: Path) -> None:
    before = set(area.rglob("*"))

    def fail() -> None:
        with mountpoints.undone_on_failure():
            apply(CreateMountpoint(os.fsencode(area / "a" / "b" / "view")), mounts.HANDLERS)
            (area / "a" / "mine").mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert set(area.rglob("*")) - before == {area / "a", area / "a" / "mine"}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_mode_of_a_mountpoint_does_not_depend_on_the_umask(area: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        apply(CreateMountpoint(os.fsencode(area / "a" / "b" / "view")), mounts.HANDLERS)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(one.stat().st_mode) for one in area.rglob("*")} == {0o755}
