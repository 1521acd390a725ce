"""Views on kernels without data-only layers: the software root is an ordinary lower layer, and no name is looked up in it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, probe
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.conftest import FILESYSTEMS
from ansible_collections.renderfarm.overlay.tests.kernel.test_modules import everything, four_runs

PROGRAMS = Path(__file__).resolve().parents[3] / ".build" / "images" / "bin"


def declared(path: Path, layer: Path, *data: Path, **options: Any) -> MountSpec:
    """Return the declaration of a view with strategy redirect."""
    return support.declared(path, [layer], data, strategy="redirect", **options)


@pytest.fixture
def no_data_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the trial of data-only layers by a mount that this kernel refuses as older kernels refuse data-only layers."""

    def trial(scratch: str) -> str:
        syscalls.mount(b"overlay", scratch.encode(), b"overlay", syscalls.MS_RDONLY, b"lowerdir=/::,metacopy=on")
        return ""

    monkeypatch.setitem(probe.TRIALS, "data_only", trial)


def run(name: str, /, **arguments: Any) -> support.Ran:
    """Run a module in a child process, which keeps the patched trial."""
    with support.forked_module(name, arguments) as child:
        child.go()
        return child.finish()


# ---- content


@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_a_view_equals_its_releases_and_the_view_over_data_only_layers(
    disks: dict[str, Path], area: Path, root: Path, odd: Placement, tools: Sequence[Placement], kind: str
) -> None:
    placements = [replace(tools[1], at=b"else/where"), odd, tools[0]]
    layer, generation, _report = support.build(disks[kind] / "state-redirect", placements, strategy="redirect")
    other_layer, other_generation, _report = support.build(area / "state", placements)
    assert (generation.id, generation.entries) == (other_generation.id, other_generation.entries)
    with (
        support.mounted(declared(area / "view", layer, root)) as view,
        support.mounted(support.declared(area / "other", [other_layer], [root])) as other,
    ):
        assert sorted(os.listdir(view)) == ["else", "odd", "tool"]
        assert support.compare_trees(view / "odd" / "1", root / "odd" / "1") == []
        assert support.compare_trees(view / "tool" / "1.0", root / "tool" / "1.0") == []
        assert support.compare_trees(view / "else" / "where", root / "tool" / "2.0") == []
        assert support.compare_trees(view, other) == []


def test_names_of_the_software_root_never_show(area: Path) -> None:
    root = area / "root"
    # Also names that the layer and the view have themselves.
    for name in ("view", "tool"):
        support.make_small_release(root / name / "1.0", name)
    support.write(root / "file", b"of the root")
    placements = [support.scanned(area / "store", root, f"{name}/1.0") for name in ("view", "tool")]
    layer, _generation, _report = support.build(area / "state", placements, strategy="redirect")
    with support.mounted(declared(area / "view", layer, root)) as view:
        expected = support.listing(view).keys()
        for name in ("view", "tool"):
            assert (view / name / "1.0" / "version").read_text() == name
            support.make_small_release(root / name / "2.0", "new")
            support.write(root / name / "1.0" / "new", b"new")
        support.make_small_release(root / "new" / "1.0", "new")
        support.write(root / "view" / "new", b"new")
        for name in ("new", "file", "tool/2.0", "view/2.0", "tool/1.0/new", "view/new", "view/view"):
            with pytest.raises(FileNotFoundError):
                os.lstat(view / name)
        assert support.listing(view).keys() == expected


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_file_has_the_content_of_the_first_data_layer_that_has_it(area: Path, one_by_one: bool) -> None:
    for name, words in (("nfs", ("one", "two")), ("local", ("one",))):
        for word in words:
            support.make_small_release(area / name / "tool" / word, f"{name} {word}")
    support.make_small_release(area / "other" / "lib" / "1", "other")
    # Each data layer has a part of one software root.
    at = [("nfs", "tool/one"), ("nfs", "tool/two"), ("other", "lib/1")]
    placements = [
        support.scanned(area / "store", area / name, release, root_name="/net/software") for name, release in at
    ]
    layer, _generation, _report = support.build(area / "state", placements, strategy="redirect")
    spec = declared(area / "view", layer, area / "local", area / "nfs", area / "other")
    (area / "view").mkdir()

    def make() -> None:
        whole = creating.create_overlay(spec, one_by_one)
        creating.attach(whole, os.fsencode(area / "view"))
        os.close(whole)

    make()
    shown = area / "view" / "view"
    for path, text in (("tool/one", "local one"), ("tool/two", "nfs two"), ("lib/1", "other")):
        # Its size is that in the manifest.
        assert text.startswith((shown / path / "version").read_text())
        assert (shown / path / "version-again").stat().st_nlink == 2
    support.unmount_all(area / "view")
    assert support.carried_out(spec) == ["MountOverlay"]
    assert text.startswith((area / "view" / "lib" / "1" / "version").read_text())


