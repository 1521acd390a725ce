"""Switch views in use: what readers see, where the switch propagates, and what a killed run leaves."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, mountinfo, namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, detached, mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    SwitchOverlay,
    plan_unmounted,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.tests.kernel import support

FILES = 20


def generation(area: Path, number: int, view: Path, image: bool = False, strategy: str = "data_only") -> MountSpec:
    """Create a layer or an image, and its data layer, with files whose content is the generation; return the declaration."""
    layer, data = area / f"g{number}" / "layer", area / f"g{number}" / "data"
    top = layer / "view" if strategy == "redirect" else layer
    for path in (top, data):
        (path / "bin").mkdir(parents=True)
    if strategy == "redirect":
        for path in (top, top / "bin"):
            os.setxattr(path, "trusted.overlay.opaque", b"y")
    text = b"generation %d" % number
    for index in range(FILES):
        support.write(data / "bin" / f"file{index}", text)
        name = top / "bin" / f"file{index}"
        support.write(name)
        os.setxattr(name, "trusted.overlay.metacopy", b"")
        os.setxattr(name, "trusted.overlay.redirect", b"/bin/file%d" % index)
        os.truncate(name, len(text))
    if image:
        support.image_of(layer, layer.with_suffix(".erofs"))
        support.command("rm", "-r", layer)
        layer = layer.with_suffix(".erofs")
    return support.declared(view, [layer], [data], strategy=strategy)


def overlays_at(path: Path | bytes, pid: int | str = "self") -> list[bytes]:
    """Return the topmost layer of each overlay at a path, highest overlay first, as a process sees them."""
    with open(f"/proc/{pid}/mountinfo", "rb") as stream:
        live = list(mountinfo.parse(stream.read()))
    return [
        overlay_layers(one).lower[0] for one in mountinfo.stack(live, os.fsencode(path)) if one.fstype == b"overlay"
    ]


def arguments_of(spec: MountSpec, **more: Any) -> dict[str, Any]:
    """Return the arguments of overlay_mount for a declaration."""
    lower = [os.fsdecode(path) for path in spec.images or spec.lower]
    data = [os.fsdecode(path) for path in spec.data]
    return {"path": os.fsdecode(spec.path), "lower": lower, "data": data, "strategy": spec.strategy, **more}


READER = """
import os, sys, time
view, stop, count = sys.argv[1:]
directory = os.path.join(view, "bin")
held = open(os.path.join(directory, "file0"))
first = held.read()
os.chdir(directory)
texts = ("generation 0", "generation 1")
reads = 0
print("ready", flush=True)
while not os.path.exists(stop):
    names = os.listdir(directory)
    assert len(names) == int(count), names
    for name in names:
        path = os.path.join(directory, name)
        assert os.stat(path).st_size == 12
        with open(path) as stream:
            assert stream.read() in texts, "other content"
        # The working directory stays in the generation in which it was entered.
        with open(name) as stream:
            assert stream.read() == first
        reads += 1
    assert os.listdir(".") and os.stat("../bin").st_nlink
held.seek(0)
assert held.read() == first, "an open file changed"
print(reads, flush=True)
"""


@contextmanager
def reader(view: Path, stop: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that reads all files of a view until ``stop`` exists."""
    with support.background(READER, view, stop, FILES) as process:
        try:
            yield process
        finally:
            stop.touch()


def stopped(readers: list[subprocess.Popen[str]], stop: Path) -> list[int]:
    """Stop the readers, check that none has failed, and return how many files each has read."""
    stop.touch()
    counts = []
    for process in readers:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        counts.append(int(output))
    return counts


# ---- readers


