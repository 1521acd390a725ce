"""Test the playbook deploy as a studio runs it: over ssh, from an inventory, against a real NFS server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from farmlib import collection, software, trees
from farmlib.collection import CALLS_TO_OPEN, ROOT, STATE_DIR, STORE, VIEW, Deployment, Run
from farmlib.machines import SOFTWARE, Farm, Machine

#: The file server is also a render node here: a second host with data-only layers that does not scan.
OTHER = "server"


@pytest.fixture(scope="module")
def other(farm: Farm, deployment: Deployment) -> Iterator[Machine]:
    """Return the second host, to which the view is deployed after the first one scanned everything."""
    assert deployment.run.failures("new") == []
    machine = farm.server
    collection.mount_store(machine)
    yield machine
    machine.ssh(f"umount {VIEW}; umount {ROOT} {STORE}; rm -rf {STATE_DIR}; rmdir {VIEW} {ROOT} {STORE}", check=False)


@pytest.fixture(scope="module")
def second_host(farm: Farm, other: Machine) -> Run:
    return collection.deploy(farm, hosts=f"new,{other.name}")


@pytest.fixture(scope="module")
def second_run(farm: Farm, second_host: Run) -> Run:
    assert second_host.code == 0
    return collection.deploy(farm, hosts=f"new,old,{OTHER}", check=False)


@pytest.fixture(scope="module")
def tree(farm: Farm) -> str:
    """Return the listing of the tree on the server."""
    return trees.listing(farm.server, SOFTWARE)


@pytest.fixture(params=list(Farm.running.nodes) if Farm.running else ["old", "new"])
def node(farm: Farm, request: pytest.FixtureRequest) -> Machine:
    """Return each render node, whatever its kernel can do."""
    return farm.nodes[request.param]


def test_the_first_run_mounts_the_view(deployment: Deployment) -> None:
    assert deployment.run.failures("new") == []
    view = deployment.run.views("new")["software"]
    assert view["changed"]
    assert view["mount"]["data"] == [ROOT]


def test_every_release_is_scanned_and_readable(deployment: Deployment) -> None:
    resolution = deployment.run.resolution
    releases = {release.path for release in software.releases()}
    assert {f"scan release {release}" for release in releases} <= set(resolution.values["actions"])
    [view] = resolution.values["lock"]["views"]
    assert {one["release"] for one in view["releases"]} == releases
    assert "not everybody may read" not in resolution.warnings


def test_a_kernel_without_data_only_layers_shows_the_same_generation_by_redirects(deployment: Deployment) -> None:
    """The playbook and the variables are the same."""
    assert deployment.run.failures("old") == []
    view, other = (deployment.run.views(node)["software"] for node in ("old", "new"))
    assert (view["strategy"], other["strategy"]) == ("redirect", "data_only")
    assert view["generation"] == other["generation"]
    assert view["changed"]
    assert view["mount"]["root"] == "/view"
    assert view["mount"]["lower"] == [view["layer"], ROOT]


def test_a_kernel_without_data_only_layers_fails_before_it_copies_an_image(farm: Farm) -> None:
    image = {"name": "trial", "image": f"{STORE}/.images/0.erofs", "image_digest": "sha256:0"}
    refused = collection.module(farm, farm.nodes["old"], "metadata_layer", image, check=False)
    assert refused.failed
    assert "view trial cannot be an image on this host: images need data-only layers" in refused.message
    assert "view_build: local" in refused.message


def test_a_kernel_that_cannot_mount_beneath_mounts_other_releases_over_the_old_ones(
    farm: Farm, deployment: Deployment
) -> None:
    old = farm.nodes["old"]
    assert deployment.run.failures("old") == []

    def bring(**keys: object) -> bool:
        """Bring the view to a state, and return whether that changed something."""
        view = {"name": "trial", "mountpoint": "/trial", "store": STORE, "data": [ROOT], **keys}
        return collection.module(farm, old, "view", {"views": [view]}).changed

    def show(releases: list[str]) -> bool:
        return bring(releases=[{"release": release} for release in releases])

    two = [release.path for release in software.releases()[:2]]
    for releases in (two[:1], two, two[:1]):
        assert show(releases)
        shown = old.output("cd /trial && ls -d */*").split()
        assert sorted(shown) == sorted(releases)
    # The covered mount is the only one left.
    assert old.output("grep -c ' /trial ' /proc/self/mountinfo") == "1"
    assert not show(two[:1])
    assert bring(state="absent")
    assert old.output(f"ls -d /trial {STATE_DIR}/views/trial 2>/dev/null || true") == ""


@pytest.mark.parametrize(("kernel", "writable"), [("old", "upper"), ("new", "scratch")])
def test_a_writable_view_keeps_what_was_written(farm: Farm, deployment: Deployment, kernel: str, writable: str) -> None:
    node = farm.nodes[kernel]
    assert deployment.run.failures("old") == []
    releases = [release.path for release in software.releases()[:2]]
    view = {
        "name": "dev",
        "mountpoint": "/dev-view",
        "store": STORE,
        "data": [ROOT],
        "writable": writable,
        "scratch_size": "64M",
    }

    def bring(**keys: object) -> collection.Result:
        return collection.module(farm, node, "view", {"views": [{**view, **keys}]}, check=False)

    first, second = ([{"release": release}] for release in releases)
    assert bring(releases=first).changed
    changed = node.output(f"find /dev-view/{releases[0]} -type f | sort | head -1")
    node.ssh(f"chmod u+w {changed} && echo patched > {changed} && echo own > /dev-view/own")
    assert not bring(releases=first).changed
    for refused in (bring(releases=second), bring(state="absent")):
        assert refused.failed
        assert "view dev stays as it is, since it was written to" in refused.message
    assert node.output(f"cat {changed} /dev-view/own") == "patched\nown"
    assert bring(releases=second, discard_changes=True).changed
    assert node.output("ls /dev-view") == releases[1].split("/")[0]
    assert bring(state="absent").changed


def test_check_mode_on_a_new_host_writes_nothing(farm: Farm, other: Machine) -> None:
    look = f"cut -d' ' -f5- /proc/self/mountinfo; ls -d {VIEW} {ROOT} {STATE_DIR} 2>&1 || true"
    before = other.output(look)
    run = collection.deploy(farm, hosts=OTHER, arguments=["--check", "--diff"])
    assert run.changed(OTHER) != []
    assert other.output(look) == before


def test_a_host_that_does_not_scan_only_reads_manifests(other: Machine, second_host: Run) -> None:
    """Deploying to one more host costs the server a few calls and no listing, however large the tree is."""
    assert second_host.changed("new") == []
    assert second_host.resolution.values["actions"] == []
    assert "overlay" in other.output(f"findmnt -n -o FSTYPE {VIEW}")
    calls = collection.calls(other, ROOT)
    assert calls.get("READDIR", 0) == 0, calls
    # Before a release is shown for the first time, one of its files is opened and read.
    assert sum(calls.values()) < 40 + CALLS_TO_OPEN * len(software.releases()), calls


def test_the_same_declaration_gives_the_same_generation_on_every_host(
    other: Machine, second_host: Run, tree: str
) -> None:
    generations = [second_host.views(name)["software"]["generation"] for name in ("new", OTHER)]
    assert generations[0] == generations[1]
    # It is the one that the run resolved to before it changed either host.
    assert generations[0] == second_host.resolution.values["lock"]["views"][0]["generation"]
    # Another test compares the view of `new` with the tree.
    assert trees.listing(other, VIEW) == tree


def test_the_second_run_changes_nothing_on_any_host(second_run: Run) -> None:
    assert {name: second_run.changed(name) for name in ("new", "old", OTHER)} == {"new": [], "old": [], OTHER: []}
    assert second_run.code == 0


@pytest.mark.usefixtures("deployment")
def test_the_view_equals_the_tree_on_the_server_entry_by_entry(node: Machine, tree: str) -> None:
    # A view generates the directories above releases, so they are not compared.
    shown = trees.listing(node, VIEW)
    assert int(shown.split()[0]) > 20_000
    assert shown == tree


@pytest.mark.usefixtures("deployment")
def test_files_of_the_view_have_the_content_on_the_server(farm: Farm, node: Machine) -> None:
    assert trees.content(node, VIEW) == trees.content(farm.server, SOFTWARE)


@pytest.mark.usefixtures("deployment")
def test_the_software_root_cannot_be_written_to(farm: Farm) -> None:
    new = farm.nodes["new"]
    for path in (ROOT, VIEW):
        assert "Read-only file system" in new.ssh(f"touch {path}/new", check=False).stderr


@pytest.mark.usefixtures("deployment")
def test_the_software_root_is_read_ahead(farm: Farm) -> None:
    new = farm.nodes["new"]
    assert new.output(f"cat /sys/class/bdi/$(mountpoint -d {ROOT})/read_ahead_kb") == "1024"


@pytest.mark.usefixtures("second_run")
def test_the_playbook_removes_the_view(farm: Farm, other: Machine) -> None:
    variables = {**collection.SITE, "overlay_hosts": OTHER}
    run = collection.playbook(farm, "remove", variables)
    assert run.changed(OTHER) != []
    assert other.output(f"ls -A {STATE_DIR}/views; ls -d {VIEW} 2>/dev/null || true") == ""
    assert collection.playbook(farm, "remove", variables).changed(OTHER) == []
    # The views of other hosts and the manifests still exist.
    assert farm.nodes["new"].output(f"ls {VIEW} {STORE} | sort | uniq -d | head -1") != ""
