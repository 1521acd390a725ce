"""Finalized overlays: what is copied up and sealed, and that they show what they showed before."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import remount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.writable import (
    OPAQUE,
    REDIRECT,
    SEALED,
    Overlay,
    attribute,
    copied,
    overlay_at,
    sealed,
    shown,
)


@pytest.fixture
def software(area: Path) -> Path:
    """A lower layer with three small releases that a test may change."""
    lower = area / "lower"
    support.make_small_release(lower / "tool" / "1.0", "one")
    support.make_small_release(lower / "tool" / "2.0", "two")
    support.make_small_release(lower / "other" / "1.0", "three")
    return lower


@pytest.fixture
def overlay(area: Path, software: Path) -> Overlay:
    return overlay_at(area, software)


@pytest.fixture(params=["tmpfs", "xfs", "ext4-256"])
def on_disk(request: pytest.FixtureRequest, disks: dict[str, Path]) -> Iterator[Path]:
    place = disks[request.param] / "finalize"
    place.mkdir()
    yield place
    support.unmount_all(place / "view")
    shutil.rmtree(place)


def add_to(lower: Path, name: str) -> None:
    """Add a file to a directory of the lower layer."""
    support.write(lower / name, b"new")


def test_every_kind_of_entry_is_as_before(on_disk: Path, root: Path) -> None:
    overlay = overlay_at(on_disk, root)
    result = overlay.finalized()
    assert result["copied_up"] == sum(1 for _ in root.rglob("*"))
    assert support.compare_trees(overlay.path, root) == []
    assert sealed(overlay, "odd/1/special")
    # No content was copied.
    used = int(support.command("du", "-s", "--block-size=1M", overlay.upper).split()[0])
    assert used < 150
    overlay.unmount()
    overlay.mount()
    assert support.compare_trees(overlay.path, root) == []
    assert not overlay.finalize(allow_unmount=True)["changed"]


def test_every_kind_of_entry_gets_another_owner_and_keeps_the_rest(area: Path, root: Path) -> None:
    overlay = overlay_at(area, root)
    overlay.finalized(owner="4321", group="4322", keep_setid=True)
    for path in overlay.path.rglob("*"):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (4321, 4322), path
    before, after = (
        {
            path: (status.st_mode, status.st_mtime_ns, status.st_nlink)
            for path, status in support.listing(top).items()
            if path
        }
        for top in (root, overlay.path)
    )
    differ = {path for path in before if before[path][:2] != after[path][:2]}
    assert not differ
    assert all(
        before[path][2] == after[path][2] for path in before if not (overlay.path / os.fsdecode(path[1:])).is_dir()
    )
    assert support.capability_of(os.fsencode(overlay.path / "odd/1/special/capable")) == support.CAPABILITY
    assert (overlay.path / "odd/1/special/mode-6711").lstat().st_mode & 0o7777 == 0o6711
    for path in (overlay.path, *overlay.path.rglob("*")):
        for name in os.listxattr(path, follow_symlinks=False):
            assert "restor" not in name, path


def test_a_sealed_directory_shows_nothing_new_and_the_root_does(overlay: Overlay, software: Path) -> None:
    overlay.finalized()
    add_to(software / "tool" / "1.0", "late")
    add_to(software, "late")
    overlay.unmount()
    overlay.mount()
    assert not (overlay.path / "tool/1.0/late").exists()
    assert (overlay.path / "late").read_bytes() == b"new"
    assert (overlay.path / "tool/1.0/version").read_bytes() == b"one"
    assert (overlay.path / "tool/1.0/version").stat().st_nlink == 2


def differences(overlay: Overlay, software: Path) -> list[str]:
    """Compare an overlay with its lower layer, in which releases have appeared, without the mtimes of merged directories."""
    problems = support.compare_trees(overlay.path, software)
    return [one for one in problems if not one.startswith(("b'': st_mtime", "b'/tool': st_mtime"))]


def test_subtrees_are_sealed_one_by_one(overlay: Overlay, software: Path) -> None:
    result = overlay.finalized(subtrees=["tool/1.0"])
    assert result["sealed"] == 2
    assert sealed(overlay, "tool/1.0")
    assert not sealed(overlay, "tool")
    assert not copied(overlay, "tool/2.0")
    support.make_small_release(software / "tool" / "3.0", "new")
    assert (overlay.path / "tool/3.0/version").read_bytes() == b"new"
    # The parent and the sealed release are in the upper layer. Nothing in the sealed release is visited.
    result = overlay.finalized(merged_levels=1)
    assert result["already"] == 2
    assert sealed(overlay, "tool/3.0")
    assert not sealed(overlay, "tool")
    assert differences(overlay, software) == []


def test_a_new_release_is_copied_up_while_the_overlay_is_in_use(overlay: Overlay, software: Path) -> None:
    overlay.finalized(merged_levels=1)
    with open(overlay.path / "tool/1.0/version", "rb") as stream:
        support.make_small_release(software / "tool" / "3.0", "new")
        result = overlay.finalize(merged_levels=1)
        assert result["copied_up"] == 6
        assert not result["finalized"]
        assert [one["path"] for one in result["pending"]] == ["tool/3.0"]
        assert "allow_unmount" in result["pending"][0]["reason"]
        assert stream.read() == b"one"
    assert overlay.finalized(merged_levels=1)["sealed"] == 2
    assert differences(overlay, software) == []


def test_an_overlay_in_use_is_not_unmounted_and_the_process_is_named(overlay: Overlay) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=overlay.path / "tool") as sleeper:
        message = support.module("overlay_finalize", path=str(overlay.path), allow_unmount=True).message
        assert f"sleep ({sleeper.pid})" in message
        sleeper.kill()
    assert copied(overlay, "tool/1.0/version")
    assert (overlay.path / "tool/1.0/version").read_bytes() == b"one"
    assert overlay.finalized()["copied_up"] == 0


def test_an_overlay_that_is_mounted_elsewhere_is_not_unmounted(overlay: Overlay) -> None:
    other = overlay.area / "other"
    other.mkdir()
    support.command("mount", "--bind", overlay.path, other)
    message = support.module("overlay_finalize", path=str(overlay.path), allow_unmount=True).message
    assert str(other) in message
    support.command("umount", other)
    with support.namespace("private") as pid:
        message = support.module("overlay_finalize", path=str(overlay.path), allow_unmount=True).message
        assert f"process {pid}" in message
    assert overlay.finalized()["sealed"] == 8


def test_an_overlay_in_use_through_a_detached_mount_is_not_sealed(area: Path, software: Path) -> None:
    options = (("metacopy", "on"), ("redirect_dir", "on"), ("index", "off"))
    overlay = overlay_at(area / "overlay", software, options=options)
    other = area / "other"
    other.mkdir()
    support.command("mount", "--bind", overlay.path, other)
    with open(other / "tool/1.0/bin/tool", "rb"):
        support.command("umount", "--lazy", other)
        message = support.module("overlay_finalize", path=str(overlay.path), allow_unmount=True).message
    assert "in use" in message
    assert not sealed(overlay, "tool/1.0/bin")
    assert support.compare_trees(overlay.path, software) == []
    assert overlay.finalize(allow_unmount=True)["sealed"] > 0


# Holds an open file of a detached mount until half a second after a line of input.
LATE = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
print("ready", flush=True)
sys.stdin.readline()
time.sleep(0.5)
"""


