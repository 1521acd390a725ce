"""Views that are mounted at boot: after a reboot a node shows the same generation, and nothing is left to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from farmlib import collection
from farmlib.collection import ROOT, SITE, STATE_DIR, STORE
from farmlib.machines import Farm, Machine

VIEW = "/kept view"
VIEWS = [{"name": "kept", "mountpoint": VIEW, "query": "[?package == 'kept']"}]


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """`new`, whose software root is mounted at boot."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    farm.server.add_release("kept/1.0", {"data/file": "one\n"})
    yield machine
    collection.mount_store(machine)
    remove = {**SITE, "overlay_hosts": "new", "overlay_views": VIEWS}
    collection.playbook(farm, "remove", remove, check=False)
    machine.ssh("sed -i '/renderfarm.overlay/d; \\,/net/software,d' /etc/fstab")
    farm.server.delete_release("kept")
    machine.ssh(f"rm -rf {STORE}/kept")


def deploy(farm: Farm, persist: str) -> collection.Run:
    variables = {
        **SITE,
        "overlay_hosts": "new",
        "overlay_views": VIEWS,
        "overlay_persist": persist,
        "host_software_persist": "fstab",
    }
    return collection.playbook(farm, "deploy", variables)


def shown(machine: Machine) -> str:
    """Return what the kernel says of the view, but for the numbers of the mount."""
    return machine.output("awk '$5 == \"/kept\\\\040view\"' /proc/self/mountinfo | sed 's/.* - //'")


def lower(machine: Machine) -> str:
    return machine.output(f"readlink -f {STATE_DIR}/views/kept/current")


@pytest.mark.parametrize("persist", ["systemd", "fstab"])
def test_after_a_reboot_the_same_generation_is_mounted(farm: Farm, new: Machine, persist: str) -> None:
    collection.mount_store(new)
    deploy(farm, persist)
    assert lower(new) in shown(new)
    new.ssh("sync")
    new.reboot()
    new.ssh(f"systemctl start remote-fs.target; mountpoint -q '{VIEW}'", timeout=120)
    assert new.output(f"cat '{VIEW}/kept/1.0/data/file'") == "one"
    assert lower(new) in shown(new)
    # No unit of it failed, and systemd found no ordering that goes in a circle.
    assert new.output("systemctl --failed --no-legend --plain | grep -c mount || true") == "0"
    assert new.output("journalctl -b --no-pager | grep -c 'ordering cycle' || true") == "0"
    collection.mount_store(new)
    assert deploy(farm, persist).changed(new) == []


def test_a_switch_changes_what_is_mounted_at_the_next_boot(farm: Farm, new: Machine) -> None:
    collection.mount_store(new)
    deploy(farm, "systemd")
    old = lower(new)
    farm.server.add_release("kept/2.0", {"data/file": "two\n"})
    run = deploy(farm, "systemd")
    [mounted] = run.of(new, "overlay_mount")
    assert (mounted.values["switched"], mounted.values["method"]) == (True, "beneath")
    assert lower(new) != old
    assert new.output("systemctl show -P ActiveState 'kept\\x20view.mount'") == "active"
    new.ssh("sync")
    new.reboot()
    new.ssh(f"systemctl start remote-fs.target; mountpoint -q '{VIEW}'", timeout=120)
    assert lower(new) in shown(new)
    assert new.output(f"cat '{VIEW}/kept/2.0/data/file'") == "two"


def test_an_image_is_mounted_at_boot_and_goes_with_the_view(farm: Farm, new: Machine) -> None:
    collection.mount_store(new)
    deploy(farm, "none")
    folder = "/var/lib/kept-image"
    layer = new.output(f"ls -d {lower(new)}/layer.erofs {lower(new)}/layer 2>/dev/null | head -n 1")
    if not layer.endswith(".erofs"):
        new.ssh(f"mkdir -p {folder}; mkfs.erofs --quiet {folder}/one.erofs {layer} >/dev/null")
        layer = f"{folder}/one.erofs"
    name = layer.removesuffix(".erofs")
    options = {"path": "/kept-image", "lower": [layer], "data": [ROOT], "persist": "systemd"}
    try:
        collection.module(farm, new, "overlay_mount", options)
        assert new.ssh(f"mountpoint -q {name}", check=False).returncode != 0
        new.ssh("sync")
        new.reboot()
        new.ssh(f"systemctl start remote-fs.target; mountpoint -q /kept-image; mountpoint -q {name}", timeout=120)
        assert new.output("cat /kept-image/kept/1.0/data/file") == "one"
        assert not collection.module(farm, new, "overlay_mount", options).changed
    finally:
        collection.module(farm, new, "overlay_mount", {"path": "/kept-image", "state": "absent"}, check=False)
    assert new.ssh(f"mountpoint -q {name}", check=False).returncode != 0
    assert new.output("grep -l renderfarm.overlay /etc/systemd/system/*image*.mount || true") == ""
    new.ssh(f"rm -rf {folder}")


def test_a_view_that_is_removed_is_not_mounted_at_the_next_boot(farm: Farm, new: Machine) -> None:
    collection.mount_store(new)
    deploy(farm, "systemd")
    collection.playbook(farm, "remove", {**SITE, "overlay_hosts": "new", "overlay_views": VIEWS})
    assert new.output("grep -l renderfarm.overlay /etc/systemd/system/*.mount /etc/fstab || true") == ""
    new.reboot()
    assert new.ssh(f"test -e '{VIEW}'", check=False).returncode != 0
