"""Test that software starts from data images without the file server, and that kernels without data-only layers refuse them.

Images with fs-verity, of metadata and of data, are damaged on the disk.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import builder, collection, host, measure, starts
from farmlib.collection import ROOT, STATE_DIR, STORE
from farmlib.machines import SOFTWARE, Farm, Machine

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


VERIFIED = "verified/1.0"
VERIFIED_VIEW = "/verified"
#: A directory with a file system that has fs-verity, and the file that it is on.
VERITY, DISK = "/verity/disk", "/verity/disk.image"
PROGRAM = "/usr/local/lib/farm/verity.py"


def verified(state_dir: str) -> dict[str, Any]:
    """Return the task that shows a view from an image of metadata and one of data, both with fs-verity."""
    data = {"release": VERIFIED, "kind": "everything", "digest": "{{ data.digest }}", "complete": True}
    view = {
        "name": "verified",
        "mountpoint": VERIFIED_VIEW,
        "image": "{{ layer.image }}",
        "image_digest": "{{ layer.image_digest }}",
        "data": [ROOT],
        "data_images": "everything",
        "locked_data_images": [{**data, "bytes_on_disk": "{{ data.bytes_on_disk }}"}],
        "image_store": starts.IMAGE_STORE,
        "require_verity": True,
        "state_dir": state_dir,
    }
    return {"renderfarm.overlay.view": {"views": [view]}}


@pytest.fixture
def with_verity(farm: Farm, node: Machine) -> Iterator[list[collection.Result]]:
    """Show a view from images with fs-verity; return the results, on the node's own file system and on one that has fs-verity."""
    builder.install(node)
    node.copy(host.FARM_SOURCE / "guest" / "verity.py", PROGRAM)
    farm.server.add_release(VERIFIED, {"data/file": random.Random(1).randbytes(100_000).hex()})
    options = "ro,vers=4.2,hard,nocto,actimeo=3600,nodev"
    node.ssh(
        f"set -eu; mkdir -p {VERITY} {ROOT}; mountpoint -q {ROOT} || mount -t nfs -o {options} server:{SOFTWARE} {ROOT}\n"
        f"truncate -s 64M {DISK}; mkfs.ext4 -q -b 4096 -O verity {DISK}; mount -o loop {DISK} {VERITY}"
    )
    name, build = starts.build(VERIFIED, "everything")
    layer = {"name": "verified", "releases": [{"release": VERIFIED}], "store": STORE, "image_store": starts.IMAGE_STORE}
    # What a run that was killed may leave: copies that have fs-verity already, so that nobody can write to them.
    incoming = [f"{VERITY}/state/{place}/incoming" for place in ("data", "views/verified")]
    digests = ("{{ data.digest[7:] }}", "{{ layer.image_digest[7:] }}")
    copies = [f"{place}/{digest}" for place, digest in zip(incoming, digests)]
    leftovers = [
        f"mkdir -p {' '.join(incoming)}",
        *(f"echo left >{copy}" for copy in copies),
        f"python3 {PROGRAM} enable {' '.join(copies)}",
    ]
    tasks = [
        {"renderfarm.overlay.release_manifest": {"root": ROOT, "store": STORE, "release": VERIFIED}},
        {f"renderfarm.overlay.{name}": build, "register": "data"},
        {"renderfarm.overlay.metadata_layer": layer, "register": "layer"},
        {**verified(STATE_DIR), "ignore_errors": True},
        {"ansible.builtin.shell": "set -e; " + "; ".join(leftovers)},
        verified(f"{VERITY}/state"),
    ]
    play = host.BUILD / "run" / "verity.yml"
    play.write_text(json.dumps([{"hosts": node.name, "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    results = collection.playbook(farm, play).of(node)
    yield results
    image = str(results[2].values["image"]).removesuffix(".erofs")
    node.ssh(
        f"umount -l {VERIFIED_VIEW} {VERITY}; rm -r /verity; rmdir {VERIFIED_VIEW}\n"
        f"rm -rf {STORE}/verified {starts.IMAGE_STORE}/.data/verified {image}.* {STATE_DIR}/views/verified",
        check=False,
    )
    builder.remove(node)
    farm.server.delete_release("verified")


def test_a_bit_that_rots_in_an_image_with_verity_is_an_error_and_no_wrong_byte(
    node: Machine, with_verity: list[collection.Result]
) -> None:
    _manifest, data, layer, refused, _left, shown = with_verity
    assert refused.status == "ignored"
    assert "cannot have fs-verity, which require_verity asks for" in refused.message
    [view] = shown.values["views"]
    [image] = view["data_images"]
    images = {
        f"{VERITY}/state/data/{image['id']}.erofs": data.values["image"],
        f"{view['layer']}": layer.values["image"],
    }
    for path, copy in images.items():
        found, expected = json.loads(node.output(["python3", PROGRAM, "digests", path, copy]))
        assert found == expected, path

    file = f"{VERIFIED_VIEW}/{VERIFIED}/data/file"
    compare = ["python3", PROGRAM, "compare", file, f"{ROOT}/{VERIFIED}/data/file"]
    assert set(json.loads(node.output(compare)).items()) >= {("wrong", 0), ("EIO", 0)}
    node.ssh("sync")
    [of_data, of_metadata] = [(path, int(node.output(["stat", "-c", "%s", path]))) for path in images]
    node.ssh(["python3", PROGRAM, "damage", of_data[0], DISK, str(of_data[1] // 2)])
    node.drop_caches()
    found = json.loads(node.output(compare))
    assert found["wrong"] == 0, found
    assert min(found["EIO"], found["right"]) > 0, found

    # The metadata may be in any block.
    offsets = [str(offset) for offset in range(100, of_metadata[1], 4096)]
    node.ssh(["python3", PROGRAM, "damage", of_metadata[0], DISK, *offsets])
    node.drop_caches()
    listed = node.ssh(["ls", "-lR", VERIFIED_VIEW], check=False)
    assert listed.returncode != 0
    assert "Input/output error" in listed.stderr, listed
