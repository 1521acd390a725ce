"""Detached overlays: they show what they showed before, and need nothing of their lower layers."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import detaching
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.kernel import fuse_server, support
from ansible_collections.renderfarm.overlay.tests.kernel.writable import (
    METACOPY,
    REDIRECT,
    Overlay,
    attribute,
    overlay_at,
    sealed,
    shown,
)

ORIGIN = "trusted.overlay.origin"
NLINK = "trusted.overlay.nlink"
MTIME = "trusted.renderfarm-overlay.mtime"

PLAIN = (("redirect_dir", "on"), ("index", "off"))


def everything(view: Path) -> dict[bytes, tuple[Any, ...]]:
    """Map each path to what ``shown`` has, to the number of names of a file, and to its xattrs."""
    found = {}
    for path, one in shown(view).items():
        full = os.fsencode(view) + path
        links = None if os.path.isdir(full) else os.lstat(full).st_nlink
        names = sorted(name for name in os.listxattr(full, follow_symlinks=False) if "renderfarm-overlay" not in name)
        found[path] = (*one, links, [(name, os.getxattr(full, name, follow_symlinks=False)) for name in names])
    return found


def linked(top: Path) -> dict[bytes, set[bytes]]:
    """Map each path with several names to all names of its file."""
    files: dict[int, set[bytes]] = {}
    paths = {path: status for path, status in support.listing(top).items() if status.st_nlink > 1}
    for path, status in paths.items():
        if not os.path.isdir(os.fsencode(top) + path):
            files.setdefault(status.st_ino, set()).add(path)
    return {path: names for names in files.values() for path in names}


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


@pytest.fixture
def disk(area: Path) -> Iterator[Path]:
    """Mount an XFS of its own."""
    with support.filesystem(area, "xfs") as place:
        yield place


@pytest.fixture
def software(disk: Path) -> Path:
    """A lower layer with three small releases on a file system of its own."""
    lower = disk / "software"
    support.make_small_release(lower / "tool" / "1.0", "one")
    support.make_small_release(lower / "tool" / "2.0", "two")
    support.make_small_release(lower / "other" / "1.0", "three")
    support.write(lower / "readme", b"at the root", mtime_ns=1_000_000_007)
    return lower


def without_links(software: Path) -> None:
    for path in software.rglob("version-again"):
        path.unlink()


def shut_down(disk: Path) -> None:
    """Shut a file system down: everything that reaches it fails."""
    support.command("xfs_io", "-x", "-c", "shutdown", disk)


def detached(overlay: Overlay, **arguments: Any) -> dict[str, Any]:
    """Detach an overlay, and check that nothing in its upper layer leads to the lower layers."""
    result = overlay.finalized(detach=True, **arguments)
    assert result["detached"]
    assert result["lower"] == [f"{overlay.upper}.detached"]
    left = [
        (path, name)
        for path in overlay.upper.rglob("*")
        for name in (ORIGIN, METACOPY, NLINK, REDIRECT, MTIME)
        if (path.is_symlink() or not path.is_dir()) and attribute(path, name) is not None
    ]
    assert left == []
    assert not (overlay.work / "index").exists() or os.listdir(overlay.work / "index") == []
    return result


def change_as_users_do(view: Path) -> None:
    """Remove, rename, write and make entries, so that there are whiteouts, redirects and opaque directories."""
    (view / "tool/1.0/version").unlink()
    (view / "tool/1.0/bin/tool").rename(view / "tool/1.0/bin/renamed")
    (view / "tool/2.0/version").write_bytes(b"changed")
    (view / "tool/2.0/own").mkdir()
    (view / "tool/2.0/own/file").write_bytes(b"own")
    (view / "other/1.0").rename(view / "other/1.1")
    (view / "mine").mkdir()
    (view / "tool/2.0/bin").rename(view / "mine/bin")


def use_files(view: Path) -> None:
    """Look up, stat and read everything."""
    for path in view.rglob("*"):
        path.lstat()
        if path.is_file() and not path.is_symlink():
            path.read_bytes()
    with pytest.raises(FileNotFoundError):
        (view / "no-such-name").stat()


def use(view: Path) -> None:
    """Make each kind of change once."""
    use_files(view)
    top = view / "tool/1.0"
    (top / "bin").rename(top / "renamed")
    os.link(top / "version-again", top / "third")
    links = (top / "third").stat().st_nlink
    os.chown(top / "third", 5, 6)
    (top / "third").chmod(0o600)
    (top / "version-again").unlink()
    assert (top / "third").stat().st_nlink == links - 1
    (top / "third").write_bytes(b"written")
    os.truncate(top / "third", 3)
    (view / "readme").unlink()
    (view / "readme").mkdir()
    shutil.rmtree(view / "tool/2.0")
    (view / "tool/2.0").mkdir()
    assert os.listdir(view / "tool/2.0") == []
    assert sorted(os.listdir(view / "tool")) == ["1.0", "2.0"]


@pytest.mark.parametrize("metacopy", ["on", "off"])
@pytest.mark.parametrize("index", ["on", "off"])
def test_a_detached_overlay_is_as_before_and_works_without_its_lower_layer(
    area: Path, disk: Path, software: Path, metacopy: str, index: str
) -> None:
    if index == "off":
        without_links(software)
    options = (("metacopy", metacopy), ("redirect_dir", "on"), ("index", index))
    overlay = overlay_at(area / "overlay", software, options=options)
    change_as_users_do(overlay.path)
    if index == "off":
        support.write(overlay.path / "tool/1.0/version-again", b"one")
    before, links = everything(overlay.path), linked(overlay.path)
    result = detached(overlay)
    assert result["content_files"] > 0
    assert everything(overlay.path) == before
    assert linked(overlay.path) == links
    assert sealed(overlay, "tool/1.0")
    shut_down(disk)
    assert everything(overlay.path) == before
    overlay.unmount()
    overlay.lowers = (Path(result["lower"][0]),)
    overlay.mount()
    assert everything(overlay.path) == before
    assert linked(overlay.path) == links
    use(overlay.path)


def test_the_file_system_of_the_lower_layer_can_be_unmounted(area: Path, disk: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    device = os.stat(disk).st_dev
    detached(overlay)
    support.command("umount", disk)
    try:
        assert syscalls.has_superblock((os.major(device), os.minor(device))) is False
        use(overlay.path)
    finally:
        support.command("mount", "-t", "tmpfs", "tmpfs", disk)


def hangs(work: Callable[[], object], seconds: float) -> bool:
    """Run ``work``, which must succeed, in another process; return whether it has not ended after ``seconds``."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0
            return False
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


