"""Test that a release is retired through the real NFS client: refused while a process on a node still maps it, done when it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection
from farmlib.collection import Run
from farmlib.machines import MANIFESTS, SOFTWARE, Farm

VIEW = "/retiring"
OLD, NEW = "retiring/1.0", "retiring/2.0"
DECLARED = {"name": "retiring", "mountpoint": VIEW}
SITE = {
    **collection.SITE,
    "overlay_hosts": "new",
    "overlay_linger": 0,
    "overlay_retire": [OLD],
    "overlay_delete_release": True,
    # Only the server may write to the software root.
    "overlay_scan_host": "server",
    "overlay_scan_root": SOFTWARE,
    "overlay_scan_store": MANIFESTS,
    "overlay_views": [{**DECLARED, "releases": [NEW]}],
}
#: Maps a file and closes it, and ends when a file exists.
MAPS = """
import mmap, os, time
with open('{path}', 'rb') as stream: held = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
print('mapped', flush=True)
while not os.path.exists('/run/farm-retiring-end'): time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def retirement(farm: Farm) -> Iterator[tuple[Run, str, Run]]:
    """Return a run that is to drain and retire a release while a process maps it, what is left then, and a run after it has ended."""
    new = farm.nodes["new"]
    collection.mount_store(new)
    for release in (OLD, NEW):
        farm.server.add_release(release, {"bin/tool": f"{release}\n"})
    try:
        collection.deploy(farm, [{**DECLARED, "releases": [OLD, NEW]}])
        new.ssh("rm -f /run/farm-retiring*")
        new.write("/run/farm-retiring.py", MAPS.format(path=f"{VIEW}/{OLD}/bin/tool"))
        new.ssh("setsid python3 /run/farm-retiring.py >/run/farm-retiring 2>&1 </dev/null &")
        new.wait_for("grep -q mapped /run/farm-retiring")
        draining: dict[str, Any] = {**SITE, "overlay_drain": True, "overlay_drain_seconds": 1}
        refused = collection.playbook(farm, "retire", draining, check=False)
        left = farm.server.output(f"cd {SOFTWARE} && find {OLD} && ls {MANIFESTS}/{OLD}.json")
        new.ssh("touch /run/farm-retiring-end; while pgrep -f '[f]arm-retiring.py'; do sleep 0.1; done", timeout=60)
        # The node that never had the view is asked too.
        done = collection.playbook(farm, "retire", {**SITE, "overlay_hosts": "new:old"})
        yield refused, left, done
    finally:
        new.ssh("touch /run/farm-retiring-end", check=False)
        variables = {**SITE, "overlay_views": [DECLARED]}
        collection.playbook(farm, "remove", variables, check=False)
        farm.server.ssh(["rm", "-rf", f"{SOFTWARE}/retiring", f"{MANIFESTS}/retiring"])


def test_a_release_that_a_process_still_maps_is_not_retired(retirement: tuple[Run, str, Run]) -> None:
    refused, left, _done = retirement
    assert refused.code != 0
    messages = [result.message for result in refused.results if result.status == "failed"]
    assert any(
        "nothing was removed" in message and "process on new uses it (python3 (" in message for message in messages
    )
    assert {f"{OLD}/bin/tool", f"{OLD}/.ready", f"{MANIFESTS}/{OLD}.json"} <= set(left.split())


def test_it_is_retired_when_the_process_has_ended(farm: Farm, retirement: tuple[Run, str, Run]) -> None:
    _refused, _left, done = retirement
    assert done.code == 0
    assert farm.server.output(f"ls -A {SOFTWARE}/retiring {MANIFESTS}/retiring").split() == [
        *(f"{MANIFESTS}/retiring:", "2.0.dump.gz", "2.0.json"),
        *(f"{SOFTWARE}/retiring:", "2.0"),
    ]
    assert farm.nodes["new"].output(f"cat {VIEW}/{NEW}/bin/tool") == NEW
    assert farm.nodes["new"].trouble() == []
