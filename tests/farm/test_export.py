"""Test an overlay that role export serves: file handles of clients stay valid, whatever happens to the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from farmlib import collection
from farmlib.machines import SOFTWARE, Farm, Machine

LOWER = "/net/exported"
PATH = "/exported"
LAYERS = "/var/lib/farm-exported"
MOUNT = "/mnt/exported"
MOUNT_3 = "/mnt/exported-3"
VARIABLES = {
    "export_path": PATH,
    "export_lower": [LOWER],
    "export_upper": f"{LAYERS}/upper",
    "export_work": f"{LAYERS}/work",
    "export_clients": ["10.77.0.0/24"],
    "export_server": "managed",
}
PLAY = """
- hosts: new
  gather_facts: false
  roles:
    - renderfarm.overlay.export
"""

# The guests have the units of the NFS server masked. No client has state to reclaim, so shorten the grace period of 90 s.
UNITS = "/etc/systemd/system/nfs-server.service /etc/systemd/system/nfs-kernel-server.service"
PREPARE = f"""
cp /etc/exports /run/farm-exports; : >/etc/exports
rm -f {UNITS}
mkdir -p /etc/nfs.conf.d
printf '[nfsd]\ngrace-time=10\nlease-time=20\n' >/etc/nfs.conf.d/farm.conf
systemctl daemon-reload
"""
CLEAR = f"""
systemctl disable --now nfs-server.service
rm -f /etc/nfs.conf.d/farm.conf
for unit in {UNITS}; do ln -sf /dev/null $unit; done
systemctl daemon-reload
cp /run/farm-exports /etc/exports
umount {PATH}; umount {LOWER}; rm -rf {LAYERS}
"""

#: A process on the client that opens files, and reads them when /run/farm-reader-go exists.
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
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "export.yml"
    path.write_text(PLAY)
    return path


@pytest.fixture(scope="module")
def play(farm: Farm, book: Path) -> Iterator[collection.Run]:
    """Export the overlay from `new`, with the software root as its lower layer."""
    new = farm.nodes["new"]
    farm.server.add_release("trial/1.0", {"data/held": "held\n", "data/copied": "copied\n"})
    # All guests have the /etc/exports of the server.
    new.ssh(PREPARE)
    root = {"path": LOWER, "source": f"server:{SOFTWARE}", "options": ["ro", "vers=4.2", "nosharecache"]}
    collection.module(farm, new, "software_root", root)
    yield collection.playbook(farm, book, VARIABLES)
    farm.nodes["old"].ssh(f"umount -f -l {MOUNT} {MOUNT_3}", check=False)
    collection.playbook(farm, book, {**VARIABLES, "export_state": "absent"}, check=False)
    new.ssh(CLEAR, check=False)
    farm.server.delete_release("trial")


@pytest.fixture(scope="module")
def client(farm: Farm, play: collection.Run) -> Machine:
    """Return a client that has mounted the export."""
    assert play.changed("new") != []
    old = farm.nodes["old"]
    old.ssh(f"mkdir -p {MOUNT}; mount -t nfs -o ro,vers=4.2 new:{PATH} {MOUNT}")
    return old


def test_the_nfs_server_is_started_and_enabled(farm: Farm, play: collection.Run) -> None:
    assert "renderfarm.overlay.export : Start the NFS server" in play.changed("new")
    assert farm.nodes["new"].output("systemctl is-active nfs-server; systemctl is-enabled nfs-server").split() == [
        "active",
        "enabled",
    ]


@pytest.mark.usefixtures("play")
def test_a_second_run_changes_nothing(farm: Farm, book: Path) -> None:
    assert collection.playbook(farm, book, VARIABLES).changed("new") == []


def test_open_files_are_the_same_after_a_copy_up_a_restart_and_dropped_caches(farm: Farm, client: Machine) -> None:
    new = farm.nodes["new"]
    client.write("/run/farm-reader", READER)
    client.ssh("setsid python3 /run/farm-reader >/run/farm-read 2>&1 </dev/null &")
    # A server that has just started allows no opens before the end of its grace period.
    client.wait_for("grep -q started /run/farm-read", seconds=120)
    for machine in (new, client):
        machine.drop_caches()
    new.ssh(f"echo more >>{PATH}/trial/1.0/data/copied")
    # A client may assume that reclaimed files are unchanged, so end the grace period at once.
    new.ssh("systemctl stop nfs-server; sleep 1; systemctl start nfs-server; echo Y >/proc/fs/nfsd/v4_end_grace")
    for machine in (new, client):
        machine.drop_caches()

    client.ssh("touch /run/farm-reader-go; until [ $(wc -l </run/farm-read) -gt 1 ]; do sleep 0.2; done", timeout=180)
    assert client.output("tail -n 1 /run/farm-read") == r"['held\n', 'copied\nmore\n'] True"
    assert client.output(f"cat {MOUNT}/trial/1.0/data/held {MOUNT}/trial/1.0/data/copied") == "held\ncopied\nmore"
    # The lower layer is unchanged.
    assert farm.server.output(f"cat {SOFTWARE}/trial/1.0/data/copied") == "copied"


def test_nfs_3_gets_a_stale_file_handle_and_no_wrong_content(client: Machine) -> None:
    client.ssh(f"mkdir -p {MOUNT_3}; mount -t nfs -o ro,vers=3,nolock new:{PATH} {MOUNT_3}")
    result = client.ssh(f"cat {MOUNT_3}/trial/1.0/data/held", check=False)
    assert result.returncode != 0
    assert result.stdout == ""
    assert "Stale file handle" in result.stderr