@pytest.mark.parametrize(
    ("turns", "method", "first", "second"),
    [
        (200, "beneath", {}, {"image": True}),
        (60, "over", {}, {"image": True}),
        # As on a host without data-only layers, and after its kernel was upgraded.
        (60, "over", {"strategy": "redirect"}, {"strategy": "redirect"}),
        (60, "beneath", {"strategy": "redirect"}, {}),
    ],
)
def test_readers_do_not_notice_switches(
    area: Path, turns: int, method: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    view = area / "view"
    specs = [generation(area, 0, view, **first), generation(area, 1, view, **second)]
    support.carried_out(specs[0])
    seconds = []
    with ExitStack() as stack:
        readers = [stack.enter_context(reader(view, area / "stop")) for _ in range(4)]
        for turn in range(1, turns + 1):
            started = time.monotonic()
            assert support.carried_out(specs[turn % 2], method)
            seconds.append(time.monotonic() - started)
            time.sleep(0.002)
        counts = stopped(readers, area / "stop")
    assert min(counts) > turns
    # A generous limit, since four readers share few processors. `make bench` measures it.
    assert statistics.median(seconds) < 0.5
    # 'over' detaches the topmost overlay if the declared one is below, so overlays do not pile up.
    assert len(overlays_at(view)) == 1
    support.unmount_all(view)
    assert support.loops_gone(area)


# ---- methods


def test_over_covers_the_old_overlay_and_warns(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(3)]
    support.carried_out(specs[0])
    done = support.module("overlay_mount", **arguments_of(specs[1], switch="over")).ok
    assert (done["changed"], done["switched"], done["method"]) == (True, True, "over")
    assert "stays mounted below" in str(done["warnings"])
    assert done["elsewhere"] == []
    assert overlays_at(view) == [specs[1].lower[0], specs[0].lower[0]]
    again = support.module("overlay_mount", **arguments_of(specs[1], switch="over")).ok
    assert (again["changed"], again["switched"], "warnings" in again) == (False, False, False)
    # Declaring the covered overlay detaches the topmost one and mounts nothing.
    done = support.module("overlay_mount", **arguments_of(specs[0], switch="over")).ok
    assert (done["changed"], done["switched"]) == (True, True)
    assert overlays_at(view) == [specs[0].lower[0]]
    support.carried_out(specs[1], "over")
    support.carried_out(specs[2], "over")
    assert len(overlays_at(view)) == 3
    assert support.module("overlay_mount", path=str(view), state="absent").ok["changed"]
    assert not view.exists()


def test_overlays_covered_by_over_are_dropped_and_the_topmost_stays(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(3)]
    for number, count in ((0, 1), (1, 2), (2, 3)):
        support.carried_out(specs[number], "over")
        assert len(overlays_at(view)) == count
    mount_id = support.live(view)
    done = support.module("overlay_mount", **arguments_of(specs[2])).ok
    assert done["actions"] == [f"detach the overlays that the one at {view} covers"]
    # The topmost overlay is the same mount as before.
    assert (done["changed"], done["switched"], done["method"], done["elsewhere"]) == (True, False, None, [])
    assert "warnings" not in done
    assert overlays_at(view) == [specs[2].lower[0]]
    now = support.live(view)
    assert mount_id
    assert now
    assert now.id == mount_id.id


def refuse_mounting_beneath() -> None:
    """Make the kernel refuse MOVE_MOUNT_BENEATH in this process, as kernels before 6.5 do."""
    load, jump_if, jump_set, give = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 0),  # the number of the system call
            (jump_if, 0, 3, 429),
            (load, 0, 0, 16 + 4 * 8),  # its fifth argument
            (jump_set, 0, 1, 0x200),
            (give, 0, 0, 0x00050000 | 22),  # EINVAL
            (give, 0, 0, 0x7FFF0000),  # allowed
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    argument = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(22, 2, argument, 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP, a filter


def test_a_kernel_that_cannot_mount_beneath_mounts_over(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(2)]
    support.carried_out(specs[0])

    def planned(switch: str) -> list[str]:
        plan = support.planned(specs[1], switch)
        return [str(getattr(action, "method", action)) for action in plan]

    def there(_progress: deadline.Progress) -> None:
        refuse_mounting_beneath()
        assert not mounts.can_mount_beneath()
        with pytest.raises(OverlayError, match=r"cannot mount beneath it, which needs Linux 6\.5: use 'switch: over'"):
            planned("beneath")
        assert planned("auto") == ["over", f"detach the overlays that the one at {view} covers"]
        for action in support.planned(specs[1], "auto"):
            apply(action, mounts.HANDLERS)
        assert planned("auto") == []

    deadline.run(there, 30)
    assert mounts.can_mount_beneath()
    assert overlays_at(view) == [specs[1].lower[0]]


# ---- propagation


@contextmanager
def propagated(area: Path, propagation: str, outside: str) -> Iterator[tuple[Path, int]]:
    """Mount a view on a mount with a propagation, and create another mount namespace; provide the view and a process there."""
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", f"--make-{propagation}", place)
    view = place / "view"
    specs = [generation(area, number, view) for number in range(2)]
    support.carried_out(specs[0])
    with support.namespace(outside) as pid:
        yield view, pid


def other(area: Path) -> dict[str, Any]:
    """Return the arguments of overlay_mount for the second generation."""
    layer, data = area / "g1" / "layer", area / "g1" / "data"
    return {"path": str(area / "place" / "view"), "lower": [str(layer)], "data": [str(data)]}


@pytest.mark.parametrize("switch", ["auto", "over"])
@pytest.mark.parametrize("outside", ["unchanged", "shared", "slave"])
def test_a_switch_propagates_to_namespaces_that_follow(area: Path, outside: str, switch: str) -> None:
    with propagated(area, "shared", outside) as (view, pid):
        done = support.module("overlay_mount", switch=switch, **other(area)).ok
        assert done["elsewhere"] == []
        count = 1 if switch == "auto" else 2
        assert overlays_at(view)[0] == overlays_at(view, pid)[0] == os.fsencode(area / "g1" / "layer")
        assert len(overlays_at(view)) == len(overlays_at(view, pid)) == count
        again = support.module("overlay_mount", switch=switch, **other(area)).ok
        assert not again["changed"]


@pytest.mark.parametrize("propagation", ["shared", "private"])
def test_a_private_namespace_keeps_the_old_overlay_and_is_named(area: Path, propagation: str) -> None:
    with propagated(area, propagation, "private") as (view, pid):
        done = support.module("overlay_mount", **other(area)).ok
        assert done["elsewhere"] == [{"path": str(view), "pid": pid}]
        assert f"still mounted at {view} in the mount namespace of process {pid}" in str(done["warnings"])
        assert overlays_at(view) == [os.fsencode(area / "g1" / "layer")]
        assert overlays_at(view, pid) == [os.fsencode(area / "g0" / "layer")]
        # A process that only has the mount in its namespace is no user, and does not matter to the next run.
        assert done["users"] == []
        assert not support.module("overlay_mount", **other(area)).ok["changed"]


def test_many_private_namespaces_are_counted_in_one_warning(area: Path) -> None:
    with propagated(area, "private", "private") as (view, _pid), ExitStack() as stack:
        for _more in range(6):
            stack.enter_context(support.namespace("private"))
        done = support.module("overlay_mount", **other(area)).ok
        assert len(done["elsewhere"]) == 7
        (warning,) = done["warnings"]
        name = Path("/proc/self/comm").read_text().strip()
        named = [f"{view} in the mount namespace of process {one['pid']} ({name})" for one in done["elsewhere"][:5]]
        said = f"the old overlay of {view} is still mounted at 7 places: {', '.join(named)} and 2 more"
        assert said in str(warning)


def test_a_bind_mount_of_the_view_keeps_the_old_overlay_and_is_named(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(2)]
    support.carried_out(specs[0])
    for name in ("bound", "part"):
        (area / name).mkdir()
    support.command("mount", "--bind", view, area / "bound")
    support.command("mount", "--bind", view / "bin", area / "part")
    done = support.module("overlay_mount", **arguments_of(specs[1])).ok
    assert sorted(one["path"] for one in done["elsewhere"]) == [str(area / "bound"), str(area / "part")]
    assert {one["pid"] for one in done["elsewhere"]} == {None}
    assert (area / "bound" / "bin" / "file0").read_text() == "generation 0"
    assert (area / "part" / "file0").read_text() == "generation 0"
    assert (view / "bin" / "file0").read_text() == "generation 1"


@pytest.mark.parametrize("mode", ["shared", "slave", "private", "unbindable"])
def test_a_view_of_any_propagation_is_switched(area: Path, mode: str) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(2)]
    support.carried_out(specs[0])
    support.command("mount", f"--make-{mode}", view)
    for turn in range(1, 4):
        support.carried_out(specs[turn % 2])
        assert overlays_at(view) == [specs[turn % 2].lower[0]]


