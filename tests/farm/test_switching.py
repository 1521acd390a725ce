"""Test running software during a switch: lingering releases, and units with private mounts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection
from farmlib.collection import STORE
from farmlib.machines import Farm, Machine

VIEW = "/switching"
OLD, NEW = "usd-core/25.11", "usd-core/26.11"

#: A process that imports one module of USD, and another one after a rollout has replaced its release.
JOB = f"""
import os, sys, time
sys.path.insert(0, "{VIEW}/{OLD}/python")
from pxr import Usd
print("started", flush=True)
while not os.path.exists("/run/farm-switching-on"):
    time.sleep(0.1)
from pxr import UsdPhysics
print(UsdPhysics.__file__, flush=True)
"""

#: A render client that lists the view when /run/farm-switching-on exists.
CLIENT = f"echo started; until test -e /run/farm-switching-on; do sleep 0.2; done; ls {VIEW}/usd-core; echo ended"
#: What render clients say before and after a switch, by the properties of their units. PrivateMounts alone makes their mounts slaves of
#: the host's mounts, and a switch propagates to these.
CLIENTS = {"MountFlags=private": "25.11", "PrivateMounts=yes": "26.11"}


def declared(release: str, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "switching", "mountpoint": VIEW, "releases": [release], **more}]


@pytest.fixture(scope="module")
def node(farm: Farm) -> Iterator[Machine]:
    """Return `new`. The view is removed after the last test."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    yield machine
    variables = {**collection.SITE, "overlay_hosts": "new", "overlay_views": declared(OLD)}
    collection.playbook(farm, "remove", variables)


@pytest.fixture
def new(node: Machine) -> Iterator[Machine]:
    """Return `new`, with the view as the test before has left it, or without it. No release lingers."""
    node.ssh("rm -f /run/farm-switching-*")
    yield node
    # End the waiting processes.
    node.ssh("touch /run/farm-switching-on")
    node.ssh(f"rm -f {STORE}/.views/switching.json")


def test_a_late_import_finds_the_release_that_a_rollout_replaced(farm: Farm, new: Machine) -> None:
    collection.deploy(farm, declared(OLD))
    new.write("/run/farm-switching-job", JOB)
    new.ssh("setsid python3 -B /run/farm-switching-job >/run/farm-switching-said 2>&1 </dev/null &")
    new.wait_for("grep -q started /run/farm-switching-said", 300)

    run = collection.deploy(farm, declared(NEW))
    [view] = run.resolution.values["lock"]["views"]
    assert [one["release"] for one in view["leaving"]] == [OLD]
    assert f"no longer declared, and still shown: {OLD} until" in run.output
    assert new.output(f"ls {VIEW}/usd-core").split() == ["25.11", "26.11"]

    new.ssh("touch /run/farm-switching-on")
    new.wait_for("test $(wc -l </run/farm-switching-said) -gt 1", 300)
    assert new.output("tail -1 /run/farm-switching-said").startswith(f"{VIEW}/{OLD}/python/pxr/UsdPhysics/")
    # A second run finds the same generation and changes nothing.
    assert collection.deploy(farm, declared(NEW)).changed(new) == []


def test_a_withdrawn_release_is_refused_at_once_by_a_client_with_cached_attributes(farm: Farm, new: Machine) -> None:
    """The software root is mounted with actimeo=3600, and the client scans."""
    farm.server.add_release("withdrawn/1", {"data/file": "one\n"})
    farm.server.add_release("withdrawn/2", {"data/file": "two\n"})
    both = declared("withdrawn/1", releases=["withdrawn/1", "withdrawn/2"])
    one = declared("withdrawn/1")
    try:
        collection.deploy(farm, both)
        farm.server.ssh("rm /srv/software/withdrawn/2/.ready")
        run = collection.deploy(farm, both, check=False)
        assert any("release withdrawn/2 is not ready" in failure for failure in run.failures(new)), run.output[-2000:]
        # It does not linger.
        collection.deploy(farm, one)
        assert new.output(f"ls {VIEW}/withdrawn") == "1"

        # A file that was overwritten in place is noticed at once too: the sample covers all of such a small release.
        farm.server.ssh("echo longer >/srv/software/withdrawn/1/data/file")
        run = collection.deploy(farm, one, check=False)
        said = " ".join(run.failures(new))
        assert "release withdrawn/1 is no longer what its manifest says: /data/file: size 4 -> 7" in said
    finally:
        farm.server.delete_release("withdrawn")
        new.ssh(f"rm -rf {STORE}/withdrawn")


def test_a_release_that_was_just_published_is_found_by_a_client_with_cached_listings(farm: Farm, new: Machine) -> None:
    """The software root is mounted with actimeo=3600, and the client has listed it before."""
    farm.server.add_release("published/1", {"data/file": "one\n"})
    newest = {"name": "switching", "mountpoint": VIEW, "query": "newest([?package=='published'])", "linger": 0}
    try:
        collection.deploy(farm, [newest])
        assert new.output(f"ls {VIEW}/published") == "1"
        farm.server.add_release("published/2", {"data/file": "two\n"})
        collection.deploy(farm, [newest])
        assert new.output(f"ls {VIEW}/published") == "2"
    finally:
        farm.server.delete_release("published")
        new.ssh(f"rm -rf {STORE}/published")


def test_a_render_client_whose_mounts_are_private_never_sees_a_switch(farm: Farm, new: Machine) -> None:
    collection.deploy(farm, declared(OLD, linger=0))
    new.write("/run/farm-switching-client", CLIENT)
    said = {properties: f"/run/farm-switching-said-{number}" for number, properties in enumerate(CLIENTS)}
    for properties, path in said.items():
        new.ssh(
            f"systemd-run --collect --property={properties} --property=StandardOutput=file:{path} "
            "sh /run/farm-switching-client"
        )
    for path in said.values():
        new.wait_for(f"grep -q started {path}")
    collection.deploy(farm, declared(NEW, linger=0))
    assert new.output(f"ls {VIEW}/usd-core") == "26.11"
    new.ssh("touch /run/farm-switching-on")
    for path in said.values():
        new.wait_for(f"grep -q ended {path}")
    seen = {properties: new.output(["cat", path]).split() for properties, path in said.items()}
    assert seen == {properties: ["started", version, "ended"] for properties, version in CLIENTS.items()}
