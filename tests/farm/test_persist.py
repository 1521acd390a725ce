"""Test views that are mounted at boot: after a reboot a node shows the same generation, and a deployment changes nothing.

A boot takes an emulated machine half a minute, so each boot tests several things. At the first boot, systemd units mount a view that
was switched before, a second view, a tree of overlays, and an image. At the second boot, fstab mounts the first view and the tree, and the
others are gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, software
from farmlib.collection import ROOT, SITE, STATE_DIR, STORE, Result, Run
from farmlib.machines import Farm, Machine

VIEW = "/kept view"
KEPT = {"name": "kept", "mountpoint": VIEW, "query": "[?package == 'kept']"}
#: A view that is mounted at the first boot and removed before the second.
REMOVED = {"name": "removed", "mountpoint": "/removed", "query": "[?package == 'kept' && version == '1.0']"}
#: A view over directories of the software root, and one of the node, which all have a release of the same path.
LOCAL_ROOT = "/var/lib/boot-c"
TREE = {
    "name": "tree",
    "mountpoint": "/tree",
    "query": "@",
    "roots": [
        {"name": "boota", "path": f"{ROOT}/boot/a"},
        {"name": "bootb", "path": f"{ROOT}/boot/b"},
        {"name": "bootc", "path": LOCAL_ROOT},
    ],
}
IMAGE_DIRECTORY = "/var/lib/kept-image"
MARKED = "grep -l renderfarm.overlay /etc/systemd/system/*.mount /etc/fstab || true"


@dataclass(frozen=True)
class Switched:
    """Hold a view that was switched and the mount of an image, both persistent as systemd units."""

    before: str  # the layer that was shown before the switch
    run: Run
    image: Mapping[str, Any]  # the options of the image's mount

    @property
    def image_layer(self) -> str:
        return str(self.image["lower"][0]).removesuffix(".erofs")


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new`, whose software root is mounted at boot."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    farm.server.add_release("kept/1.0", {"data/file": "one\n"})
    for name in ("a", "b"):
        farm.server.add_release(f"boot/{name}/1.0", {"data/file": f"{name}\n"})
    machine.ssh(
        f"mkdir -p {LOCAL_ROOT}/1.0/data; echo c > {LOCAL_ROOT}/1.0/data/file; touch {LOCAL_ROOT}/1.0/{software.READY_MARKER}"
    )
    yield machine
    collection.mount_store(machine)
    left = machine.output(f"cd {STATE_DIR}/views && ls -d kept removed tree 2>/dev/null || true")
    if left or machine.output(MARKED):
        collection.module(farm, machine, "overlay_mount", {"path": "/kept-image", "state": "absent"}, check=False)
        play(farm, "remove", [KEPT, REMOVED, TREE], check=False)
    machine.ssh(f"sed -i '/renderfarm.overlay/d; \\,/net/software,d' /etc/fstab; rm -rf {STORE}/kept {IMAGE_DIRECTORY}")
    machine.ssh(f"rm -rf {STORE}/boot? {LOCAL_ROOT}")
    for release in ("kept", "boot"):
        farm.server.delete_release(release)


@pytest.fixture(scope="module")
def switched(farm: Farm, new: Machine) -> Switched:
    play(farm, "deploy", [KEPT, REMOVED], "systemd")
    before = lower(new)
    layer = new.output(f"ls -d {before}/layer.erofs {before}/layer 2>/dev/null | head -n 1")
    if not layer.endswith(".erofs"):
        new.ssh(f"mkdir -p {IMAGE_DIRECTORY}; mkfs.erofs --quiet {IMAGE_DIRECTORY}/one.erofs {layer} >/dev/null")
        layer = f"{IMAGE_DIRECTORY}/one.erofs"
    image = {"path": "/kept-image", "lower": [layer], "data": [ROOT], "persist": "systemd"}
    collection.module(farm, new, "overlay_mount", image)
    farm.server.add_release("kept/2.0", {"data/file": "two\n"})
    return Switched(before, play(farm, "deploy", [KEPT, REMOVED, TREE], "systemd"), image)


@pytest.fixture(scope="module")
def booted(new: Machine, switched: Switched) -> Switched:
    """Reboot `new` with systemd units."""
    assert lower(new) in shown(new)
    assert new.ssh(f"mountpoint -q {switched.image_layer}", check=False).returncode != 0
    reboot(new)
    return switched


@pytest.fixture(scope="module")
def image_absent(farm: Farm, new: Machine, booted: Switched) -> Result:
    """Remove the mount of the image, and return the result."""
    return collection.module(farm, new, "overlay_mount", {"path": booted.image["path"], "state": "absent"})


@pytest.fixture(scope="module")
def booted_from_fstab(farm: Farm, new: Machine, image_absent: Result) -> None:
    """Reboot `new` with only one view, in fstab."""
    assert image_absent.changed
    collection.mount_store(new)
    play(farm, "remove", [REMOVED])
    play(farm, "deploy", [KEPT, TREE], "fstab")
    assert lower(new) in shown(new)
    # The part that was missing is mounted again.
    assert tree(new) == ["a", "b", "c"]
    reboot(new)


def play(farm: Farm, name: str, views: list[dict[str, Any]], persist: str = "none", *, check: bool = True) -> Run:
    variables = {
        **SITE,
        "overlay_hosts": "new",
        "overlay_views": views,
        "overlay_persist": persist,
        "host_software_persist": "fstab",
    }
    return collection.playbook(farm, name, variables, check=check)


def reboot(machine: Machine) -> None:
    machine.ssh("sync")
    machine.reboot()
    machine.ssh("systemctl start remote-fs.target", timeout=120)


def shown(machine: Machine) -> str:
    """Return the kernel's report of the view, without its mount IDs."""
    return machine.output("awk '$5 == \"/kept\\\\040view\"' /proc/self/mountinfo | sed 's/.* - //'")


