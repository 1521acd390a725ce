"""Call every module at the same time while the server is stopped, and those that work long when it is stopped during their work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from farmlib import collection, forked, host
from farmlib.collection import ROOT, STORE
from farmlib.forked import Ended
from farmlib.machines import MANIFESTS, SOFTWARE, Farm, Machine

#: A directory of the node, with all that the test makes there.
AREA = "/var/tmp/farm-dead"
PROGRAMS = f"{AREA}/programs"
STATE_DIR = f"{AREA}/state"
VIEW = f"{AREA}/view"
RELEASE = "dead/1.0"
FILES = 400
#: The time limit of the modules, and the most seconds that one takes: it also waits a second for each file server that it names.
LIMIT = 8
LONGEST = 45
#: How much each call to the server is delayed, in milliseconds, and after how many calls the server is stopped. A module sends more
#: calls than these, and with the delay it does not send all of them before the server is stopped.
DELAY = 200
CALLS = 150

MODULE = {"root": ROOT, "store": STORE}
OTHER = {**MODULE, "name": "other", "releases": [{"release": RELEASE}], "linger": 0}
IN_STATE_DIR = {"state_dir": STATE_DIR}
SHOWN = {
    "name": "dead",
    "mountpoint": VIEW,
    "store": STORE,
    "state_dir": STATE_DIR,
    "data": [ROOT],
    "releases": [{"release": RELEASE}],
}
SCAN = {**MODULE, "release": RELEASE, "checksum": "sha256", "rescan": True}
DATA_IMAGE = {
    **MODULE,
    "release": RELEASE,
    "select": "everything",
    "image_store": f"{AREA}/images",
    "staging": f"{AREA}/staging",
}
READ_ALL = {"path": VIEW, "command": f"cat {RELEASE}/data/*", "user": "root", "time_limit": LIMIT}
FINALIZE = {"path": f"{AREA}/finalize/view", "allow_unmount": True}
VERIFY = {**IN_STATE_DIR, "name": "dead", "level": "open", "store": STORE, "workers": 1}
RETIRE = {**MODULE, "releases": ["dead/0"], "delete": True, "state_dirs": [STATE_DIR]}
LAYER = {**IN_STATE_DIR, "name": "other", "releases": [{"manifest": f"{STORE}/{RELEASE}.dump.gz"}]}

#: Modules that need an answer of the server.
NEEDS: Mapping[str, Mapping[str, Any]] = {
    "release_info": MODULE,
    "release_manifest": SCAN,
    "view_releases": OTHER,
    "view_lock": {"views": [OTHER]},
    "metadata_layer": LAYER,
    "view": {"views": [{**SHOWN, "name": "third", "mountpoint": f"{AREA}/third"}]},
    "overlay_mount": {"path": f"{AREA}/mounted", "lower": [f"{AREA}/layer"], "data": [f"{ROOT}/dead"]},
    "data_image": DATA_IMAGE,
    "access_trace": READ_ALL,
    "overlay_finalize": FINALIZE,
    "overlay_move": {"source": f"{AREA}/move/view/1.0", "destination": f"{AREA}/move/view/moved"},
    "overlay_verify": VERIFY,
    "software_root": {"path": ROOT, "state": "present"},
    "release_retire": RETIRE,
    "image_store_prune": {"image_store": f"{STORE}/.images", "needed": []},
}
#: Modules that never ask it.
NEVER: Mapping[str, Mapping[str, Any]] = {
    "overlay_info": IN_STATE_DIR,
    "view_info": IN_STATE_DIR,
    "view_lock_info": {"views": [SHOWN]},
    "overlay_prune": IN_STATE_DIR,
    "release_usage_info": {"paths": [f"{ROOT}/{RELEASE}/data/file1"], "roots": [ROOT], "state_dirs": [STATE_DIR]},
    # As the roles gather facts.
    "ansible.modules.setup": {"gather_subset": ["!all", "!min", "distribution"]},
}
#: Modules that work for a long time.
LONG = ("release_manifest", "data_image", "overlay_finalize", "overlay_verify")


def run(machine: Machine, calls: Mapping[str, Mapping[str, Any]], limit: float = LIMIT) -> dict[str, Ended]:
    """Run modules at the same time. Those that need an answer of the server have a limit of seconds without progress."""
    given = [
        (name, {**parameters, **({"timeout": limit} if name in NEEDS else {})}) for name, parameters in calls.items()
    ]
    return dict(zip(calls, forked.at_once(machine, PROGRAMS, given, LONGEST), strict=True))


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new` with a view of the release, and with two writable overlays over its package."""
    machine = farm.nodes["new"]
    forked.install(machine, PROGRAMS)
    farm.server.ssh(
        f"mkdir -p {SOFTWARE}/{RELEASE}/data && cd {SOFTWARE}/{RELEASE}/data"
        f" && for number in $(seq {FILES}); do echo $number >file$number; done"
    )
    mounts = []
    for place, source in ((ROOT, SOFTWARE), (STORE, MANIFESTS)):
        if machine.ssh(f"mountpoint -q {place}", check=False).returncode != 0:
            machine.ssh(f"mkdir -p {place} && mount -t nfs -o vers=4.2 server:{source} {place}")
            mounts.append(place)
    machine.ssh(f"mkdir -p -m 0700 {AREA}/images {AREA}/state; mkdir -p {AREA}/layer {STORE}/.images")
    for name in ("finalize", "move"):
        place = f"{AREA}/{name}"
        layers = f"lowerdir={ROOT}/dead,upperdir={place}/upper,workdir={place}/work"
        machine.ssh(
            f"mkdir -p {place}/upper {place}/work {place}/view &&"
            f" mount -t overlay -o {layers},metacopy=on,redirect_dir=on,index=on overlay {place}/view"
        )
    for calls in ({"release_manifest": SCAN}, {"view": {"views": [SHOWN]}}):
        for name, ended in run(machine, calls, LONGEST).items():
            assert not (ended.result or {"failed": True}).get("failed"), (name, ended)
    yield machine
    machine.latency(0)
    machine.ssh(
        f"umount {VIEW} {AREA}/third {AREA}/mounted {AREA}/*/view; rm -rf {STORE}/dead {STORE}/.views/other.json;"
        f" umount {' '.join(mounts)} /dev/null; rm -rf {AREA}",
        check=False,
    )
    farm.server.delete_release("dead")


