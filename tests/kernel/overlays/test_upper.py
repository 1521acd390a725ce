"""Writable overlays: upper layers, scratch space, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_options import mount_options
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import plan_unmounted
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MountSpec,
    declared_by,
    scratch_space,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.upper_rules import RECORD
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.overlays.test_mounts import ODD

MEGABYTE = 1 << 20


@pytest.fixture
def parts(area: Path) -> Path:
    """Provide a data layer, its metadata layer, an ordinary lower layer with hard links, and a directory that only root can enter."""
    for name in ("data", "lower/bin", "layer", "kept"):
        (area / name).mkdir(parents=True)
    support.write(area / "data" / "file", b"content")
    support.write(area / "layer" / "file")
    os.setxattr(area / "layer" / "file", "trusted.overlay.metacopy", b"")
    os.setxattr(area / "layer" / "file", "trusted.overlay.redirect", b"/file")
    os.truncate(area / "layer" / "file", 7)
    support.write(area / "lower" / "file", b"content")
    support.write(area / "lower" / "bin" / "tool", b"tool")
    os.link(area / "lower" / "bin" / "tool", area / "lower" / "bin" / "again")
    (area / "kept").chmod(0o700)
    return area


def over_data(parts: Path, **options: Any) -> MountSpec:
    """Return a writable overlay over the data layer."""
    kept = support.writable(parts / "kept" / "upper", parts / "kept" / "work")
    return support.declared(parts / "view", [parts / "layer"], [parts / "data"], writable=kept, **options)


def over_lower(parts: Path, name: str = "kept", **options: Any) -> MountSpec:
    """Return a writable overlay over the ordinary lower layer."""
    kept = support.writable(parts / name / "upper", parts / name / "work")
    return support.declared(parts / "view", [parts / "lower"], writable=kept, **options)


def unmount(spec: MountSpec) -> None:
    for action in plan_unmounted(spec.path, mounts.observe(spec.path), absent=False):
        apply(action, mounts.HANDLERS)


FIRST = ["CreateUpper", "CreateUpper", "CreateMountpoint", "MountOverlay"]


def test_a_writable_view_keeps_what_was_written(parts: Path) -> None:
    spec = over_data(parts)
    assert support.carried_out(spec) == FIRST
    view = parts / "view"
    assert (view / "file").read_bytes() == b"content"
    os.chmod(view / "file", 0o600)
    support.write(view / "new", b"new")
    os.rename(view / "file", view / "renamed")
    unmount(spec)
    assert support.carried_out(spec) == ["MountOverlay"]
    assert (view / "renamed").read_bytes() == b"content"
    assert (view / "renamed").stat().st_mode & 0o777 == 0o600
    assert (view / "new").read_bytes() == b"new"
    assert sorted(os.listdir(view)) == ["new", "renamed"]
    # No content was copied up.
    assert (parts / "kept" / "upper" / "renamed").stat().st_blocks == 0
    assert (parts / "data" / "file").read_bytes() == b"content"


def test_over_an_ordinary_layer_only_metadata_is_copied_and_hard_links_are_preserved(parts: Path) -> None:
    spec = over_lower(parts)
    assert support.carried_out(spec) == FIRST
    view = parts / "view"
    os.chmod(view / "bin" / "tool", 0o750)
    assert (view / "bin" / "again").stat().st_mode & 0o777 == 0o750
    assert (view / "bin" / "again").stat().st_nlink == 2
    os.rename(view / "bin", view / "programs")
    assert (view / "programs" / "tool").read_bytes() == b"tool"
    assert (parts / "kept" / "upper" / "programs" / "tool").stat().st_blocks == 0
    unmount(spec)
    support.carried_out(spec)
    assert (view / "programs" / "again").stat().st_nlink == 2


def test_the_live_settings_are_the_declared_ones(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    live = support.live(spec.path)
    assert live
    settings = dict(overlay_layers(live).settings)
    assert settings[b"metacopy"] == settings[b"redirect_dir"] == settings[b"index"] == b"on"
    assert declared_by(live)["upper"] == spec.as_dict()["upper"] == str(parts / "kept" / "upper")


@pytest.mark.parametrize("name", ODD)
def test_an_upper_layer_may_have_any_path(parts: Path, name: bytes) -> None:
    base = os.fsencode(parts) + b"/kept/" + name
    kept = support.writable(base + b"/upper" + name, base + b"/work" + name)
    spec = support.declared(parts / "view", [parts / "lower"], writable=kept)
    assert support.carried_out(spec) == FIRST
    support.write(spec.path + b"/new", b"new")
    assert os.listdir(kept.upper) == [b"new"]


def test_an_upper_layer_may_have_a_long_path(parts: Path) -> None:
    base = parts / "kept" / ("a" * 200) / ("b" * 200)
    kept = support.writable(base / "upper", base / "work")
    support.carried_out(support.declared(parts / "view", [parts / "lower"], writable=kept))


# ---- scratch space and volatile


@pytest.mark.parametrize("image", [False, True])
def test_only_the_overlay_sees_its_scratch_space_which_goes_with_it(parts: Path, image: bool) -> None:
    layer = support.image_of(parts / "layer", parts / "images" / "layer.erofs") if image else parts / "layer"
    (parts / "layer").chmod(0o751)
    spec = support.declared(
        parts / "view", [layer], [parts / "data"], writable=scratch_space(3 * MEGABYTE), nosuid=True
    )
    assert support.carried_out(spec) == ["CreateMountpoint", "MountOverlay"]
    view = parts / "view"
    support.write(view / "new", b"new")
    os.rename(view / "file", view / "renamed")
    assert (view / "renamed").read_bytes() == b"content"
    if not image:
        assert view.stat().st_mode & 0o7777 == 0o751
    assert not [mount for mount in namespaces.own_mounts() if b"scratch" in mount.path]
    with pytest.raises(OSError, match="No space left"):
        support.write(view / "large", b"x" * 4 * MEGABYTE)
    unmount(spec)
    support.carried_out(spec)
    assert os.listdir(view) == ["file"]


def test_two_overlays_may_have_scratch_space_of_one_size(parts: Path) -> None:
    for name in ("view", "other"):
        spec = support.declared(parts / name, [parts / "lower"], writable=scratch_space(MEGABYTE))
        support.carried_out(spec)
        support.write(parts / name / "mine", name.encode())
    assert (parts / "view" / "mine").read_text() == "view"


def test_another_size_of_scratch_space_is_another_overlay(parts: Path) -> None:
    spec = support.declared(parts / "view", [parts / "lower"], writable=scratch_space(MEGABYTE))
    support.carried_out(spec)
    support.write(parts / "view" / "new", b"new")
    larger = support.declared(parts / "view", [parts / "lower"], writable=scratch_space(2 * MEGABYTE))
    for switch in ("auto", "beneath", "over"):
        with pytest.raises(
            OverlayError, match=r"differs .* in upper, work, .*'switch: replace', .*loses what was written"
        ):
            support.carried_out(larger, switch)
    assert (parts / "view" / "new").exists()
    assert support.carried_out(larger, "replace") == ["SwitchOverlay"]
    assert not (parts / "view" / "new").exists()


def test_a_volatile_upper_layer_is_mounted_once(parts: Path) -> None:
    spec = over_lower(parts, volatile=True)
    support.carried_out(spec)
    support.write(parts / "view" / "new", b"new")
    unmount(spec)
    mark = parts / "kept" / "work" / "work" / "incompat" / "volatile"
    with pytest.raises(OverlayError, match=rf"was used with 'volatile'.*remove {re.escape(str(mark))}"):
        support.carried_out(spec)
    # Do what the message says.
    support.command("sync")
    support.command("rm", "-r", mark)
    support.carried_out(spec)
    assert (parts / "view" / "new").read_bytes() == b"new"


# ---- switching


def test_an_overlay_with_an_upper_layer_is_only_switched_with_replace(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    changed = over_lower(parts, noatime=True)
    for switch in ("auto", "beneath", "over"):
        with pytest.raises(
            OverlayError, match=r"differs from the declaration in noatime, and has the upper layer .*/kept/upper"
        ):
            support.carried_out(changed, switch)
    held = (parts / "view" / "file").open()
    with held, pytest.raises(OverlayError, match="is in use; nothing was unmounted"):
        support.carried_out(changed, "replace")
    assert support.carried_out(changed, "replace") == ["SwitchOverlay"]


def test_an_overlay_with_an_upper_layer_is_mounted_beneath_one_without(parts: Path) -> None:
    support.carried_out(support.declared(parts / "view", [parts / "layer"], [parts / "data"]))
    with (parts / "view" / "file").open() as held:
        assert support.carried_out(over_data(parts)) == ["CreateUpper", "CreateUpper", "SwitchOverlay"]
        assert held.read() == "content"
    support.write(parts / "view" / "new", b"new")


# ---- refusals


def refused(spec: MountSpec, reason: str) -> None:
    """Check that a declaration is refused and nothing changes."""
    before = sorted(support.listing(Path(os.fsdecode(spec.path)).parent))
    with pytest.raises(OverlayError, match=reason):
        support.planned(spec)
    assert sorted(support.listing(Path(os.fsdecode(spec.path)).parent)) == before


def test_an_upper_layer_of_other_lower_layers_is_refused(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    support.write(parts / "lower" / "added", b"added")
    unmount(spec)
    refused(over_data(parts), r"was used over other lower layers \(.*/lower\) than .*/layer, .*empty upper layer")
    # A lower layer with new entries is still the same layer.
    support.carried_out(spec)
    assert (parts / "view" / "added").read_bytes() == b"added"


def test_moved_lower_layers_are_accepted_after_the_record_is_removed(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    unmount(spec)
    os.rename(parts / "lower", parts / "moved")
    kept = support.writable(parts / "kept" / "upper", parts / "kept" / "work")
    moved = support.declared(parts / "view", [parts / "moved"], writable=kept)
    refused(moved, "only moved, you may remove its xattr trusted.renderfarm-overlay.lower")
    os.removexattr(parts / "kept" / "upper", RECORD)
    support.carried_out(moved)


def test_the_index_finds_another_lower_layer_at_the_same_path(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    unmount(spec)
    os.rename(parts / "lower", parts / "old")
    (parts / "lower").mkdir()
    with pytest.raises(OverlayError, match=r"Stale file handle.*was used over another lower layer"):
        support.carried_out(spec)
    assert support.live(spec.path) is None


def test_a_metacopy_without_its_content_cannot_be_opened(parts: Path) -> None:
    """This is why the lower layers are recorded: without an index the kernel mounts other layers, and files lose their content."""
    spec = over_lower(parts, index="off")
    support.carried_out(spec)
    os.chmod(parts / "view" / "file", 0o600)
    unmount(spec)
    with support.mounted(over_lower(parts, index="off", metacopy="off")) as view, pytest.raises(PermissionError):
        (view / "file").read_bytes()
    kept = support.writable(parts / "kept" / "upper", parts / "kept" / "work")
    (parts / "empty").mkdir()
    other = support.declared(parts / "view", [parts / "empty"], writable=kept, index="off")
    with support.mounted(other) as view, pytest.raises(OSError, match="Input/output error"):
        (view / "file").read_bytes()


def test_an_upper_layer_in_use_is_refused(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    kept = support.writable(parts / "kept" / "upper", parts / "kept" / "work")
    for index in ("on", "off"):
        other = support.declared(parts / "other", [parts / "lower"], writable=kept, index=index)
        refused(other, r"/kept/upper is in use by the overlay at .*/view, which has")
    within = support.writable(parts / "kept" / "upper" / "bin", parts / "kept" / "work2")
    refused(support.declared(parts / "other", [parts / "lower"], writable=within), "is in use by the overlay at")


def test_an_upper_layer_in_use_in_another_namespace_is_refused(parts: Path) -> None:
    code = f"import subprocess\nsubprocess.run(['mount', '-t', 'overlay', 'o', '{parts}/elsewhere', '-o', "
    (parts / "kept" / "upper").mkdir()
    (parts / "kept" / "work").mkdir()
    (parts / "elsewhere").mkdir()
    code += f"'lowerdir={parts}/lower,upperdir={parts}/kept/upper,workdir={parts}/kept/work'], check=True)"
    with support.namespace("private", code) as pid:
        refused(over_lower(parts), f"in use by the overlay at .*/elsewhere in the mount namespace of process {pid}")


def test_an_overlay_that_another_namespace_keeps_is_not_replaced(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    other = over_lower(parts, nodev=True)
    with support.namespace("private") as pid:
        with pytest.raises(
            OverlayError, match=f"in use by the overlay at .*/view in the mount namespace of process {pid}"
        ):
            support.planned(other, "replace")
        assert (parts / "view" / "file").read_bytes()
    support.carried_out(other, "replace")


def test_the_kernel_refuses_the_upper_layer_of_a_detached_overlay_in_use(parts: Path) -> None:
    spec = over_lower(parts)
    support.carried_out(spec)
    with (parts / "view" / "file").open():
        mounts.detach(spec.path)
        with pytest.raises(
            OverlayError, match=r"another overlay uses the upper layer .*, perhaps one that was detached"
        ):
            support.carried_out(spec)
    support.carried_out(spec)


def test_upper_and_work_must_be_separate_trees_on_one_mount(parts: Path) -> None:
    kept = parts / "kept"
    for upper, work in (("u", "u"), ("u", "u/w"), ("w/u", "w")):
        spec = support.declared(parts / "view", [parts / "lower"], writable=support.writable(kept / upper, kept / work))
        refused(spec, "work directory .* and upper layer .* are not separate")
    for upper, work in (("lower/u", "kept/w"), ("kept/u", "data/w"), ("kept/u", "view/w")):
        spec = support.declared(
            parts / "view", [parts / "lower"], [parts / "data"], writable=support.writable(parts / upper, parts / work)
        )
        refused(spec, "are not separate")
    (kept / "tmp").mkdir()
    support.command("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", kept / "tmp")
    spec = support.declared(
        parts / "view", [parts / "lower"], writable=support.writable(kept / "u", kept / "tmp" / "w")
    )
    refused(spec, "are not on the same mount")


@pytest.mark.parametrize(
    ("path", "mode", "reason"),
    [
        ("upper", 0o777, "upper layer .*/upper is writable by others .mode 0777"),
        ("upper", 0o775, "upper layer .*/upper is writable by others .mode 0775"),
        ("upper", 0o1777, "upper layer .*/upper is writable by others"),
        ("work", 0o733, "work directory .*/work is writable by others"),
        (".", 0o757, "directory .*/open, above upper layer .*, is writable by others"),
    ],
)
def test_an_upper_layer_that_others_can_write_to_is_refused(parts: Path, path: str, mode: int, reason: str) -> None:
    for name in ("open", "open/upper", "open/work"):
        (parts / name).mkdir(mode=0o755)
    (parts / "open" / path).chmod(mode)
    refused(over_lower(parts, "open"), reason)
    # Below a directory that only root can enter it may be writable, so users may write to the root of the view.
    (parts / "open").chmod(0o700)
    support.carried_out(over_lower(parts, "open"))


def test_an_upper_layer_below_a_directory_of_another_user_is_refused(parts: Path) -> None:
    (parts / "open").mkdir()
    os.chown(parts / "open", 1000, 0)
    refused(over_lower(parts, "open"), "directory .*/open, above upper layer .*, belongs to uid 1000")


def test_a_file_system_that_cannot_hold_an_upper_layer_is_refused(parts: Path) -> None:
    support.carried_out(over_lower(parts))
    inner = support.declared(
        parts / "other", [parts / "data"], writable=support.writable(parts / "view" / "u", parts / "view" / "w")
    )
    refused(inner, "upper layer .* is on a file system of type overlay, which lacks .*: use a directory on ext4")
    (parts / "ro").mkdir()
    support.command("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", parts / "ro")
    on_it = support.declared(
        parts / "other", [parts / "data"], writable=support.writable(parts / "ro" / "u", parts / "ro" / "w")
    )
    refused(on_it, "mounted read-only")


def test_a_setting_that_the_kernel_changes_is_named_and_the_mount_undone(parts: Path) -> None:
    """An overlay has no file handles, so an overlay over it has no index."""
    (parts / "nested").mkdir()
    support.command("mount", "-t", "overlay", "-o", f"lowerdir={parts}/lower:{parts}/data", "overlay", parts / "nested")
    arguments: dict[str, Any] = {
        "path": str(parts / "view"),
        "lower": [str(parts / "nested")],
        "upper": str(parts / "kept" / "upper"),
        "work": str(parts / "kept" / "work"),
    }
    message = support.module("overlay_mount", **arguments).message
    assert "index is off, not on (the file system of a layer has no file handles" in message
    assert "give index=off" in message
    assert "to accept that); it was unmounted again" in message
    assert support.live(parts / "view") is None
    assert support.module("overlay_mount", **arguments, options={"index": False}).ok["changed"]
    assert not support.module("overlay_mount", **arguments, options={"index": False}).ok["changed"]


# ---- the module


def test_four_runs_of_the_module_agree(parts: Path) -> None:
    arguments: dict[str, Any] = {
        "path": str(parts / "view"),
        "lower": [str(parts / "layer")],
        "data": [str(parts / "data")],
        "upper": str(parts / "kept" / "upper"),
        "work": str(parts / "kept" / "work"),
    }
    checked = support.module("overlay_mount", check=True, **arguments).ok
    assert not (parts / "kept" / "upper").exists()
    done = support.module("overlay_mount", **arguments).ok
    assert checked["actions"] == done["actions"]
    assert checked["changed"]
    assert checked["diff"] == done["diff"]
    assert done["mount"]["upper"] == arguments["upper"]
    assert "ro" not in done["mount"]["flags"]
    for check in (False, True):
        again = support.module("overlay_mount", check=check, **arguments).ok
        assert (again["changed"], again["actions"]) == (False, [])
    support.module("overlay_mount", path=str(parts / "view"), state="absent")
    assert not (parts / "view").exists()


def test_a_refused_declaration_creates_no_directories(parts: Path) -> None:
    arguments: dict[str, Any] = {
        "path": str(parts / "view"),
        "lower": [str(parts / "lower")],
        "options": {"volatile": True},
    }
    kept: dict[str, Any] = {"upper": str(parts / "kept" / "upper"), "work": str(parts / "kept" / "work")}
    assert "persist" in support.module("overlay_mount", persist="systemd", **arguments, **kept).message
    assert "scratch space" in support.module("overlay_mount", persist="fstab", scratch="1M", **arguments).message
    assert "size" in support.module("overlay_mount", scratch="0", **arguments).message
    assert os.listdir(parts / "kept") == []
    assert not (parts / "view").exists()


def test_mount_accepts_the_options_of_a_unit(parts: Path) -> None:
    """What is mounted at boot equals what the module mounts."""
    spec = over_data(parts)
    support.carried_out(spec)
    unmount(spec)
    options = mount_options(spec, append=True).decode()
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", parts / "view"], check=True)
    assert support.carried_out(spec) == []
