"""Test a view over twelve software roots, each an export behind an automount, whose releases have equal paths.

It is deployed while the automounts are idle, sends no more calls than a view of the same releases on one root, is mounted at boot, is
deployed again after that, and is switched under readers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection, host, software
from farmlib.collection import SITE, STATE_DIR, STORE, Run
from farmlib.machines import Farm, Machine

#: The packages; each is a volume on the server, with one release.
PACKAGES = (
    *("fileseq", "gazu", "imageio", "jinja2", "markupsafe", "psutil"),
    *("pyblish-base", "pyyaml", "qt-py", "requests", "shiboken6", "urllib3"),
)
VERSION = "1.0"
START = "import fileseq, jinja2, psutil, pyblish.api, urllib3, yaml"
SWITCHES = 50

VOLUMES = "/srv/volumes"  # on the server
#: The volume with the same releases together, as one root.
JOINED = "joined"
PLACE = "/auto/volumes"
VIEWS: dict[str, dict[str, Any]] = {
    "volumes": {
        "mountpoint": "/volumes",
        "roots": [{"name": package, "path": f"{PLACE}/{package}"} for package in PACKAGES],
        # The store must not have releases of views over one root.
        "store": f"{STORE}/.volumes",
    },
    JOINED: {
        "mountpoint": f"/{JOINED}",
        "root": f"{PLACE}/{JOINED}",
        "root_name": f"/net/{JOINED}",
        "store": f"{STORE}/.{JOINED}",
    },
}
MAPS = {
    "/etc/auto.master.d/farm-volumes.autofs": f"{PLACE} /etc/auto.farm-volumes --timeout=60\n",
    # The options that role host gives a software root.
    "/etc/auto.farm-volumes": f"* -fstype=nfs,ro,vers=4.2,hard,nocto,actimeo=3600,nodev server:{VOLUMES}/&\n",
}

#: Counts the overlays of the view of the volumes.
PARTS = "grep -c ' /volumes[/ ].* - overlay ' /proc/self/mountinfo"

# On the node.
PROGRAMS = "/usr/local/lib/farm"
LIBRARY = "/opt/farm-collection"
FILES = f"{LIBRARY}/files"
MODULES = "ansible_collections/renderfarm/overlay/plugins/module_utils"


def _export(number: int, name: str) -> str:
    return (
        f"mkdir -p {VOLUMES}/{name}; mount -t tmpfs -o mode=755 {name} {VOLUMES}/{name}; "
        f"exportfs -o ro,root_squash,no_subtree_check,fsid={100 + number} 10.77.0.0/24:{VOLUMES}/{name}\n"
    )


@pytest.fixture(scope="module")
def new(farm: Farm) -> Iterator[Machine]:
    """Return `new` with idle automounts of the volumes."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    newest = {release.package: release.path for release in software.newest(software.releases())}
    farm.server.ssh(
        "set -eu\n"
        + "".join(_export(number, name) for number, name in enumerate((*PACKAGES, JOINED)))
        + "".join(
            f"mkdir -p {VOLUMES}/{JOINED}/{package}; for place in {VOLUMES}/{package} {VOLUMES}/{JOINED}/{package}; "
            f"do cp -a /srv/software/{newest[package]} $place/{VERSION}; done\n"
            for package in PACKAGES
        )
    )
    for path, text in MAPS.items():
        machine.write(path, text)
    stores = " ".join(view["store"] for view in VIEWS.values())
    machine.ssh(f"mkdir -p {stores}; systemctl enable --quiet autofs; systemctl restart autofs")
    yield machine
    collection.mount_store(machine)
    play(farm, "remove", *VIEWS, check=False)
    places = " ".join(f"{STATE_DIR}/views/{name}" for name in VIEWS)
    machine.ssh(
        f"for view in {' '.join(VIEWS)}; do umount -R /$view 2>/dev/null; rmdir /$view; done\n"
        f"systemctl stop autofs; systemctl disable --quiet autofs; rm -rf {' '.join(MAPS)} {stores} {places} {LIBRARY}",
        check=False,
    )
    farm.server.ssh(
        f"for name in {' '.join((*PACKAGES, JOINED))}; do exportfs -u 10.77.0.0/24:{VOLUMES}/$name; done; exportfs -f\n"
        f"umount -l {VOLUMES}/*; rm -rf {VOLUMES}",
        check=False,
    )


