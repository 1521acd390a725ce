"""Test that software starts from data images without the file server, and that kernels without data-only layers refuse them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Made:
    """Hold the results of building the image and of deploying the view."""

    image: collection.Result
    run: collection.Run


@pytest.fixture(scope="module")
def node(farm: Farm, deployment: collection.Deployment) -> Iterator[Machine]:
    assert deployment.run.failures("new") == []
    machine = farm.nodes["new"]
    starts.install(machine)
    yield machine
    variables = {**collection.SITE, "overlay_hosts": "new", "overlay_views": [DECLARED]}
    collection.playbook(farm, "remove", variables, check=False)
    machine.ssh(f"rm -rf {starts.IMAGE_STORE}/.data {STORE}/{RELEASE}.trace.json", check=False)


@pytest.fixture(scope="module")
def made(farm: Farm, node: Machine) -> Made:
    """Trace a start in the view of all releases, build the data image of its release, and deploy a view with it."""
    traced, built = collection.modules(farm, node, [starts.trace(START), starts.build(RELEASE)])
    assert [release["release"] for release in traced.values["releases"]] == [RELEASE]
    assert not traced.values["overflowed"]
    return Made(built, collection.deploy(farm, [DECLARED]))


def test_the_image_has_what_the_start_opened(made: Made) -> None:
    assert made.image.values["files"] > 50
    assert made.image.values["left_out"] == {}


def test_the_view_has_the_image_as_a_data_layer_before_the_software_root(node: Machine, made: Made) -> None:
    assert made.run.failures("new") == []
    [image] = made.run.views("new")["traced"]["data_images"]
    assert image["release"] == RELEASE
    lower = node.output(["findmnt", "-n", "-o", "OPTIONS", VIEW])
    assert f"::{STATE_DIR}/data/{image['id']}::{ROOT}" in lower, lower


@pytest.mark.usefixtures("made")
def test_a_start_from_data_images_sends_nothing_cold_or_warm(node: Machine) -> None:
    rows = starts.measured(node, WAY, START)
    assert [(row["state"], row["calls"]) for row in rows] == [("cold", 0), ("warm", 0)], rows


@pytest.mark.usefixtures("made")
def test_software_starts_from_data_images_while_the_server_is_stopped(farm: Farm, node: Machine) -> None:
    with farm.server.nfsd_stopped():
        rows = starts.measured(node, WAY, START)
    assert [(row["state"], row["calls"]) for row in rows] == [("cold", 0), ("warm", 0)], rows


@pytest.mark.usefixtures("made")
def test_files_that_are_not_in_the_image_come_from_the_server(node: Machine) -> None:
    other = f"{RELEASE}/.ready"
    [read, expected] = (node.output(["cat", f"{root}/{other}"]) for root in (VIEW, ROOT))
    assert read == expected


@pytest.mark.usefixtures("made")
def test_a_second_deployment_changes_nothing(farm: Farm) -> None:
    assert collection.deploy(farm, [DECLARED]).changed("new") == []


def test_a_kernel_without_data_only_layers_refuses_data_images_with_the_reason(farm: Farm, made: Made) -> None:
    old = farm.nodes["old"]
    path = shlex.quote(made.image.values["image"])
    old.ssh(f"mkdir -p /var/tmp/farm-data; cp {path} /var/tmp/farm-data/image.erofs")
    options: dict[str, Any] = {
        "path": "/refused",
        "lower": [f"{STATE_DIR}/views/software/current/layer"],
        "data": ["/var/tmp/farm-data/image.erofs", ROOT],
        "read_only": True,
    }
    refused = collection.module(farm, old, "overlay_mount", options, check=False)
    assert refused.failed
    assert "data-only" in refused.message, refused.message
    assert old.ssh("mountpoint -q /refused", check=False).returncode != 0
    old.ssh("rm -r /var/tmp/farm-data")
