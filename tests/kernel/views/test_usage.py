# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing of a view is removed while it is in use, by no module and in no way."""

from __future__ import annotations

import gzip
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.detached_records import DetachedMount, to_json
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import removal, usage, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support

NUMBER = 200
#: A program whose working directory is in the view. On a line of input, it reads all files by relative paths and prints how many it could.
READER = f"""
import os, sys
os.chdir(sys.argv[1])
print('ready', flush=True)
sys.stdin.readline()
read = 0
for number in range({NUMBER}):
    try:
        with open(f'file{{number}}') as stream:
            read += stream.read() == str(number)
    except OSError:
        pass
print(read, flush=True)
sys.stdin.read()
"""


@dataclass
class View:
    state_dir: Path
    paths: ViewPaths
    layer: Path
    root: Path
    #: The mountpoint.
    place: Path

    def mount(self, layer: Path | None = None) -> None:
        arguments: dict[str, Any] = {
            "path": str(self.place),
            "lower": [str(layer or self.layer)],
            "data": [str(self.root)],
        }
        assert support.module("overlay_mount", **arguments).ok["changed"]

    def remove(self, check: bool = False) -> support.Ran:
        return support.module("metadata_layer", check=check, name="view", state="absent", state_dir=str(self.state_dir))


@pytest.fixture
def view(area: Path) -> View:
    root, state_dir = area / "root", area / "state"
    for number in range(NUMBER):
        (root / "tool" / "1").mkdir(parents=True, exist_ok=True)
        support.write(root / "tool" / "1" / f"file{number}", str(number).encode())
    state_dir.mkdir(mode=0o700)
    layer, _generation, _report = support.build(state_dir, [support.scanned(area / "store", root, "tool/1")])
    return View(state_dir, ViewPaths.of(str(state_dir), "view"), layer, root, area / "view")


@contextmanager
def reading(place: Path) -> Iterator[subprocess.Popen[str]]:
    with support.background(READER, place / "tool" / "1") as process:
        yield process


def reads(process: subprocess.Popen[str]) -> int:
    """Return how many files a reader can read."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("now\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@contextmanager
def in_a_container(view: View) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process in a mount namespace that keeps the view mounted, and unmount it everywhere else."""
    view.mount()
    prefix = ["unshare", "--mount", "--propagation=private"]
    with support.background(READER, view.place / "tool" / "1", prefix=prefix) as process:
        support.unmount_all(view.place)
        yield process, f"it is mounted at {view.place} in the mount namespace of process"


@contextmanager
def detached_by_hand(view: View) -> Iterator[tuple[subprocess.Popen[str], str]]:
    view.mount()
    with reading(view.place) as process:
        support.command("umount", "--lazy", view.place)
        yield process, f"({process.pid}), which has files of an overlay that is mounted nowhere any more"


@contextmanager
def bound_and_detached_by_hand(view: View) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process on a bind mount of a directory of the view, and detach the mount and the view."""
    view.mount()
    other = view.place.parent / "other"
    (other / "tool" / "1").mkdir(parents=True)
    support.command("mount", "--bind", view.place / "tool" / "1", other / "tool" / "1")
    with reading(other) as process:
        support.command("umount", "--lazy", other / "tool" / "1")
        support.command("umount", view.place)
        yield process, f"({process.pid}), which has files of an overlay that is mounted nowhere any more"


@contextmanager
def switched_away(view: View) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a process that stays on the old view after a switch to a layer of another state directory."""
    view.mount()
    other = view.place.parent / "other-layer"
    other.mkdir()
    with reading(view.place) as process:
        view.mount(other)
        yield process, f"({process.pid})"


USERS = [in_a_container, detached_by_hand, bound_and_detached_by_hand, switched_away]
Using = Callable[[View], AbstractContextManager[tuple[subprocess.Popen[str], str]]]