@pytest.mark.parametrize("detach", [True, False])
def test_a_server_that_hangs_keeps_nobody_waiting_once_the_overlay_is_detached(
    area: Path, software: Path, detach: bool
) -> None:
    without_links(software)
    support.write(software / "tool/1.0/version-again", b"one")
    place = area / "served"
    place.mkdir()
    with fuse_server.served(software, place) as server:
        overlay = overlay_at(area / "overlay", place, options=PLAIN)
        before = everything(overlay.path)
        if detach:
            assert overlay.finalized(detach=True)["detached"]
        else:
            overlay.finalized(copy_content=True)
        server.hang()
        if detach:
            assert not hangs(lambda: equal(everything(overlay.path), before), 20)
            assert not hangs(lambda: use(overlay.path), 20)
        else:
            assert hangs(lambda: everything(overlay.path), 2)


def equal(left: object, right: object) -> None:
    assert left == right


def test_without_detaching_the_lower_layer_is_reached(area: Path, disk: Path, software: Path) -> None:
    """The reason for all this: the kernel asks for the attributes of each file that it finds by its origin."""
    without_links(software)
    overlay = overlay_at(area / "overlay", software, options=PLAIN)
    overlay.finalized(copy_content=True)
    shut_down(disk)
    with pytest.raises(OSError, match="Input/output error"):
        (overlay.path / "tool/1.0/bin/tool").stat()


def test_every_kind_of_entry_is_as_before(area: Path, root: Path) -> None:
    lower = area / "lower"
    support.command("cp", "-a", "--sparse=always", root, lower)
    overlay = overlay_at(area / "overlay", lower)
    detached(overlay)
    problems = support.compare_trees(overlay.path, lower)
    assert problems == []
    shutil.rmtree(lower)
    drop_caches()
    overlay.unmount()
    overlay.lowers = (area / "overlay/upper.detached",)
    overlay.mount()
    assert support.compare_trees(overlay.path, root) == []


