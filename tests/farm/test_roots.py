"""Test a view over several software roots that the playbook mounts: volumes of one server with equal paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection
from farmlib.collection import SITE, STORE, Run
from farmlib.machines import SOFTWARE, Farm, Machine

VOLUMES = "/net/volumes"
VIEW = "/volumes-view"
NAMES = ("houdini", "maya")


def root(name: str, volume: str = "") -> dict[str, str]:
    return {"name": name, "path": f"{VOLUMES}/{name}", "source": f"server:{SOFTWARE}/{volume or f'volume-{name}'}"}


def play(farm: Farm, name: str, *, check: bool = True, **variables: Any) -> Run:
    site = {key: value for key, value in SITE.items() if key not in ("overlay_root", "overlay_source")}
    declared = {
        "overlay_hosts": "new",
        "overlay_store": f"{STORE}/.volumes",
        "overlay_roots": [root(name) for name in NAMES],
        "overlay_views": [{"name": "volumes", "mountpoint": VIEW, "query": "@"}],
        "overlay_linger": 0,
    }
    return collection.playbook(farm, name, {**site, **declared, **variables}, check=check)


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    for name in NAMES:
        farm.server.add_release(f"volume-{name}/1.0", {"data/name": f"{name}\n"})
    machine.ssh(f"mkdir -p {STORE}/.volumes")
    yield machine
    play(farm, "remove", check=False)
    machine.ssh(f"umount {VOLUMES}/*; rm -rf {STORE}/.volumes; rmdir {VOLUMES}/* {VOLUMES}", check=False)
    for name in NAMES:
        farm.server.delete_release(f"volume-{name}")


def test_the_roots_of_a_view_are_mounted_once_and_each_file_is_that_of_its_root(farm: Farm, new: Machine) -> None:
    run = play(farm, "deploy")
    assert run.code == 0
    (mounted,) = [result for result in run.of(new, "software_root") if result.changed]
    assert [one["path"] for one in mounted.values["mounts"]] == [f"{VOLUMES}/{name}" for name in NAMES]
    assert new.output(f"cat {VIEW}/*/1.0/data/name").split() == list(NAMES)
    assert play(farm, "deploy").changed(new) == []


def test_a_process_on_one_root_does_not_use_the_same_path_on_another(farm: Farm, new: Machine) -> None:
    new.ssh(f"tail -f {VOLUMES}/maya/1.0/data/name >/dev/null 2>&1 & echo $! >/run/farm-user")
    try:
        run = play(farm, "usage", overlay_releases=["houdini/1.0", "maya/1.0"])
        (used,) = run.of(new, "release_usage_info")
        assert [(one["release"], one["in_use"]) for one in used.values["releases"]] == [
            ("houdini/1.0", False),
            ("maya/1.0", True),
        ], used.values["releases"]
    finally:
        new.ssh("kill $(cat /run/farm-user); rm /run/farm-user")


def test_a_root_that_cannot_be_mounted_leaves_the_view_as_it_is(farm: Farm, new: Machine) -> None:
    roots = [*(root(name) for name in NAMES), root("nuke", "volume-of-nobody")]
    run = play(farm, "deploy", check=False, overlay_roots=roots)
    assert run.code != 0
    assert f"{VOLUMES}/nuke" in "".join(run.failures(new))
    assert new.output(f"cat {VIEW}/*/1.0/data/name").split() == list(NAMES)
    assert new.output(f"ls {VOLUMES}").split() == list(NAMES)