def test_the_kernel_is_given_time_to_release_an_overlay(overlay: Overlay) -> None:
    """It releases the mounts of a mount namespace that has ended in the background."""
    other = overlay.area / "other"
    other.mkdir()
    support.command("mount", "--bind", overlay.path, other)
    with support.background(LATE, other / "tool/1.0/version") as holder:
        support.command("umount", "--lazy", other)
        with support.forked_module("overlay_finalize", {"path": str(overlay.path), "allow_unmount": True}) as child:
            child.go()
            while support.live(overlay.path) is not None:
                time.sleep(0.005)
            assert holder.stdin
            holder.stdin.write("\n")
            holder.stdin.flush()
            result = child.finish().ok
    assert result["finalized"]
    assert result["unmounted"]
    assert sealed(overlay, "tool/1.0")


def test_a_mount_namespace_that_is_about_to_end_is_waited_for(overlay: Overlay) -> None:
    """Another module has a namespace with a copy of all mounts while it mounts something."""
    copied = overlay.area / "copied"
    script = f"touch {copied}; sleep 1"
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]):
        while not copied.exists():
            time.sleep(0.01)
        result = support.module("overlay_finalize", path=str(overlay.path), allow_unmount=True).ok
    assert result["finalized"]
    assert sealed(overlay, "tool/1.0")


