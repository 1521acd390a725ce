"""Test a view that is built once, as an image, and copied to each host; and rolling back to an earlier generation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import builder, collection, software
from farmlib.collection import CALLS_TO_OPEN, ROOT, SITE, STATE_DIR, STORE, Run
from farmlib.machines import SOFTWARE, Farm, Machine

VIEW = "/imaged"
VARIABLES: dict[str, Any] = {
    **SITE,
    "overlay_build": "central",
    "overlay_views": [{"name": "imaged", "mountpoint": VIEW, "query": "@"}],
}
#: The file server is also a render node here: a second host with data-only layers that does not build.
OTHER = "server"
BOTH = f"new,{OTHER}"

#: A client sends these by itself at any time, whatever is done with a mount.
ON_ITS_OWN = {"SEQUENCE", "RENEW", "DELEGRETURN"}

# List every file of all releases with its mode, size and mtime.
FILES = (
    r"cd {root} && find . -name lost+found -prune -o -mindepth 3 -type f -printf '%P %m %s %T@\n' | LC_ALL=C sort"
    " | tee /run/farm-files | sha256sum && wc -l </run/farm-files && rm /run/farm-files"
)


def play(farm: Farm, name: str, hosts: str, *arguments: str, **variables: Any) -> Run:
    return collection.playbook(farm, name, {**VARIABLES, "overlay_hosts": hosts, **variables}, arguments=arguments)


def generation(run: Run, machine: str) -> str:
    return str(run.views(machine)["imaged"]["generation"])


def calls(machine: Machine, mountpoint: str) -> dict[str, int]:
    return {name: sent for name, sent in collection.calls(machine, mountpoint).items() if name not in ON_ITS_OWN}


def since(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    found = {name: sent - before.get(name, 0) for name, sent in after.items()}
    return {name: sent for name, sent in found.items() if sent}


@pytest.fixture(scope="module")
def new(farm: Farm, deployment: collection.Deployment) -> Iterator[Machine]:
    """Return the host that scans and builds. All manifests exist."""
    assert deployment.run.failures("new") == []
    machine = farm.nodes["new"]
    builder.install(machine)
    yield machine
    if machine.ssh(f"mountpoint -q {VIEW}", check=False).returncode == 0:
        play(farm, "remove", "new")
    machine.ssh(f"rm -rf {STORE}/.images {STORE}/imaged")
    farm.server.delete_release("imaged")
    builder.remove(machine)


@pytest.fixture(scope="module")
def first_host(farm: Farm, new: Machine) -> Run:
    return play(farm, "deploy", new.name)


@pytest.fixture(scope="module")
def other(farm: Farm, first_host: Run) -> Iterator[Machine]:
    """Return the second host, to which only the software root was deployed."""
    assert first_host.code == 0
    machine = farm.server
    collection.mount_store(machine)
    yield machine
    play(farm, "remove", BOTH)
    machine.ssh(f"umount {ROOT} {STORE}; rm -rf {STATE_DIR}; rmdir {ROOT} {STORE}", check=False)


@pytest.fixture(scope="module")
def second_host(farm: Farm, other: Machine) -> tuple[Run, dict[str, int]]:
    """Deploy to both hosts. Return the run, and the calls of the second host to the share with the images."""
    before = calls(other, STORE)
    run = play(farm, "deploy", BOTH)
    return run, since(before, calls(other, STORE))


def test_the_image_is_built_on_the_host_that_scans_and_mounted_there(new: Machine, first_host: Run) -> None:
    [locked] = first_host.resolution.values["lock"]["views"]
    image = f"{STORE}/.images/{locked['generation']}.erofs"
    assert f"build image {image}" in first_host.resolution.values["actions"]
    view = first_host.views("new")["imaged"]
    assert f"install generation {locked['generation']} from {image}" in view["actions"]
    assert (view["format"], view["generation"]) == ("erofs", locked["generation"])
    record = json.loads(new.output(f"cat {STATE_DIR}/views/imaged/current/view.json"))
    assert record["image"]["digest"] == locked["image_digest"]
    assert f"{view['generation']}-erofs/layer" in new.output(f"findmnt -n -o OPTIONS {VIEW}")


def test_one_more_host_reads_only_the_image_and_its_record(
    other: Machine, second_host: tuple[Run, dict[str, int]]
) -> None:
    run, sent = second_host
    assert run.changed("new") == []
    size = int(other.output(["stat", "-c", "%s", run.views(OTHER)["imaged"]["layer"]]))
    options = other.output(["findmnt", "-n", "-o", "OPTIONS", STORE]).split(",")
    rsize = next(int(option.removeprefix("rsize=")) for option in options if option.startswith("rsize="))
    ahead = int(other.output(f"cat /sys/class/bdi/$(mountpoint -d {STORE})/read_ahead_kb")) * 1024
    print(f"image of {size} bytes, rsize {rsize}, read-ahead {ahead}: {sent}")
    # Twice as many, since read-ahead may start with smaller pieces; and some for the record.
    reads = sent.get("READ", 0) + sent.get("READ_PLUS", 0)
    assert 0 < reads <= 2 * -(-size // min(rsize, ahead)) + 8, sent
    # The directory, the image and its record are looked up, opened and closed; no manifest is read and nothing is listed.
    assert sum(sent.values()) - reads <= 30, sent
    assert sent.get("LOOKUP", 0) <= 6, sent
    assert sent.get("OPEN", 0) + sent.get("OPEN_NOATTR", 0) <= 3, sent
    assert sent.get("READDIR", 0) == 0, sent
    # The software root is mounted, and nothing in it is listed.
    root = calls(other, ROOT)
    assert root.get("READDIR", 0) == 0, root
    # Before a release is shown for the first time, one of its files is opened and read.
    assert sum(root.values()) < 40 + CALLS_TO_OPEN * len(software.releases()), root


def test_both_hosts_have_the_same_generation_and_show_the_tree_on_the_server(
    farm: Farm, new: Machine, other: Machine, second_host: tuple[Run, dict[str, int]]
) -> None:
    run, _sent = second_host
    assert generation(run, "new") == generation(run, OTHER)
    there = farm.server.output(FILES.format(root=SOFTWARE), timeout=600)
    assert int(there.split()[-1]) > 20_000
    assert [machine.output(FILES.format(root=VIEW), timeout=600) for machine in (new, other)] == [there, there]


def test_a_second_run_reads_only_the_record(farm: Farm, other: Machine) -> None:
    before = calls(other, STORE)
    run = play(farm, "deploy", BOTH)
    assert {name: run.changed(name) for name in ("new", OTHER)} == {"new": [], OTHER: []}
    sent = since(before, calls(other, STORE))
    assert sent.get("READ", 0) + sent.get("READ_PLUS", 0) <= 1, sent
    assert sum(sent.values()) <= 20, sent


@pytest.mark.usefixtures("second_host")
def test_a_rollback_sends_no_call_to_the_share(farm: Farm, new: Machine, other: Machine) -> None:
    farm.server.add_release("imaged/1.0", {"data/file": "one\n"})
    deployed = play(farm, "deploy", BOTH)
    assert generation(deployed, "new") == generation(deployed, OTHER)
    assert [machine.output(f"cat {VIEW}/imaged/1.0/data/file") for machine in (new, other)] == ["one", "one"]
    earlier = deployed.views(OTHER)["imaged"]["previous"]

    before = calls(other, STORE)
    tried = play(farm, "rollback", OTHER, "--check", "--diff", overlay_view="imaged")
    [result] = tried.of(OTHER, "view")
    releases = {moment: set(result.values["diff"][moment]["imaged"]["releases"]) for moment in ("before", "after")}
    assert releases["before"] - releases["after"] == {"/imaged/1.0"}
    assert releases["after"] < releases["before"]
    assert other.output(f"ls {VIEW}/imaged") == "1.0"

    run = play(farm, "rollback", OTHER, overlay_view="imaged")
    view = run.views(OTHER)["imaged"]
    assert (view["switched"], view["method"]) == (True, "beneath")
    assert generation(run, OTHER) == earlier
    assert other.ssh(f"ls {VIEW}/imaged", check=False).returncode != 0
    # No call went to the host that scans, or to the share with manifests and images.
    assert run.of("new") == []
    assert run.resolution.values["lock"]["views"] == []
    assert since(before, calls(other, STORE)) == {}
    assert new.output(f"ls {VIEW}/imaged") == "1.0"

    assert play(farm, "rollback", OTHER, overlay_generation=earlier).changed(OTHER) == []
    # The rollback holds, and the report of a deployment names the host.
    held = play(farm, "deploy", BOTH)
    assert {name: held.changed(name) for name in ("new", OTHER)} == {"new": [], OTHER: []}
    assert generation(held, OTHER) == earlier
    assert re.search(rf"{earlier} +1 +held +{OTHER}\b", held.output)
    assert held.views(OTHER)["imaged"]["held"]["generation"] == earlier

    back = play(farm, "deploy", BOTH, overlay_lift_holds=True)
    assert back.changed("new") == []
    assert generation(back, OTHER) == generation(back, "new")
    assert "0 held" in back.output
    assert other.output(f"cat {VIEW}/imaged/1.0/data/file") == "one"