def lower(machine: Machine) -> str:
    return machine.output(f"readlink -f {STATE_DIR}/views/kept/current")


def tree(machine: Machine) -> list[str]:
    """Return the files that the tree shows at equal paths of its roots."""
    return machine.output("cat /tree/boot?/1.0/data/file || true").split()


def changed(run: Run, machine: Machine) -> list[str]:
    """Return the tasks that changed something, except the one that sets read-ahead, which the kernel drops with the mount."""
    return [task for task in run.changed(machine) if not task.endswith("Mount the software root")]


def check_boot(machine: Machine) -> None:
    """Check that the view is mounted as before, and that systemd reports no problem."""
    assert machine.ssh(f"mountpoint -q '{VIEW}'", check=False).returncode == 0
    assert lower(machine) in shown(machine)
    assert machine.output(f"cat '{VIEW}'/kept/*/data/file").split() == ["one", "two"]
    # No mount unit failed, and there is no ordering cycle.
    assert machine.output("systemctl --failed --no-legend --plain | grep -c mount || true") == "0"
    assert machine.output("journalctl -b --no-pager | grep -c 'ordering cycle' || true") == "0"


def test_a_switch_keeps_the_unit_active(new: Machine, switched: Switched) -> None:
    view = switched.run.views(new)["kept"]
    assert (view["switched"], view["method"]) == (True, "beneath")
    assert lower(new) != switched.before
    assert new.output("systemctl show -P ActiveState 'kept\\x20view.mount'") == "active"


@pytest.mark.usefixtures("booted")
def test_after_a_reboot_units_mount_what_the_last_switch_showed(farm: Farm, new: Machine) -> None:
    check_boot(new)
    assert new.output("cat /removed/kept/1.0/data/file") == "one"
    assert tree(new) == ["a", "b", "c"]
    collection.mount_store(new)
    assert changed(play(farm, "deploy", [KEPT, REMOVED, TREE], "systemd"), new) == []


@pytest.mark.usefixtures("booted")
def test_systemd_mounts_a_tree_without_the_part_whose_root_is_missing(new: Machine) -> None:
    new.ssh("systemctl stop tree.mount '*layer.tree*.mount' '*layer.whole*.mount'")
    assert new.ssh("mountpoint -q /tree", check=False).returncode != 0
    new.ssh(f"mv {LOCAL_ROOT} {LOCAL_ROOT}-gone")
    new.ssh("systemctl start tree.mount")
    new.ssh(f"mv {LOCAL_ROOT}-gone {LOCAL_ROOT}; systemctl reset-failed")
    assert tree(new) == ["a", "b"]
    # The name is there, and no other root has the file.
    assert new.output("stat -c %s /tree/bootc/1.0/data/file") == "2"


def test_an_image_is_mounted_at_boot(farm: Farm, new: Machine, booted: Switched) -> None:
    new.ssh(f"mountpoint -q /kept-image; mountpoint -q {booted.image_layer}")
    assert new.output("cat /kept-image/kept/1.0/data/file") == "one"
    assert not collection.module(farm, new, "overlay_mount", booted.image).changed


@pytest.mark.usefixtures("image_absent")
def test_an_image_and_its_unit_are_removed_with_the_view(new: Machine, booted: Switched) -> None:
    assert new.ssh(f"mountpoint -q {booted.image_layer}", check=False).returncode != 0
    assert new.output("grep -l renderfarm.overlay /etc/systemd/system/*image*.mount || true") == ""


@pytest.mark.usefixtures("booted_from_fstab")
def test_after_a_reboot_fstab_mounts_the_same_generation(farm: Farm, new: Machine) -> None:
    check_boot(new)
    assert tree(new) == ["a", "b", "c"]
    collection.mount_store(new)
    assert changed(play(farm, "deploy", [KEPT, TREE], "fstab"), new) == []


@pytest.mark.usefixtures("booted_from_fstab")
def test_a_view_that_is_removed_is_not_mounted_at_the_next_boot(farm: Farm, new: Machine) -> None:
    assert new.ssh("test -e /removed", check=False).returncode != 0
    # The unit of the view that moved to fstab is gone too.
    assert new.output(MARKED) == "/etc/fstab"
    play(farm, "remove", [KEPT, TREE])
    assert new.output(MARKED) == ""
