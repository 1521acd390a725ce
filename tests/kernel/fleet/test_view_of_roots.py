"""A view over several software roots: declared, scanned, resolved on one host, and shown by another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import declared_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import (
    LockedView,
    lock_from_json,
    lock_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import (
    Listing,
    choose,
    locked_views,
    shared_views,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support

#: Three volumes with a release 1.0 each.
VOLUMES = {"houdini": ("1.0", "2.0"), "maya": ("1.0",), "nuke": ("1.0", "1.1")}

#: What a controller runs. The process of the tests must not be one (conftest.py).
SELECTING = """
import json, sys
from ansible_collections.renderfarm.overlay.plugins.filter.select_releases import select_releases
listed, options = json.load(sys.stdin)
print(json.dumps(select_releases(listed, **options)))
"""


def selected(listed: Sequence[Any], query: str, **options: Any) -> Any:
    """Return the releases that the filter select_releases chooses."""
    given = json.dumps([listed, {"query": query, **options}])
    done = subprocess.run([sys.executable, "-c", SELECTING], input=given, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


class Studio:
    """Volumes with one package each, a manifest store, and a host."""

    def __init__(self, top: Path) -> None:
        self.top, self.store, self.view = top, top / "store", top / "view"
        self.store.mkdir(exist_ok=True)
        for root, versions in VOLUMES.items():
            for version in versions:
                self.publish(root, version)

    def publish(self, root: str, version: str, text: str = "") -> None:
        (self.top / root / version).mkdir(parents=True)
        support.write(self.top / root / version / "app", (text or f"{root} {version}").encode())

    def roots(self, **keys: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"name": root, "path": str(self.top / root), **keys.get(root, {})} for root in VOLUMES]

    def declared(self, **keys: Any) -> list[dict[str, Any]]:
        view = {"name": "software", "mountpoint": str(self.view), "query": "newest(@)", "roots": self.roots(), **keys}
        common = {"root": "/of/other/views", "store": str(self.store), "state_dir": str(self.top / "state")}
        found, problems = declared_views([view], {**common, "min_age": 0, "keep": 0, "linger": 0})
        assert problems == []
        return found

    def resolved(self, declared: list[dict[str, Any]], check: bool = False, **scan: Any) -> dict[str, LockedView]:
        """Resolve the view as the action resolved_views does. ``scan`` are other parameters of release_manifest."""
        (shared,), problems = shared_views({"host": declared}, "host")
        assert problems == []
        listed, listings = [], {listing.prefix: listing for listing in Listing.of(shared)}
        for listing in listings.values():
            listed += support.module("release_info", **listing.options()).ok["releases"]
        choice = choose(shared, listed, selected)
        assert choice.problem == ""
        for release in choice.unscanned:
            listing = listings[release.partition("/")[0]]
            assert support.module("release_manifest", **listing.scan_options(), release=release, **scan).ok["changed"]
        roots = [{**root, "ready_marker": root["ready_marker"] or ""} for root in shared["roots"]]
        options = {
            "name": "software",
            "store": str(self.store),
            "linger": shared["linger"],
            "releases": list(choice.releases),
        }
        roots = [{name: root[name] for name in ("name", "path", "pattern", "ready_marker")} for root in roots]
        (locked,) = support.module("view_lock", check=check, views=[{**options, "roots": roots}]).ok["views"]
        assert locked["msg"] == ""
        return lock_from_json(lock_to_json([LockedView.from_dict(locked)]))

    def bring(self, declared: list[dict[str, Any]], lock: dict[str, LockedView], **options: Any) -> support.Ran:
        return support.module("view", views=locked_views(declared, lock), **options)

    def shown(self) -> dict[str, str]:
        found = self.view.glob("**/app")
        return {str(path.relative_to(self.view).parent): path.read_text() for path in found}


@pytest.fixture
def studio(area: Path) -> Studio:
    return Studio(area)


def test_each_release_is_read_from_its_own_volume(studio: Studio) -> None:
    declared = studio.declared()
    lock = studio.resolved(declared)
    assert [one["release"] for one in lock["software"].releases] == ["houdini/2.0", "maya/1.0", "nuke/1.1"]
    # Manifests are kept by root.
    assert (studio.store / "maya" / "1.0.json").exists()
    assert studio.bring(declared, lock, check=True).ok["changed"]
    assert not studio.view.exists()
    assert studio.bring(declared, lock).ok["changed"]
    assert studio.shown() == {"houdini/2.0": "houdini 2.0", "maya/1.0": "maya 1.0", "nuke/1.1": "nuke 1.1"}
    assert not studio.bring(declared, lock).ok["changed"]
    support.command("umount", studio.view / "maya")
    (row,) = support.module("view_info", views=declared, state_dir=str(studio.top / "state")).ok["report"]
    maya = studio.top / "maya"
    assert row["drift"] == [f"its part maya, which has the files of {maya}, is not mounted"]
    of_maya = {"path": str(studio.view / "maya"), "data": [str(maya)]}
    assert {"roots": ["maya"], **of_maya} not in row["parts"]
    mended = studio.bring(declared, lock).ok["views"][0]
    assert (mended["switched"], of_maya in mended["mount"]["parts"]) == (True, True)
    (row,) = support.module("view_info", views=declared, state_dir=str(studio.top / "state")).ok["report"]
    assert (row["status"], row["drift"]) == ("as declared", [])
    assert {"roots": ["maya"], **of_maya} in row["parts"]
    listed = support.module("overlay_info", probe=False).ok["mounts"]
    (top,) = [one for one in listed if one["path"] == str(studio.view)]
    assert (len(top["parts"]), of_maya in top["parts"]) == (len(VOLUMES), True)

    verifying: dict[str, Any] = {"name": "software", "state_dir": str(studio.top / "state"), "store": str(studio.store)}
    verified = support.module("overlay_verify", **verifying).ok
    assert (verified["ok"], verified["problems"]) == (True, [])
    assert support.module("overlay_verify", level="open", **verifying).ok["ok"]

    # All releases, three of which have equal paths: switched, rolled back, and nothing of the generation in use is removed.
    declared = studio.declared(query="@")
    both = studio.resolved(declared)
    ran = studio.bring(declared, both).ok
    assert (ran["views"][0]["switched"], ran["views"][0]["method"]) == (True, "beneath")
    assert studio.shown() == {
        f"{root}/{one}": f"{root} {one}" for root, versions in VOLUMES.items() for one in versions
    }
    back = locked_views(declared, both)
    back[0].update(generation="previous", releases=[])
    assert support.module("view", views=back, hold=0).ok["changed"]
    assert sorted(studio.shown()) == ["houdini/2.0", "maya/1.0", "nuke/1.1"]
    (row,) = support.module("view_info", state_dir=str(studio.top / "state")).ok["report"]
    assert (row["generation"], row["status"], row["drift"]) == (lock["software"].generation, "held", [])
    assert studio.bring(declared, both, lift_holds=True).ok["changed"]

    # A reader in a part keeps its generation.
    holding = f"import sys\nheld = open(sys.argv[1])\n{support.WAIT}"
    with support.background(holding, studio.view / "nuke" / "1.0" / "app"):
        last = studio.resolved(studio.declared(query="newest([?root=='maya'])"))
        ran = studio.bring(studio.declared(query="newest([?root=='maya'])"), last).ok
        kept = {os.readlink(path) for path in (studio.top / "state/views/software").iterdir() if path.is_symlink()}
        generations = {path.name for path in (studio.top / "state/views/software/generations").iterdir()}
        assert any(name.startswith(both["software"].generation) for name in generations), (kept, generations)
    assert studio.shown() == {"maya/1.0": "maya 1.0"}
    # One root is no tree.
    assert ran["views"][0]["mount"]["data"] == [str(studio.top / "maya")]

    gone = studio.declared(state="absent")
    assert studio.bring(gone, {}).ok["changed"]
    assert not studio.view.exists()


def test_volumes_with_patterns_that_exclude_each_other_share_an_overlay(studio: Studio) -> None:
    for root, versions in VOLUMES.items():
        shutil.move(studio.top / root, studio.top / "moved")
        (studio.top / root).mkdir()
        shutil.move(studio.top / "moved", studio.top / root / root)
        assert versions
    roots = studio.roots(**{root: {"pattern": f"{root}/{{version}}", "at": ""} for root in VOLUMES})
    declared = studio.declared(roots=roots, query="@")
    lock = studio.resolved(declared)
    ran = studio.bring(declared, lock).ok
    assert ran["views"][0]["mount"]["data"] == [str(studio.top / root) for root in VOLUMES]
    assert studio.shown() == {
        f"{root}/{one}": f"{root} {one}" for root, versions in VOLUMES.items() for one in versions
    }
    # A directory that would answer for another root is noticed before it is mounted.
    support.command("umount", studio.view)
    (studio.top / "houdini" / "maya" / "1.0").mkdir(parents=True)
    assert "have different files at maya/1.0" in studio.bring(declared, lock).message


def test_releases_of_volumes_that_may_have_equal_paths_are_not_merged(studio: Studio) -> None:
    roots = studio.roots(**{root: {"at": "apps"} for root in VOLUMES})
    declared = studio.declared(roots=roots, query="@")
    (shared,), _problems = shared_views({"host": declared}, "host")
    with pytest.raises(AssertionError, match="These roots may have the same paths"):
        studio.resolved(declared)
    assert shared["roots"][0]["at"] == "apps"


def test_a_layer_of_several_roots_is_not_mounted_over_one_of_them(studio: Studio) -> None:
    declared = studio.declared()
    lock = studio.resolved(declared)
    assert studio.bring(declared, lock).ok["changed"]
    layer = next((studio.top / "state/views/software/generations").glob("*/layer*"))
    record = json.loads((layer.parent / "view.json").read_text())
    assert record["several_roots"]
    ran = support.module(
        "overlay_mount", path=str(studio.top / "other"), lower=[str(layer)], data=[str(studio.top / "maya")]
    )
    assert "does not have a data layer for each: use the module view with 'roots'" in ran.message