def test_names_of_a_removed_release_stay_and_stat_fails(area: Path) -> None:
    support.make_small_release(area / "root" / "tool" / "1.0", "one")
    placement = support.scanned(area / "store", area / "root", "tool/1.0")
    layer, _generation, _report = support.build(area / "state", [placement], strategy="redirect")
    with support.mounted(declared(area / "view", layer, area / "root")) as view:
        release = view / "tool" / "1.0"
        with open(release / "version") as held:
            support.command("rm", "-r", area / "root" / "tool" / "1.0")
            support.command("sysctl", "-q", "vm.drop_caches=2")
            assert sorted(os.listdir(release)) == ["bin", "latest", "version", "version-again"]
            assert os.readlink(release / "latest") == "bin/tool"
            assert held.read() == "one"
        with pytest.raises(OSError, match="Input/output error") as raised:
            (release / "bin" / "tool").stat()
        assert raised.value.errno == errno.EIO


# ---- refusals


def test_a_layer_of_another_strategy_is_refused_and_nothing_is_mounted(
    area: Path, root: Path, tools: Sequence[Placement]
) -> None:
    layer, _generation, _report = support.build(area / "state", [tools[0]])
    before = everything(area)
    arguments: dict[str, Any] = {"path": str(area / "view"), "data": [str(root)], "strategy": "redirect"}
    said = support.module("overlay_mount", lower=[str(layer)], **arguments).message
    assert f"layer {layer} is not made for strategy redirect" in said
    (layer / "view").mkdir()
    assert support.module("overlay_mount", lower=[str(layer)], **arguments).message == said
    (layer / "view").rmdir()
    said = support.module("overlay_mount", lower=[str(layer)], options={"userxattr": True}, **arguments).message
    assert "userxattr and strategy=redirect exclude each other" in said
    assert everything(area).keys() == before.keys()


def test_the_kernel_follows_no_redirect_with_userxattr(area: Path, root: Path, tools: Sequence[Placement]) -> None:
    """This is why the module refuses it."""
    layer, _generation, _report = support.build(area / "state", [tools[0]], "user", strategy="redirect")
    (area / "whole").mkdir()
    options = f"ro,userxattr,lowerdir={layer}:{root}"
    support.command("mount", "-t", "overlay", "-o", options, "overlay", area / "whole")
    with pytest.raises(PermissionError):
        (area / "whole" / "view" / "tool" / "1.0" / "version").stat()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"format": "erofs"}, "view v cannot be an image: strategy redirect needs opaque directories"),
        ({"image_store": "/nowhere"}, "view v cannot be an image: strategy redirect needs opaque directories"),
        ({"xattr_namespace": "user"}, "strategy redirect needs the xattr_namespace trusted"),
    ],
)
def test_a_redirect_layer_that_is_an_image_or_has_user_xattrs_is_refused(
    area: Path, tools: Sequence[Placement], more: dict[str, Any], said: str
) -> None:
    arguments: dict[str, Any] = {"name": "v", "state_dir": str(area / "state"), "strategy": "redirect", **more}
    assert said in support.module("metadata_layer", releases=[{"manifest": tools[0].manifest}], **arguments).message
    assert not (area / "state").exists()


# ---- modules


