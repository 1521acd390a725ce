"""All views of a host in one task: locked on one host, brought to their state on another, held, and taken down."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import declared_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import (
    LockedView,
    lock_from_json,
    lock_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import locked_views
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.test_dead_server import dead
from ansible_collections.renderfarm.overlay.tests.kernel.test_modules import everything

VIEWS = ("software", "tools")
RELEASES = ("usd/1", "usd/2", "qt/1")


class Farm:
    """A software root with releases, a manifest store, and a host with two mountpoints."""

    def __init__(self, top: Path) -> None:
        self.top, self.root, self.store = top, top / "root", top / "store"
        for release in RELEASES:
            (self.root / release).mkdir(parents=True)
            support.write(self.root / release / "file", release.encode())
        done = support.module("release_manifest", root=str(self.root), store=str(self.store), releases=list(RELEASES))
        assert done.ok["changed"]

    def lock(self, *releases: str, check: bool = False, **options: Any) -> list[dict[str, Any]]:
        """Resolve both views to the same releases."""
        view = {
            "root": str(self.root),
            "store": str(self.store),
            "releases": [{"release": one} for one in releases],
            "linger": 0,
            **options,
        }
        ran = support.module("view_lock", check=check, views=[{**view, "name": name} for name in VIEWS])
        found: list[dict[str, Any]] = ran.ok["views"]
        return found

    def views(self, locked: list[dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
        """Return both views as the module takes them."""
        common = {
            "root": str(self.root),
            "store": str(self.store),
            "state_dir": str(self.top / "state"),
            "min_age": 0,
            "keep": 0,
        }
        declared, problems = declared_views(
            [{"name": name, "mountpoint": str(self.top / name), "query": "@", **keys} for name in VIEWS], common
        )
        assert problems == []
        return locked_views(
            declared,
            {
                one["name"]: LockedView(one["name"], one["generation"], tuple(one["releases"]), (), one["image_digest"])
                for one in locked
            },
        )

    def bring(self, views: list[dict[str, Any]], check: bool = False, **options: Any) -> support.Ran:
        return support.module("view", check=check, views=views, **options)

    def shown(self, name: str = "software") -> list[str]:
        return sorted(os.listdir(self.top / name / "usd"))

    def status(self, name: str = "software") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.top / "state" / "views" / name / "status.json").read_text())
        return found


@pytest.fixture
def farm(area: Path) -> Farm:
    return Farm(area)


def lock_beside(farm: Farm, name: str) -> LockedView:
    """Return the lock that the host has of a view."""
    return lock_from_json((farm.top / "state" / "views" / name / "lock.json").read_bytes())[name]


@pytest.mark.usefixtures("with_programs")
@pytest.mark.parametrize("central", [False, True])
def test_a_host_keeps_the_lock_of_what_it_shows(farm: Farm, central: bool) -> None:
    releases = [{"release": "usd/2", "at": "/"}, {"release": "qt/1", "exclude": ["demo"]}]
    options: dict[str, Any] = {"image_store": str(farm.store / ".images")} if central else {}
    locked = farm.lock(releases=releases, **options)
    assert [one["msg"] for one in locked] == ["", ""]
    assert (locked[0]["image_digest"] is not None) == central
    views = farm.views(locked, build="central" if central else "local", image_store=str(farm.store / ".images"))
    for view in views:
        view["leaving"] = [{"release": "qt/1", "until": "2026-11-29T10:00:00Z"}]
    assert farm.bring(views, check=True).ok["changed"]
    assert farm.bring(views).ok["changed"]
    for one in locked:
        found = lock_beside(farm, one["name"])
        assert (found.generation, found.image_digest) == (one["generation"], one["image_digest"])
        assert {item["release"]: item for item in found.releases} == {item["release"]: item for item in one["releases"]}
        assert found.leaving == ({"release": "qt/1", "until": "2026-11-29T10:00:00Z"},)


def test_a_view_that_was_not_resolved_stays_and_is_mounted_again(farm: Farm) -> None:
    unresolved = [{**view, "unresolved": True} for view in farm.views([])]
    # A host that never showed it has nothing to stay at.
    for check in (True, False):
        assert not farm.bring(unresolved, check=check).ok["changed"]
    assert not (farm.top / "state").exists()
    locked = farm.lock("usd/1")
    assert farm.bring(farm.views(locked)).ok["changed"]
    support.command("umount", str(farm.top / "software"))
    ran = farm.bring(unresolved).ok
    assert [one["changed"] for one in ran["views"]] == [True, False]
    assert farm.shown() == ["1"]
    assert farm.status()["generation"] == locked[0]["generation"]
    assert not farm.bring(unresolved).ok["changed"]


def test_a_view_that_was_not_resolved_stays_held(farm: Farm) -> None:
    second = farm.lock("usd/2")
    assert farm.bring(farm.views(farm.lock("usd/1"))).ok["changed"]
    assert farm.bring(farm.views(second)).ok["changed"]
    assert farm.bring(farm.views([], generation="previous"), hold=0).ok["changed"]
    unresolved = [{**view, "unresolved": True} for view in farm.views([])]
    for _run in range(2):
        assert not farm.bring(unresolved).ok["changed"]
        assert farm.shown() == ["1"]
        assert farm.status()["hold"] is not None
    assert farm.bring(farm.views(second), lift_holds=True).ok["changed"]
    assert farm.shown() == ["2"]


def test_the_lock_of_what_is_shown_is_read_without_a_server(farm: Farm) -> None:
    def read(**keys: Any) -> list[dict[str, Any]]:
        given = [
            {"name": name, "mountpoint": str(farm.top / name), "state_dir": str(farm.top / "state"), **keys}
            for name in VIEWS
        ]
        with dead(farm.root), dead(farm.store):
            found: list[dict[str, Any]] = support.module("view_lock_info", views=given, timeout=30).ok["views"]
        return found

    never = read()
    assert [(one["generation"], one["mounted"], one["lock"]) for one in never] == [(None, False, None)] * 2
    first = farm.lock("usd/1")
    assert farm.bring(farm.views(first)).ok["changed"]
    os.utime(farm.top / "state" / "views" / "software" / "current", (0, 0), follow_symlinks=False)
    support.command("umount", str(farm.top / "tools"))
    (software, tools), (locked, _other) = read(), first
    assert (software["generation"], software["mounted"], software["hold"], software["failure"]) == (
        *(locked["generation"], True, None, ""),
    )
    assert software["lock"]["releases"] == locked["releases"]
    assert software["seconds"] > 1e9
    assert (tools["mounted"], tools["seconds"] < 1e5) == (False, True)
    assert read(generation="previous") == read(state="absent") == []


def test_a_view_that_hangs_is_given_up_alone(farm: Farm) -> None:
    assert farm.bring(farm.views(farm.lock("usd/1"))).ok["changed"]
    views = farm.views(farm.lock("usd/2"))
    hanging = farm.top / "hanging"
    hanging.mkdir()
    views[0]["store"] = str(hanging / "store")
    with dead(hanging):
        ran = farm.bring(views, timeout=3)
    assert ran.message == (
        f"view software: gave up: no progress for 3 seconds. No answer from the file server of {hanging} (dead): check the server, then run"
        " the task again"
    )
    assert (farm.shown(), farm.shown("tools")) == (["1"], ["2"])
    assert farm.status()["failure"].startswith("gave up: ")
    assert farm.status("tools")["failure"] == ""


def without_status(top: Path) -> dict[Any, Any]:
    return {path: found for path, found in everything(top).items() if not os.fsdecode(path).endswith("status.json")}


def test_both_views_are_shown_and_a_second_run_changes_nothing(farm: Farm) -> None:
    locked = farm.lock("usd/1", "qt/1")
    assert len({one["generation"] for one in locked}) == 2 or locked[0]["generation"] == locked[1]["generation"]
    views = farm.views(locked)
    would = farm.bring(views, check=True).ok
    assert would["changed"]
    assert not (farm.top / "state").exists()
    ran = farm.bring(views).ok
    assert [one["generation"] for one in ran["views"]] == [one["generation"] for one in locked]
    for name in VIEWS:
        assert (farm.top / name / "usd" / "1" / "file").read_bytes() == b"usd/1"
    before = without_status(farm.top / "state")
    again = farm.bring(views).ok
    assert not again["changed"]
    assert again["actions"] == []
    assert without_status(farm.top / "state") == before
    assert farm.status()["generation"] == locked[0]["generation"]


def test_releases_at_the_top_of_a_view_are_locked_there(farm: Farm) -> None:
    releases = [{"release": "usd/1", "at": "/"}, {"release": "qt/1", "at": "/", "exclude": ["file"]}]
    ran = support.module(
        "view_lock",
        views=[
            {"name": "software", "root": str(farm.root), "store": str(farm.store), "releases": releases, "linger": 0}
        ],
    )
    (found,) = ran.ok["views"]
    assert [one["at"] for one in found["releases"]] == ["", ""]
    locked = LockedView("software", found["generation"], tuple(found["releases"]))
    assert lock_from_json(lock_to_json([locked])) == {"software": locked}
    assert farm.bring(farm.views([found])[:1]).ok["changed"]
    assert (farm.top / "software" / "file").read_bytes() == b"usd/1"


def test_a_changed_lock_switches_the_views(farm: Farm) -> None:
    assert farm.bring(farm.views(farm.lock("usd/1"))).ok["changed"]
    ran = farm.bring(farm.views(farm.lock("usd/2"))).ok
    assert all(one["switched"] for one in ran["views"])
    assert farm.shown() == farm.shown("tools") == ["2"]


def test_a_view_that_fails_does_not_keep_the_other_from_its_state(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    (farm.top / "software").mkdir()
    (farm.top / "software" / "precious").touch()
    ran = farm.bring(views)
    assert ran.message.startswith("view software: ")
    assert "is not empty" in ran.message
    assert farm.shown("tools") == ["1"]
    assert farm.status()["failure"] == ran.result["views"][0]["msg"]
    assert farm.status("tools")["failure"] == ""
    (farm.top / "software" / "precious").unlink()
    assert farm.bring(views).ok["changed"]
    assert farm.status()["failure"] == ""


def test_a_manifest_that_is_not_the_locked_one_is_refused(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    views[0]["locked_generation"] = "0" * 16
    ran = farm.bring(views)
    assert "but the lock has 0000000000000000" in ran.message
    assert not os.path.ismount(farm.top / "software")
    assert farm.shown("tools") == ["1"]


def test_a_rollback_holds_until_it_is_lifted(farm: Farm) -> None:
    first, second = farm.lock("usd/1"), farm.lock("usd/2")
    assert farm.bring(farm.views(first)).ok["changed"]
    assert farm.bring(farm.views(second)).ok["changed"]
    back = farm.views([], generation="previous")
    assert farm.bring(back, hold=0, hold_reason="black frames").ok["changed"]
    assert farm.shown() == ["1"]
    held = farm.bring(farm.views(second)).ok
    assert not held["changed"]
    assert farm.shown() == ["1"]
    assert held["views"][0]["held"] == {"generation": first[0]["generation"], "until": 0, "reason": "black frames"}
    assert farm.status()["generation"] == second[0]["generation"]
    assert farm.bring(farm.views(second), lift_holds=True).ok["changed"]
    assert farm.shown() == ["2"]
    assert not farm.bring(farm.views(second)).ok["changed"]
    assert farm.status()["hold"] is None


def test_a_hold_ends_at_its_time(farm: Farm) -> None:
    first, second = farm.lock("usd/1"), farm.lock("usd/2")
    assert farm.bring(farm.views(first)).ok["changed"]
    assert farm.bring(farm.views(second)).ok["changed"]
    assert farm.bring(farm.views([], generation="previous"), hold=3600).ok["changed"]
    for name in VIEWS:
        path = farm.top / "state" / "views" / name / "status.json"
        status = json.loads(path.read_text())
        status["hold"]["until"] = 1
        path.write_text(json.dumps(status))
    assert farm.bring(farm.views(second)).ok["changed"]
    assert farm.shown() == ["2"]


@pytest.mark.parametrize("state", ["unmounted", "absent"])
def test_views_are_taken_down(farm: Farm, state: str) -> None:
    assert farm.bring(farm.views(farm.lock("usd/1"))).ok["changed"]
    down = farm.views([], state=state)
    would = farm.bring(down, check=True).ok
    assert would["changed"]
    assert farm.shown() == ["1"]
    assert farm.bring(down).ok["changed"]
    assert not os.path.ismount(farm.top / "software")
    assert (farm.top / "state" / "views" / "software").exists() is (state == "unmounted")
    assert not farm.bring(down).ok["changed"]


@pytest.mark.usefixtures("with_programs")
def test_a_view_is_installed_from_an_image_of_the_lock(farm: Farm) -> None:
    images = farm.store / ".images"
    pending = farm.lock("usd/1", check=True, image_store=str(images))
    assert {(one["msg"], one["image_digest"]) for one in pending} == {("", None)}
    assert not images.exists()
    assert farm.bring(farm.views(pending, build="central"), check=True).ok["changed"]
    locked = farm.lock("usd/1", image_store=str(images))
    assert all(one["image_digest"] for one in locked)
    assert farm.bring(farm.views(locked, build="central")).ok["changed"]
    assert farm.shown() == ["1"]
    shutil.rmtree(images)
    assert not farm.bring(farm.views(locked, build="central")).ok["changed"]


def test_a_release_that_cannot_be_shown_fails_its_view_alone(farm: Farm) -> None:
    shutil.rmtree(farm.root / "usd" / "2")
    view = {"root": str(farm.root), "store": str(farm.store), "linger": 0}
    bad = {**view, "name": "software", "releases": [{"release": "usd/2"}]}
    good = {**view, "name": "tools", "releases": [{"release": "usd/1"}]}
    found = support.module("view_lock", views=[bad, good]).ok["views"]
    assert "usd/2" in found[0]["msg"]
    assert found[1]["msg"] == ""
    assert found[1]["generation"]


def test_a_view_without_its_software_root_is_not_mounted(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"))
    farm.root.rename(farm.top / "elsewhere")
    assert f"software root {farm.root} does not exist: is it mounted?" in farm.bring(views).message
    farm.root.mkdir()
    assert f"software root {farm.root} is empty: is it mounted?" in farm.bring(views).message
    assert support.live(farm.top / "software") is None
    farm.root.rmdir()
    (farm.top / "elsewhere").rename(farm.root)
    assert farm.bring(views).ok["changed"]
    # A mounted view needs no look at the software root, whose server may be down.
    farm.root.rename(farm.top / "elsewhere")
    assert not farm.bring(views).ok["changed"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mountpoint": "x"}, "view software: mountpoint must be an absolute path"),
        ({"keep": -1}, "view software: keep must not be negative, but it is -1"),
        ({"name": "tools"}, "view tools is given twice"),
    ],
)
def test_bad_options_are_refused_before_anything_is_done(farm: Farm, change: dict[str, Any], problem: str) -> None:
    views = farm.views(farm.lock("usd/1"))
    views[0].update(change)
    assert farm.bring(views).message.startswith(problem)
    assert not (farm.top / "state").exists()


def test_metrics_of_all_views_are_written(farm: Farm) -> None:
    metrics = farm.top / "metrics"
    metrics.mkdir()
    path = metrics / "overlay.prom"
    views = farm.views(farm.lock("usd/1"))
    assert farm.bring(views, check=True, metrics_file=str(path)).ok["changed"]
    assert not path.exists()
    assert farm.bring(views, metrics_file=str(path)).ok["changed"]
    # A run for one view keeps the metrics of the other.
    assert not farm.bring(views[:1], metrics_file=str(path)).ok["changed"]
    for name in VIEWS:
        assert f'view="{name}"' in path.read_text()
    ran = farm.bring(views, metrics_file=str(farm.top / "nowhere" / "overlay.prom"))
    assert "nowhere for the metrics file does not exist" in ran.message
    # A view that fails has metrics as well, and what the views returned is not lost.
    bad = farm.views(farm.lock("usd/2"), health_check="exit 3")
    ran = farm.bring(bad, metrics_file=str(path))
    assert "failed with status 3" in ran.message
    assert len(ran.result["views"]) == 2
