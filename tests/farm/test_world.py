"""Test views while releases come and go, the server fails, and hosts crash."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection
from farmlib.collection import ROOT, STATE_DIR, STORE
from farmlib.machines import SOFTWARE, Farm, Machine

VIEW = "/trial"
VIEWS = [{"name": "trial", "mountpoint": VIEW, "query": "[?package == 'trial']"}]
MODULE = {"root": ROOT, "store": STORE, "ready_marker": ".ready"}

#: A process with its working directory and an open file in the view. It reads both when /run/farm-resident-end exists.
RESIDENT = """
import os, sys, time
os.chdir("/trial/trial/1.0")
file = open("data/file")
print("started", flush=True)
while not os.path.exists("/run/farm-resident-end"):
    time.sleep(0.1)
file.seek(0)
print(file.read().strip(), open("data/other").read().strip(), sorted(os.listdir()), flush=True)
"""


@pytest.fixture(scope="module")
def new(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Return `new` with a separate view of release trial/1.0. The first host, which would scan the release, cannot be reached."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    farm.server.add_release("trial/1.0", {"data/file": "one\n", "data/other": "other\n", "data/never": "never\n"})
    # Another host scans only if none is named.
    site = {name: value for name, value in collection.SITE.items() if name != "overlay_scan_host"}
    variables = {**site, "overlay_hosts": "gone,new", "overlay_views": VIEWS}
    run = collection.playbook(farm, "deploy", variables, arguments=["-i", _with_gone(tmp_path_factory)], check=False)
    assert "unreachable" in {result.status for result in run.of("gone")}, run.output
    assert run.failures(machine) == []
    assert run.views(machine)["trial"]["changed"]
    yield machine
    collection.playbook(farm, "remove", {**collection.SITE, "overlay_hosts": "new", "overlay_views": VIEWS})
    farm.server.delete_release("trial")
    machine.ssh(f"rm -rf {STORE}/trial {STORE}/.nested {STORE}/.views/trial.json")


def _with_gone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an inventory with a host that cannot be reached: nothing listens at its port."""
    inventory = tmp_path_factory.mktemp("inventory") / "gone.yml"
    host = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    inventory.write_text(json.dumps({"all": {"hosts": {"gone": host}}}), encoding="ascii")
    return str(inventory)


def test_a_new_release_is_seen_when_it_is_deployed_and_not_before(farm: Farm, new: Machine) -> None:
    """Software that runs from the view keeps its working directory and its open files."""
    other_mounts = new.output("grep -v ' /trial ' /proc/self/mountinfo")
    new.ssh("rm -f /run/farm-resident-end")
    new.ssh(f"setsid python3 -c '{RESIDENT}' >/run/farm-resident 2>&1 </dev/null &")
    new.wait_for("grep -q started /run/farm-resident")

    farm.server.add_release("trial/2.0", {"data/file": "two\n"})
    assert new.output(f"ls {VIEW}/trial") == "1.0"
    assert new.ssh(f"cat {VIEW}/trial/2.0/data/file", check=False).returncode != 0

    view = collection.deploy(farm, VIEWS).views(new)["trial"]
    assert (view["switched"], view["method"]) == (True, "beneath")
    assert new.output(f"ls {VIEW}/trial; cat {VIEW}/trial/2.0/data/file").split() == ["1.0", "2.0", "two"]

    new.ssh("touch /run/farm-resident-end")
    new.wait_for("test $(wc -l </run/farm-resident) -gt 1")
    assert new.output("tail -1 /run/farm-resident") == "one other ['.ready', 'data']"
    assert new.output("grep -v ' /trial ' /proc/self/mountinfo") == other_mounts
    assert collection.deploy(farm, VIEWS).changed(new) == []