def test_a_follower_that_has_mounted_over_the_view_keeps_its_mount(area: Path) -> None:
    with propagated(area, "shared", "slave") as (view, pid):
        support.command("nsenter", "--mount", f"--target={pid}", "mount", "-t", "tmpfs", "own", view)
        done = support.module("overlay_mount", **other(area)).ok
        assert done["method"] == "beneath"
        assert overlays_at(view) == [os.fsencode(area / "g1" / "layer")]
        with open(f"/proc/{pid}/mountinfo", "rb") as stream:
            top = mountinfo.top_mount(list(mountinfo.parse(stream.read())), os.fsencode(view))
        assert top
        assert top.source == b"own"


# ---- killed runs


def test_a_killed_switch_is_finished_by_the_next_run(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(3)]

    def switch_halfway(old: int, new: int) -> None:
        support.carried_out(specs[old])
        mount = creating.new_overlay(specs[new])
        syscalls.move_mount(mount, specs[new].path, beneath=True)
        os.close(mount)
        assert overlays_at(view) == [specs[old].lower[0], specs[new].lower[0]]

    # The next run declares what the killed run declared, what was mounted before, or another overlay.
    for declared in (1, 0, 2):
        switch_halfway(0, 1)
        checked = support.module("overlay_mount", True, True, **arguments_of(specs[declared])).ok
        done = support.module("overlay_mount", **arguments_of(specs[declared])).ok
        # The old overlay is the topmost one, so declaring it again switches nothing.
        assert (done["changed"], done["switched"]) == (True, declared != 0)
        assert done["method"] == ("beneath" if declared else None)
        assert checked["actions"] == done["actions"]
        assert overlays_at(view) == [specs[declared].lower[0]]
        assert not support.module("overlay_mount", **arguments_of(specs[declared])).ok["changed"]
    # If the killed run had mounted the declared overlay, nothing is mounted again.
    switch_halfway(0, 1)
    plan = support.planned(specs[1])
    assert not any(isinstance(action, SwitchOverlay) for action in plan)
    for action in plan_unmounted(specs[0].path, mounts.observe(specs[0].path), absent=True):
        apply(action, mounts.HANDLERS)
    assert not view.exists()


