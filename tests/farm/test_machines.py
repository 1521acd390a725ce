"""Test the farm itself, on which every later test relies."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from farmlib import host, software
from farmlib.machines import MANIFESTS, SOFTWARE, Farm, Machine

NFS = "/mnt/test/nfs"


@pytest.fixture(params=list(Farm.running.nodes) if Farm.running else ["old", "new"])
def node(request: pytest.FixtureRequest, farm: Farm) -> Machine:
    return farm.nodes[request.param]


@pytest.fixture
def mounted(node: Machine) -> Iterator[Machine]:
    """Return a node with the software root mounted at NFS, with attributes that expire at once."""
    node.ssh(f"mkdir -p {NFS}; mount -t nfs -o ro,vers=4.2,noac,soft,timeo=20,retrans=1 server:{SOFTWARE} {NFS}")
    yield node
    node.ssh(f"umount -f -l {NFS}")


def test_each_node_runs_the_expected_kernel(farm: Farm) -> None:
    releases = {name: node.output("uname -r") for name, node in farm.nodes.items()}
    assert releases["old"].startswith("6.1.")
    assert releases["new"].startswith("6.12.")
    if farm.newest:
        assert [int(number) for number in releases["newest"].split(".")[:2]] > [6, 12]


def test_one_node_boots_systemd_and_all_of_its_units_start(farm: Farm) -> None:
    assert farm.nodes["new"].output("systemctl is-system-running --wait", timeout=240) == "running"
    assert farm.nodes["old"].output("cat /proc/1/comm") == "init"


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_the_export_is_served_read_only(node: Machine, version: str) -> None:
    node.ssh(f"mkdir -p {NFS}; mount -t nfs -o rw,vers={version},nolock server:{SOFTWARE} {NFS}")
    try:
        assert "usd-core" in node.output(f"ls {NFS}").split()
        refused = node.ssh(f"touch {NFS}/new", check=False)
        assert "Read-only file system" in refused.stderr
    finally:
        node.ssh(f"umount {NFS}")


def test_the_release_tree_is_as_large_and_as_odd_as_a_real_one(farm: Farm) -> None:
    assert int(farm.server.output(f"find {SOFTWARE} -type f | wc -l")) >= 20_000
    assert int(farm.server.output(f"find {SOFTWARE} -type l | wc -l")) >= 100
    assert int(farm.server.output(f"find {SOFTWARE} -type f -links +1 | wc -l")) >= 20
    assert int(farm.server.output(f"find {SOFTWARE} -path '*/bin/*' -perm -111 | wc -l")) >= 20
    ready = farm.server.output(f"cd {SOFTWARE} && ls -d */*/{software.READY_MARKER}").split()
    assert len(ready) == len(software.releases())


def test_root_of_a_node_is_nobody_on_the_server(farm: Farm, mounted: Machine) -> None:
    farm.server.write(f"{SOFTWARE}/private/1.0/key", "secret\n", mode=0o600)
    try:
        assert "Permission denied" in mounted.ssh(f"cat {NFS}/private/1.0/key", check=False).stderr
    finally:
        farm.server.delete_release("private")


def test_manifests_can_be_written_by_root_of_a_node(node: Machine, farm: Farm) -> None:
    node.ssh(f"mkdir -p /mnt/test/manifests; mount -t nfs server:{MANIFESTS} /mnt/test/manifests")
    try:
        node.ssh("echo ok >/mnt/test/manifests/new && mv /mnt/test/manifests/new /mnt/test/manifests/trial")
        assert farm.server.output(f"stat -c '%U %s' {MANIFESTS}/trial; rm {MANIFESTS}/trial") == "manifests 3"
    finally:
        node.ssh("umount /mnt/test/manifests")


def test_releases_come_and_go(farm: Farm, mounted: Machine) -> None:
    farm.server.add_release("trial/1.0", {"bin/tool": "#!/bin/sh\necho 1.0\n"})
    farm.server.add_release("trial/2.0", copy_of="trial/1.0")
    assert mounted.output(f"ls -A {NFS}/trial {NFS}/trial/2.0/bin").split()[-1] == "tool"
    farm.server.delete_release("trial")
    assert mounted.ssh(f"ls {NFS}/trial", check=False).returncode != 0


def test_a_nested_export_is_a_file_system_of_its_own(farm: Farm, mounted: Machine) -> None:
    farm.server.export_nested("vendor")
    try:
        farm.server.add_release("vendor/1.0", {"readme": "hello\n"})
        assert mounted.output(f"cat {NFS}/vendor/1.0/readme") == "hello"
        devices = mounted.output(f"stat -c %d {NFS} {NFS}/vendor").split()
        assert devices[0] != devices[1]
        mounted.ssh(f"umount {NFS}/vendor")
    finally:
        farm.server.unexport_nested("vendor")


@pytest.mark.parametrize("outage", ["nfsd_stopped", "unreachable"])
def test_an_outage_begins_and_ends(farm: Farm, mounted: Machine, outage: str) -> None:
    assert mounted.ssh(f"ls {NFS}").returncode == 0
    with getattr(farm.server, outage)():
        assert mounted.ssh(f"ls {NFS}/numpy", check=False, timeout=60).returncode != 0
        assert farm.server.output("hostname") == "server"
    end = time.monotonic() + 60
    while mounted.ssh(f"ls {NFS}/numpy", check=False, timeout=60).returncode != 0:
        assert time.monotonic() < end


def test_latency_can_be_added_and_removed(node: Machine) -> None:
    def milliseconds() -> float:
        script = (
            "import socket, time\n"
            "began = time.monotonic()\n"
            "socket.create_connection(('server', 2049)).close()\n"
            "print((time.monotonic() - began) * 1000)\n"
        )
        return float(node.output(["python3", "-c", script]))

    node.latency(300)
    try:
        assert milliseconds() >= 300
    finally:
        node.latency(0)
    # Other load on the host may add latency, so take the best of five.
    assert min(milliseconds() for _ in range(5)) < 300


def test_a_command_that_does_not_end_times_out(node: Machine) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        node.ssh("sleep 20", timeout=2)


def test_directories_are_copied_whole(node: Machine, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file with space").write_text("content\n")
    node.copy(tmp_path, "/var/tmp/copied")
    assert node.output("cat '/var/tmp/copied/sub/file with space'; stat -c %U /var/tmp/copied/sub") == "content\nroot"


def test_a_reboot_keeps_what_was_synced(farm: Farm) -> None:
    """`new` reboots in test_persist.py, and crashes in test_world.py."""
    node = farm.nodes["old"]
    node.write("/var/tmp/kept", "kept\n")
    node.ssh("sync")
    node.reboot()
    assert node.output("cat /var/tmp/kept") == "kept"


def test_ansible_reaches_every_machine(farm: Farm) -> None:
    argv = [
        "ansible",
        "all",
        "--inventory",
        str(farm.hosts_file),
        "--module-name",
        "ansible.builtin.ping",
        "--one-line",
    ]
    output = host.run(argv, timeout=300)
    assert output.count("SUCCESS") == len(farm.machines)