def test_an_overlay_that_was_finalized_before_is_detached(area: Path, disk: Path, software: Path) -> None:
    """Its copies are without content. The kernel would set the mtime of each to the time of copying."""
    (software / "tool/1.0/bin/tool").chmod(0o6755)
    os.setxattr(software / "tool/1.0/bin/tool", "security.capability", support.CAPABILITY)
    support.write(software / "tool/1.0/empty", b"", mtime_ns=2_000_000_009)
    overlay = overlay_at(area / "overlay", software)
    change_as_users_do(overlay.path)
    overlay.finalized()
    before, links = everything(overlay.path), linked(overlay.path)
    check = support.module("overlay_finalize", check=True, path=str(overlay.path), detach=True, allow_unmount=True).ok
    assert everything(overlay.path) == before
    result = detached(overlay)
    assert result["sealed"] == 0
    assert result["copied_up"] == 0
    for name in ("content_files", "content_bytes", "actions", "already", "detached"):
        assert result[name] == check[name], name
    assert everything(overlay.path) == before
    assert linked(overlay.path) == links
    shut_down(disk)
    assert everything(overlay.path) == before


def test_owners_are_changed_and_the_rest_is_as_before(area: Path, disk: Path, software: Path) -> None:
    (software / "tool/1.0/bin/tool").chmod(0o6755)
    overlay = overlay_at(area / "overlay", software)
    before = shown(overlay.path)
    detached(overlay, owner="4321", group="4322", keep_setid=True)
    shut_down(disk)
    after = shown(overlay.path)
    assert {path: (one[0], 4321, 4322, *one[3:]) for path, one in before.items() if path} == {
        path: one for path, one in after.items() if path
    }