def test_an_overlay_that_a_killed_run_unmounted_is_mounted_again(overlay: Overlay) -> None:
    other = overlay.area / "other"
    other.mkdir()
    support.command("mount", "--bind", overlay.path, other)
    with open(other / "tool/1.0/version", "rb"):
        support.command("umount", "--lazy", other)
        # With index=on, the kernel refuses a second mount with the same upper layer.
        message = support.module("overlay_finalize", path=str(overlay.path), allow_unmount=True).message
        assert "is not mounted now" in message
        assert support.live(overlay.path) is None
    expected = support.module("overlay_finalize", check=True, path=str(overlay.path)).ok
    assert expected["actions"] == [f"mount the overlay at {overlay.path} again, which a killed run had unmounted"]
    assert support.live(overlay.path) is None
    result = overlay.finalize(allow_unmount=True)
    assert result["actions"][0] == expected["actions"][0]
    assert result["finalized"]
    assert (overlay.path / "tool/1.0/version").read_bytes() == b"one"


def test_an_overlay_is_mounted_again_as_it_was(area: Path, software: Path) -> None:
    options = (("metacopy", "on"), ("redirect_dir", "on"), ("index", "off"), ("xino", "off"), ("volatile", None))
    overlay = overlay_at(area, software, options=options)
    support.command("mount", "-o", "remount,bind,nosuid,noatime,nodev", overlay.path)
    support.command("mount", "--make-shared", overlay.path)
    before = support.live(overlay.path)
    result = overlay.finalize(allow_unmount=True)
    assert result["unmounted"]
    after = support.live(overlay.path)
    assert before
    assert after
    assert after.flags == before.flags
    assert after.source == before.source
    assert [word.split(b":")[0] for word in after.propagation] == [b"shared"]
    # The order in which the kernel reports the layers depends on how it was given them.
    assert set(after.super_options) == set(before.super_options)