def test_a_release_that_is_deleted_on_the_server_is_still_listed_and_fails_to_open(farm: Farm, new: Machine) -> None:
    farm.server.add_release("trial/3.0", {"data/opened": "opened\n", "data/held": "held\n", "data/never": "never\n"})
    collection.deploy(farm, VIEWS)
    new.ssh(f"cat {VIEW}/trial/3.0/data/opened")
    new.ssh("rm -f /run/farm-held-end /run/farm-held")
    reader = (
        f"import os, time; file = open('{VIEW}/trial/3.0/data/held'); print('started', flush=True)\n"
        "while not os.path.exists('/run/farm-held-end'): time.sleep(0.1)\n"
        "print(repr(file.read()), flush=True)\n"
    )
    new.ssh(f'setsid python3 -c "{reader}" >/run/farm-held 2>&1 </dev/null &')
    new.wait_for("grep -q started /run/farm-held")

    farm.server.delete_release("trial/3.0")
    assert new.output(f"stat -c %s {VIEW}/trial/3.0/data/never") == "6"
    assert new.output(f"ls {VIEW}/trial/3.0/data").split() == ["held", "never", "opened"]
    for name in ("never", "opened"):
        new.drop_caches()
        said = new.ssh(f"cat {VIEW}/trial/3.0/data/{name}", check=False).stderr
        assert "No such file or directory" in said or "Stale file handle" in said
    new.ssh("touch /run/farm-held-end")
    new.wait_for("test $(wc -l </run/farm-held) -gt 1")
    # The file has its old content or is stale; it never has the content of another file.
    assert new.output("tail -1 /run/farm-held") in ("'held\\n'", "OSError: [Errno 116] Stale file handle")
    assert new.trouble() == []
    # The manifest still exists, but the deployment fails before it builds anything.
    run = collection.deploy(farm, [{**VIEWS[0], "query": "", "releases": ["trial/1.0", "trial/3.0"]}], check=False)
    assert any("trial/3.0" in failure for failure in run.failures(new)), run.output[-2000:]
    # Once removed from the view, it is not listed any more.
    collection.module(farm, new, "release_manifest", {**MODULE, "release": "trial/3.0", "state": "absent"})
    collection.deploy(farm, VIEWS)
    assert "3.0" not in new.output(f"ls {VIEW}/trial").split()


def test_without_the_server_lookups_work_and_tasks_fail_in_time(farm: Farm, new: Machine) -> None:
    layer = new.output(f"ls -d {STATE_DIR}/views/trial/current/layer")
    farm.server.add_release("trial/4.0", {"data/file": "four\n"})
    new.drop_caches()
    with farm.server.unreachable():
        assert new.output(f"ls {VIEW}/trial/1.0/data", timeout=60).split() == ["file", "never", "other"]
        assert new.output(f"stat -c %s {VIEW}/trial/1.0/data/file", timeout=60) == "4"
        missing = new.ssh(f"stat {VIEW}/trial/1.0/data/absent", check=False, timeout=60)
        assert "No such file or directory" in missing.stderr

        tasks: dict[str, dict[str, Any]] = {
            "release_manifest": {**MODULE, "release": "trial/4.0"},
            "overlay_mount": {"path": "/trial-other", "lower": [layer], "data": [ROOT]},
            "software_root": {"path": "/net/other", "source": "server:/srv/software"},
        }
        answers = {}
        for name, options in tasks.items():
            began = time.monotonic()
            answers[name] = collection.module(farm, new, name, {**options, "timeout": 10}, check=False, timeout=180)
            assert time.monotonic() - began < 90, name
        assert answers["release_manifest"].failed, answers["release_manifest"]
        assert "no progress for 10 seconds" in answers["release_manifest"].message
        assert "No answer from the file server of" in answers["release_manifest"].message
        assert f"{ROOT} (server:" in answers["release_manifest"].message
        # Mounting sends no call if the kernel has the root of the data layer in memory.
        mounted = answers["overlay_mount"]
        assert not mounted.failed or "No answer from the file server of" in mounted.message, mounted
        assert answers["software_root"].failed
        assert answers["software_root"].message
    new.wait_for(f"timeout -s KILL 20 cat {VIEW}/trial/1.0/data/never")
    new.ssh("umount /trial-other; rmdir /trial-other /net/other; rm -f /run/farm-*", check=False)
    farm.server.delete_release("trial/4.0")


