"""What root does in trees that users write to: a name that is exchanged at the worst moment leads root nowhere else.

The exchange is made at a fixed moment. A hook of Python's audit events (sys.addaudithook) runs it before a call that changes something,
and functions of the collection are wrapped if Python has no event. The kernel is the real one.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import (
    live_overlay,
    lowers,
    moving,
    passes,
    remount,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_request import (
    PASSES,
    Request,
    Wanted,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import FinalizeResult
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.move_plan import MoveSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.writable import Overlay, attribute, overlay_at, shown

USER = 4321
SECRET = b"of root"


@pytest.fixture
def software(area: Path) -> Path:
    lower = area / "lower"
    for version in ("1.0", "2.0"):
        support.make_small_release(lower / "tool" / version, version)
    tool = lower / "tool" / "1.0" / "bin" / "tool"
    tool.chmod(0o6755)
    return lower


@pytest.fixture
def overlay(area: Path, software: Path) -> Overlay:
    return overlay_at(area / "overlay", software)


@pytest.fixture
def victim(area: Path) -> Path:
    """A directory of root outside the overlay that has the same names as the overlay."""
    top = area / "victim"
    for path in ("tool", "version", "latest", "bin/tool", "1.0/bin/tool", "1.0/version", "view/inside"):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        if not (top / path).is_dir():
            support.write(top / path, SECRET, 0o600)
    top.chmod(0o700)
    return top


def state(top: Path) -> dict[bytes, tuple[Any, ...]]:
    """Return everything about a tree that must not change."""
    return {
        path: (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        for path, status in support.listing(top).items()
    }


class Moment:
    """Acts once, right before a call that is chosen by an audit event or by its arguments."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self.came = False

    def now(self) -> None:
        if not self.came:
            self.came = True
            self._act()

    def at(self, *events: str, name: bytes | None = None) -> None:
        """Act at the first of these audit events whose first argument ends with ``name``. Only for child processes: hooks stay.

        Events of processes that this one starts do not count, such as the one that tries the kernel.
        """
        process = os.getpid()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in events or self.came or os.getpid() != process:
                return
            if name is None or _ends_with(arguments[0], name):
                self.now()

        sys.addaudithook(hook)

    def before(self, function: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        """Wrap ``function`` to act before the first call for whose arguments ``when`` is true."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not self.came and when(*arguments, **named):
                self.now()
            return function(*arguments, **named)

        return wrapped


def _ends_with(argument: object, name: bytes) -> bool:
    return isinstance(argument, (bytes, str)) and os.fsencode(argument).endswith(name)


def in_child(work: Callable[[], bool]) -> None:
    """Run ``work`` in a child process, as modules run. It returns whether the moment came, which is asserted."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "nothing"
        try:
            text = "" if work() else "the moment did not come"
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writer, text.encode()[:4096])
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(child, 0)
    assert text == ""


def finalized(overlay: Overlay, owner: int | None = None, stale: str = "report", **more: Any) -> FinalizeResult:
    given = frozenset(more.get("only", PASSES))
    wanted = Wanted(
        owner=owner,
        group=None,
        copy_up="copy_up" in given,
        keep_setid=more.get("keep_setid", False),
        copy_content=False,
        check_mode=more.get("check_mode", False),
    )
    unmount = more.get("unmount", False)
    return passes.run(Request(os.fsencode(overlay.path), (), given, "auto", unmount, stale, 1, wanted, 1, 10))


def give_away(*paths: Path) -> None:
    """Give directories to the user, who may then exchange names in them."""
    for path in paths:
        os.chown(path, USER, USER)