def test_modules_build_mount_switch_and_take_down(area: Path, root: Path, tools: Sequence[Placement]) -> None:
    arguments: dict[str, Any] = {"name": "v", "state_dir": str(area / "state"), "strategy": "redirect"}
    place = area / "view"
    mount: dict[str, Any] = {"path": str(place), "data": [str(root)]}
    for number, tool in enumerate(tools):
        built = four_runs("metadata_layer", releases=[{"manifest": tool.manifest}], **arguments)
        assert (built["strategy"], built["format"]) == ("redirect", "directory")
        mounted = four_runs("overlay_mount", lower=[built["layer"]], strategy=built["strategy"], **mount)
        assert mounted["switched"] == (number > 0)
        assert (mounted["mount"]["lower"], mounted["mount"]["data"]) == ([built["layer"], str(root)], [])
        assert mounted["mount"]["root"] == "/view"
        assert mounted["elsewhere"] == []
        assert os.listdir(place / "tool") == [tool.record.release.partition("/")[2]]
    # The same generation with strategy data_only is another layer and another mount.
    arguments["strategy"] = "data_only"
    releases = [{"manifest": tools[1].manifest}]
    other = support.module("metadata_layer", releases=releases, format="directory", **arguments).ok
    assert (other["generation"], other["strategy"]) == (built["generation"], "data_only")
    switched = four_runs("overlay_mount", lower=[other["layer"]], **mount)
    assert (switched["method"], switched["mount"]["root"]) == ("beneath", "/")
    assert switched["diff"]["before"]["root"] == "/view"
    assert support.compare_trees(place / "tool" / "2.0", root / "tool" / "2.0") == []
    four_runs("overlay_mount", path=str(place), state="absent")
    four_runs("metadata_layer", name="v", state_dir=str(area / "state"), state="absent")


@pytest.mark.parametrize("kind", ["upper", "scratch"])
def test_a_view_with_an_upper_layer_is_writable(area: Path, root: Path, tools: Sequence[Placement], kind: str) -> None:
    layer, _generation, _report = support.build(area / "state", [tools[0]], strategy="redirect")
    place = area / "view"
    mount: dict[str, Any] = {"path": str(place), "lower": [str(layer)], "data": [str(root)], "strategy": "redirect"}
    directories = {"upper": str(area / "writable" / "upper"), "work": str(area / "writable" / "work")}
    mount.update(directories if kind == "upper" else {"scratch": "16M"})
    done = four_runs("overlay_mount", **mount)
    assert done["mount"]["root"] == "/view"
    release = place / "tool" / "1.0"
    assert support.compare_trees(release, root / "tool" / "1.0") == []
    # Change metadata and content, create names, and rename a directory.
    (release / "bin" / "tool").chmod(0o700)
    (release / "version-again").write_text("changed")
    (place / "tool" / "2.0").mkdir()
    (place / "own").write_text("own")
    (release / "bin").rename(place / "tool" / "2.0" / "bin")

    def is_as_written() -> bool:
        assert sorted(os.listdir(place)) == ["own", "tool"]
        assert sorted(os.listdir(release)) == ["latest", "version", "version-again"]
        moved = place / "tool" / "2.0" / "bin" / "tool"
        assert moved.read_bytes() == (root / "tool" / "1.0" / "bin" / "tool").read_bytes()
        # They are still hard links.
        assert (release / "version").read_text() == "changed"
        return moved.stat().st_mode & 0o777 == 0o700

    assert is_as_written()
    assert (root / "tool" / "1.0" / "version").read_text() == "one"
    assert not support.module("overlay_mount", **mount).ok["changed"]
    # The root of its upper layer is not the directory that is shown.
    assert "shows a part of an overlay, /view" in support.module("overlay_finalize", path=str(place)).message
    assert is_as_written()
    if kind == "upper":
        support.module("overlay_mount", path=str(place), state="unmounted")
        support.module("overlay_mount", **mount)
        assert is_as_written()