def test_a_directory_keeps_its_origin_so_that_whiteouts_stay_hidden(area: Path, disk: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    (overlay.path / "tool/1.0/version").unlink()
    detached(overlay)
    shut_down(disk)
    assert attribute(overlay.upper / "tool/1.0", ORIGIN) is not None
    assert "version" in os.listdir(overlay.upper / "tool/1.0")
    assert "version" not in os.listdir(overlay.path / "tool/1.0")


def test_inode_numbers_become_those_of_the_upper_layer(area: Path, disk: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    name = "tool/1.0/bin/tool"
    assert (overlay.path / name).stat().st_ino == (software / name).stat().st_ino
    detached(overlay)
    shut_down(disk)
    for path in overlay.upper.rglob("*"):
        assert path.lstat().st_ino == (overlay.path / path.relative_to(overlay.upper)).lstat().st_ino
    devices = {path.lstat().st_dev for path in overlay.path.rglob("*")}
    assert devices == {overlay.path.stat().st_dev}


def test_check_mode_writes_nothing_and_returns_what_a_run_does(area: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)

    def state() -> list[object]:
        found = support.listing(overlay.area).items()
        return [
            sorted((path, status.st_mode, status.st_ctime_ns) for path, status in found),
            support.live(overlay.path),
        ]

    before = state()
    arguments: dict[str, Any] = {"path": str(overlay.path), "allow_unmount": True, "detach": True}
    expected = support.module("overlay_finalize", check=True, **arguments).ok
    assert state() == before
    result = overlay.finalize(allow_unmount=True, detach=True)
    assert result["actions"][-1] == (
        f"detach the overlay from {software}, and mount it over the empty directory {overlay.upper}.detached"
    )
    for name in ("actions", "changed", "copied_up", "content_files", "content_bytes", "sealed", "detached", "lower"):
        assert result[name] == expected[name], name
    assert "declared" in str(result["warnings"])
    before = state()
    assert not support.module("overlay_finalize", check=True, **arguments).ok["changed"]
    assert state() == before


def test_a_detached_overlay_has_nothing_left_to_finalize(area: Path, disk: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    detached(overlay)
    shut_down(disk)
    result = overlay.finalize(stale="remove", allow_unmount=True, owner="7")
    assert not result["changed"]
    assert result["finalized"]
    assert result["detached"]
    assert "warnings" not in result or not result["warnings"]


def test_a_detached_overlay_is_as_declared_over_the_empty_directory(area: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    arguments: dict[str, Any] = {
        "path": str(overlay.path),
        "upper": str(overlay.upper),
        "work": str(overlay.work),
        "options": {"metacopy": "on", "redirect_dir": "on", "index": "on", "nodev": True},
    }
    lower = detached(overlay)["lower"]
    assert not support.module("overlay_mount", check=True, lower=lower, **arguments).ok["changed"]
    # With an index, the kernel records the lower layer of an upper layer. It refuses the old one.
    overlay.unmount()
    with pytest.raises(OverlayError, match="another lower layer"):
        overlay.mount()


def test_several_lower_layers_and_data_layers_are_left_behind(
    area: Path, software: Path, root: Path, tools: tuple[Any, ...]
) -> None:
    layer, _generation, _report = support.build(area / "state", list(tools))
    overlay = overlay_at(area / "overlay", layer, software, data=(root,))
    before = everything(overlay.path)
    detached(overlay)
    assert everything(overlay.path) == before


def test_xattrs_of_the_namespace_user_are_removed_too(area: Path, disk: Path, software: Path) -> None:
    without_links(software)
    overlay = overlay_at(area / "overlay", software, options=(("userxattr", None), ("index", "off")))
    before = everything(overlay.path)
    assert overlay.finalized(detach=True)["detached"]
    assert everything(overlay.path) == before
    shut_down(disk)
    use_files(overlay.path)
    for path in overlay.upper.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            assert attribute(path, "user.overlay.origin") is None
    assert attribute(overlay.upper / "tool", "user.overlay.origin") is not None


def test_a_volatile_overlay_is_detached(area: Path, disk: Path, software: Path) -> None:
    options = (("metacopy", "on"), ("redirect_dir", "on"), ("index", "on"), ("volatile", None))
    overlay = overlay_at(area / "overlay", software, options=options)
    before = everything(overlay.path)
    detached(overlay)
    shut_down(disk)
    assert everything(overlay.path) == before


def test_a_copied_note_of_an_mtime_has_no_effect(area: Path, software: Path) -> None:
    """A copy of a file whose content a killed run was copying keeps its own mtime, and the file gets the one that was noted."""
    overlay = overlay_at(area / "overlay", software)
    file, copy = overlay.path / "tool/1.0/bin/tool", overlay.path / "tool/1.0/bin/copy"
    noted = file.stat().st_mtime_ns
    os.setxattr(file, MTIME, b"%d %d" % (noted, file.stat().st_ino))
    support.command("cp", "-a", file, copy)
    os.utime(copy, ns=(3, 4))
    os.utime(file, ns=(5, 6))
    assert attribute(copy, MTIME) is not None
    detached(overlay)
    assert copy.stat().st_mtime_ns == 4
    assert file.stat().st_mtime_ns == noted


@pytest.mark.parametrize("function", [detaching.copy_content, lambda held: detaching.copy_up_whole(held, True)])
def test_nothing_but_a_regular_file_is_opened(area: Path, function: Callable[[int], None]) -> None:
    """A user may put a FIFO, or a link to a file of root, in the place of a file. Opening a FIFO would wait for its other end."""
    os.mkfifo(area / "fifo")
    (area / "link").symlink_to("/etc/shadow")
    for name in ("fifo", "link"):
        held = os.open(area / name, os.O_PATH | os.O_NOFOLLOW)
        function(held)
        os.close(held)
        assert attribute(area / name, MTIME) is None


def test_without_allow_unmount_everything_but_the_last_step_is_done(area: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    result = overlay.finalize(detach=True)
    assert not result["detached"]
    assert [one["path"] for one in result["pending"]] == [".", "other", "tool"]
    assert "it can only be detached while the overlay is unmounted" in result["pending"][0]["reason"]
    assert all("allow_unmount" in one["reason"] for one in result["pending"])
    assert attribute(overlay.upper / "tool/1.0/version", METACOPY) is None
    result = detached(overlay)
    assert result["content_files"] == 0


def test_a_program_that_runs_is_reported_and_nothing_is_detached(area: Path, software: Path) -> None:
    shutil.copy("/bin/sleep", software / "tool/1.0/bin/sleeper")
    overlay = overlay_at(area / "overlay", software)
    with support.background(
        "import subprocess, sys\nwith subprocess.Popen([sys.argv[1], '60']) as child:\n print('ready', flush=True)\n"
        " sys.stdin.readline()\n child.kill()",
        overlay.path / "tool/1.0/bin/sleeper",
    ) as holder:
        result = overlay.finalize(detach=True)
        assert {"path": "tool/1.0/bin/sleeper", "reason": os.strerror(errno.ETXTBSY)} in result["pending"]
        assert holder.stdin
        holder.stdin.write("\n")
        holder.stdin.flush()
        holder.wait(10)
    detached(overlay)


def test_a_file_whose_source_is_gone_is_reported_and_nothing_is_detached(area: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    overlay.finalized()
    (software / "tool/1.0/bin/tool").unlink()
    result = overlay.finalize(detach=True, allow_unmount=True)
    assert not result["detached"]
    assert result["pending"] == [{"path": "tool/1.0/bin/tool", "reason": os.strerror(errno.EIO)}]


def test_a_file_that_is_gone_from_the_data_layer_is_reported_and_nothing_is_detached(
    area: Path, software: Path
) -> None:
    layer, _generation, _report = support.build(area / "state", [support.scanned(area / "store", software, "tool/1.0")])
    overlay = overlay_at(area / "overlay", layer, data=(software,))
    overlay.finalized()
    (software / "tool/1.0/bin/tool").unlink()
    result = overlay.finalize(detach=True, allow_unmount=True)
    assert not result["detached"]
    reason = "its content is gone from the lower layers"
    assert result["pending"] == [{"path": "tool/1.0/bin/tool", "reason": reason}]


def test_a_full_disk_leaves_an_overlay_that_goes_on(area: Path, software: Path) -> None:
    for number in range(8):
        support.write(software / f"tool/1.0/big-{number}", os.urandom(1 << 20))
    support.command("mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", _made(area / "overlay"))
    overlay = overlay_at(area / "overlay", software)
    before = everything(overlay.path)
    ran = support.module("overlay_finalize", path=str(overlay.path), detach=True, allow_unmount=True)
    assert os.strerror(errno.ENOSPC) in ran.message
    assert everything(overlay.path) == before
    support.command("mount", "-o", "remount,size=64m", area / "overlay")
    detached(overlay)
    assert everything(overlay.path) == before


def _made(place: Path) -> Path:
    place.mkdir()
    return place


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"subtrees": ["tool"]}, "leave 'subtrees' out"),
        ({"merged_levels": 1}, "leave 'merged_levels' out"),
        ({"passes": ["copy_up"]}, "copy_up and seal"),
        ({"seal": "kernel"}, "not kernel"),
    ],
)
def test_what_would_leave_a_part_merged_is_refused(
    area: Path, software: Path, arguments: dict[str, Any], reason: str
) -> None:
    overlay = overlay_at(area / "overlay", software)
    ran = support.module("overlay_finalize", path=str(overlay.path), detach=True, allow_unmount=True, **arguments)
    assert reason in ran.message
    assert os.listdir(overlay.upper) == []


def test_an_overlay_that_is_exported_over_nfs_is_refused(area: Path, software: Path) -> None:
    options = (("nfs_export", "on"), ("index", "on"), ("metacopy", "off"), ("redirect_dir", "on"))
    overlay = overlay_at(area / "overlay", software, options=options)
    ran = support.module("overlay_finalize", path=str(overlay.path), detach=True, allow_unmount=True)
    assert "nfs_export" in ran.message
    assert os.listdir(overlay.upper) == []


def test_something_in_the_way_of_the_empty_directory_is_refused(area: Path, software: Path) -> None:
    overlay = overlay_at(area / "overlay", software)
    place = overlay.area / "upper.detached"
    place.mkdir()
    (place / "something").write_bytes(b"")
    place.chmod(0o775)
    for reason in ("others than root", "is not empty", "is no directory"):
        ran = support.module("overlay_finalize", path=str(overlay.path), detach=True, allow_unmount=True)
        assert reason in ran.message
        assert os.listdir(overlay.upper) == []
        if reason == "others than root":
            place.chmod(0o755)
        elif place.is_dir():
            shutil.rmtree(place)
            place.write_bytes(b"")