def test_layers_that_the_kernel_would_refuse_are_found_before_unmounting(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a kernel that takes options of up to 255 bytes, of an overlay that mount(8) gave longer ones.
    def too_long(*_given: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(syscalls, "fsconfig_string", too_long)
    live = support.live(overlay.path)
    with pytest.raises(OverlayError, match="refuses"), remount.unmounted(live, (), no_progress):  # type: ignore[arg-type]
        pass
    assert support.live(overlay.path) == live
    assert remount.unfinished(os.fsencode(overlay.path)) is None


def test_check_mode_changes_nothing_and_counts(overlay: Overlay) -> None:
    def state() -> list[object]:
        found = support.listing(overlay.upper).items()
        return [
            sorted((path, status.st_mode, status.st_ctime_ns) for path, status in found),
            support.live(overlay.path),
        ]

    arguments: dict[str, Any] = {"path": str(overlay.path), "allow_unmount": True, "owner": "7"}
    before = state()
    expected = support.module("overlay_finalize", check=True, **arguments).ok
    assert state() == before
    found = overlay.finalize(allow_unmount=True, owner="7")
    for name in ("copied_up", "sealed", "directories_read", "actions", "changed", "already"):
        assert found[name] == expected[name], name
    before = state()
    assert not support.module("overlay_finalize", check=True, **arguments).ok["changed"]
    assert state() == before


@pytest.mark.parametrize("keep_setid", [False, True])
@pytest.mark.parametrize("metacopy", ["on", "off"])
def test_check_mode_returns_what_a_run_does(area: Path, software: Path, metacopy: str, keep_setid: bool) -> None:
    """Everything that a run may find is there at once: files to strip, a change that was begun, stale copies, and files of users."""
    for version in ("1.0", "2.0"):
        (software / f"tool/{version}/bin/tool").chmod(0o6755)
        os.link(software / f"tool/{version}/bin/tool", software / f"tool/{version}/bin/again")
    support.make_small_release(software / "gone" / "1.0", "gone")
    support.make_small_release(software / "gone" / "2.0", "gone")
    options = (("metacopy", metacopy), ("redirect_dir", "on"), ("index", "on"))
    overlay = overlay_at(area, software, options=options)
    begun = overlay.path / "other/1.0/bin/tool"
    os.setxattr(begun.parent, "trusted.renderfarm-overlay.restoring", b"y")
    os.setxattr(begun, "trusted.renderfarm-overlay.restore", note_of(begun, 7, 0))
    overlay.finalize(subtrees=["gone"], copy_content=True)
    (overlay.path / "gone/2.0/version").write_bytes(b"written")
    shutil.rmtree(software / "gone/1.0")
    shutil.rmtree(software / "gone/2.0")
    # Until then the kernel remembers what is gone.
    overlay.unmount()
    overlay.mount()
    arguments: dict[str, Any] = {"owner": "7", "keep_setid": keep_setid, "stale": "remove", "copy_content": True}

    def returned(check: bool) -> dict[str, Any]:
        given = {"path": str(overlay.path), "allow_unmount": True, **arguments}
        result = support.module("overlay_finalize", check=check, **given).ok
        return {name: value for name, value in result.items() if name != "unmounted"}

    before = shown(overlay.path)
    expected = returned(check=True)
    assert shown(overlay.path) == before
    assert expected["restored"] == 1
    assert expected["setid_stripped"] == (0 if keep_setid else 2)
    assert expected["pending_total"] > 0
    assert returned(check=False) == expected


def test_changes_that_users_made_stay(overlay: Overlay, software: Path) -> None:
    (software / "tool/2.0/share/deep").mkdir(parents=True)
    support.write(software / "tool/2.0/share/deep/data", b"deep")
    view = overlay.path
    (view / "tool/1.0/version").unlink()
    (view / "tool/1.0/bin/tool").rename(view / "tool/1.0/bin/renamed")
    (view / "tool/2.0/version").write_bytes(b"changed")
    (view / "tool/2.0/own").mkdir()
    (view / "tool/2.0/own/file").write_bytes(b"own")
    (view / "other/1.0").rename(view / "other/1.1")
    (view / "mine").mkdir()
    (view / "tool/2.0/share").rename(view / "mine/share")
    before = shown(view)
    overlay.finalized()
    assert shown(view) == before
    overlay.unmount()
    overlay.mount()
    assert shown(view) == before
    # A directory that a user made is opaque. A directory that was moved into it is merged all the same.
    assert attribute(overlay.upper / "mine", OPAQUE) == b"y"
    assert not sealed(overlay, "mine")
    assert sealed(overlay, "mine/share/deep")
    assert attribute(overlay.upper / "other/1.1/version", REDIRECT) == b"/other/1.0/version"
    assert attribute(overlay.upper / "tool/1.0/bin/renamed", REDIRECT) == b"/tool/1.0/bin/tool"
    assert attribute(overlay.upper / "mine/share/deep/data", REDIRECT) == b"/tool/2.0/share/deep/data"


def test_hard_links_without_an_index_are_left_alone(area: Path, software: Path) -> None:
    overlay = overlay_at(area, software, options=(("metacopy", "on"), ("redirect_dir", "on"), ("index", "off")))
    result = overlay.finalize(allow_unmount=True)
    paths = {one["path"] for one in result["pending"]}
    assert "tool/1.0/version" in paths
    assert "tool/1.0/version-again" in paths
    assert all("index=on" in one["reason"] for one in result["pending"])
    assert not result["finalized"]
    assert not copied(overlay, "tool/1.0/version")
    # Neither its directory nor one above it is sealed. Others are.
    assert not sealed(overlay, "tool/1.0")
    assert sealed(overlay, "tool/1.0/bin")
    assert support.compare_trees(overlay.path, software) == []
    assert not overlay.finalize(allow_unmount=True)["changed"]


def test_another_owner_over_several_lower_layers(area: Path, software: Path, root: Path, odd: Any) -> None:
    """Entries are compared with the lower layers as the kernel merges them, data layers included."""
    layer, _generation, _report = support.build(area / "state", [odd])
    overlay = overlay_at(area, layer, software, data=(root,))
    result = overlay.finalized(owner="4321", subtrees=["odd/1/special", "odd/1/names", "tool"])
    assert result["copied_up"] > 100
    for path in (*(overlay.path / "odd/1/special").rglob("*"), *(overlay.path / "tool").rglob("*")):
        assert path.lstat().st_uid == 4321


@pytest.mark.parametrize("metacopy", ["on", "off"])
def test_several_lower_layers(area: Path, software: Path, metacopy: str) -> None:
    second = area / "second"
    support.make_small_release(second / "tool" / "1.0", "hidden")
    support.make_small_release(second / "tool" / "9.0", "nine")
    add_to(second / "tool" / "1.0", "below")
    options = (("metacopy", metacopy), ("redirect_dir", "on"), ("index", "on"))
    overlay = overlay_at(area, software, second, options=options)
    before = shown(overlay.path)
    overlay.finalized(copy_content=metacopy == "off")
    assert shown(overlay.path) == before
    assert sealed(overlay, "tool/1.0")
    assert (attribute(overlay.upper / "tool/9.0/version", REDIRECT) == b"/tool/9.0/version") == (metacopy == "on")


def test_a_metadata_layer_below_is_followed_to_the_data(area: Path, root: Path, odd: Any) -> None:
    layer, _generation, _report = support.build(area / "state", [odd])
    overlay = overlay_at(area, layer, data=(root,))
    overlay.finalized(subtrees=["odd/1/special", "odd/1/names"])
    for name in ("special", "names"):
        # Another name of one of its files is outside of the subtree.
        problems = support.compare_trees(overlay.path / "odd/1" / name, root / "odd/1" / name)
        assert [one for one in problems if "shared" not in one] == []


def test_a_deleted_release_is_reported_and_then_removed(overlay: Overlay, software: Path) -> None:
    overlay.finalized(merged_levels=1, subtrees=["tool"])
    support.make_small_release(software / "tool" / "3.0", "new")
    overlay.finalize(merged_levels=1, subtrees=["tool"])
    # The first is sealed, the second is not.
    for name in ("tool/1.0", "tool/3.0"):
        shutil.rmtree(software / name)
    for cold in (False, True):
        if cold:
            overlay.unmount()
            overlay.mount()
        result = overlay.finalize(merged_levels=1, allow_unmount=True)
        assert [one["path"] for one in result["pending"]] == ["tool/1.0", "tool/3.0"]
        assert result["removed"] == []
    (overlay.path / "tool/1.0/bin").mkdir(exist_ok=True)
    with open(overlay.path / "tool/2.0/version", "rb") as stream:
        check = support.module(
            "overlay_finalize", path=str(overlay.path), stale="remove", check=True, merged_levels=1
        ).ok
        assert sorted(os.listdir(overlay.path / "tool")) == ["1.0", "2.0", "3.0"]
        result = overlay.finalize(merged_levels=1, stale="remove")
        assert check["removed"] == result["removed"] == ["tool/1.0", "tool/3.0"]
        assert os.listdir(overlay.path / "tool") == ["2.0"]
        assert os.listdir(overlay.upper / "tool") == ["2.0"]
        assert stream.read() == b"two"
    assert not overlay.finalize(merged_levels=1, stale="remove", allow_unmount=True)["changed"]
    # A new release of the same name shows.
    support.make_small_release(software / "tool" / "1.0", "again")
    assert (overlay.path / "tool/1.0/version").read_bytes() == b"again"


def test_files_of_a_release_that_was_renamed_in_the_lower_layer_lead_to_its_new_place(
    overlay: Overlay, software: Path
) -> None:
    """The kernel finds the copy of such a file in the index or in memory, with the redirect to the old place."""
    overlay.finalized(merged_levels=1)
    in_memory = (overlay.path / "tool/1.0/bin/tool").read_bytes()
    (software / "tool/1.0").rename(software / "tool/7.0")
    assert overlay.finalized(merged_levels=1, stale="remove")["removed"] == ["tool/1.0"]
    overlay.unmount()
    overlay.mount()
    assert sorted(os.listdir(overlay.path / "tool/7.0")) == ["bin", "latest", "version", "version-again"]
    assert (overlay.path / "tool/7.0/version").read_bytes() == b"one"
    assert (overlay.path / "tool/7.0/bin/tool").read_bytes() == in_memory
    for name in ("version", "bin/tool"):
        assert attribute(overlay.upper / "tool/7.0" / name, REDIRECT) == os.fsencode(f"/tool/7.0/{name}")


def test_files_that_users_made_in_a_deleted_release_are_kept(overlay: Overlay, software: Path) -> None:
    (overlay.path / "tool/1.0/bin/mine").write_bytes(b"mine")
    (overlay.path / "tool/1.0/own").mkdir()
    (overlay.path / "tool/1.0/version").write_bytes(b"written")
    overlay.finalized(merged_levels=1)
    (overlay.path / "other/1.0").rename(overlay.path / "other/renamed")
    (overlay.path / "tool/2.0").rename(overlay.path / "tool/2.1")
    shutil.rmtree(software / "tool/1.0")
    result = overlay.finalize(merged_levels=1, stale="remove")
    kept = ["tool/1.0/bin/mine", "tool/1.0/own", "tool/1.0/version", "tool/1.0/version-again"]
    assert [one["path"] for one in result["pending"]] == kept
    left = {str(path.relative_to(overlay.path)) for path in (overlay.path / "tool/1.0").rglob("*")}
    assert left == {"tool/1.0/bin", *kept}
    assert (overlay.path / "tool/1.0/version").read_bytes() == b"written"
    # The sources of renamed directories still exist.
    assert (overlay.path / "other/renamed/version").read_bytes() == b"three"
    assert (overlay.path / "tool/2.1/version").read_bytes() == b"two"
    assert not overlay.finalize(merged_levels=1, stale="remove")["changed"]


def test_an_empty_lower_layer_removes_nothing(overlay: Overlay, software: Path) -> None:
    overlay.finalized(merged_levels=1)
    hidden = overlay.area / "hidden"
    software.rename(hidden)
    software.mkdir()
    result = overlay.finalize(merged_levels=1, stale="remove", allow_unmount=True)
    assert "nothing at all" in result["pending"][0]["reason"]
    assert not result["changed"]
    software.rmdir()
    hidden.rename(software)
    assert differences(overlay, software) == []


def test_seal_kernel_reports_what_the_kernel_did_not_seal(overlay: Overlay) -> None:
    result = overlay.finalize(seal="kernel", allow_unmount=True)
    assert [one["path"] for one in result["pending"]] == ["other", "tool"]
    assert not result["unmounted"]
    assert overlay.finalize(seal="none")["finalized"]


def note_of(path: Path, uid: int, gid: int) -> bytes:
    """Return the note that a run leaves which is killed while it changes the owner of a file."""
    return b"6755 %d %d %s %d" % (uid, gid, support.CAPABILITY.hex().encode(), path.stat().st_ino)


def test_a_change_of_owner_that_a_killed_run_began_is_finished(overlay: Overlay, software: Path) -> None:
    tool = software / "tool/1.0/bin/tool"
    tool.chmod(0o6755)
    os.setxattr(tool, "security.capability", support.CAPABILITY)
    view = overlay.path / "tool/1.0/bin/tool"
    os.setxattr(view.parent, "trusted.renderfarm-overlay.restoring", b"y")
    os.setxattr(view, "trusted.renderfarm-overlay.restore", note_of(view, 11, 12))
    os.chown(view, 11, 12)
    assert view.stat().st_mode & 0o7777 == 0o755
    pending = overlay.finalize(passes=["readdir", "seal"], allow_unmount=True)["pending"]
    assert "killed" in next(one["reason"] for one in pending if one["path"] == "tool/1.0/bin")
    result = overlay.finalized(owner="11", group="12")
    assert result["restored"] == 1
    status = view.stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o6755, 11, 12)
    assert support.capability_of(os.fsencode(view)) == support.CAPABILITY
    assert [name for name in os.listxattr(view) if "restor" in name] == []


def test_a_copied_seal_has_no_effect(overlay: Overlay, software: Path) -> None:
    """Root's ``cp -a`` copies our xattrs, and not the kernel's mark of a copy."""
    overlay.finalized()
    support.command("cp", "-a", overlay.path / "tool", overlay.path / "new")
    assert attribute(overlay.upper / "new", SEALED) is not None
    assert attribute(overlay.upper / "new", OPAQUE) == b"y"
    support.make_small_release(software / "late", "late")
    (overlay.path / "late").rename(overlay.path / "new/late")
    (overlay.path / "other").rename(overlay.path / "new/other")
    before = shown(overlay.path)
    result = overlay.finalize(allow_unmount=True)
    assert result["finalized"]
    assert sealed(overlay, "new/late")
    assert attribute(overlay.upper / "new/late/version", REDIRECT) == b"/late/version"
    assert shown(overlay.path) == before
    assert not overlay.finalize(allow_unmount=True)["changed"]


def test_a_copied_note_of_an_owner_change_has_no_effect(overlay: Overlay) -> None:
    """A copy of a file whose owner a killed run was changing does not become a set-user-ID program."""
    directory = overlay.path / "tool/1.0/bin"
    os.setxattr(directory, "trusted.renderfarm-overlay.restoring", b"y")
    os.setxattr(directory / "tool", "trusted.renderfarm-overlay.restore", note_of(directory / "tool", 0, 0))
    support.command("cp", "-a", directory / "tool", directory / "copy")
    support.command("cp", "-a", directory / "tool", overlay.path / "tool/2.0/bin/tool")
    os.setxattr(overlay.path / "tool/2.0/bin", "trusted.renderfarm-overlay.restoring", b"y")
    assert "trusted.renderfarm-overlay.restore" in os.listxattr(directory / "copy")
    os.chown(directory / "copy", 77, 77)
    assert overlay.finalize(allow_unmount=True)["restored"] == 1
    assert (directory / "tool").stat().st_mode & 0o7777 == 0o6755
    status = (directory / "copy").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o755, 77)
    assert (overlay.path / "tool/2.0/bin/tool").stat().st_mode & 0o7777 == 0o755


