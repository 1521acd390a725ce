"""Call each module that may touch NFS while the server is stopped: before its work, and during it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from farmlib import collection
from farmlib.collection import COLLECTION, ROOT, STATE_DIR, STORE, Result
from farmlib.machines import Farm, Machine

VIEW = "/dead"
RELEASE = "dead/1.0"
AREA = "/var/tmp/dead"
MODULE = {"root": ROOT, "store": STORE}
VIEWS = [{"name": "dead", "mountpoint": VIEW, "releases": [RELEASE]}]
#: Seconds without progress after which a module gives up, and within which all of them, at once, have to end.
LIMIT = 10
LONGEST = 90
#: What the server is delayed by, in milliseconds, and the files of the release: no module is ready before the server stops.
DELAY = 50
FILES = 400
#: The calls of all modules after which the server stops. One module alone sends more.
CALLS = 200

DATA_IMAGE = {
    **MODULE,
    "release": RELEASE,
    "select": "everything",
    "image_store": f"{AREA}/images",
    "staging": f"{AREA}/staging",
}
SCAN = {**MODULE, "release": RELEASE, "checksum": "sha256", "rescan": True}
FINALIZE = {"path": f"{AREA}/finalize/view", "allow_unmount": True}
READ_ALL = {"path": VIEW, "command": f"cat {RELEASE}/data/*", "user": "root", "time_limit": 3600}

#: Calls of modules that need the server.
BEFORE: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("release_info", MODULE),
    ("release_manifest", SCAN),
    ("view_releases", {**MODULE, "name": "other", "releases": [{"release": RELEASE}], "linger": 0}),
    ("view_lock", {"views": [{**MODULE, "name": "other", "releases": [{"release": RELEASE}], "linger": 0}]}),
    ("metadata_layer", {"name": "other", "releases": [{"manifest": f"{STORE}/{RELEASE}.dump.gz"}]}),
    ("view", {"views": [{**MODULE, "name": "third", "mountpoint": "/third", "releases": [{"release": RELEASE}]}]}),
    ("overlay_mount", {"path": "/other", "lower": [f"{AREA}/layer"], "data": [f"{ROOT}/dead"]}),
    ("data_image", DATA_IMAGE),
    ("access_trace", {**READ_ALL, "time_limit": LIMIT}),
    ("overlay_finalize", FINALIZE),
    ("overlay_move", {"source": f"{AREA}/move/view/1.0", "destination": f"{AREA}/move/view/moved"}),
    ("software_root", {"path": ROOT, "state": "present"}),
)
#: Calls of modules that never ask the server.
NEVER: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("overlay_info", {"state_dir": STATE_DIR}),
    ("view_info", {"views": VIEWS}),
    ("view_lock_info", {"views": VIEWS}),
    ("overlay_prune", {}),
)
#: Calls of modules that work for a long time.
DURING: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("release_manifest", SCAN),
    ("data_image", DATA_IMAGE),
    ("access_trace", {**READ_ALL, "time_limit": 30}),
    ("overlay_finalize", FINALIZE),
)


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new` with a view of the release, and with two writable overlays over the package."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    farm.server.add_release(RELEASE, {f"data/file{number}": f"{number}\n" for number in range(FILES)})
    collection.deploy(farm, VIEWS)
    machine.ssh(f"mkdir -p -m 0700 {AREA}/images; mkdir -p {AREA}/layer")
    for name in ("finalize", "move"):
        place = f"{AREA}/{name}"
        layers = f"lowerdir={ROOT}/dead,upperdir={place}/upper,workdir={place}/work"
        machine.ssh(
            f"mkdir -p {place}/upper {place}/work {place}/view;"
            f"mount -t overlay -o {layers},metacopy=on,redirect_dir=on,index=on overlay {place}/view"
        )
    yield machine
    machine.latency(0)
    collection.playbook(
        farm, "remove", {**collection.SITE, "overlay_hosts": "new", "overlay_views": VIEWS}, check=False
    )
    machine.ssh(
        f"umount {AREA}/*/view /other; rm -rf {AREA} {STATE_DIR}/views/other {STATE_DIR}/views/third", check=False
    )
    machine.ssh(f"rm -rf {STORE}/dead {STORE}/.views/dead.json {STORE}/.views/other.json", check=False)
    farm.server.delete_release("dead")


def started(farm: Farm, machine: Machine, calls: tuple[tuple[str, Mapping[str, Any]], ...], limit: float) -> list[str]:
    """Start modules at once, and return the IDs of their jobs."""
    tasks = [
        {f"{COLLECTION}.{name}": {**options, "timeout": limit}, "async": 600, "poll": 0} for name, options in calls
    ]
    return [str(result.values["ansible_job_id"]) for result in run(farm, machine, tasks)]


def ended(farm: Farm, machine: Machine, jobs: list[str]) -> list[Result]:
    """Wait for jobs, and return their results."""
    tasks = [
        {
            "ansible.builtin.async_status": {"jid": job},
            "register": "found",
            "until": "found.finished | default(0) | int == 1",
            "retries": LONGEST,
            "delay": 1,
            "ignore_errors": True,
        }
        for job in jobs
    ]
    return run(farm, machine, tasks)


def run(farm: Farm, machine: Machine, tasks: list[dict[str, Any]]) -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "jobs.yml")
        play = {"hosts": machine.name, "gather_facts": False, "tasks": tasks}
        source.write_text(json.dumps([play]), encoding="utf-8")
        return collection.playbook(farm, source).of(machine)


def check_named(calls: tuple[tuple[str, Mapping[str, Any]], ...], results: list[Result]) -> None:
    """Check that each module has failed with the mount in its message."""
    for (name, _options), result in zip(calls, results, strict=True):
        assert result.status == "ignored", (name, result.values)
        assert f"{ROOT} (server:" in result.message or f"{STORE} (server:" in result.message, (name, result.message)


def test_modules_end_in_time_and_name_the_mount_if_the_server_is_stopped(farm: Farm, new: Machine) -> None:
    new.drop_caches()
    with farm.server.nfsd_stopped():
        began = time.monotonic()
        jobs = started(farm, new, BEFORE, LIMIT)
        never = started(farm, new, NEVER, LONGEST)
        check_named(BEFORE, ended(farm, new, jobs))
        for (name, _options), result in zip(NEVER, ended(farm, new, never), strict=True):
            assert result.status == "ok", (name, result.values)
        assert time.monotonic() - began < LONGEST


def test_modules_end_in_time_and_name_the_mount_if_the_server_stops_during_their_work(farm: Farm, new: Machine) -> None:
    new.latency(DELAY)
    new.drop_caches()
    jobs = started(farm, new, DURING, LIMIT)
    before = sum(collection.calls(new, ROOT).values())
    while sum(collection.calls(new, ROOT).values()) < before + CALLS:
        time.sleep(0.2)
    with farm.server.nfsd_stopped():
        new.latency(0)
        check_named(DURING, ended(farm, new, jobs))
    assert new.trouble() == []
