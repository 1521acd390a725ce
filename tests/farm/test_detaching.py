"""Test that a view detaches from the file server and attaches again while a program opens files at random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, host
from farmlib.collection import ROOT, STATE_DIR
from farmlib.machines import Farm

ROUNDS = 50
OPENS = 100_000
VIEW = "/detaching"
RELEASES = ("jinja2/3.1.6", "markupsafe/3.0.4", "requests/2.34.2", "urllib3/2.8.0", "fileseq/3.4.0", "qt-py/2.0.7")
DECLARED = {"name": "detaching", "mountpoint": VIEW, "releases": list(RELEASES)}
READER = "/usr/local/lib/farm/reader.py"
PLACE = "/var/tmp/farm-detaching"
LAYER = f"{STATE_DIR}/views/detaching/current/layer"

#: Each round detaches the view and attaches it again. All is one task, because starting Ansible takes an emulated processor longest.
PLAYBOOK = """
- hosts: new
  gather_facts: false
  tasks:
    - name: Switch between the images alone and the images with the software root
      renderfarm.overlay.overlay_mount:
        path: "{{ view }}"
        lower: ["{{ layer }}"]
        data: "{{ item }}"
        read_only: true
        options: {metacopy: "on", redirect_dir: "on"}
        switch: beneath
      loop: "{{ [images, images + [root]] * rounds }}"
      loop_control: {label: "{{ item | length }} data layers"}
"""


@dataclass(frozen=True)
class Detached:
    """Hold what the reader found, and the results of the switches."""

    reader: dict[str, Any]
    switches: list[collection.Result]


@pytest.fixture(scope="module")
def images(farm: Farm) -> Iterator[list[str]]:
    """Deploy a view, and make an image of everything for each of its releases. Return the paths of the images."""
    node = farm.nodes["new"]
    collection.mount_store(node)
    collection.deploy(farm, [DECLARED])
    node.copy(host.FARM_SOURCE / "guest" / "reader.py", READER)
    paths = [f"{PLACE}/{release.replace('/', '+')}.erofs" for release in RELEASES]
    for release, path in zip(RELEASES, paths):
        stage = f"{PLACE}/stage/{release}"
        node.ssh(
            f"mkdir -p {stage}; cp -a {ROOT}/{release}/. {stage}; mkfs.erofs --quiet -zlz4hc {path} {PLACE}/stage; rm -r {stage}"
        )
    node.ssh(f"cd {VIEW}; find . -type f -size +0 -exec sha256sum {{}} + >{PLACE}/digests")
    yield paths
    node.ssh(f"touch {PLACE}/stop; while pgrep -f {READER}; do sleep 1; done; rm -rf {PLACE}", check=False)
    variables = {**collection.SITE, "overlay_hosts": "new", "overlay_views": [DECLARED]}
    collection.playbook(farm, "remove", variables, check=False)


@pytest.fixture(scope="module")
def detached(farm: Farm, images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Detached:
    """Detach and attach the view again while the reader runs."""
    node = farm.nodes["new"]
    source = tmp_path_factory.mktemp("detaching") / "rounds.yml"
    source.write_text(PLAYBOOK, encoding="utf-8")
    reader = f"python3 {READER} {VIEW} {PLACE}/digests {PLACE}/stop {OPENS} >{PLACE}/read 2>{PLACE}/errors"
    node.ssh(f"({reader}; touch {PLACE}/ended) </dev/null >/dev/null 2>&1 &")
    variables = {"view": VIEW, "layer": LAYER, "images": images, "root": ROOT, "rounds": ROUNDS}
    run = collection.playbook(farm, source, variables, timeout=3600)
    node.ssh(f"touch {PLACE}/stop")
    node.wait_for(f"test -e {PLACE}/ended", seconds=1800)
    read = node.output(f"cat {PLACE}/errors {PLACE}/read")
    host.say(f"reader: {read}")
    return Detached(json.loads(read), run.of(node, "overlay_mount"))


def test_no_open_fails_and_no_byte_is_wrong(detached: Detached) -> None:
    assert (detached.reader["failed"], detached.reader["wrong"]) == (0, 0), detached.reader
    assert detached.reader["opens"] >= OPENS


def test_each_round_detached_the_view_and_attached_it(detached: Detached) -> None:
    switches = [result for result in detached.switches if result.status == "item"]
    assert [result.values["method"] for result in switches] == ["beneath"] * 2 * ROUNDS
