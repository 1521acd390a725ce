"""Test that what one host publishes reaches another one through NFS: events, during an outage too, and manifests."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from farmlib import collection, host
from farmlib.collection import STORE
from farmlib.machines import MANIFESTS, SOFTWARE, Farm, Machine, Server

PROGRAM = "/usr/local/lib/farm/source.py"
OVERLAY = "/usr/local/lib/farm/ansible_collections/renderfarm/overlay"
SOURCE = f"{OVERLAY}/extensions/eda/plugins/event_source/releases.py"
#: A mount of the software root with the options of role host: the kernel keeps attributes and listings for an hour.
MOUNT = "/net/watched"
WATCHED_STORE = "/net/watched-manifests"
STATE = "/var/tmp/farm-events.json"
OUTPUT = "/run/farm-events"
PATTERN = "watched/{package}/{version}"
#: Seconds after which a poll is given up. A poll of an emulated node takes some seconds.
TIMEOUT = 15


class Watcher:
    """Control the event source on a node. It watches for releases below `watched`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._number = 0

    def start(self, **arguments: Any) -> None:
        """Start the source, and return after its first poll."""
        self._number += 1
        given = {"root": MOUNT, "ready_marker": ".ready", "pattern": PATTERN, "state_file": STATE}
        argv = ["python3", PROGRAM, SOURCE, json.dumps({**given, "interval": 1, "timeout": TIMEOUT, **arguments})]
        self.machine.ssh(f"setsid {shlex.join(argv)} >{OUTPUT}.{self._number} 2>&1 </dev/null & echo $! >{OUTPUT}.pid")
        self.machine.wait_for(f"grep -q started {OUTPUT}.{self._number}")

    def kill(self) -> None:
        self.machine.ssh(f"kill -KILL $(cat {OUTPUT}.pid)")

    def said(self, kind: str) -> list[Any]:
        """Return the events or the log of the source that was started last."""
        lines = self.machine.output(f"cat {OUTPUT}.{self._number}").splitlines()
        return [line[kind] for line in map(json.loads, lines) if kind in line]

    def events(self) -> list[str]:
        return [event["release"]["path"] for event in self.said("event")]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.machine.output(f"cat {OUTPUT}.*")
            time.sleep(0.5)

    def knows(self, release: str) -> bool:
        return self.machine.ssh(f"grep -qF '\"{release}\"' {STATE}", check=False).returncode == 0


@pytest.fixture(scope="module")
def node(farm: Farm) -> Iterator[Machine]:
    """Return a node with the collection and a mount of the software root."""
    machine = farm.nodes["new"]
    for directory in ("extensions", "plugins/module_utils"):
        machine.copy(host.CHECKOUT / directory, f"{OVERLAY}/{directory}")
    machine.copy(host.FARM_SOURCE / "guest" / "source.py", PROGRAM)
    machine.ssh(["python3", "-m", "compileall", "-q", OVERLAY])
    options = "ro,vers=4.2,nocto,actimeo=3600,nosharecache"
    machine.ssh(f"mkdir -p {MOUNT}; mount -t nfs -o {options} server:{SOFTWARE} {MOUNT}")
    farm.server.add_release("watched/tool/1.0", {"file": "one\n"})
    yield machine
    machine.ssh(f"umount {MOUNT}; rmdir {MOUNT}; rm -rf {STATE} {OUTPUT}*", check=False)
    farm.server.delete_release("watched")


@pytest.fixture
def watcher(node: Machine) -> Iterator[Watcher]:
    """Return a source that has polled once."""
    node.ssh(f"rm -f {STATE}")
    watcher = Watcher(node)
    watcher.start()
    watcher.wait_until(lambda: watcher.knows("watched/tool/1.0"))
    yield watcher
    watcher.kill()


