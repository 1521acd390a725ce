"""Software roots may have releases at equal paths. A view never shows files of the wrong root."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import containing_mount, top_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import data_layers
from ansible_collections.renderfarm.overlay.tests.kernel import support

RELEASE = "2025"
PROGRAM = f"{RELEASE}/bin/run"


def put(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    support.write(path, content)


@dataclass
class Roots:
    """Two software roots with a release at the same path, each with its own store."""

    area: Path

    def root(self, name: str) -> str:
        return str(self.area / name)

    def store(self, name: str) -> str:
        path = self.area / f"store-{name}"
        path.mkdir(exist_ok=True)
        return str(path)

    def scanned(self, name: str, release: str = RELEASE, **more: Any) -> dict[str, Any]:
        arguments = {"root": self.root(name), "store": self.store(name), "release": release, **more}
        return support.module("release_manifest", **arguments).ok

    def layer(self, name: str, *releases: dict[str, Any], **more: Any) -> support.Ran:
        state_dir = str(self.area / "state")
        return support.module("metadata_layer", name=name, state_dir=state_dir, releases=list(releases), **more)

    def mounted(self, lower: list[str], data: list[str], **more: Any) -> support.Ran:
        arguments: dict[str, Any] = {"path": str(self.area / "view"), "lower": lower, "data": data, **more}
        return support.module("overlay_mount", **arguments)

    @property
    def program(self) -> str:
        return (self.area / "view" / PROGRAM).read_text()


@pytest.fixture
def roots(area: Path) -> Roots:
    for name in ("max", "maya"):
        put(area / name / PROGRAM, f"this is {name}\n".encode())
        put(area / name / RELEASE / "lib" / "common", b"the same in both")
    os.utime(area / "max" / RELEASE / "lib" / "common", (1, 1))
    os.utime(area / "maya" / RELEASE / "lib" / "common", (1, 1))
    return Roots(area)


def test_a_layer_with_releases_of_two_roots_is_refused(roots: Roots) -> None:
    both = [
        {"manifest": roots.scanned(name)["manifest"], "at": f"{name}/{RELEASE}", "source": RELEASE}
        for name in ("max", "maya")
    ]
    message = roots.layer("both", *both).message
    for word in (RELEASE, roots.root("max"), roots.root("maya"), "one view shows releases of one software root"):
        assert word in message
    assert not (roots.area / "state").exists()


def test_a_manifest_of_another_root_is_refused_and_not_replaced(roots: Roots) -> None:
    roots.scanned("max")
    store = roots.store("max")
    for state in ("present", "absent"):
        other: dict[str, Any] = {"root": roots.root("maya"), "store": store, "release": RELEASE, "state": state}
        message = support.module("release_manifest", **other).message
        for word in (RELEASE, store, roots.root("max"), roots.root("maya"), "root_name"):
            assert word in message
    listed = support.module("release_info", root=roots.root("maya"), store=store, pattern="{package}{version}").ok
    assert [one["root"] for one in listed["releases"]] == [roots.root("max")]
    named = support.module(
        "release_info", root=roots.root("maya"), root_name=roots.root("maya"), store=store, pattern="{package}{version}"
    ).ok
    assert [one["manifest"] for one in named["releases"]] == [None]


def test_a_root_may_be_scanned_at_different_paths_with_one_identity(roots: Roots) -> None:
    """One view can show releases that were scanned on the file server and on a render node."""
    (roots.area / "elsewhere").symlink_to(roots.root("max"))
    put(roots.area / "max" / "2026" / "file", b"x")
    here = roots.scanned("max", root_name="/net/max/")
    there = support.module(
        "release_manifest",
        root=str(roots.area / "elsewhere"),
        root_name="/net/max",
        store=roots.store("max"),
        releases=[RELEASE, "2026"],
    ).ok
    assert there["actions"] == ["scan release 2026"]
    assert there["manifests"][0]["digest"] == here["digest"]
    built = roots.layer("max", {"release": RELEASE}, {"release": "2026"}, store=roots.store("max")).ok
    assert {one["root"] for one in built["releases"]} == {"/net/max"}


@pytest.mark.parametrize("strategy", ["data_only", "redirect"])
@pytest.mark.parametrize("check", [False, True])
def test_two_roots_as_data_layers_of_one_overlay_are_refused(roots: Roots, strategy: str, check: bool) -> None:
    roots.scanned("maya")
    layer = roots.layer("maya", {"release": RELEASE}, store=roots.store("maya"), strategy=strategy).ok["layer"]
    more = {"strategy": strategy, "check": check}
    before = namespaces.own_mounts()
    for data in ([roots.root("max"), roots.root("maya")], [roots.root("maya"), roots.root("max")]):
        message = roots.mounted([layer], data, **more).message
        for word in (*data, PROGRAM, "copies of one software root"):
            assert word in message
        assert namespaces.own_mounts() == before
        assert not (roots.area / "view").exists()
    assert roots.mounted([layer], [roots.root("maya")], strategy=strategy).ok["changed"]
    assert roots.program == "this is maya\n"
    # A switch to them is refused too, and the mounted overlay stays.
    message = roots.mounted([layer], [roots.root("max"), roots.root("maya")], **more).message
    assert PROGRAM in message
    assert roots.program == "this is maya\n"


def test_an_overlay_with_layers_of_two_roots_is_refused(roots: Roots) -> None:
    layers = []
    for name in ("max", "maya"):
        roots.scanned(name)
        layers.append(roots.layer(name, {"release": RELEASE}, store=roots.store(name)).ok["layer"])
    message = roots.mounted(layers, [roots.root("max")]).message
    for word in (*layers, roots.root("max"), roots.root("maya"), "a mountpoint of its own"):
        assert word in message


def test_a_data_layer_without_any_of_the_releases_is_refused_unless_it_is_empty(roots: Roots) -> None:
    roots.scanned("maya")
    layer = roots.layer("maya", {"release": RELEASE}, store=roots.store("maya")).ok["layer"]
    local = roots.area / "local"
    local.mkdir()
    assert roots.mounted([layer], [str(local), roots.root("maya")]).ok["changed"]
    assert roots.mounted([layer], [roots.root("maya")]).ok["changed"]
    put(local / "2024" / "file", b"x")
    message = roots.mounted([layer], [str(local), roots.root("maya")]).message
    assert f"data layer {local} of" in message
    assert "has none of the releases" in message


def test_a_local_copy_of_files_is_read_instead_of_the_root(roots: Roots) -> None:
    roots.scanned("maya")
    layer = roots.layer("maya", {"release": RELEASE}, store=roots.store("maya")).ok["layer"]
    local = roots.area / "local" / RELEASE / "bin"
    local.mkdir(parents=True)
    shutil.copy2(roots.area / "maya" / PROGRAM, local)
    data = [str(roots.area / "local"), roots.root("maya")]
    assert roots.mounted([layer], data).ok["changed"]
    assert roots.program == "this is maya\n"
    assert not roots.mounted([layer], data).ok["changed"]
    # Other content at the same path is found by its size, or by its mtime if the size is the same.
    for text in (b"longer than the original\n", b"THIS IS MAYA\n"):
        (local / "run").write_bytes(text)
        os.utime(local / "run", (5, 5))
        message = roots.mounted([layer], data, path=str(roots.area / "second")).message
        assert PROGRAM in message


def test_the_data_layers_of_an_unchanged_overlay_are_not_compared(roots: Roots) -> None:
    roots.scanned("maya")
    layer = roots.layer("maya", {"release": RELEASE}, store=roots.store("maya")).ok["layer"]
    copy = roots.area / "copy"
    subprocess.run(["cp", "-a", roots.root("maya"), copy], check=True)
    data = [str(copy), roots.root("maya")]
    assert roots.mounted([layer], data).ok["changed"]
    (copy / PROGRAM).write_text("changed since")
    assert not roots.mounted([layer], data).ok["changed"]


def test_data_layers_of_a_layer_without_record_may_not_have_different_files(roots: Roots) -> None:
    layer = roots.area / "other" / "layer"
    put(layer / "run")
    os.setxattr(layer / "run", "trusted.overlay.metacopy", b"")
    os.setxattr(layer / "run", "trusted.overlay.redirect", f"/{PROGRAM}".encode())
    data = [roots.root("max"), roots.root("maya")]
    message = roots.mounted([str(layer)], data).message
    assert PROGRAM in message
    os.rename(roots.area / "max" / RELEASE / "bin", roots.area / "max" / RELEASE / "sbin")
    assert roots.mounted([str(layer)], data).ok["changed"]


def test_overlay_info_returns_the_roots_in_the_records_of_layers(roots: Roots) -> None:
    layers = []
    for name in ("max", "maya"):
        roots.scanned(name)
        layers.append(Path(roots.layer(name, {"release": RELEASE}, store=roots.store(name)).ok["layer"]))
    max_root, maya_root = (Path(roots.root(name)) for name in ("max", "maya"))
    other = roots.area / "other" / "layer"
    other.mkdir(parents=True)
    cases = {
        "one": ([layers[0]], [max_root], [str(max_root)], "one"),
        "none": ([layers[0], other], [], None, "none"),
        "copies": ([layers[0]], [max_root, maya_root], [str(max_root)], "copies"),
        "ambiguous": (layers, [max_root, maya_root], [str(max_root), str(maya_root)], "ambiguous"),
        "unknown": ([other], [max_root, maya_root], None, "unknown"),
    }
    for name, (lower, data, found_roots, kind) in cases.items():
        with support.mounted(support.declared(roots.area / name, lower, data)) as path:
            listed = support.module("overlay_info", probe=False).ok["mounts"]
            (found,) = [one for one in listed if one["path"] == str(path)]
            assert (found["roots"], found["data_layers"]) == (found_roots, kind), name


def test_overlay_info_reads_no_record_through_a_network_file_system_or_link(roots: Roots) -> None:
    roots.scanned("max")
    layer = Path(roots.layer("max", {"release": RELEASE}, store=roots.store("max")).ok["layer"])
    link = roots.area / "link"
    link.symlink_to(layer.parent)

    def answers(kind: bytes = b"") -> object:
        """Return the roots, as if the file system of the layer had the type ``kind``."""
        live = namespaces.own_mounts()
        mount = top_mount(live, os.fsencode(roots.area / "view"))
        assert mount
        if kind:
            place = containing_mount(live, os.fsencode(layer))
            live = [replace(one, fstype=kind) if one == place else one for one in live]
        return data_layers.answers(mount, live)["roots"]

    with support.mounted(support.declared(roots.area / "view", [layer], [roots.area / "max"])):
        assert answers() == [roots.root("max")]
        for kind in (b"nfs4", b"autofs", b"fuse.sshfs", b"ceph"):
            assert answers(kind) is None
    with support.mounted(support.declared(roots.area / "view", [link / "layer"], [roots.area / "max"])):
        assert answers() is None