def test_users_keep_the_old_overlay_and_are_named(area: Path, root: Path, tools: Sequence[Placement]) -> None:
    layer, generation, _report = support.build(area / "state", [tools[0]], strategy="redirect")
    (area / "state").chmod(0o700)
    spec = declared(area / "view", layer, root)
    support.carried_out(spec)
    code = "import sys\nheld = open(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.read()\n"
    argv = [sys.executable, "-c", code, str(area / "view" / "tool" / "1.0" / "version")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        busy = support.module("overlay_mount", path=str(area / "view"), state="unmounted").message
        assert f"({process.pid}); nothing was unmounted" in busy
        for owner in (1, 2):
            layer, _generation, _report = support.build(area / "state", [tools[0]], owner=owner)
        switched = support.module("overlay_mount", path=str(area / "view"), lower=[str(layer)], data=[str(root)]).ok
        assert [one["pid"] for one in switched["users"]] == [process.pid]
        prune: dict[str, Any] = {"name": "view", "state_dir": str(area / "state"), "keep": 0, "min_age": 0}
        kept = support.module("overlay_prune", **prune).ok["kept"]
        (reason,) = [one["reason"] for one in kept if one["generation"] == generation.id]
        assert f"({process.pid})" in reason
        process.communicate("")
    assert [one["generation"] for one in support.module("overlay_prune", **prune).ok["removed"]] == [generation.id]


def test_a_mounted_generation_is_neither_removed_nor_pruned(area: Path, root: Path, tools: Sequence[Placement]) -> None:
    (area / "state").mkdir(mode=0o700)
    layer, generation, _report = support.build(area / "state", [tools[0]], strategy="redirect")
    support.carried_out(declared(area / "view", layer, root))
    for owner in (1, 2):
        support.build(area / "state", [tools[0]], owner=owner)
    arguments: dict[str, Any] = {"name": "view", "state_dir": str(area / "state")}
    assert f"mounted at {area}/view" in support.module("metadata_layer", state="absent", **arguments).message
    kept = support.module("overlay_prune", keep=0, min_age=0, **arguments).ok["kept"]
    reasons = {one["generation"]: one["reason"] for one in kept}
    assert reasons[generation.id] == f"it is mounted at {area}/view"


# ---- strategy auto


def test_auto_is_data_only_if_the_kernel_has_data_only_layers(area: Path, tools: Sequence[Placement]) -> None:
    arguments: dict[str, Any] = {"name": "v", "state_dir": str(area / "state")}
    built = support.module("metadata_layer", releases=[{"manifest": tools[0].manifest}], **arguments).ok
    assert built["strategy"] == "data_only"


@pytest.mark.usefixtures("no_data_only")
def test_auto_is_redirect_on_a_kernel_without_data_only_layers(
    area: Path, tools: Sequence[Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    state: dict[str, Any] = {"name": "v", "state_dir": str(area / "state")}
    releases = [{"manifest": tools[0].manifest}]
    mounted_before = [mount.path for mount in namespaces.own_mounts()]
    built = run("metadata_layer", releases=releases, **state).ok
    assert (built["strategy"], built["format"], built["changed"]) == ("redirect", "directory", True)
    assert "no image, since strategy redirect needs opaque directories" in built["format_reason"]
    assert not run("metadata_layer", releases=releases, **state).ok["changed"]
    assert [mount.path for mount in namespaces.own_mounts()] == mounted_before
    # An image, and a layer with user xattrs, are for other hosts.
    user = run("metadata_layer", releases=releases, xattr_namespace="user", **{**state, "name": "u"}).ok
    assert user["strategy"] == "data_only"
    (area / "images").mkdir()
    image = run("metadata_layer", name="v", releases=releases, image_store=str(area / "images")).ok
    assert image["strategy"] == "data_only"
    given = {"image": image["image"], "image_digest": image["image_digest"]}
    before = everything(area)
    refused = run("metadata_layer", **given, **state).message
    assert "view v cannot be an image on this host: images need data-only layers, which its kernel lacks (" in refused
    assert "view_build: local" in refused
    assert everything(area) == before
    assert "opaque directories" in run("metadata_layer", strategy="redirect", **given, **state).message


def test_going_back_uses_the_layer_that_exists(area: Path, tools: Sequence[Placement]) -> None:
    state_dir = area / "state"
    arguments: dict[str, Any] = {"name": "view", "state_dir": str(state_dir)}
    only_redirect, first, _report = support.build(state_dir, [tools[0]], strategy="redirect")
    both, second, _report = support.build(state_dir, [tools[1]])
    both_redirect, _second, _report = support.build(state_dir, [tools[1]], strategy="redirect")
    back = support.module("metadata_layer", generation="previous", **arguments).ok
    assert (back["generation"], back["strategy"]) == (first.id, "redirect")
    assert back["layer"] == str(only_redirect)
    forth = support.module("metadata_layer", generation=second.id, **arguments).ok
    assert (forth["strategy"], forth["layer"]) == ("data_only", str(both))
    support.module("metadata_layer", generation=first.id, **arguments)
    forth = support.module("metadata_layer", generation=second.id, strategy="redirect", **arguments).ok
    assert (forth["strategy"], forth["layer"]) == ("redirect", str(both_redirect))
    # The current layer stays.
    again = support.module("metadata_layer", generation=second.id, **arguments).ok
    assert (again["changed"], again["strategy"]) == (False, "redirect")