def test_set_id_bits_and_capabilities_go_with_the_owner(overlay: Overlay, software: Path) -> None:
    tools = [software / f"tool/{version}/bin/tool" for version in ("1.0", "2.0")]
    tools[0].chmod(0o6755)
    os.setxattr(tools[1], "security.capability", support.CAPABILITY)
    ran = support.module("overlay_finalize", path=str(overlay.path), owner="root", group="9", allow_unmount=True)
    assert ran.ok["setid_stripped"] == 2
    warning = str(ran.ok["warnings"][0])
    assert "tool/1.0/bin/tool, tool/2.0/bin/tool" in warning
    assert "keep_setid" in warning
    for version in ("1.0", "2.0"):
        tool = overlay.path / "tool" / version / "bin/tool"
        assert tool.stat().st_mode & 0o7777 == 0o755
        assert support.capability_of(os.fsencode(tool)) is None


def test_set_id_bits_stay_if_the_owner_does(overlay: Overlay, software: Path) -> None:
    (software / "tool/1.0/bin/tool").chmod(0o6755)
    result = overlay.finalized(owner="root", group="root")
    assert result["setid_stripped"] == 0
    assert (overlay.path / "tool/1.0/bin/tool").stat().st_mode & 0o7777 == 0o6755


def test_content_is_not_copied_unless_that_is_allowed(area: Path, software: Path) -> None:
    support.write(software / "tool/1.0/big", b"x" * 10_000)
    options = (("metacopy", "off"), ("redirect_dir", "on"), ("index", "on"))
    overlay = overlay_at(area, software, options=options)
    before = support.listing(overlay.upper).keys()
    arguments: dict[str, Any] = {"path": str(overlay.path), "allow_unmount": True, "owner": "7"}
    for check in (True, False):
        ran = support.module("overlay_finalize", check=check, **arguments)
        assert "10 files with" in ran.message
        assert "copy_content" in ran.message
        assert "metacopy=on" in ran.message
        assert ran.result["content_files"] == 10
        size = ran.result["content_bytes"]
        assert f"{size} bytes" in ran.message
        assert not ran.result["changed"]
        assert support.listing(overlay.upper).keys() == before
    checked = support.module("overlay_finalize", check=True, copy_content=True, **arguments).ok
    assert checked["content_bytes"] == size
    assert f"copy the content of 10 files, {size} bytes, to the upper layer" in checked["actions"]
    result = overlay.finalized(copy_content=True, owner="7")
    assert result["content_bytes"] == size
    assert (overlay.upper / "tool/1.0/big").stat().st_blocks > 0
    # All content is copied, so a run without copy_content is not refused.
    assert overlay.finalize(allow_unmount=True)["finalized"]