@pytest.mark.parametrize("using", USERS)
@pytest.mark.parametrize("check", [True, False])
def test_a_view_that_is_in_use_is_not_removed(view: View, using: Using, check: bool) -> None:
    before = support.listing(Path(view.paths.root))
    with using(view) as (process, words):
        message = view.remove(check).message
        assert message.startswith("view view is in use and nothing of it is removed (generation ")
        assert words in message
        assert support.listing(Path(view.paths.root)).keys() == before.keys()
        assert reads(process) == NUMBER
    support.unmount_all(view.place)
    assert view.remove().ok["changed"]
    assert not os.path.lexists(view.paths.root)


def test_a_mount_namespace_that_is_about_to_end_does_not_keep_a_view(view: View) -> None:
    """Another module has such a namespace, with a copy of all mounts, while it mounts something."""
    view.mount()
    copied = view.place.parent / "copied"
    script = f"touch {copied}; sleep 1"
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]) as process:
        while not copied.exists():
            time.sleep(0.01)
        support.unmount_all(view.place)
        assert view.remove().ok["changed"]
        assert process.wait(10) == 0


@pytest.mark.parametrize("using", USERS)
def test_a_generation_that_is_in_use_is_not_pruned(view: View, using: Using, tools: Any) -> None:
    for owner in (1, 2):
        support.build(view.state_dir, [tools[0]], owner=owner)
    arguments: dict[str, Any] = {"name": "view", "state_dir": str(view.state_dir), "keep": 0, "min_age": 0}
    with using(view) as (process, words):
        assert not support.module("overlay_prune", **arguments).ok["removed"]
        kept = {one["generation"]: one["reason"] for one in support.module("overlay_prune", **arguments).ok["kept"]}
        assert words in kept[view.layer.parent.name.partition("-")[0]]
        assert reads(process) == NUMBER
    support.unmount_all(view.place)
    assert len(support.module("overlay_prune", **arguments).ok["removed"]) == 1


