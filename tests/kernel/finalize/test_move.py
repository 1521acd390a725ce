"""Moves of a directory out of the lower layer: while it is read, while it is written to, and after a run was killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import moving
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.move_plan import (
    MARKER,
    FinishMove,
    MoveSpec,
    plan_move,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mount_lock
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.injecting import Fault, Injector

DIRECTORIES = 12
FILES = 40


def content(directory: int, number: int) -> bytes:
    return b"%d/%d\n" % (directory, number) * 50


@pytest.fixture
def view(area: Path) -> Path:
    """A writable overlay over an ordinary lower layer."""
    lower = area / "lower"
    for number in range(DIRECTORIES):
        place = lower / "tools" / "old" / f"directory{number}" / "sub"
        place.mkdir(parents=True)
        for index in range(FILES):
            support.write(
                place / f"file{index}", content(number, index), 0o640, mtime_ns=1_600_000_000_000_000_000 + index
            )
    old = lower / "tools" / "old"
    (old / "link").symlink_to("directory0/sub/file0")
    os.link(old / "directory0" / "sub" / "file1", old / "directory1" / "linked")
    os.setxattr(old / "directory1", "user.note", b"kept")
    os.chown(old / "directory2", 5, 6)
    (old / "directory2").chmod(0o2751)
    for directory, _directories, _files in os.walk(old, topdown=False):
        os.utime(directory, ns=(1_500_000_000_000_000_007, 1_500_000_000_000_000_007))
    kept = support.writable(area / "upper", area / "work")
    support.carried_out(support.declared(area / "view", [lower], writable=kept))
    return area / "view"


def spec(view: Path) -> MoveSpec:
    return MoveSpec(os.fsencode(view / "tools" / "old"), os.fsencode(view / "local" / "new"))


def arguments(view: Path) -> dict[str, Any]:
    return {"source": str(view / "tools" / "old"), "destination": str(view / "local" / "new")}


def check_moved(view: Path) -> None:
    """Check that everything is at the destination as it was, and that the directories there are not merged."""
    new, lower = view / "local" / "new", view.parent / "lower" / "tools" / "old"
    assert not (view / "tools" / "old").exists()
    assert support.compare_trees(new, lower) == []
    assert os.getxattr(new / "directory1", "user.note") == b"kept"
    upper = view.parent / "upper" / "local"
    for place, _directories, files in os.walk(new):
        assert MARKER.decode() not in os.listxattr(place)
        for name in files:
            path = upper / Path(place).relative_to(view / "local") / name
            # No content was copied.
            assert path.is_symlink() or path.lstat().st_blocks == 0
    # New entries of the lower directory do not show.
    assert os.getxattr(upper, "trusted.overlay.opaque") == b"y"
    support.write(lower / "directory0" / "added")
    assert not (new / "directory0" / "added").exists()
    (lower / "directory0" / "added").unlink()


def test_a_directory_is_moved_and_is_as_it_was(view: Path) -> None:
    checked = support.module("overlay_move", check=True, **arguments(view)).ok
    assert (view / "tools" / "old").exists()
    assert not (view / "local").exists()
    done = support.module("overlay_move", **arguments(view)).ok
    assert checked == done
    assert done["actions"] == [f"move directory {view}/tools/old to {view}/local/new"]
    assert (done["files"], done["directories"]) == (DIRECTORIES * FILES + 2, 2 * DIRECTORIES)
    check_moved(view)
    for check in (False, True):
        assert not support.module("overlay_move", check=check, **arguments(view)).ok["changed"]


def test_a_directory_is_renamed_in_the_same_directory(view: Path) -> None:
    moving.move(MoveSpec(os.fsencode(view / "tools" / "old"), os.fsencode(view / "tools" / "new")), no_progress)
    assert sorted(os.listdir(view / "tools")) == ["new"]
    assert support.compare_trees(view / "tools" / "new", view.parent / "lower" / "tools" / "old") == []


def test_a_moved_directory_is_the_same_after_mounting_again(view: Path) -> None:
    moving.move(spec(view), no_progress)
    support.command("umount", view)
    kept = support.writable(view.parent / "upper", view.parent / "work")
    support.carried_out(support.declared(view, [view.parent / "lower"], writable=kept))
    check_moved(view)


def test_changes_before_the_move_are_moved_too(view: Path) -> None:
    old = view / "tools" / "old"
    support.write(old / "directory0" / "sub" / "file0", b"changed")
    support.write(old / "directory0" / "new", b"new")
    (old / "directory3" / "sub" / "file0").unlink()
    moving.move(spec(view), no_progress)
    new = view / "local" / "new"
    assert (new / "directory0" / "sub" / "file0").read_bytes() == b"changed"
    assert (new / "directory0" / "new").read_bytes() == b"new"
    assert not (new / "directory3" / "sub" / "file0").exists()


# Reads each file at its old path, or else at its new one.
READER = """
import os, sys
view, directories, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
reads = 0
print("ready", flush=True)
while not os.path.exists(view + "/stop"):
    for directory in range(directories):
        for number in range(files):
            name = f"directory{directory}/sub/file{number}"
            try:
                stream = open(f"{view}/tools/old/{name}", "rb")
            except FileNotFoundError:
                stream = open(f"{view}/local/new/{name}", "rb")
            with stream:
                assert stream.read() == b"%d/%d\\n" % (directory, number) * 50, name
            reads += 1
