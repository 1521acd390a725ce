"""Test that a resolve with rez in a view looks up no name on the NFS server, and gives what it gives on plain NFS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, host, measure, packages
from farmlib.collection import STORE
from farmlib.machines import SOFTWARE, Farm, Machine

from ansible_collections.renderfarm.overlay.plugins.filter.rez_releases import rez_releases

PROGRAMS = "/usr/local/lib/farm"
ROOT = "/net/packages"
VIEW = "/packages"
SHOW = "/show"
PLAIN = "/mnt/farm/packages"
SOURCE = f"server:{SOFTWARE}/{packages.REPOSITORY}"
SITE = {
    **collection.SITE,
    "overlay_hosts": "new",
    "overlay_root": ROOT,
    "overlay_source": SOURCE,
    "overlay_store": f"{STORE}/.packages",
}
PACKAGES_VIEW = {"name": "packages", "mountpoint": VIEW, "query": "@"}
RELEASES = packages.PACKAGES * packages.VERSIONS
READS = {"READ", "READ_PLUS"}


@dataclass(frozen=True)
class Resolve:
    """Hold the calls of a resolve, cold and warm, by operation: their number, and how many ended in an error. And its context."""

    calls: dict[str, int]
    operations: dict[str, dict[str, list[int]]]
    context: dict[str, Any]

    def chosen(self, repository: str) -> Any:
        """Return the resolved packages, without the path of the repository that they were resolved in."""
        return json.loads(json.dumps(self.context["resolved_packages"]).replace(f'"{repository}"', '"repository"'))

    def opened(self, state: str) -> int:
        return sum(self.operations[state].get(name, [0])[0] for name in ("OPEN", "OPEN_NOATTR"))

    def failed(self, state: str) -> dict[str, int]:
        return {name: errors for name, (_calls, errors) in self.operations[state].items() if errors}


@pytest.fixture(scope="module")
def node(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Return a node with rez, and the package repository on plain NFS and in a view."""
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    packages.publish(farm, packages.make(tmp_path_factory.mktemp("rez")))
    machine.ssh(f"mkdir -p {STORE}/.packages")
    packages.install_rez(machine, PROGRAMS)
    deployed = collection.playbook(farm, "deploy", {**SITE, "overlay_views": [PACKAGES_VIEW]})
    [locked] = deployed.resolution.values["lock"]["views"]
    assert len(locked["releases"]) == RELEASES
    yield machine
    show = {"name": "show", "mountpoint": SHOW, "query": "@"}
    collection.playbook(farm, "remove", {**SITE, "overlay_views": [PACKAGES_VIEW, show]})
    machine.ssh(f"umount {ROOT}; rmdir {ROOT}; rm -rf {STORE}/.packages {PROGRAMS}/rez", check=False)
    farm.server.unexport_nested(packages.REPOSITORY)


def resolved(node: Machine, repository: str, mountpoint: str) -> Resolve:
    """Resolve in a repository, and count the calls of the NFS mount that its content comes from."""
    node.ssh(measure.kept(mountpoint))
    argv = ["python3", f"{PROGRAMS}/resolve.py", repository, mountpoint, "/run/farm-context", packages.TOP]
    rows = json.loads(node.output(argv, timeout=600))
    host.say(f"rez in {repository}: {rows}")
    context = json.loads(node.output("cat /run/farm-context; rm /run/farm-context"))
    return Resolve(
        {row["state"]: row["calls"] for row in rows}, {row["state"]: row["operations"] for row in rows}, context
    )


@pytest.fixture(scope="module")
def plain(node: Machine) -> Resolve:
    # While two mounts have a file open, the server gives a delegation to one of them only.
    node.ssh(f"mkdir -p {PLAIN}; mount -t nfs -o ro,vers=4.2 {SOURCE} {PLAIN}")
    try:
        return resolved(node, PLAIN, PLAIN)
    finally:
        node.ssh(f"umount {PLAIN}; rmdir {PLAIN}")


@pytest.fixture(scope="module")
def view(node: Machine) -> Resolve:
    return resolved(node, VIEW, ROOT)


@pytest.fixture(scope="module")
def show(farm: Farm, node: Machine, plain: Resolve) -> Resolve:
    """Resolve in a view of the releases that were resolved before, as a show has it."""
    declared = {"name": "show", "mountpoint": SHOW, "releases": rez_releases(plain.context, PLAIN)}
    collection.playbook(farm, "deploy", {**SITE, "overlay_views": [PACKAGES_VIEW, declared]})
    return resolved(node, SHOW, ROOT)


def test_a_resolve_in_a_view_gives_the_same_packages(plain: Resolve, view: Resolve) -> None:
    assert len(plain.context["resolved_packages"]) == packages.PACKAGES
    assert view.chosen(VIEW) == plain.chosen(PLAIN)
    assert plain.context["status"] == view.context["status"] == "solved"


def test_a_resolve_in_a_view_of_what_was_resolved_gives_the_same_with_fewer_opens(
    plain: Resolve, show: Resolve
) -> None:
    assert show.chosen(SHOW) == plain.chosen(PLAIN)
    assert show.failed("cold") == {}
    assert show.opened("cold") == packages.PACKAGES


def test_a_resolve_on_plain_nfs_looks_up_names_that_do_not_exist(plain: Resolve) -> None:
    # The caches were really cold, and rez looks for several names in each directory of a package.
    assert plain.failed("cold")["LOOKUP"] > RELEASES


def test_a_resolve_in_a_view_looks_up_no_missing_name_on_the_server(view: Resolve) -> None:
    assert view.failed("cold") == {}
    known = {"LOOKUP", "ACCESS", "OPEN", "OPEN_NOATTR", "CLOSE", "DELEGRETURN", "GETATTR", *READS}
    assert set(view.operations["cold"]) <= known, view.operations["cold"]
    # The definition of a package is opened once at most.
    assert packages.PACKAGES <= view.opened("cold") <= RELEASES, view.operations["cold"]


def test_a_second_resolve_in_a_view_looks_up_lists_and_reads_nothing(view: Resolve) -> None:
    # Whether it opens the definitions again depends on the delegations that the server gives.
    assert not {"LOOKUP", "ACCESS", "READDIR", *READS} & set(view.operations["warm"]), view.operations["warm"]


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_resolve_in_a_view_sends_fewer_calls(plain: Resolve, view: Resolve, state: str) -> None:
    assert view.calls[state] < plain.calls[state]
