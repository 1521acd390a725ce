"""Files are replaced whole, directories get the requested mode, and trees are removed without following links."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.kernel import support


@pytest.fixture
def area(area: Path) -> Path:
    """Provide an empty directory."""
    path = area / "empty"
    path.mkdir()
    return path


def test_a_file_is_replaced_whole_or_not_at_all(area: Path) -> None:
    path = area / "record"
    path.write_text("old")

    def write_half() -> None:
        with files.written_aside(str(path)) as stream:
            stream.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(area) == ["record"]
    with files.written_aside(str(path), 0o640) as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert (path.read_text(), path.stat().st_mode & 0o7777) == ("new", 0o640)


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_the_error_on_a_full_disk_names_the_file(area: Path, size: int) -> None:
    place = area / "full"
    place.mkdir()
    support.command("mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", place)
    support.write(place / "all", bytes(8192))

    def write() -> None:
        with files.written_aside(str(place / "record")) as stream:
            stream.write(bytes(size))

    with pytest.raises(OSError, match="No space left on device") as raised:
        write()
    assert raised.value.filename == str(place / "record")
    assert os.listdir(place) == ["all"]


def test_old_leftovers_of_a_killed_run_are_removed(area: Path) -> None:
    old, young, other = (area / name for name in (".new-record.old", ".new-record.young", ".new-else.old"))
    for path in (old, young, other):
        path.touch()
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (old, other):
        os.utime(path, (two_days_ago, two_days_ago))
    with files.written_aside(str(area / "record")):
        pass
    assert sorted(os.listdir(area)) == [".new-else.old", ".new-record.young", "record"]


def test_a_link_is_replaced_despite_a_leftover_of_a_killed_run(area: Path) -> None:
    link = str(area / "current")
    (area / ".new-current").symlink_to("left by a killed run")
    for target in ("a", "b"):
        files.replace_link(link, target)
        assert os.readlink(link) == target
    assert os.listdir(area) == ["current"]


def test_a_tree_with_an_inner_mount_is_not_removed(area: Path) -> None:
    inner = area / "top" / "a" / "mounted"
    inner.mkdir(parents=True)
    (area / "top" / "file").touch()
    support.command("mount", "-t", "tmpfs", "tmpfs", inner)
    with pytest.raises(
        OverlayError, match=f"something is mounted at {inner}, which is to be removed: unmount it first"
    ):
        files.remove_tree(str(area / "top"))
    assert sorted(os.listdir(area / "top")) == ["a", "file"]


def test_a_tree_is_removed_without_following_links(area: Path) -> None:
    kept = area / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = area / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "link").symlink_to(kept)
    (top / "closed").mkdir(0o000)
    os.mkfifo(top / "pipe")
    files.remove_tree(str(top))
    assert os.listdir(area) == ["kept"]
    assert os.listdir(kept) == ["file"]
    files.remove_tree(str(top))


def test_each_directory_is_listed_once_when_a_tree_is_removed(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = area / "top"
    for number in range(300):
        (top / str(number)).mkdir(parents=True)
    listed: list[int] = []
    scandir = os.scandir

    def counting(fd: int) -> object:
        listed.append(fd)
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", counting)
    files.remove_tree(str(top))
    assert len(listed) == 301
    assert not top.exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_new_directories_have_the_requested_mode_whatever_the_umask(area: Path, umask: int) -> None:
    (area / "there").mkdir(mode=0o700)
    top = area / "there" / "one"
    before = os.umask(umask)
    try:
        made = files.make_directories(str(top / "two"), 0o755)
        again = files.make_directories(os.fsencode(top / "two") + b"/", 0o700)
    finally:
        os.umask(before)
    assert (made, again) == ([os.fsencode(top), os.fsencode(top / "two")], [])
    assert [path.stat().st_mode & 0o7777 for path in (area / "there", top, top / "two")] == [0o700, 0o755, 0o755]


def test_a_default_acl_does_not_change_the_mode_of_a_new_directory(area: Path) -> None:
    # Version, then tag, permissions and id of the owner, the group and all others, as setfacl -d writes them.
    acl = struct.pack("<I" + "HHI" * 3, 2, *(number for tag in (0x01, 0x04, 0x20) for number in (tag, 7, 0xFFFFFFFF)))
    os.setxattr(area, "system.posix_acl_default", acl)
    files.make_directories(str(area / "state"), 0o700)
    assert (area / "state").stat().st_mode & 0o7777 == 0o700


def test_a_file_or_dangling_link_above_a_new_directory_is_an_error(area: Path) -> None:
    (area / "file").write_text("x")
    (area / "nowhere").symlink_to("missing")
    for name in ("file", "nowhere"):
        with pytest.raises(OSError, match=f"{area}/{name}"):
            files.make_directories(str(area / name / "below"), 0o755)