def test_a_view_that_comes_into_use_after_the_first_check_is_put_back(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test makes sure of the moment: it mounts the view after the first check, while its names still exist."""
    check = usage.of_generations
    results: list[dict[str, list[str]]] = []

    def mount_after_the_first_check(paths: ViewPaths, forget: bool) -> dict[str, list[str]]:
        found = check(paths, forget)
        if not results:
            view.mount()
        results.append(found)
        return found

    monkeypatch.setattr(usage, "of_generations", mount_after_the_first_check)
    before = support.listing(Path(view.paths.root))
    with pytest.raises(OverlayError, match=f"it is mounted at {view.place}"):
        removal.remove_view(view.paths)
    assert results[0] == {}
    assert support.listing(Path(view.paths.root)).keys() == before.keys()
    assert view_state.observe(view.paths).current == view.layer.parent.name
    with reading(view.place) as process:
        assert reads(process) == NUMBER


def test_a_generation_in_use_that_a_killed_run_had_moved_aside_gets_its_name_back(view: View) -> None:
    view.mount()
    os.mkdir(view.paths.removing)
    os.rename(view.layer.parent, Path(view.paths.removing) / view.layer.parent.name)
    arguments: dict[str, Any] = {"name": "view", "state_dir": str(view.state_dir), "keep": 0, "min_age": 0}
    with reading(view.place) as process:
        assert f"it is mounted at {view.place}" in view.remove().message
        assert support.module("overlay_prune", check=True, **arguments).ok["remains"] == []
        assert support.module("overlay_prune", **arguments).ok["remains"] == []
        assert view.layer.is_dir()
        assert not os.path.lexists(view.paths.removing)
        assert reads(process) == NUMBER


@pytest.mark.parametrize("how", ["removed", "pruned", "built again"])
def test_a_generation_without_its_record_is_kept_while_it_is_in_use(view: View, how: str, area: Path) -> None:
    view.mount()
    os.unlink(view.layer.parent / "view.json")
    with reading(view.place) as process:
        if how == "removed":
            assert f"it is mounted at {view.place}" in view.remove().message
        elif how == "pruned":
            result = support.module("overlay_prune", state_dir=str(view.state_dir), keep=0, min_age=0).ok
            assert result["remains"] == []
        else:
            with pytest.raises(OverlayError, match=f"is not replaced \\(it is mounted at {view.place}"):
                support.build(view.state_dir, [support.scanned(area / "store", view.root, "tool/1")])
        assert view.layer.is_dir()
        assert reads(process) == NUMBER


def test_a_bind_mount_of_a_layer_in_a_container_is_a_use(view: View, area: Path) -> None:
    (area / "inside").mkdir()
    code = (
        f"import subprocess\nsubprocess.check_call(['mount', '--bind', {str(view.layer)!r}, {str(area / 'inside')!r}])"
    )
    with support.namespace("private", code) as pid:
        assert f"it is bound to {area}/inside in the mount namespace of process {pid}" in view.remove().message
    assert view.remove().ok["changed"]


def test_a_mount_of_the_layer_by_another_path_is_a_use(view: View, area: Path) -> None:
    """Through a link to the state directory, through the link to the current generation, and at another path in a container."""
    (area / "alias").symlink_to(view.state_dir)
    (area / "place").mkdir()
    alias = area / "alias" / view.layer.relative_to(view.state_dir)
    for layer in (alias, Path(view.paths.root) / "current" / "layer"):
        support.command("mount", "-t", "overlay", "-o", f"ro,lowerdir={layer}:{view.root}", "overlay", area / "place")
        assert f"it is mounted at {area}/place" in view.remove().message
        support.command("umount", area / "place")
    (area / "rf").mkdir()
    inside = area / "rf" / view.layer.relative_to(view.state_dir)
    code = f"""import subprocess
subprocess.check_call(['mount', '--bind', {str(view.state_dir)!r}, {str(area / "rf")!r}])
subprocess.check_call(['mount', '-t', 'overlay', '-o', 'ro,lowerdir={inside}:{view.root}', 'overlay', {str(area / "place")!r}])"""
    with support.namespace("private", code):
        assert f"it is mounted at {area}/place in the mount namespace of process" in view.remove().message
    assert view.remove().ok["changed"]


def test_the_same_view_in_another_state_directory_is_not_a_use(view: View, area: Path) -> None:
    other = area / "other-state"
    other.mkdir(mode=0o700)
    placements = [support.scanned(area / "store", view.root, "tool/1")]
    layer, _generation, _report = support.build(other, placements)
    view.mount(layer)
    # Another mount namespace has a copy of the mount, as services that systemd starts have.
    with support.namespace("private"):
        assert view.remove().ok["changed"]


def test_all_mounts_of_a_namespace_are_seen_if_its_first_process_is_in_a_chroot(view: View, area: Path) -> None:
    (area / "jail").mkdir()
    view.mount()
    code = f"""import os, subprocess
if os.fork() == 0:
    {support.WAIT.splitlines()[1]}
    os._exit(0)
os.chroot({str(area / "jail")!r})
os.chdir('/')"""
    with support.namespace("private", code):
        support.unmount_all(view.place)
        assert f"it is mounted at {view.place} in the mount namespace of process" in view.remove().message


def test_a_record_of_an_overlay_that_is_gone_hides_no_use(view: View, area: Path) -> None:
    """The kernel has reused its mount ID for another mount, which a user has detached."""
    view.mount()
    with reading(view.place) as process:
        live = support.live(view.place)
        assert live
        # The record has a device number that no file system has.
        gone = DetachedMount(b"/gone", (0, 0xFFFFF), frozenset([live.id]), (os.fsencode(area / "gone"),), time.time())
        files.make_directories(detached.DIRECTORY, 0o700)
        record = Path(detached.DIRECTORY) / "0-1048575-1.json"
        record.write_bytes(to_json(gone))
        support.command("umount", "--lazy", view.place)
        assert f"({process.pid}), which has files of an overlay" in view.remove().message
        assert reads(process) == NUMBER
    assert view.remove().ok["changed"]
    assert detached.in_use() == []
    assert not record.exists()


def test_a_process_whose_first_thread_has_ended_is_a_use(view: View, area: Path) -> None:
    code = f"""import ctypes, os, sys, threading
os.chdir({str(view.place / "tool")!r})
def wait():
    print('ready', flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=wait).start()
ctypes.CDLL(None).pthread_exit(None)"""
    view.mount()
    (area / "empty").mkdir()
    with support.background(code) as process:
        while "State:\tZ" not in Path(f"/proc/{process.pid}/status").read_text():
            pass
        view.mount(area / "empty")
        assert f"({process.pid})" in view.remove().message


def test_a_process_that_is_mounting_something_is_a_use(view: View) -> None:
    """The kernel lists a mount only when it is attached, and its layers are unknown until then."""
    code = f"""import ctypes, sys
libc = ctypes.CDLL(None)
fd = libc.syscall(430, b'overlay', 1)
assert fd >= 0
{support.WAIT}"""
    with support.background(code) as process:
        assert (
            f"it may be about to be mounted by {Path(f'/proc/{process.pid}/comm').read_text().strip()} ({process.pid})"
            in view.remove().message
        )
    assert view.remove().ok["changed"]


def test_a_mount_that_is_being_made_is_waited_for(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test makes sure of the moment: the mount ends while the function waits after its first check."""
    code = """import ctypes, os, sys
fd = ctypes.CDLL(None).syscall(430, b'tmpfs', 1)
assert fd >= 0
print('ready', flush=True)
sys.stdin.readline()
os.close(fd)
print('closed', flush=True)
sys.stdin.read()"""
    with support.background(code) as process:
        assert process.stdin
        assert process.stdout
        waited: list[float] = []
        sleep = time.sleep

        def close(seconds: float) -> None:
            if waited or seconds < usage.POLL_SECONDS:
                sleep(seconds)
                return
            waited.append(seconds)
            process.stdin.write("now\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            assert process.stdout.readline() == "closed\n"  # type: ignore[union-attr]

        monkeypatch.setattr(time, "sleep", close)
        assert usage.of_generations(view.paths, forget=False) == {}
    assert waited == [usage.POLL_SECONDS]


def test_open_files_of_other_file_systems_are_not_uses(view: View, area: Path) -> None:
    """Pipes, sockets, memory files and a detached tmpfs are not files of an overlay."""
    (area / "memory").mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", area / "memory")
    code = (
        """import os, socket, sys
held = os.memfd_create('x'), os.pipe(), socket.socketpair(), os.open(sys.argv[1], os.O_RDONLY), os.eventfd(0)
"""
        + support.WAIT
    )
    with support.background(code, area / "memory"):
        support.command("umount", "--lazy", area / "memory")
        assert view.remove().ok["changed"]


@pytest.mark.usefixtures("with_programs")
def test_an_image_in_use_is_not_replaced_in_its_store(view: View, area: Path) -> None:
    store = area / "images"
    store.mkdir()
    arguments: dict[str, Any] = {
        "name": "view",
        "store": str(area / "store"),
        "releases": [{"release": "tool/1"}],
        "image_store": str(store),
    }
    image = Path(support.module("metadata_layer", **arguments).ok["image"])
    # Older versions of the collection published it uncompressed.
    image.write_bytes(gzip.decompress(Path(f"{image}.gz").read_bytes()))
    view.mount(image)
    image.with_suffix(".json").unlink()
    with reading(view.place) as process:
        message = support.module("metadata_layer", **arguments).message
        assert f"is not replaced (it is mounted at {view.place}" in message
        assert reads(process) == NUMBER
    support.unmount_all(view.place)
    assert support.module("metadata_layer", **arguments).ok["changed"]