print(reads, flush=True)
"""


@contextlib.contextmanager
def readers(view: Path) -> Iterator[None]:
    """Run readers, and check at the end that they found each complete file at every moment."""
    argv = [sys.executable, "-c", READER, str(view), str(DIRECTORIES), str(FILES)]
    processes = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _number in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        yield
    finally:
        (view / "stop").touch()
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert int(output) > 0


def test_readers_find_each_complete_file_at_every_moment(view: Path) -> None:
    with readers(view):
        moving.move(spec(view), no_progress)
        time.sleep(0.2)
    check_moved(view)


def killed_after(view: Path, entries: int) -> None:
    """Move in a process that is killed after this many entries."""
    child = os.fork()
    if child == 0:
        left = entries

        def progress() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            moving.move(spec(view), progress)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_a_killed_move_is_continued(view: Path) -> None:
    chance = random.Random(7)
    with readers(view):
        for _turn in range(12):
            killed_after(view, chance.randrange(80))
        support.module("overlay_move", **arguments(view))
    check_moved(view)
    assert not support.module("overlay_move", **arguments(view)).ok["changed"]


#: System calls that change something, in the order in which a move first makes them.
CHANGES = ("mkdirat", "fsetxattr", "fchown", "fchmod", "renameat2", "unlinkat", "utimensat", "fremovexattr")


def killed_at(call: str, turn: int, given: MoveSpec) -> bool:
    """Move in a process that is killed at the given call of this name, and return whether it was killed."""
    injector = Injector([call], Fault(call, turn))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            injector.enter()
            # A killed move leaves the rest to the next one, which finds nothing to do after a complete one.
            with contextlib.suppress(FileNotFoundError):
                moving.move(given, no_progress)
            status = 0
        finally:
            os._exit(status)
    with injector.serving():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_a_move_that_is_killed_at_any_system_call_is_continued(view: Path) -> None:
    small = MoveSpec(os.fsencode(view / "tools" / "old" / "directory4"), os.fsencode(view / "local" / "new"))
    killed = [call for turn in (1, 2) for call in CHANGES if killed_at(call, turn, small)]
    assert set(killed) == set(CHANGES)
    for action in plan_move(small, moving.observe(small)):
        if isinstance(action, FinishMove):
            moving.finish(small)
        else:
            moving.move(small, no_progress)
    assert plan_move(small, moving.observe(small)) == ()
    lower = view.parent / "lower" / "tools" / "old" / "directory4"
    assert support.compare_trees(view / "local" / "new", lower) == []
    assert all(MARKER.decode() not in os.listxattr(place) for place, _f, _n in os.walk(view / "local" / "new"))


def test_files_added_during_the_move_are_moved_too(view: Path) -> None:
    """A file may be added to a directory whose entries were listed already."""
    added: list[str] = []

    def progress() -> None:
        for directory in range(DIRECTORIES):
            name = f"directory{directory}/added{len(added)}"
            if len(added) < 600 and (view / "tools" / "old" / name).parent.exists():
                added.append(name)
                support.write(view / "tools" / "old" / name, b"added")

    moving.move(spec(view), progress)
    assert len(added) == 600
    assert all((view / "local" / "new" / name).read_bytes() == b"added" for name in added)
    assert not (view / "tools" / "old").exists()


def refused(given: MoveSpec, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        plan_move(given, moving.observe(given))


def test_a_move_that_cannot_be_is_refused_with_its_reason(view: Path) -> None:
    source, destination = spec(view).source, spec(view).destination
    refused(MoveSpec(source + b"x", destination), "neither .* exists")
    refused(MoveSpec(source, source + b"/inner"), "one is inside the other")
    refused(MoveSpec(source + b"/link", destination), "is not a directory")
    refused(MoveSpec(source, os.fsencode(view.parent / "outside")), "are not in the same overlay")
    refused(
        MoveSpec(os.fsencode(view.parent / "lower"), os.fsencode(view.parent / "l2")),
        "is not in an overlay with an upper",
    )
    (view / "local" / "new").mkdir(parents=True)
    support.write(view / "local" / "new" / "mine")
    refused(spec(view), "exists, and not from an earlier move")


def test_an_entry_in_the_way_is_named_and_the_move_is_continued_without_it(view: Path) -> None:
    (view / "local" / "new").mkdir(parents=True)
    killed_after(view, 5)
    moved = set(os.listdir(view / "local" / "new"))
    name = sorted({f"directory{number}" for number in range(DIRECTORIES)} - moved)[0]
    support.write(view / "local" / "new" / name, b"mine")
    assert f"new/{name} is in the way of" in support.module("overlay_move", **arguments(view)).message
    (view / "local" / "new" / name).unlink()
    support.module("overlay_move", **arguments(view))
    check_moved(view)


def test_a_copied_marker_is_not_that_of_a_move(view: Path) -> None:
    """Root's ``cp -a`` copies the marker. The copy is not the destination of a move."""
    (view / "local" / "new").mkdir(parents=True)
    killed_after(view, 5)
    support.command("cp", "-a", view / "local" / "new", view / "local" / "copy")
    assert MARKER.decode() in os.listxattr(view / "local" / "copy")
    refused(MoveSpec(spec(view).source, os.fsencode(view / "local" / "copy")), "exists, and not from an earlier move")
    support.module("overlay_move", **arguments(view))
    check_moved(view)


