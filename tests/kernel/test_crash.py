"""A killed run never leaves a partial result visible, and the next run succeeds."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import finalize_request, passes
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_request import Request, Wanted
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import processes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, manifest_writer
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import removal, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import plan_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.writable import Overlay, overlay_at, sealed, shown

KILLS = 40


def in_child(work: Callable[[], object], seconds: float | None = None) -> int:
    """Run ``work`` in a child process, kill it after ``seconds`` unless that is None, and return the wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


class Killer:
    """Run ``work`` in child processes, kill each at a random moment, and count those that were killed."""

    def __init__(self, work: Callable[[], object], seed: int) -> None:
        self._chance = random.Random(seed)
        self.killed = 0
        started = time.monotonic()
        assert in_child(work) == 0
        self._seconds = time.monotonic() - started

    def run(self, work: Callable[[], object]) -> None:
        """Run ``work``, and kill it if it takes longer than some part of its usual duration, which depends on the load of the machine."""
        killed = os.WIFSIGNALED(in_child(work, self._chance.uniform(0, self._seconds)))
        self.killed += killed
        self._seconds *= 1.05 if killed else 0.8


@pytest.fixture
def medium(area: Path) -> Placement:
    """Make and scan a release whose layer takes some tens of milliseconds to build."""
    top = area / "root" / "medium" / "1"
    for number in range(30):
        (top / f"{number}").mkdir(parents=True)
        for index in range(50):
            support.write(top / f"{number}" / f"{index}", b"%d" % index)
    return support.scanned(area / "store", area / "root", "medium/1")


@pytest.mark.parametrize("kind", ["tmpfs", "xfs"])
def test_a_killed_build_leaves_no_partial_generation(
    disks: dict[str, Path], area: Path, medium: Placement, kind: str
) -> None:
    state_dir = disks[kind] / "crash"
    paths = ViewPaths.of(str(state_dir), "view")
    killer = Killer(lambda: support.build(disks[kind] / "crash-measure", [medium]), seed=1)
    wanted, whole, _report = support.build(disks[kind] / "crash-reference", [medium])
    for _turn in range(KILLS):
        killer.run(lambda: support.build(state_dir, [medium]))
        state = view_state.observe(paths)
        # Every visible generation is complete: it has its record and its whole layer.
        assert state.generations <= {whole.directory}
        if state.current:
            assert state.generations == {whole.directory}
        for found in state.generations:
            assert view_state.read_generation(paths, found) == whole
            assert support.compare_trees(Path(paths.generation(found)) / "layer", wanted) == []
            removal.remove_view(paths)
    assert killer.killed > KILLS // 4
    layer, generation, _report = support.build(state_dir, [medium])
    assert generation == whole
    assert plan_layer(whole.directory, None, view_state.observe(paths)) == ()
    assert sorted(os.listdir(paths.root)) == ["current", "generations", "lock"]
    assert os.listdir(paths.generations) == [whole.directory]
    assert support.compare_trees(layer, wanted) == []
    with support.mounted(support.declared(area / "view", [layer], [area / "root"])) as view:
        assert support.compare_trees(view / "medium/1", area / "root" / "medium/1") == []


def test_a_killed_scan_leaves_no_partial_manifest(area: Path, medium: Placement) -> None:
    expected = Path(medium.manifest).read_bytes()
    store = area / "killed"
    store.mkdir()

    def write() -> None:
        manifest_writer.write(str(store), str(area / "root"), "medium/1", checksum=False)

    killer = Killer(write, seed=2)
    manifest_writer.remove(str(store), "medium/1")
    path = manifest_store.manifest_path(str(store), "medium/1")
    for _turn in range(KILLS):
        killer.run(write)
        record = manifest_store.find_record(path)
        if record:
            assert manifest_store.read_record(path) == medium.record
            assert Path(path).read_bytes() == expected
        manifest_writer.remove(str(store), "medium/1")
        assert not manifest_store.remains(path)
    assert killer.killed > KILLS // 4
    left = [one for one in (store / "medium").iterdir() if one.name.startswith(".new-")] if store.exists() else []
    for one in left:
        os.utime(one, (0, 0))
    write()
    assert manifest_store.read_record(path) == medium.record
    # Leftovers of killed runs are removed once they are too old to belong to a run on another host.
    assert sorted(os.listdir(store / "medium")) == ["1.dump.gz", "1.json"]