def check_named(calls: Iterable[str], ended: Mapping[str, Ended]) -> None:
    """Check that each module has failed in time, with the mount in its message."""
    for name in calls:
        one = ended[name]
        assert one.result is not None, (name, one)
        assert one.result.get("failed"), (name, one)
        assert f"{ROOT} (server:" in one.message or f"{STORE} (server:" in one.message, (name, one)


def test_every_module_is_tried() -> None:
    plugins = host.CHECKOUT / "plugins"
    modules, on_controller = ({path.stem for path in (plugins / room).glob("*.py")} for room in ("modules", "action"))
    assert modules - on_controller == {name for name in (*NEEDS, *NEVER) if "." not in name}


def test_modules_end_in_time_and_name_the_mount_if_the_server_is_stopped(farm: Farm, new: Machine) -> None:
    new.drop_caches()
    with farm.server.nfsd_stopped():
        ended = run(new, {**NEEDS, **NEVER})
    check_named(NEEDS, ended)
    for name in NEVER:
        assert not (ended[name].result or {"failed": True}).get("failed"), (name, ended[name])


def test_modules_end_in_time_and_name_the_mount_if_the_server_stops_during_their_work(farm: Farm, new: Machine) -> None:
    calls = {name: NEEDS[name] for name in LONG}
    new.latency(DELAY)
    new.drop_caches()
    before = sum(collection.calls(new, ROOT).values())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, new, calls)
        while sum(collection.calls(new, ROOT).values()) < before + CALLS:
            assert not running.done(), running.result()
            time.sleep(0.2)
        with farm.server.nfsd_stopped():
            new.latency(0)
            ended = running.result()
    check_named(LONG, ended)
    assert new.trouble() == []
