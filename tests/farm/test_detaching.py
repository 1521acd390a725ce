"""Test that a view detaches from the file server and attaches again while a program opens its files at random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, host, starts
from farmlib.collection import ROOT, STORE
from farmlib.machines import Farm

ROUNDS = 50
OPENS = 100_000
#: Opens after the software root was unmounted.
OPENS_DETACHED = 1_000
VIEW = "/detaching"
RELEASES = ("jinja2/3.1.6", "markupsafe/3.0.4", "requests/2.34.2", "urllib3/2.8.0", "fileseq/3.4.0", "qt-py/2.0.7")
DECLARED = {"name": "detaching", "mountpoint": VIEW, "releases": list(RELEASES)}
READER = "/usr/local/lib/farm/reader.py"
PLACE = "/var/tmp/farm-detaching"

#: All rounds are one task, because starting Ansible takes an emulated processor longer than a switch.
PLAYBOOK = """
- hosts: new
  gather_facts: false
  tasks:
    - name: Detach the view from the file server, and attach it again
      renderfarm.overlay.view:
        views: "{{ [declared | combine({'data_images': item})] }}"
      loop: "{{ kinds }}"
"""


@dataclass(frozen=True)
class Rounds:
    """Hold what the reader found, and the results of the switches, in order."""

    reader: dict[str, Any]
    switches: list[collection.Result]


@pytest.fixture(scope="module")
def declared(farm: Farm) -> Iterator[dict[str, Any]]:
    """Deploy a view, build images of everything for its releases, and return the view as the module `view` takes it."""
    node = farm.nodes["new"]
    collection.mount_store(node)
    collection.deploy(farm, [DECLARED])
    locked = []
    calls = [starts.build(release, "everything") for release in RELEASES]
    for release, result in zip(RELEASES, collection.modules(farm, node, calls)):
        built = result.values
        assert built["complete"], built
        locked.append({"release": release, "kind": "everything", "complete": True})
        locked[-1].update({name: built[name] for name in ("digest", "bytes_on_disk")})
    node.copy(host.FARM_SOURCE / "guest" / "reader.py", READER)
    node.ssh(
        f"mkdir -p {PLACE}; cd {VIEW}; find . -type f -size +0 -exec sha256sum {{}} + >{PLACE}/digests", timeout=600
    )
    yield {
        "name": DECLARED["name"],
        "mountpoint": VIEW,
        "store": STORE,
        "releases": [{"release": release} for release in RELEASES],
        "data": [ROOT],
        "image_store": starts.IMAGE_STORE,
        "locked_data_images": locked,
    }
    # The brackets keep the pattern from matching the shell that has it as an argument.
    node.ssh(f"touch {PLACE}/stop; while pgrep -f '[r]eader.py'; do sleep 1; done; rm -rf {PLACE}", check=False)
    variables = {**collection.SITE, "overlay_hosts": "new", "overlay_views": [DECLARED]}
    collection.playbook(farm, "remove", variables, check=False)
    node.ssh(["rm", "-rf", *(f"{starts.IMAGE_STORE}/.data/{release}" for release in RELEASES)], check=False)


def switch(farm: Farm, declared: dict[str, Any], kinds: list[str], directory: Any) -> list[collection.Result]:
    """Switch the view to data images of each kind, and return the results in order."""
    source = directory / "switch.yml"
    source.write_text(PLAYBOOK, encoding="utf-8")
    run = collection.playbook(farm, source, {"declared": declared, "kinds": kinds}, timeout=5400)
    return [result for result in run.of("new", "view") if result.status == "item"]


@pytest.fixture(scope="module")
def rounds(farm: Farm, declared: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Rounds:
    """Detach and attach the view while the reader runs."""
    node = farm.nodes["new"]
    directory = tmp_path_factory.mktemp("detaching")
    reader = f"python3 {READER} {VIEW} {PLACE}/digests {PLACE}/stop {OPENS} >{PLACE}/read 2>{PLACE}/errors"
    switch(farm, declared, ["everything"], directory)
    node.ssh(f"({reader}; touch {PLACE}/ended) </dev/null >/dev/null 2>&1 &")
    switches = switch(farm, declared, ["only", "everything"] * ROUNDS, directory)
    node.ssh(f"touch {PLACE}/stop")
    node.wait_for(f"test -e {PLACE}/ended", seconds=3600)
    read = node.output(f"cat {PLACE}/errors {PLACE}/read")
    host.say(f"{len(switches)} switches; the reader: {read}")
    return Rounds(json.loads(read), switches)


def test_no_open_fails_and_no_byte_is_wrong(rounds: Rounds) -> None:
    assert (rounds.reader["failed"], rounds.reader["wrong"]) == (0, 0), rounds.reader
    assert rounds.reader["opens"] >= OPENS


def test_each_round_detaches_the_view_and_attaches_it(rounds: Rounds) -> None:
    assert [result.values["views"][0]["detached"] for result in rounds.switches] == [True, False] * ROUNDS


def test_a_detached_view_is_read_while_the_server_is_stopped_and_unmounted(
    farm: Farm, declared: dict[str, Any], rounds: Rounds, tmp_path_factory: pytest.TempPathFactory
) -> None:
    node = farm.nodes["new"]
    assert rounds.reader["failed"] == 0
    switch(farm, declared, ["only"], tmp_path_factory.mktemp("detached"))
    node.ssh(f"umount {ROOT}")
    # While the server is stopped, the client of the share with the manifests would wait for it to take back delegations.
    node.drop_caches()
    with farm.server.nfsd_stopped():
        argv = ["python3", READER, VIEW, f"{PLACE}/digests", f"{PLACE}/stop", str(OPENS_DETACHED)]
        read = json.loads(node.output(argv, timeout=900))
    assert (read["failed"], read["wrong"]) == (0, 0), read
    assert read["opens"] >= OPENS_DETACHED
