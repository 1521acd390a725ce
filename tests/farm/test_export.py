"""An overlay that role export serves: a client's file handles lead to the right files, whatever happens to the server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from farmlib import collection
from farmlib.machines import SOFTWARE, Farm, Machine

LOWER = "/net/exported"
PATH = "/exported"
LAYERS = "/var/lib/farm-exported"
MOUNT = "/mnt/exported"
VARIABLES = {
    "export_path": PATH,
    "export_lower": [LOWER],
    "export_upper": f"{LAYERS}/upper",
    "export_work": f"{LAYERS}/work",
    "export_clients": ["10.77.0.0/24"],
    # The farm has its own way to start the service.
    "export_server": "reload",
}
PLAY = """
- hosts: new
  gather_facts: false
  roles:
    - renderfarm.overlay.export
"""

#: A process of the client: it opens files, and reads them when it is told to.
READER = f"""
import os, time
files = [open(f"{MOUNT}/trial/1.0/data/" + name) for name in ("held", "copied")]
inodes = [os.fstat(file.fileno()).st_ino for file in files]
print("started", flush=True)
while not os.path.exists("/run/farm-reader-go"):
    time.sleep(0.1)
print([file.read() for file in files], inodes == [os.fstat(file.fileno()).st_ino for file in files], flush=True)
"""


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory, farm: Farm) -> Iterator[collection.Run]:
    """The overlay is exported by `new`, with the software root as its lower layer."""
    book = tmp_path_factory.mktemp("export") / "export.yml"
    book.write_text(PLAY)
    new = farm.nodes["new"]
    farm.server.add_release("trial/1.0", {"data/held": "held\n", "data/copied": "copied\n"})
    # The guests' file of exports is the server's.
    new.ssh("cp /etc/exports /run/farm-exports; : >/etc/exports; /usr/lib/render-farm/nfs start")
    root = {"path": LOWER, "source": f"server:{SOFTWARE}", "options": ["ro", "vers=4.2", "nosharecache"]}
    collection.module(farm, new, "software_root", root)
    yield collection.playbook(farm, book, VARIABLES)
    farm.nodes["old"].ssh(f"umount -f -l {MOUNT}", check=False)
    collection.playbook(farm, book, {**VARIABLES, "export_state": "absent"}, check=False)
    new.ssh("/usr/lib/render-farm/nfs stop; cp /run/farm-exports /etc/exports", check=False)
    new.ssh(f"umount {PATH}; umount {LOWER}; rm -rf {LAYERS}", check=False)
    farm.server.delete_release("trial")


@pytest.fixture(scope="module")
def client(farm: Farm, play: collection.Run) -> Machine:
    """A client of the export."""
    assert play.changed("new") != []
    old = farm.nodes["old"]
    old.ssh(f"mkdir -p {MOUNT}; mount -t nfs -o ro,vers=4.2 new:{PATH} {MOUNT}")
    return old


def cold(*machines: Machine) -> None:
    for machine in machines:
        machine.ssh("for again in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done")


def test_open_files_are_the_same_after_a_copy_up_a_restart_and_dropped_caches(farm: Farm, client: Machine) -> None:
    new = farm.nodes["new"]
    client.write("/run/farm-reader", READER)
    client.ssh("setsid python3 /run/farm-reader >/run/farm-read 2>&1 </dev/null &")
    client.ssh("for again in $(seq 100); do grep -q started /run/farm-read && exit; sleep 0.2; done; exit 1")
    cold(new, client)
    new.ssh(f"echo more >>{PATH}/trial/1.0/data/copied")
    new.ssh("/usr/lib/render-farm/nfs stop; sleep 1; /usr/lib/render-farm/nfs start")
    cold(new, client)

    client.ssh("touch /run/farm-reader-go; until [ $(wc -l </run/farm-read) -gt 1 ]; do sleep 0.2; done", timeout=180)
    assert client.output("tail -n 1 /run/farm-read") == r"['held\n', 'copied\nmore\n'] True"
    assert client.output(f"cat {MOUNT}/trial/1.0/data/held {MOUNT}/trial/1.0/data/copied") == "held\ncopied\nmore"
    # What was written is the overlay's alone.
    assert farm.server.output(f"cat {SOFTWARE}/trial/1.0/data/copied") == "copied"