def link_instead(path: Path, target: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to(target)


def link_back(path: Path) -> None:
    path.unlink()
    path.with_name("aside").rename(path)


def test_a_set_id_mode_is_not_restored_through_a_link(overlay: Overlay, victim: Path) -> None:
    directory = overlay.path / "tool/1.0/bin"
    give_away(directory)
    before = state(victim)

    def attack() -> bool:
        moment = Moment(lambda: link_instead(directory / "tool", victim / "tool"))
        moment.at("os.chmod")
        with contextlib.suppress(OverlayError, OSError):
            finalized(overlay, USER, keep_setid=True)
        return moment.came

    in_child(attack)
    assert state(victim) == before
    assert (directory / "aside").stat().st_mode & 0o7777 == 0o6755


@pytest.mark.parametrize("moment_of", ["os.chown", "open", "change_owner"])
def test_a_file_of_root_that_comes_in_the_place_of_another_is_not_given_away(
    overlay: Overlay, moment_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user may rename it in a directory of theirs, but may not read it."""
    directory = overlay.path / "tool/1.0/bin"
    give_away(directory)
    support.write(directory / "secret", SECRET, 0o600)
    inode = (directory / "secret").stat().st_ino

    def exchange() -> None:
        (directory / "tool").unlink()
        (directory / "secret").rename(directory / "tool")

    def attack() -> bool:
        moment = Moment(exchange)
        if moment_of == "change_owner":
            is_file = lambda fd, *_: stat.S_ISREG(os.fstat(fd).st_mode)  # noqa: E731
            monkeypatch.setattr(beneath, "change_owner", moment.before(beneath.change_owner, is_file))
        else:
            moment.at(moment_of, name=b"tool")
        finalized(overlay, USER, only=["copy_up"])
        return moment.came or moment_of == "os.chown"

    in_child(attack)
    found = [path for path in directory.iterdir() if path.stat().st_ino == inode]
    assert [path.stat().st_uid for path in found] == [0]


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_file_of_root_that_replaces_another_is_reported(
    overlay: Overlay, check_mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = overlay.path / "tool/1.0/bin"
    give_away(directory)
    support.write(directory / "secret", SECRET, 0o600)
    moment = Moment(lambda: os.replace(directory / "secret", directory / "tool"))

    def is_in_directory(fd: int) -> bool:
        return os.readlink(f"/proc/self/fd/{fd}") == str(directory)

    monkeypatch.setattr(
        beneath, "hold", moment.before(beneath.hold, lambda _fd, name: name == b"tool" and is_in_directory(_fd))
    )
    result = finalized(overlay, USER, only=["copy_up"], check_mode=check_mode)
    assert moment.came
    assert b"tool/1.0/bin/tool" in {one.path for one in result.pending}
    assert (directory / "tool").stat().st_uid == 0
    assert (directory / "tool").read_bytes() == SECRET


@pytest.mark.parametrize("exchanged", ["tool/1.0/bin", "tool/1.0"])
def test_a_walk_does_not_leave_the_overlay(
    overlay: Overlay, victim: Path, exchanged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(overlay.path / "tool", overlay.path / "tool/1.0")
    before = state(victim)
    target = victim if exchanged.endswith("1.0") else victim / "bin"

    def attack() -> bool:
        moment = Moment(lambda: link_instead(overlay.path / exchanged, target))
        # Exchange them back right before the names in the upper layer are read.
        back = Moment(lambda: link_back(overlay.path / exchanged))
        moment.at("open", name=b"tool/1.0/bin")
        sys.addaudithook(lambda event, _: back.now() if event == "os.listdir" and moment.came else None)
        is_there = lambda _fd, path, *_, **__: path == b"tool/1.0/bin"  # noqa: E731
        monkeypatch.setattr(beneath, "open_at", moment.before(beneath.open_at, is_there))
        with contextlib.suppress(OverlayError, OSError):
            finalized(overlay, USER)
        return moment.came

    in_child(attack)
    assert state(victim) == before


def test_what_is_stale_is_not_removed_through_a_link(overlay: Overlay, software: Path, victim: Path) -> None:
    finalized(overlay, only=["copy_up"])
    give_away(overlay.path / "tool", overlay.path / "tool/1.0")
    for path in sorted((software / "tool/1.0").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    (software / "tool/1.0").rmdir()
    before = state(victim)

    def attack() -> bool:
        moment = Moment(lambda: link_instead(overlay.path / "tool/1.0", victim))
        moment.at("os.remove")
        with contextlib.suppress(OverlayError, OSError):
            finalized(overlay, stale="remove")
        return moment.came

    in_child(attack)
    assert state(victim) == before


def test_what_is_stale_in_one_directory_is_not_removed_from_another(
    overlay: Overlay, software: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of root replaces the stale one only while it is opened through the overlay."""
    view = overlay.path
    finalized(overlay, only=["copy_up"])
    give_away(view / "tool")
    (view / "tool/mine/bin").mkdir(parents=True)
    for name in ("bin/tool", "version", "version-again", "latest"):
        support.write(view / "tool/mine" / name, SECRET, 0o600)
    before = state(view / "tool/mine")
    support.command("rm", "-r", str(software / "tool/1.0"))
    opened = beneath.open_at

    def open_at(fd: int, path: bytes, flags: int = beneath.LISTING, same_mount: bool = False) -> int:
        if flags == beneath.LISTING or path != b"1.0":
            return opened(fd, path, flags, same_mount)
        (view / "tool/1.0").rename(view / "tool/aside")
        (view / "tool/mine").rename(view / "tool/1.0")
        found = opened(fd, path, flags, same_mount)
        (view / "tool/1.0").rename(view / "tool/mine")
        (view / "tool/aside").rename(view / "tool/1.0")
        return found

    monkeypatch.setattr(beneath, "open_at", open_at)
    result = finalized(overlay, stale="remove")
    assert {path: one[:4] + one[5:] for path, one in state(view / "tool/mine").items() if path} == {
        path: one[:4] + one[5:] for path, one in before.items() if path
    }
    assert result.removed == []
    monkeypatch.undo()
    overlay.unmount()
    overlay.mount()
    assert finalized(overlay, stale="remove").removed == [b"tool/1.0"]
    assert not (view / "tool/1.0").exists()


def test_a_move_gives_nothing_away_through_a_link(overlay: Overlay, victim: Path) -> None:
    source, destination = overlay.path / "tool/1.0", overlay.path / "tool/new"
    give_away(overlay.path / "tool", source)
    before = state(victim)

    def put_link() -> None:
        if destination.is_dir():
            destination.rename(destination.with_name("aside"))
        destination.symlink_to(victim)

    def attack() -> bool:
        moment = Moment(put_link)
        moment.at("os.chown")
        with contextlib.suppress(OverlayError, OSError):
            moving.move(MoveSpec(os.fsencode(source), os.fsencode(destination)), no_progress)
        return moment.came

    in_child(attack)
    assert state(victim) == before


@pytest.mark.parametrize("moment_of", ["os.chown", "os.chmod", "os.rename", "rename_new"])
def test_a_directory_of_root_is_not_given_away_by_a_move(
    overlay: Overlay, moment_of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user renames it to the destination between the moments in which that is made and gets its owner."""
    source, destination, private = (overlay.path / "tool" / name for name in ("1.0", "new", "private"))
    give_away(overlay.path / "tool", source)
    private.mkdir(0o700)
    inode = private.stat().st_ino

    def exchange() -> None:
        if destination.exists():
            destination.rename(destination.with_name("aside"))
        private.rename(destination)

    def attack() -> bool:
        moment = Moment(exchange)
        if moment_of == "rename_new":
            monkeypatch.setattr(beneath, "rename_new", moment.before(beneath.rename_new, lambda *_: True))
        else:
            moment.at(moment_of)
        with contextlib.suppress(OverlayError, OSError):
            moving.move(MoveSpec(os.fsencode(source), os.fsencode(destination)), no_progress)
        return moment.came or moment_of == "os.rename"

    in_child(attack)
    found = [path for path in (overlay.path / "tool").iterdir() if path.stat().st_ino == inode]
    assert [(path.stat().st_uid, path.stat().st_mode & 0o7777) for path in found] in ([(0, 0o700)], [])


def test_what_is_moved_is_not_looked_for_through_a_link(overlay: Overlay) -> None:
    source, destination, private = (overlay.path / "tool" / name for name in ("1.0", "new", "private"))
    give_away(overlay.path / "tool", source)
    private.mkdir(0o700)
    support.write(private / "secret", SECRET, 0o600)
    before = state(private)

    def attack() -> bool:
        moment = Moment(lambda: link_instead(source / "bin", private))

        def progress() -> None:
            if destination.exists():
                moment.now()

        with contextlib.suppress(OverlayError, OSError):
            moving.move(MoveSpec(os.fsencode(source), os.fsencode(destination)), progress)
        return moment.came

    # Make it the last entry of its directory.
    (source / "bin").rename(source / "zz")
    (source / "zz").rename(source / "bin")
    in_child(attack)
    assert state(private) == before


def test_a_move_removes_its_own_directories_and_those_of_a_killed_run(overlay: Overlay) -> None:
    source, destination = overlay.path / "tool/1.0", overlay.path / "local/new"
    spec = MoveSpec(os.fsencode(source), os.fsencode(destination))
    left = overlay.path / (moving.ASIDE.decode() + "0123")
    left.mkdir(0o700)
    (left / "empty").mkdir()
    moving.move(spec, no_progress)
    assert sorted(os.listdir(overlay.path)) == ["local", "tool"]
    assert not source.exists()


def test_a_directory_that_is_exchanged_before_it_is_sealed_shows_its_own_files(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = overlay.path

    def exchange() -> None:
        for old, new in (("1.0", "aside"), ("2.0", "1.0"), ("aside", "2.0")):
            (view / "tool" / old).rename(view / "tool" / new)

    moment = Moment(exchange)
    unmounted = remount.unmounted
    monkeypatch.setattr(remount, "unmounted", moment.before(unmounted, lambda *_: True))
    result = finalized(overlay, unmount=True)
    assert moment.came
    assert (view / "tool/1.0/version").read_bytes() == b"2.0"
    assert (view / "tool/2.0/version").read_bytes() == b"1.0"
    assert {b"tool/1.0", b"tool/2.0"} <= {one.path for one in result.pending}
    monkeypatch.undo()
    before = shown(view)
    finalized(overlay, unmount=True)
    assert shown(view) == before
    assert attribute(overlay.upper / "tool/1.0/version", "trusted.overlay.redirect") == b"/tool/2.0/version"


def test_sealing_does_not_leave_the_upper_layer(
    overlay: Overlay, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who can reach the upper layer itself exchanges a directory of theirs there while the overlay is unmounted."""
    os.setxattr(victim / "bin/tool", "trusted.overlay.metacopy", b"")
    before = state(victim)

    def attack() -> bool:
        moment = Moment(lambda: link_instead(overlay.upper / "tool/1.0/bin", victim / "bin"))
        moment.at("os.chdir", name=b"tool/1.0/bin")

        def is_unmounted(_fd: int, path: bytes, *_: object, **__: object) -> bool:
            return path == b"tool/1.0/bin" and support.live(overlay.path) is None

        monkeypatch.setattr(beneath, "open_at", moment.before(beneath.open_at, is_unmounted))
        with contextlib.suppress(OverlayError, OSError):
            finalized(overlay, unmount=True)
        return moment.came

    in_child(attack)
    assert state(victim) == before


def test_lower_layers_are_not_looked_into_through_links(software: Path, victim: Path) -> None:
    (software / "tool/link").symlink_to(victim)
    (software / "tool/file").symlink_to(victim / "version")
    root = os.open(software, os.O_RDONLY | os.O_DIRECTORY)
    below = Lowers(root)
    assert below.names(b"/tool/link/bin") is None
    assert below.names(b"/tool/link") is None
    assert not below.has(b"/tool/link/version")
    assert below.has(b"/tool/file")
    assert below.has(b"/tool/1.0/bin/tool")
    assert not below.has(b"/tool/1.0/version/none")
    os.close(root)


def test_a_file_system_mounted_in_a_lower_layer_is_named(software: Path) -> None:
    support.command("mount", "-t", "tmpfs", "tmpfs", software / "tool/1.0")
    try:
        root = os.open(software, os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(OSError, match="another file system"):
            Lowers(root).names(b"/tool/1.0")
        os.close(root)
    finally:
        support.command("umount", software / "tool/1.0")


class OverlayAtHome(Overlay):
    """An overlay that is mounted in a directory of the user, and has its layers elsewhere."""

    @property
    def path(self) -> Path:
        return self.area / "home" / "view"


def test_an_overlay_is_mounted_again_where_it_was(
    area: Path, software: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user replaces the directory above the mountpoint by a link while the overlay is unmounted."""
    overlay = OverlayAtHome(area / "overlay", (software,))
    overlay.mount()
    home = overlay.path.parent

    def exchange() -> None:
        home.rename(home.with_name("aside"))
        home.symlink_to(victim)

    moment = Moment(exchange)
    is_unmounted = lambda *_: support.live(overlay.path) is None  # noqa: E731
    monkeypatch.setattr(syscalls, "has_superblock", moment.before(syscalls.has_superblock, is_unmounted))
    with contextlib.suppress(OverlayError, OSError):
        finalized(overlay, unmount=True)
    assert moment.came
    assert support.live(victim / "view") is None
    assert support.live(home.with_name("aside") / "view") is not None


def test_the_lower_layers_show_their_own_names(overlay: Overlay) -> None:
    found = live_overlay.find(os.fsencode(overlay.path))
    assert found
    with lowers.opened(found.layers) as below:
        assert below.names(b"/") == {b"tool"}
        assert below.names(b"/tool") == {b"1.0", b"2.0"}
    found.roots.close()