@pytest.fixture(scope="module")
def digests(farm: Farm) -> dict[str, str]:
    """Return the digest of each file in the view of all volumes, by its path, from the server."""
    volumes = " ".join(f"./{package}" for package in PACKAGES)
    found = farm.server.output(f"cd {VOLUMES}; find {volumes} -type f -exec sha256sum {{}} +", timeout=300)
    return {path: digest for digest, path in (line.split("  ", 1) for line in found.splitlines())}


@pytest.fixture(scope="module")
def deployed(farm: Farm, new: Machine, digests: dict[str, str]) -> Run:
    """Deploy both views while all automounts are idle."""
    assert len(digests) > 200
    expired(new)
    return play(farm, "deploy", *VIEWS)


@pytest.fixture(scope="module")
def booted(new: Machine, deployed: Run) -> Machine:
    """Reboot `new`, which mounts its views while all automounts are idle."""
    assert deployed.code == 0
    new.ssh("sync")
    new.reboot()
    new.ssh("systemctl start multi-user.target", timeout=120)
    return new


@pytest.fixture(scope="module")
def deployed_again(farm: Farm, booted: Machine) -> Run:
    """Deploy the view of the volumes with one release more, while all automounts are idle."""
    collection.mount_store(booted)
    farm.server.ssh(f"cp -a {VOLUMES}/markupsafe/{VERSION} {VOLUMES}/markupsafe/2.0")
    expired(booted)
    return play(farm, "deploy", "volumes")


def play(farm: Farm, name: str, *views: str, check: bool = True) -> Run:
    # The site mounts the software roots, not the collection.
    site = {key: value for key, value in SITE.items() if key not in ("overlay_source", "overlay_root")}
    declared = [{"name": view, "query": "@", **VIEWS[view]} for view in views]
    variables = {**site, "overlay_hosts": "new", "overlay_persist": "systemd", "overlay_views": declared}
    return collection.playbook(farm, name, variables, check=check)


def expired(machine: Machine) -> None:
    """Have automount(8) unmount what nobody uses, and wait until all automounts are idle."""
    expire = "kill -USR1 $(cat /run/autofs.pid)"
    machine.wait_for(f"! grep -q ' {PLACE}/.* - nfs' /proc/self/mountinfo || {{ {expire}; false; }}", 90)