@pytest.mark.parametrize("outage", [Server.unreachable, Server.nfsd_stopped], ids=["unreachable", "stopped"])
def test_an_outage_is_logged_once_and_what_was_published_meanwhile_is_sent_once(
    farm: Farm,
    watcher: Watcher,
    outage: Callable[[Server], AbstractContextManager[None]],
    request: pytest.FixtureRequest,
) -> None:
    release = f"watched/tool/2.{request.node.callspec.id}"
    with outage(farm.server):
        watcher.wait_until(lambda: len(watcher.said("log")) == 1)
        farm.server.add_release(release, {"file": "two\n"})
        # Another poll fails.
        time.sleep(1.5 * TIMEOUT)
        assert len(watcher.said("log")) == 1
        assert watcher.events() == []
    watcher.wait_until(lambda: watcher.events() == [release], 120)
    # Several polls find nothing more.
    time.sleep(6)
    assert watcher.events() == [release]
    away, back = watcher.said("log")
    assert away.startswith(f"{MOUNT} cannot be read, and is tried every 1 seconds: ")
    assert back == f"{MOUNT} can be read again"


def test_a_source_that_is_killed_during_an_outage_sends_nothing_twice(farm: Farm, watcher: Watcher) -> None:
    farm.server.add_release("watched/tool/3.0", {"file": "three\n"})
    watcher.wait_until(lambda: watcher.knows("watched/tool/3.0"))
    assert watcher.events() == ["watched/tool/3.0"]
    with farm.server.unreachable():
        watcher.wait_until(lambda: len(watcher.said("log")) == 1)
        watcher.kill()
        farm.server.add_release("watched/tool/3.1", {"file": "three\n"})
        watcher.start()
        watcher.wait_until(lambda: len(watcher.said("log")) == 1)
    watcher.wait_until(lambda: watcher.events() == ["watched/tool/3.1"], 120)
    time.sleep(6)
    assert watcher.events() == ["watched/tool/3.1"]


def test_a_release_sends_its_event_when_its_marker_is_written_and_not_before(farm: Farm, watcher: Watcher) -> None:
    """The kernel keeps what it has of the mount for an hour, so the source has to ask the server."""
    farm.server.write(f"{SOFTWARE}/watched/tool/4.0/file", "four\n")
    time.sleep(8)
    assert watcher.events() == []
    farm.server.ssh(f"touch {SOFTWARE}/watched/tool/4.0/.ready")
    watcher.wait_until(lambda: watcher.events() == ["watched/tool/4.0"])


def test_a_manifest_that_another_host_writes_is_seen_at_once(farm: Farm, node: Machine) -> None:
    other = farm.nodes["old"]
    collection.mount_store(other)
    other.ssh(f"mkdir -p {MOUNT}; mount -t nfs -o ro,vers=4.2 server:{SOFTWARE} {MOUNT}")
    # The kernel keeps listings and missing names of a share for a minute, and of this mount for an hour.
    options = "ro,vers=4.2,actimeo=3600,nosharecache"
    node.ssh(f"mkdir -p {WATCHED_STORE}; mount -t nfs -o {options} server:{MANIFESTS} {WATCHED_STORE}")
    listed = {"store": WATCHED_STORE, "pattern": PATTERN}
    layer = {"name": "watched", "releases": [{"manifest": f"{WATCHED_STORE}/watched/tool/1.0.dump.gz"}]}
    try:
        assert collection.module(farm, node, "release_info", listed).values["releases"] == []
        missing = collection.module(farm, node, "metadata_layer", layer, check=False)
        assert "there is no such manifest" in missing.message
        release = {"root": MOUNT, "store": STORE, "release": "watched/tool/1.0"}
        collection.module(farm, other, "release_manifest", release)
        collection.module(farm, node, "metadata_layer", layer)
        found = collection.module(farm, node, "release_info", listed).values["releases"]
        assert [item["path"] for item in found if item["digest"]] == ["watched/tool/1.0"]
    finally:
        collection.module(farm, node, "metadata_layer", {"name": "watched", "state": "absent"})
        node.ssh(f"umount {WATCHED_STORE}; rmdir {WATCHED_STORE}")
        other.ssh(f"rm -rf {STORE}/watched; umount {MOUNT}; rmdir {MOUNT}")
