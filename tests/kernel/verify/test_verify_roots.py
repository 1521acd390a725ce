"""A view over several software roots is verified and repaired: each file in the root of its release, also where roots have equal paths."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import status_file
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.status import ViewStatus
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Note, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, manifest_writer
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.targets import DataLayers, File
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_view_of_roots import VOLUMES, Studio
from ansible_collections.renderfarm.overlay.tests.kernel.verify.test_overlay_verify import METACOPY, REDIRECT
from ansible_collections.renderfarm.overlay.tests.kernel.verify.test_repairs import opening

#: What is done in a release, for the code of the problem. The file has the name of the code.
ON_A_ROOT = {
    "missing_target": "rm missing_target",
    "target_not_file": "rm target_not_file; mkdir target_not_file",
    "wrong_size": "echo more >>wrong_size",
    "wrong_time": "touch -d @1000000000 wrong_time",
    "redirect_through_symlink": "ln -sf app redirect_through_symlink",
    "content_differs": "touch -r content_differs ../time; tr a-z A-Z <linked >content_differs; touch -r ../time content_differs",
}
XATTR = "import os, sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())"


def redirected(code: str, value: str) -> str:
    return f"python3 -c '{XATTR}' {code} {REDIRECT} {value}"


def stripped(code: str, name: str) -> str:
    return f'python3 -c \'import os; os.removexattr("{code}", "{name}")\''


#: The same in the layer.
IN_THE_LAYER = {
    "missing_entry": "rm missing_entry",
    "unknown_entry": "touch unknown_entry",
    "entry_differs": "chmod 777 entry_differs",
    "lost_hard_links": "rm lost_hard_links; cp -a linked lost_hard_links",
    "metacopy_without_redirect": stripped("metacopy_without_redirect", REDIRECT),
    "redirect_without_metacopy": stripped("redirect_without_metacopy", METACOPY),
    "invalid_metacopy": f"python3 -c '{XATTR}' invalid_metacopy {METACOPY} xyz",
    "relative_redirect": redirected("relative_redirect", "1.0/linked"),
    "escaping_redirect": redirected("escaping_redirect", "/../1.0/linked"),
    "double_slash_redirect": redirected("double_slash_redirect", "/1.0//linked"),
}


class Site(Studio):
    """Volumes with a file for each problem, whose releases have equal paths."""

    def publish(self, root: str, version: str, text: str = "") -> None:
        super().publish(root, version, text)
        top = self.top / root / version
        for name in (*ON_A_ROOT, *IN_THE_LAYER, "linked"):
            if name not in ("unknown_entry", "lost_hard_links"):
                support.write(top / name, f"content of {root}".encode())
        os.link(top / "linked", top / "lost_hard_links")

    def shown_with(self, **keys: Any) -> None:
        """Declare a view of all releases, and show it."""
        declared = self.declared(query="@", **keys)
        assert self.bring(declared, self.resolved(declared, checksum="sha256")).ok["changed"]

    def verify(self, level: str, **options: Any) -> support.Ran:
        given: dict[str, Any] = {"store": str(self.store), "fail_on_problems": False, "workers": 1, **options}
        return support.module(
            "overlay_verify", name="software", state_dir=str(self.top / "state"), level=level, **given
        )

    def found(self, level: str, **options: Any) -> set[tuple[str, str]]:
        return {(one["path"], one["code"]) for one in self.verify(level, **options).ok["problems"]}

    @property
    def layer(self) -> Path:
        (found,) = (self.top / "state/views/software/generations").glob("*/layer")
        return found


@pytest.fixture
def site(area: Path) -> Site:
    return Site(area)


@pytest.fixture
def tree(site: Site) -> Iterator[Site]:
    """Show the volumes in a tree of overlays: each may have the paths of the others."""
    site.shown_with()
    yield site
    support.unmount_all(site.view)


def test_every_problem_of_a_tree_is_found_where_it_is_and_its_layer_is_repaired_under_a_reader(tree: Site) -> None:
    assert tree.found("content") == tree.found("content", sample=1000) == set()
    support.command("sh", "-ec", f"cd {tree.top}/maya/1.0; {'; '.join(ON_A_ROOT.values())}")
    support.command("sh", "-ec", f"cd {tree.layer}/maya/1.0; {'; '.join(IN_THE_LAYER.values())}")
    wanted = {(f"/maya/1.0/{code}", code) for code in (*ON_A_ROOT, *IN_THE_LAYER)} | {("maya/1.0", "release_differs")}
    found = tree.found("content")
    assert wanted - found == set()
    # Other volumes have the same paths.
    assert {path for path, _code in found if not path.strip("/").startswith("maya/1.0")} == set()
    assert wanted - tree.found("open") == {("/maya/1.0/content_differs", "content_differs")}
    assert wanted - tree.found("content", sample=1000) == {("/maya/1.0/unknown_entry", "unknown_entry")}

    for code in ON_A_ROOT:
        shutil.rmtree(tree.top / "maya/1.0" / code, ignore_errors=True)
        support.command("cp", "-aT", "--remove-destination", tree.top / "nuke/1.0" / code, tree.top / "maya/1.0" / code)
    in_use = {path.relative_to(tree.view) for path in tree.view.glob("*/*/app")}
    with opening(tree.view, tree.top / "stop", "app"):
        done = tree.verify("metadata", repair=True).ok
    assert done["ok"], done
    assert [action.split()[0] for action in done["actions"]] == ["build", "switch"]
    assert {one["code"] for one in done["repaired"]} == set(IN_THE_LAYER)
    assert {path.relative_to(tree.view) for path in tree.view.glob("*/*/app")} == in_use
    assert (tree.view / "maya/1.0/redirect_without_metacopy").read_text() == "content of maya"
    parts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {tree.view}/" in line]
    assert len(parts) == len(VOLUMES)
    assert not (tree.top / "state/views/software/removing").exists()


def test_a_release_that_was_moved_to_another_volume_is_noticed(tree: Site) -> None:
    # The ready marker of a root is no difference.
    (tree.top / "nuke/1.1/.complete").touch()
    assert tree.found("open", ready_markers={"maya": ".complete"}) == {("nuke/1.1", "release_differs")}
    assert tree.found("open", ready_markers={"nuke": ".complete"}) == set()

    # Other volumes have the paths of what was moved.
    (tree.top / "houdini/1.0").rename(tree.top / "houdini/moved")
    (tree.top / "maya/1.0").rename(tree.top / "nuke/3.0")
    found = tree.verify("open", ready_markers={"nuke": ".complete"}).ok["problems"]
    paths = {(one["path"], one["code"]) for one in found}
    for root in ("houdini", "maya"):
        assert {(f"/{root}/1.0/app", "missing_target"), (f"{root}/1.0", "release_differs")} <= paths
    assert all(path.strip("/").startswith(("houdini/1.0", "maya/1.0")) for path, _code in paths)
    details = [one["detail"] for one in found if one["path"] == "/maya/1.0/app"]
    assert details == [f"no data layer has /1.0/app; the software root of its release is {tree.top}/maya"]

    # The roots must be known.
    refused = tree.verify("open", data=[str(tree.top / "maya")]).message
    assert "shows releases of several software roots (houdini, maya, nuke), and 'data' does not say which" in refused
    (tree.top / "state/views/software/status.json").unlink()
    assert "this host has no record of their paths: deploy the view with 'roots'" in tree.verify("open").message
    assert tree.found("metadata") == set()


def test_volumes_that_share_an_overlay_are_told_apart(site: Site) -> None:
    for root in VOLUMES:
        (site.top / root).rename(site.top / "moved")
        (site.top / root).mkdir()
        (site.top / "moved").rename(site.top / root / root)
    roots = site.roots(**{root: {"pattern": f"{root}/{{version}}", "at": ""} for root in VOLUMES})
    site.shown_with(roots=roots)
    try:
        assert site.found("content") == set()
        # Opening works for users of the view, and so nobody notices.
        (site.top / "houdini/maya").mkdir()
        (site.top / "maya/maya/1.0").rename(site.top / "houdini/maya/1.0")
        assert (site.view / "maya/1.0/app").read_text() == "maya 1.0"
        found = site.verify("open").ok
        assert set(found["counts"]) == {"wrong_root", "release_differs"}
        assert f"{site.top}/houdini, and its release is on {site.top}/maya" in found["problems"][0]["detail"]
        assert all("maya/1.0" in one["path"] for one in found["problems"])
    finally:
        support.unmount_all(site.view)
    # The view need not be mounted for that.
    assert Counter(code for _path, code in site.found("open"))["wrong_root"] == found["counts"]["wrong_root"]


def test_refusals_of_the_kernel_and_of_the_server_are_found(area: Path) -> None:
    roots = [{"name": name, "path": str(area / name), "pattern": "{version}"} for name in ("one", "two")]
    placements = []
    (area / "store").mkdir(exist_ok=True)
    for root in roots:
        support.make_small_release(Path(root["path"]) / "1", root["name"])
        name, store = f"{root['name']}/1", str(area / "store")
        record = manifest_writer.write(
            store, root["path"], name, False, root_name=root["name"], prefix=root["name"]
        ).record
        placements.append(Placement(manifest_store.manifest_path(store, name), record, os.fsencode(name), b"1"))
    (area / "state").mkdir(mode=0o700)
    support.build(area / "state", placements, namespace="user", several_roots=True)
    mount: dict[str, Any] = {"options": {}, "data": [], "writable": "none", "scratch_size": 0, "roots": roots}
    status = ViewStatus("view", "/view", None, "none", mount=mount)
    status_file.write(ViewPaths.of(str(area / "state"), "view"), status)
    area.chmod(0o755)
    os.chown(area / "two/1/version", 12, 13)
    (area / "two/1/version").chmod(0o600)
    # Root without capabilities has the rights that a server with root_squash leaves it.
    options: dict[str, Any] = {"name": "view", "state_dir": str(area / "state"), "fail_on_problems": False}
    ran = support.module("overlay_verify", privileged=False, level="open", **options)
    found_codes = {(one["path"], one["code"]) for one in ran.ok["problems"]}
    assert found_codes == {("/two/1/version", "unreadable_target"), ("/view", "mount_differs")}

    # The kernel refuses mounts that the file system makes by itself, such as those of nested exports.
    releases = [{"at": f"{root['name']}/1", "source": "1", "root": root["name"]} for root in roots]
    support.command("mount", "--bind", area / "one/1/bin", area / "two/1/bin")
    opened = {os.fsencode(root["path"]): beneath.open_layer(os.fsencode(root["path"])) for root in roots}
    try:
        data = DataLayers(DataPlaces.of_roots(roots, releases), opened, Note())
        status_of = (area / "one/1/bin/tool").stat()
        for name, code in (("one", None), ("two", "redirect_across_mount")):
            file = File(f"/{name}/1/bin/tool".encode(), b"1/bin/tool", status_of.st_size, status_of.st_mtime_ns)
            found = data.problem(file, None, no_progress)
            assert (found.code if found else None) == code
    finally:
        support.command("umount", area / "two/1/bin")
        for fd in opened.values():
            os.close(fd)
