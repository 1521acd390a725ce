"""Test that software starts from data images without the file server, and that kernels without data-only layers refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import collection, measure, starts
from farmlib.collection import ROOT, STATE_DIR, STORE
from farmlib.machines import Farm, Machine

VIEW = "/traced"
RELEASE = "numpy/2.3.5"
START = "numpy"
DECLARED = {"name": "traced", "mountpoint": VIEW, "releases": [RELEASE], "data_images": "trace"}
WAY = starts.Way("traced", "a view with data images", VIEW, measure.kept(VIEW))


@pytest.fixture(scope="module")
def node(farm: Farm) -> Iterator[Machine]:
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    starts.install(machine)
    yield machine
    variables = {**collection.SITE, "overlay_hosts": "new", "overlay_views": [DECLARED]}
    collection.playbook(farm, "remove", variables, check=False)
    machine.ssh(f"rm -rf {starts.IMAGE_STORE}/.data/{RELEASE} {STORE}/{RELEASE}.trace.json", check=False)


@pytest.fixture(scope="module")
def image(farm: Farm, node: Machine) -> dict[str, Any]:
    """Trace a start in a view, deploy it again with a data image, and return the image as the view reports it."""
    collection.deploy(farm, [{**DECLARED, "data_images": "none"}])
    [traced] = collection.modules(farm, node, [starts.trace(START, [RELEASE], VIEW)])
    assert [release["release"] for release in traced.values["releases"]] == [RELEASE]
    assert not traced.values["overflowed"]
    run = collection.deploy(farm, [DECLARED])
    assert run.failures("new") == []
    [found] = run.views("new")["traced"]["data_images"]
    assert found["release"] == RELEASE
    return dict(found)


def test_the_image_is_a_data_layer_before_the_software_root(node: Machine, image: dict[str, Any]) -> None:
    options = node.output(["findmnt", "-n", "-o", "OPTIONS", VIEW]).split(",")
    layers = [option.partition("=")[2] for option in options if option.startswith("datadir+=")]
    assert layers == [f"{STATE_DIR}/data/{image['id']}", ROOT], options


def sent(rows: list[dict[str, Any]]) -> list[tuple[str, int, dict[str, Any]]]:
    """Return state, calls, and operations by mountpoint, of each row."""
    return [(row["state"], row["calls"], row["operations"] if row["calls"] else {}) for row in rows]


@pytest.mark.usefixtures("image")
def test_a_start_from_data_images_sends_nothing_cold_or_warm(farm: Farm, node: Machine) -> None:
    farm.server.end_delegations(node)
    # All NFS mounts of the node are counted.
    assert sent(starts.measured(node, WAY, START)) == [("cold", 0, {}), ("warm", 0, {})]


@pytest.mark.usefixtures("image")
def test_software_starts_from_data_images_while_the_server_is_stopped(farm: Farm, node: Machine) -> None:
    farm.server.end_delegations(node)
    with farm.server.nfsd_stopped():
        rows = starts.measured(node, WAY, START)
    assert sent(rows) == [("cold", 0, {}), ("warm", 0, {})]


@pytest.mark.usefixtures("image")
def test_files_that_are_not_in_the_image_come_from_the_server(node: Machine) -> None:
    other = f"{RELEASE}/.ready"
    [read, expected] = (node.output(["cat", f"{root}/{other}"]) for root in (VIEW, ROOT))
    assert read == expected


def test_a_kernel_without_data_only_layers_refuses_data_images_with_the_reason(
    farm: Farm, image: dict[str, Any]
) -> None:
    old = farm.nodes["old"]
    path = f"{starts.IMAGE_STORE}/.data/{RELEASE}/{image['id']}.erofs"
    collection.mount_store(old)
    old.ssh(f"mkdir -p /var/tmp/farm-data/layer; cp {path} /var/tmp/farm-data/image.erofs")
    options: dict[str, Any] = {
        "path": "/refused",
        "lower": ["/var/tmp/farm-data/layer"],
        "data": ["/var/tmp/farm-data/image.erofs"],
        "read_only": True,
    }
    refused = collection.module(farm, old, "overlay_mount", options, check=False)
    assert refused.failed
    assert "data-only" in refused.message, refused.message
    assert old.ssh("mountpoint -q /refused", check=False).returncode != 0
    old.ssh("rm -r /var/tmp/farm-data")