def test_other_hosts_read_a_manifest_without_a_recall(farm: Farm, new: Machine) -> None:
    """A server that recalls write delegations gives fewer delegations for a while."""
    old = farm.nodes["old"]
    collection.mount_store(old)
    farm.server.add_release("trial/6.0", {"data/file": "six\n"})
    farm.server.ssh(f"ln {SOFTWARE}/trial/6.0/data/file {SOFTWARE}/trial/linked-elsewhere")
    # The client may return older delegations by itself while the calls are counted.
    farm.server.end_delegations(new)
    try:
        collection.module(farm, new, "release_manifest", {**MODULE, "release": "trial/6.0"})
        given_back = collection.calls(new, STORE).get("DELEGRETURN", 0)
        assert "/data/file 4 " in old.output(f"cat {STORE}/trial/6.0.json; zcat {STORE}/trial/6.0.dump.gz")
        assert collection.calls(new, STORE).get("DELEGRETURN", 0) == given_back
    finally:
        collection.module(farm, new, "release_manifest", {**MODULE, "release": "trial/6.0", "state": "absent"})
        farm.server.ssh(f"rm {SOFTWARE}/trial/linked-elsewhere")
        farm.server.delete_release("trial/6.0")


def test_the_scan_reports_files_that_root_squash_hides(farm: Farm, new: Machine) -> None:
    farm.server.add_release("trial/5.0", {"bin/tool": "tool\n"})
    farm.server.write("/srv/software/trial/5.0/etc/licence key", "secret\n", mode=0o640)
    try:
        scanned = collection.module(farm, new, "release_manifest", {**MODULE, "release": "trial/5.0"})
        assert scanned.values["unreadable"] == ["/etc/licence key"]
        assert "not everybody may read 1 of its files and directories" in scanned.warnings
        assert "root_squash" in scanned.warnings
        collection.module(farm, new, "release_manifest", {**MODULE, "release": "trial/5.0", "state": "absent"})
    finally:
        farm.server.delete_release("trial/5.0")


def test_a_nested_export_is_refused_by_name_and_can_have_its_own_view(farm: Farm, new: Machine) -> None:
    farm.server.export_nested("nested")
    try:
        farm.server.add_release("nested/1.0", {"readme": "hello\n"})
        across = {"root": ROOT, "store": STORE, "release": "nested/1.0"}
        refused = collection.module(farm, new, "release_manifest", across, check=False)
        assert refused.failed
        assert f"{ROOT}/nested is a mount below the software root" in refused.message

        new.ssh(f"mkdir {STORE}/.nested")
        own = {"root": f"{ROOT}/nested", "store": f"{STORE}/.nested", "release": "1.0"}
        collection.module(farm, new, "release_manifest", own)
        nested = {"manifest": f"{STORE}/.nested/1.0.dump.gz", "at": "nested/1.0"}
        both = {"name": "nested", "releases": [nested, {"manifest": f"{STORE}/trial/1.0.dump.gz"}]}
        refused = collection.module(farm, new, "metadata_layer", both, check=False)
        assert refused.failed
        assert "one view shows releases of one software root" in refused.message

        layer = collection.module(farm, new, "metadata_layer", {"name": "nested", "releases": [nested]})
        mount = {"path": "/nested", "lower": [layer.values["layer"]], "data": [f"{ROOT}/nested"]}
        collection.module(farm, new, "overlay_mount", mount)
        assert new.output("cat /nested/nested/1.0/readme") == "hello"
    finally:
        new.ssh(f"umount /nested; umount {ROOT}/nested; rm -rf {STATE_DIR}/views/nested", check=False)
        farm.server.unexport_nested("nested")


def test_after_a_crash_the_playbook_brings_the_view_back(farm: Farm, new: Machine) -> None:
    """An orderly reboot is in test_persist.py."""
    new.ssh("sync")
    new.crash()
    assert new.ssh(f"mountpoint -q {VIEW}", check=False).returncode != 0
    collection.mount_store(new)
    view = collection.deploy(farm, VIEWS).views(new)["trial"]
    # The layer survived the crash: only mounts are made.
    assert view["changed"]
    assert [action for action in view["actions"] if "generation" in action] == []
    assert new.output(f"cat {VIEW}/trial/1.0/data/file") == "one"