def check_content(machine: Machine, view: str, digests: dict[str, str]) -> None:
    """Compare each file of a view with its digest."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in digests.items())
    machine.ssh(f"cd {VIEWS[view]['mountpoint']} && sha256sum --check --quiet", stdin=lines, timeout=300)


def test_a_view_over_idle_automounts_shows_each_root_and_stays_when_they_expire(
    new: Machine, deployed: Run, digests: dict[str, str]
) -> None:
    assert sorted(deployed.views(new)) == sorted(VIEWS)
    expired(new)
    for view in VIEWS:
        check_content(new, view, digests)
    # An overlay for each root, and the one that they are in.
    assert new.output(PARTS) == str(len(PACKAGES) + 1)
    assert new.output(f"grep -c ' {PLACE}/.* - nfs' /proc/self/mountinfo || true") == "0"


def work(digests: dict[str, str], sizes: dict[str, int]) -> dict[str, Any]:
    """Return what to do in each view: names to look for, files to open, and software to start."""
    chance = random.Random(1)
    small = [path for path in sorted(digests) if 0 < sizes[path] <= 1 << 18]
    places = [f"{package}{below}" for package in PACKAGES for below in ("", f"/{VERSION}", f"/{VERSION}/python")]
    return {
        "missing": [f"{place}/absent-{number}.so" for place in places for number in range(10)],
        "open": [
            path
            for package in PACKAGES
            for found in [[path for path in small if path.startswith(f"./{package}/")]]
            for path in chance.sample(found, min(10, len(found)))
        ],
        "environment": [f"{package}/{VERSION}" for package in PACKAGES],
        "start": START,
    }


@pytest.mark.usefixtures("deployed")
def test_many_roots_send_no_more_calls_than_one_root_with_the_same_releases(
    farm: Farm, new: Machine, digests: dict[str, str]
) -> None:
    listed = farm.server.output(f"cd {VOLUMES}; find . -type f -printf '%s %p\\n'").splitlines()
    sizes = {path: int(size) for size, path in (line.split(" ", 1) for line in listed)}
    for name in ("count.py", "roots.py"):
        new.copy(host.FARM_SOURCE / "guest" / name, f"{PROGRAMS}/{name}")
    new.write(f"{PROGRAMS}/roots.json", json.dumps(work(digests, sizes)))
    found: dict[str, dict[tuple[str, str], dict[str, int]]] = {}
    for name, view in VIEWS.items():
        roots = [root["path"] for root in view.get("roots", ())] or [view["root"]]
        farm.server.end_delegations(new)
        argv = ["python3", "-B", f"{PROGRAMS}/roots.py", f"{PROGRAMS}/roots.json", view["mountpoint"], *roots]
        rows = json.loads(new.output(argv, timeout=300))
        found[name] = {(row["work"], row["state"]): row["operations"] for row in rows}
        for row in rows:
            host.say(f"{name}: {row}")
    many, one = found["volumes"], found[JOINED]
    for state in ("cold", "warm"):
        assert many["missing", state] == one["missing", state] == {}
    for what in ("open", "start"):
        cold, cold_of_one = many[what, "cold"], one[what, "cold"]
        # The path on a root is shorter by the package.
        on_the_way = {operation: cold_of_one.get(operation, 0) for operation in ("LOOKUP", "ACCESS")}
        assert {**cold, **on_the_way} == {**cold_of_one, **on_the_way}, (cold, cold_of_one)
        assert all(cold.get(operation, 0) <= calls for operation, calls in on_the_way.items()), (cold, cold_of_one)
        # Only a file for which the server has given no delegation is opened there again.
        assert set(many[what, "warm"]) <= {"OPEN", "OPEN_NOATTR", "CLOSE"}


def test_views_are_mounted_at_boot_over_idle_automounts(booted: Machine, digests: dict[str, str]) -> None:
    expired(booted)
    for view in VIEWS:
        check_content(booted, view, digests)
    assert booted.output(PARTS) == str(len(PACKAGES) + 1)


def test_a_view_that_was_mounted_at_boot_is_switched_over_idle_automounts(
    new: Machine, deployed_again: Run, digests: dict[str, str]
) -> None:
    assert [view["method"] for view in deployed_again.views(new).values()] == ["beneath"]
    assert sorted(deployed_again.views(new)) == ["volumes"]
    expired(new)
    check_content(new, "volumes", digests)
    assert new.output("ls /volumes/markupsafe").split() == [VERSION, "2.0"]


@pytest.mark.usefixtures("deployed_again")
def test_no_open_fails_and_no_file_is_that_of_another_root_while_the_view_is_switched(
    new: Machine, digests: dict[str, str]
) -> None:
    roots = [{**root, "pattern": "{version}"} for root in VIEWS["volumes"]["roots"]]
    view = {"name": "volumes", "mountpoint": "/volumes", "state_dir": STATE_DIR, "roots": roots}
    new.copy(host.CHECKOUT / "plugins" / "module_utils", f"{LIBRARY}/{MODULES}")
    new.copy(host.FARM_SOURCE / "guest" / "switching.py", f"{LIBRARY}/switching.py")
    new.write(f"{FILES}/view.json", json.dumps(view))
    new.write(f"{FILES}/digests", "".join(f"{digest}  {path}\n" for path, digest in digests.items()))
    argv = ["env", f"PYTHONPATH={LIBRARY}", "python3", f"{LIBRARY}/switching.py"]
    text = new.output([*argv, f"{FILES}/view.json", f"{FILES}/digests", str(SWITCHES)], timeout=600)
    host.say(text)
    found = json.loads(text)
    assert found["methods"] == ["beneath"] * SWITCHES
    for reader in found["readers"]:
        assert (reader["failed"], reader["wrong"]) == (0, 0), reader
        assert reader["opens"] > 10 * SWITCHES
    # Nothing is left of the overlays that were replaced, and the last switch went back to what was deployed.
    assert new.output(PARTS) == str(len(PACKAGES) + 1)
    assert new.output("ls /volumes/markupsafe").split() == [VERSION, "2.0"]