def test_modules_wait_for_the_lock_of_the_mountpoint(view: Path) -> None:
    with mount_lock.held(os.fsencode(view), 1):
        message = support.module("overlay_move", timeout=0.3, **arguments(view)).message
        assert f"the mountpoint {view}" in message
        message = support.module("overlay_finalize", timeout=0.3, path=str(view)).message
        assert f"the mountpoint {view}" in message
        assert support.module("overlay_move", timeout=30, check=True, **arguments(view)).ok["changed"]
    support.module("overlay_move", **arguments(view))
    check_moved(view)


def test_a_path_too_long_for_a_redirect_is_refused_before_anything_is_moved(view: Path) -> None:
    deep = view / "tools" / "old" / ("a" * 120) / ("b" * 140)
    deep.mkdir(parents=True)
    support.write(deep / "file")
    refused(spec(view), r"has 2\d\d bytes, and a redirect .* has at most 256")


def test_a_file_whose_path_is_too_long_for_a_redirect_stays(view: Path) -> None:
    inner = Path("tools") / "old" / ("a" * 120) / ("b" * 140)
    (view.parent / "lower" / inner).mkdir(parents=True)
    support.write(view.parent / "lower" / inner / "file", b"content")
    with pytest.raises(OverlayError, match="without copying it, since its path is too long for a redirect"):
        moving.move(spec(view), no_progress)
    assert (view / inner / "file").read_bytes() == b"content"


def test_a_directory_that_is_renamed_as_a_whole_stays_merged(view: Path) -> None:
    """So a move makes a new directory instead."""
    os.rename(view / "tools" / "old", view / "renamed")
    assert os.getxattr(view.parent / "upper" / "renamed", "trusted.overlay.redirect") == b"/tools/old"
    support.write(view.parent / "lower" / "tools" / "old" / "directory5" / "added")
    assert (view / "renamed" / "directory5" / "added").exists()


def test_an_overlay_without_metacopy_is_refused(area: Path) -> None:
    (area / "lower" / "a").mkdir(parents=True)
    kept = support.writable(area / "upper", area / "work")
    support.carried_out(support.declared(area / "view", [area / "lower"], writable=kept, metacopy="off"))
    refused(
        MoveSpec(os.fsencode(area / "view" / "a"), os.fsencode(area / "view" / "b")),
        "is mounted without metacopy=on, so renaming",
    )
