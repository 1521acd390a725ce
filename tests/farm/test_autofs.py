"""Test views over a software root that is mounted on demand and unmounted soon after: by automount(8) and by systemd.

The views are mounted, switched and mounted at boot while the automounts are idle, and stay mounted when these expire.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection
from farmlib.collection import ROOT, SITE, STORE, Run
from farmlib.machines import SOFTWARE, Farm, Machine

#: The software roots: a key of an indirect map, one of a direct map, and an automount unit.
ROOTS = {"indirect": "/auto/map/software", "direct": "/auto/direct", "unit": "/auto/unit"}
MOUNT = "ro,vers=4.2"
MAPS = {
    "/etc/auto.master.d/farm.autofs": (
        "/auto/map /etc/auto.farm-map --timeout=1\n/- /etc/auto.farm-direct --timeout=1\n"
    ),
    "/etc/auto.farm-map": f"software -fstype=nfs,{MOUNT} server:{SOFTWARE}\n",
    "/etc/auto.farm-direct": f"{ROOTS['direct']} -fstype=nfs,{MOUNT} server:{SOFTWARE}\n",
}
LINE = f"server:{SOFTWARE} {ROOTS['unit']} nfs {MOUNT},x-systemd.automount,x-systemd.idle-timeout=5s 0 0"
VIEWS = [
    {
        "name": f"auto-{name}",
        "mountpoint": f"/auto-views/{name}",
        "root": root,
        "root_name": ROOT,
        "query": "[?package == 'auto']",
    }
    for name, root in ROOTS.items()
]


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new` with idle automounts."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    farm.server.add_release("auto/1.0", {"data/file": "one\n"})
    for path, text in MAPS.items():
        machine.write(path, text)
    machine.ssh(
        f"echo '{LINE}' >>/etc/fstab; systemctl daemon-reload; systemctl start auto-unit.automount\n"
        "systemctl enable --quiet autofs; systemctl restart autofs"
    )
    yield machine
    collection.mount_store(machine)
    play(farm, "remove", check=False)
    machine.ssh(
        f"sed -i '/auto.unit/d' /etc/fstab; systemctl stop autofs auto-unit.automount; rm -rf {' '.join(MAPS)} {STORE}/auto\n"
        "systemctl daemon-reload; systemctl disable --quiet autofs"
    )
    farm.server.delete_release("auto")


@pytest.fixture(scope="module")
def deployed(farm: Farm, new: Machine) -> Run:
    expired(new)
    return play(farm, "deploy")


def play(farm: Farm, name: str, *, check: bool = True) -> Run:
    # The site mounts the software root, not the collection.
    site: dict[str, Any] = {key: value for key, value in SITE.items() if key != "overlay_source"}
    variables = {**site, "overlay_hosts": "new", "overlay_views": VIEWS, "overlay_persist": "systemd"}
    return collection.playbook(farm, name, variables, check=check)


def expired(machine: Machine) -> None:
    """Wait until all automounts have expired."""
    end = time.monotonic() + 90
    while machine.output("grep -c ' /auto/.* - nfs' /proc/self/mountinfo || true") != "0":
        assert time.monotonic() < end, machine.output("grep /auto /proc/self/mountinfo")
        time.sleep(0.5)


def content(machine: Machine) -> list[str]:
    return machine.output("cat /auto-views/*/auto/*/data/file").split()


def test_views_are_mounted_over_idle_automounts_and_stay_when_these_expire(new: Machine, deployed: Run) -> None:
    assert sorted(deployed.views(new)) == sorted(view["name"] for view in VIEWS)
    expired(new)
    assert content(new) == ["one"] * 3
    assert new.output("systemctl is-active $(cd /etc/systemd/system; ls auto*views*.mount)").split() == ["active"] * 3


@pytest.mark.usefixtures("deployed")
def test_views_are_switched_over_idle_automounts(farm: Farm, new: Machine) -> None:
    farm.server.add_release("auto/2.0", {"data/file": "two\n"})
    expired(new)
    run = play(farm, "deploy")
    assert [view["method"] for view in run.views(new).values()] == ["beneath"] * 3
    expired(new)
    assert content(new) == ["one", "two"] * 3


@pytest.mark.usefixtures("deployed")
def test_views_over_automounts_are_mounted_at_boot(farm: Farm, new: Machine) -> None:
    before = content(new)
    new.ssh("sync")
    new.reboot()
    new.ssh("systemctl start multi-user.target", timeout=120)
    assert content(new) == before
    # No unit was left out to break a cycle.
    assert new.output("systemctl is-active autofs remote-fs.target").split() == ["active"] * 2
    assert new.output("journalctl -b --no-pager | grep -c 'ordering cycle' || true") == "0"
    expired(new)
    assert content(new) == before
    collection.mount_store(new)
    assert play(farm, "deploy").changed(new) == []