@pytest.mark.parametrize("part", ["manifest", "record", "both"])
def test_a_manifest_without_its_other_half_is_named(medium: Placement, part: str) -> None:
    path = medium.manifest
    if part in ("manifest", "both"):
        os.unlink(path)
    if part in ("record", "both"):
        os.unlink(manifest_store.record_path(path))
    reason = "is gone, but its record is there" if part == "manifest" else "there is no such manifest"
    with pytest.raises(OverlayError, match=rf"1\.dump\.gz.* {reason}|1\.dump\.gz: {reason}"):
        manifest_store.read_record(path)


@pytest.mark.parametrize("damage", ["truncated", "appended", "flipped", "other text", "garbage"])
def test_a_damaged_manifest_builds_nothing(area: Path, medium: Placement, damage: str) -> None:
    path = Path(medium.manifest)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:-100],
            "appended": content + b"x",
            "flipped": content[:middle] + bytes((content[middle] ^ 1,)) + content[middle + 1 :],
            "other text": gzip.compress(b"/ 0 40755 2 0 0 0 1.0 - - -\n", mtime=0),
            "garbage": b"\0" * len(content),
        }[damage]
    )
    arguments: dict[str, Any] = {"state_dir": str(area / "state"), "name": "v", "releases": [{"manifest": str(path)}]}
    message = support.module("metadata_layer", **arguments).message
    assert str(path) in message
    assert "scan the release again" in message
    # Whether the length or the digest reveals the damage, no generation is visible.
    assert view_state.observe(ViewPaths.of(str(area / "state"), "v")).generations == frozenset()
    path.write_bytes(content)
    assert support.module("metadata_layer", **arguments).ok["changed"]


@pytest.mark.usefixtures("medium")
def test_a_killed_finalize_leaves_an_overlay_that_reads_as_before(area: Path) -> None:
    lower = area / "root"
    for number in range(0, 30, 7):
        (lower / "medium/1" / str(number) / "0").chmod(0o4755)
    overlay = overlay_at(area / "overlay", lower)
    before = shown(overlay.path)
    wanted = Wanted(owner=12, group=None, copy_up=True, keep_setid=True, copy_content=False, check_mode=False)
    request = Request(
        os.fsencode(overlay.path),
        (),
        frozenset(finalize_request.PASSES),
        "auto",
        True,
        "report",
        0,
        wanted,
        workers=2,
        patience=10,
    )
    killer = Killer(lambda: passes.run(request), seed=3)
    for turn in range(KILLS // 3):
        overlay.unmount()
        shutil.rmtree(overlay.area)
        overlay = overlay_at(area / "overlay", lower)
        # Several runs, so that a run also continues the work of a killed run and is killed itself.
        for _part in range(3):
            killer.run(lambda: passes.run(request))
            # Its worker processes end shortly after it.
            wait_for_end(overlay)
            if support.live(overlay.path) is None and turn % 2:
                overlay.mount()
            if support.live(overlay.path):
                assert {path: one[4] for path, one in shown(overlay.path).items()} == {
                    path: one[4] for path, one in before.items()
                }
        assert overlay.finalize(allow_unmount=True, owner="12", keep_setid=True)["finalized"]
        assert not overlay.finalize(allow_unmount=True, owner="12", keep_setid=True)["changed"]
        after = shown(overlay.path)
        assert {path: (one[0], one[4]) for path, one in after.items()} == {
            path: (one[0], one[4]) for path, one in before.items()
        }
        assert {one[1] for path, one in after.items() if path} == {12}
        assert sealed(overlay, "medium/1/7")
    assert killer.killed > KILLS // 4


def wait_for_end(overlay: Overlay) -> None:
    """Wait until no process uses a path in an overlay or its layers."""
    while any(path.startswith(os.fsencode(overlay.area)) for _process, path in processes.paths()):
        time.sleep(0.01)