def erofs_mounts() -> list[Mount]:
    return [one for one in namespaces.own_mounts() if one.fstype == b"erofs"]


def test_a_switch_killed_at_any_moment_leaves_the_old_or_the_new_overlay(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view, image=number % 2 == 1) for number in range(4)]
    random.seed(4)
    support.carried_out(specs[0])
    others = len(namespaces.own_mounts())
    times = []
    for turn in (1, 2, 3, 0):
        started = time.monotonic()
        support.carried_out(specs[turn])
        times.append(time.monotonic() - started)
    longest = max(times)
    before = 0
    ended = {"old": 0, "new": 0}
    for _run in range(120):
        after = random.choice([number for number in range(4) if number != before])
        switch_and_kill(specs[after], random.uniform(0, longest))
        (text,) = {path.read_text() for path in (view / "bin").iterdir()}
        assert text in (f"generation {before}", f"generation {after}")
        end = "new" if text.endswith(str(after)) else "old"
        ended[end] += 1
        # Both ends happen, whatever the load of the machine is.
        longest *= 1.1 if end == "old" else 0.9
        assert len(list((view / "bin").iterdir())) == FILES
        assert len(overlays_at(view)) <= 2
        # The next run declares the new overlay, or the old one.
        wanted = random.choice([before, after])
        support.carried_out(specs[wanted])
        assert overlays_at(view) == [specs[wanted].lower[0]]
        assert len(namespaces.own_mounts()) == others
        assert erofs_mounts() == []
        before = wanted
    assert min(ended.values()) > 10, ended
    support.unmount_all(view)
    assert support.loops_gone(area)


def switch_and_kill(spec: MountSpec, seconds: float) -> None:
    """Switch in a child process, and kill that after some seconds."""
    child = os.fork()
    if child == 0:
        try:
            for action in support.planned(spec):
                apply(action, mounts.HANDLERS)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# ---- stacks


WATCHER = """
import os, sys
path, stop = sys.argv[1:]
reads = failed = 0
seen = []
print("ready", flush=True)
while not os.path.exists(stop):
    try:
        with open(path) as stream:
            text = stream.read()
        if seen[-1:] != [text]:
            seen.append(text)
    except OSError as error:
        failed += 1
    reads += 1
print(reads, failed, ",".join(text[-1] for text in seen), flush=True)
"""