def test_pending_entries_are_grouped_by_reason(area: Path, software: Path) -> None:
    for number in range(20):
        os.link(software / "tool/1.0/version", software / f"tool/1.0/linked-{number:02}")
    overlay = overlay_at(area, software, options=(("metacopy", "on"), ("redirect_dir", "on"), ("index", "off")))
    result = overlay.finalize()
    linked, unsealed = result["pending_by_reason"]
    assert "index=on" in linked["reason"]
    assert linked["total"] == 26
    assert linked["paths"] == ["other/1.0/version", "other/1.0/version-again"] + [
        f"tool/1.0/linked-{number:02}" for number in range(8)
    ]
    assert "allow_unmount" in unsealed["reason"]
    assert linked["total"] + unsealed["total"] == result["pending_total"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"subtrees": ["../up"]}, "may not contain '..'"),
        ({"subtrees": ["."]}, "leave 'subtrees' out"),
        ({"subtrees": ["tool/1.0/version"]}, "is not a directory"),
        ({"subtrees": ["no/such"]}, "No such file"),
        ({"workers": 0}, "workers must be"),
        ({"owner": "nobody-of-that-name"}, "does not exist"),
        ({"path": "/proc"}, "no overlay"),
        ({"path": "/nothing/there"}, "no overlay is mounted"),
        ({"path": "relative"}, "absolute"),
    ],
)
def test_an_unusable_option_is_refused_by_name(overlay: Overlay, arguments: dict[str, Any], reason: str) -> None:
    message = support.module("overlay_finalize", **{"path": str(overlay.path), **arguments}).message
    assert reason in message


def test_an_overlay_without_an_upper_layer_is_refused(area: Path, software: Path) -> None:
    with support.mounted(support.declared(area / "view", [software / "other", software / "tool"])) as view:
        assert "no upper layer" in support.module("overlay_finalize", path=str(view)).message


def test_a_part_of_an_overlay_is_refused(overlay: Overlay) -> None:
    other = overlay.area / "other"
    other.mkdir()
    support.command("mount", "--bind", overlay.path / "tool", other)
    assert "shows a part" in support.module("overlay_finalize", path=str(other)).message


def test_a_mount_inside_is_left_alone_and_the_rest_is_finalized(overlay: Overlay) -> None:
    support.command("mount", "-t", "tmpfs", "tmpfs", overlay.path / "other")
    result = overlay.finalize()
    assert {"path": "other", "reason": "something else is mounted there"} in result["pending"]
    assert copied(overlay, "tool/1.0/version")
    assert not copied(overlay, "other/1.0")
