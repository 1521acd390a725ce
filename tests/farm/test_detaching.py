"""Test that a view detaches from the file server and attaches again while a program opens its files at random."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, forked, host, starts
from farmlib.collection import ROOT, STORE
from farmlib.forked import Ended
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
PROGRAMS = f"{PLACE}/programs"

#: The seconds that one switch takes at most.
LONGEST = 120


@dataclass(frozen=True)
class Rounds:
    """Hold what the reader found, and what the switches ended with, in order."""

    reader: dict[str, Any]
    switches: list[Ended]


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
    forked.install(node, PROGRAMS)
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


def switch(farm: Farm, declared: dict[str, Any], kinds: list[str]) -> list[Ended]:
    """Switch the view to data images of each kind, and return what the switches ended with, in order."""
    calls = [("view", {"views": [{**declared, "data_images": kind}]}) for kind in kinds]
    return forked.in_turn(farm.nodes["new"], PROGRAMS, calls, LONGEST)


def detached(ended: Ended) -> bool | None:
    """Return whether a switch has detached the view; None if it failed."""
    views: list[dict[str, bool]] = (ended.result or {}).get("views") or [{}]
    return views[0].get("detached")


@pytest.fixture(scope="module")
def rounds(farm: Farm, declared: dict[str, Any]) -> Rounds:
    """Detach and attach the view while the reader runs."""
    node = farm.nodes["new"]
    reader = f"python3 {READER} {VIEW} {PLACE}/digests {PLACE}/stop {OPENS} >{PLACE}/read 2>{PLACE}/errors"
    [images] = switch(farm, declared, ["everything"])
    assert detached(images) is False, images
    node.ssh(f"({reader}; touch {PLACE}/ended) </dev/null >/dev/null 2>&1 &")
    began = time.monotonic()
    switches = switch(farm, declared, ["only", "everything"] * ROUNDS)
    host.say(f"{len(switches)} switches within {time.monotonic() - began:.0f} s; the last one: {switches[-1]}")
    node.ssh(f"touch {PLACE}/stop")
    node.wait_for(f"test -e {PLACE}/ended", seconds=3600)
    read = node.output(f"cat {PLACE}/errors {PLACE}/read")
    host.say(f"the reader, after {time.monotonic() - began:.0f} s: {read}")
    return Rounds(json.loads(read), switches)


def test_no_open_fails_and_no_byte_is_wrong(rounds: Rounds) -> None:
    assert (rounds.reader["failed"], rounds.reader["wrong"]) == (0, 0), rounds.reader
    assert rounds.reader["opens"] >= OPENS


def test_each_round_detaches_the_view_and_attaches_it(rounds: Rounds) -> None:
    assert [detached(ended) for ended in rounds.switches] == [True, False] * ROUNDS


def test_a_detached_view_is_read_while_the_server_is_stopped_and_unmounted(
    farm: Farm, declared: dict[str, Any], rounds: Rounds
) -> None:
    node = farm.nodes["new"]
    assert rounds.reader["failed"] == 0
    [only] = switch(farm, declared, ["only"])
    assert detached(only) is True, only
    node.ssh(f"umount {ROOT}")
    # While the server is stopped, the client of the share with the manifests would wait for it to take back delegations.
    node.drop_caches()
    with farm.server.nfsd_stopped():
        argv = ["python3", READER, VIEW, f"{PLACE}/digests", f"{PLACE}/stop", str(OPENS_DETACHED)]
        read = json.loads(node.output(argv, timeout=900))
    assert (read["failed"], read["wrong"]) == (0, 0), read
    assert read["opens"] >= OPENS_DETACHED