@contextmanager
def watched(file: Path, stop: Path, found: list[str]) -> Iterator[None]:
    """Read a file in a loop while the block runs; append the number of reads, of failures, and the generations read to ``found``."""
    with support.background(WATCHER, file, stop) as process:
        try:
            yield
            time.sleep(0.05)
        finally:
            stop.touch()
        output, _ = process.communicate(timeout=60)
        found.extend(output.split())


@pytest.mark.parametrize("propagation", ["private", "shared", "slave"])
@pytest.mark.parametrize("below", [[2], [3, 2], [1], [2, 1], [1, 2], [3, 1, 2, 1]])
@pytest.mark.parametrize("kernel", ["beneath", "without"])
def test_in_a_stack_readers_see_only_the_old_and_then_the_declared_overlay(
    area: Path, propagation: str, below: list[int], kernel: str
) -> None:
    place = area / "place"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", place)
    support.command("mount", "--make-shared", place)
    if propagation == "slave":
        (area / "follower").mkdir()
        support.command("mount", "--bind", place, area / "follower")
        place = area / "follower"
    support.command("mount", f"--make-{propagation}", place)
    view = place / "view"
    specs = [generation(area, number, view) for number in range(4)]
    view.mkdir()
    for number in (*reversed(below), 0):
        mount = creating.new_overlay(specs[number])
        creating.attach(mount, specs[number].path)
        os.close(mount)
    assert len(overlays_at(view)) == len(below) + 1
    before = [(one.path, one.propagation) for one in namespaces.own_mounts() if one.path == os.fsencode(place)]

    def declare(_progress: deadline.Progress) -> None:
        if kernel == "without":
            refuse_mounting_beneath()
        for action in support.planned(specs[1]):
            apply(action, mounts.HANDLERS)
        assert support.planned(specs[1]) == ()

    found: list[str] = []
    with watched(view / "bin" / "file0", area / "stop", found):
        deadline.run(declare, 60)
    # No read fails, and none sees a covered overlay.
    assert int(found[0]) > 10
    assert found[1:] == ["0", "0,1"]
    assert overlays_at(view) == [specs[1].lower[0]]
    assert [(one.path, one.propagation) for one in namespaces.own_mounts() if one.path == os.fsencode(place)] == before
    assert not support.module("overlay_mount", **arguments_of(specs[1])).ok["changed"]


def test_a_stack_is_dropped_wherever_the_switch_propagates(area: Path) -> None:
    with propagated(area, "shared", "slave") as (view, pid):
        specs = [generation(area, number, view) for number in (2, 3)]
        for spec in specs:
            support.carried_out(spec, "over")
        assert len(overlays_at(view)) == len(overlays_at(view, pid)) == 3
        done = support.module("overlay_mount", **other(area)).ok
        assert (done["method"], done["elsewhere"]) == ("beneath", [])
        assert overlays_at(view) == overlays_at(view, pid) == [os.fsencode(area / "g1" / "layer")]


def test_users_of_a_dropped_overlay_are_still_known(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(3)]
    support.carried_out(specs[0])
    with support.background(f"import sys\nheld = open(sys.argv[1])\n{support.WAIT}", view / "bin" / "file0") as process:
        support.carried_out(specs[1], "over")
        support.carried_out(specs[2])
        assert overlays_at(view) == [specs[2].lower[0]]
        used = {record.lower: [user.pid for user in found] for record, found in detached.in_use()}
        assert used[specs[0].lower] == [process.pid]


def test_unmounting_a_stack_does_not_show_covered_overlays(area: Path) -> None:
    view = area / "view"
    specs = [generation(area, number, view) for number in range(3)]
    for spec in specs:
        support.carried_out(spec, "over")
    found: list[str] = []
    with watched(view / "bin" / "file0", area / "stop", found):
        # A read at that moment keeps it busy, so try again.
        assert any(
            support.module("overlay_mount", path=str(view), state="unmounted").status == 0 for _attempt in range(100)
        )
    assert found[2] == "2"
    assert overlays_at(view) == []
