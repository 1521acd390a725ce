"""Test images with fs-verity, of metadata and of data: a bit that rots on the disk below is an error and no wrong byte."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from farmlib import builder, collection, host, starts
from farmlib.collection import ROOT, STATE_DIR, STORE
from farmlib.machines import SOFTWARE, Farm, Machine

RELEASE = "verified/1.0"
VIEW = "/verified"
#: A directory with a file system that has fs-verity, and the file that it is on.
VERITY, DISK = "/verity/disk", "/verity/disk.image"
PROGRAM = "/usr/local/lib/farm/verity.py"


def verified(state_dir: str) -> dict[str, Any]:
    """Return the task that shows a view from an image of metadata and one of data, both with fs-verity."""
    data = {"release": RELEASE, "kind": "everything", "digest": "{{ data.digest }}", "complete": True}
    view = {
        "name": "verified",
        "mountpoint": VIEW,
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
def node(farm: Farm) -> Machine:
    machine = farm.nodes["new"]
    collection.mount_store(machine)
    return machine


@pytest.fixture
def with_verity(farm: Farm, node: Machine) -> Iterator[list[collection.Result]]:
    """Show a view from images with fs-verity; return the results, on the node's own file system and on one that has fs-verity."""
    builder.install(node)
    node.copy(host.FARM_SOURCE / "guest" / "verity.py", PROGRAM)
    farm.server.add_release(RELEASE, {"data/file": random.Random(1).randbytes(100_000).hex()})
    options = "ro,vers=4.2,hard,nocto,actimeo=3600,nodev"
    node.ssh(
        f"set -eu; mkdir -p {VERITY} {ROOT}; mountpoint -q {ROOT} || mount -t nfs -o {options} server:{SOFTWARE} {ROOT}\n"
        f"truncate -s 64M {DISK}; mkfs.ext4 -q -b 4096 -O verity {DISK}; mount -o loop {DISK} {VERITY}"
    )
    name, build = starts.build(RELEASE, "everything")
    layer = {"name": "verified", "releases": [{"release": RELEASE}], "store": STORE, "image_store": starts.IMAGE_STORE}
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
        {"renderfarm.overlay.release_manifest": {"root": ROOT, "store": STORE, "release": RELEASE}},
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
        f"umount -l {VIEW} {VERITY}; rm -r /verity; rmdir {VIEW}\n"
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
        f"{VERITY}/state/data/{image['id']}.erofs": data.values["digest"],
        view["layer"]: layer.values["image_digest"],
    }
    for path, digest in images.items():
        found = json.loads(node.output(["python3", PROGRAM, "digests", path]))
        assert found["measured"] == found["computed"], path
        assert f"sha256:{found['sha256']}" == digest, path

    file = f"{VIEW}/{RELEASE}/data/file"
    compare = ["python3", PROGRAM, "compare", file, f"{ROOT}/{RELEASE}/data/file"]
    assert set(json.loads(node.output(compare)).items()) >= {("wrong", 0), ("EIO", 0)}
    node.ssh("sync")
    [of_data, of_metadata] = [(path, int(node.output(["stat", "-c", "%s", path]))) for path in images]
    node.ssh(["python3", PROGRAM, "damage", of_data[0], DISK, str(of_data[1] // 2)])
    node.drop_caches()
    found = json.loads(node.output(compare))
    host.say(f"with a bit of the data image flipped: {found}")
    assert found["wrong"] == 0, found
    assert min(found["EIO"], found["right"]) > 0, found

    # The metadata may be in any block.
    offsets = [str(offset) for offset in range(100, of_metadata[1], 4096)]
    node.ssh(["python3", PROGRAM, "damage", of_metadata[0], DISK, *offsets])
    node.drop_caches()
    listed = node.ssh(["ls", "-lR", VIEW], check=False)
    host.say(f"with a bit of each block of the metadata flipped: {listed.stderr.strip()}")
    assert listed.returncode != 0
    assert "Input/output error" in listed.stderr, listed
