"""Test a kernel that seals directories itself: the node `new` with a patched overlayfs. `make farm-patched` runs this."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, measure, patched, trees
from farmlib.collection import Result
from farmlib.machines import SOFTWARE, Farm, Machine

#: Prints the value of overlay.opaque of each directory of a tree.
_MARKS = """
import json, os, sys
found = {}
for base, _names, _files in os.walk(sys.argv[1]):
    has = "trusted.overlay.opaque" in os.listxattr(base)
    found[os.path.relpath(base, sys.argv[1])] = os.getxattr(base, "trusted.overlay.opaque").decode() if has else ""
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Overlay:
    """Describe a writable overlay over a package on NFS."""

    farm: Farm
    node: Machine
    package: str

    @property
    def path(self) -> str:
        return f"/patched/{self.package}"

    @property
    def lower(self) -> str:
        return f"/net/patched-{self.package}"

    @property
    def kept(self) -> str:
        return f"/var/lib/patched/{self.package}"

    @property
    def source(self) -> str:
        return f"{SOFTWARE}/{self.package}"

    def mount(self) -> None:
        layers = f"lowerdir={self.lower},upperdir={self.kept}/upper,workdir={self.kept}/work"
        self.node.ssh(
            f"set -e; mkdir -p {self.path} {self.lower} {self.kept}/upper {self.kept}/work\n"
            f"mount -t nfs -o ro,vers=3,nolock,nocto,actimeo=3600,nosharecache server:{self.source} {self.lower}\n"
            f"mount -t overlay overlay -o {layers},metacopy=on,redirect_dir=on,index=on {self.path}"
        )

    def unmount(self) -> None:
        """Unmount the overlay, and its lower layer if it is mounted."""
        self.node.ssh(f"set -e; umount {self.path}; ! mountpoint -q {self.lower} || umount {self.lower}")

    def remove(self) -> None:
        mounts = f"{self.path} {self.lower}"
        self.node.ssh(
            f"for path in {mounts}; do ! mountpoint -q $path || umount $path; done; rm -rf {self.kept} {self.path}"
        )

    def marks(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.node.output(["python3", "-c", _MARKS, f"{self.kept}/upper"]))
        return found

    def finalize(self, **options: Any) -> Result:
        return collection.module(self.farm, self.node, "overlay_finalize", {"path": self.path, **options}, timeout=900)


@pytest.fixture(scope="module")
def node(farm: Farm) -> Iterator[Machine]:
    """Return the node with the patched module."""
    machine = farm.nodes["new"]
    with patched.loaded(machine):
        yield machine


@pytest.fixture(scope="module")
def overlay(farm: Farm, node: Machine) -> Iterator[Overlay]:
    """Return an overlay over a package after `chown -R -h` and `ls -lR`."""
    found = Overlay(farm, node, "sympy")
    found.mount()
    node.ssh(f"chown -R -h root:root {found.path}; ls -lR {found.path} >/dev/null", timeout=900)
    yield found
    found.remove()


@pytest.fixture
def small(farm: Farm, node: Machine) -> Iterator[Overlay]:
    """Return a mounted overlay over a package of two small releases, with nothing copied up."""
    found = Overlay(farm, node, "sealing")
    for version in ("1.0", "2.0"):
        farm.server.add_release(
            f"sealing/{version}", {"bin/tool": f"tool {version}\n", "lib/data": f"data {version}\n"}
        )
    found.mount()
    yield found
    found.remove()
    farm.server.delete_release("sealing")


@pytest.mark.parametrize(("name", "seals"), [("new", True), ("old", False)])
@pytest.mark.usefixtures("node")
def test_overlay_info_tries_whether_the_kernel_seals(farm: Farm, name: str, seals: bool) -> None:
    feature = collection.module(farm, farm.nodes[name], "overlay_info", {"probe": True}).values["features"][
        "kernel_seal"
    ]
    assert feature["supported"] is seals, feature


def test_chown_and_ls_alone_seal_every_directory(farm: Farm, overlay: Overlay) -> None:
    marks = overlay.marks()
    assert len(marks) > 300
    assert set(marks.values()) == {"z"}
    assert trees.listing(overlay.node, overlay.path, depth=1) == trees.listing(farm.server, overlay.source, depth=1)


def test_overlay_finalize_has_nothing_left_to_do(overlay: Overlay) -> None:
    result = overlay.finalize(allow_unmount=True)
    assert not result.changed
    assert result.values["finalized"], result.values["pending_by_reason"]
    assert not result.values["unmounted"]
    assert set(overlay.marks().values()) == {"z"}


def test_missing_names_and_listings_ask_the_server_for_no_names(farm: Farm, overlay: Overlay) -> None:
    overlay.unmount()
    overlay.mount()
    configuration = measure.Configuration(
        "patched-package",
        "overlay, NFS as a normal lower layer, sealed by the kernel",
        setup=measure.kept(overlay.path),
        root=overlay.path,
        nfs=overlay.lower,
        teardown="true",
        work=("missing", "readdir", "stat", "open"),
        package=overlay.package,
    )
    rows = {(row["work"], row["state"]): row for row in measure.rows(farm, overlay.node, configuration)}
    print([(*key, row["calls"], row["operations"]) for key, row in rows.items()])
    failed = {key: found for key, row in rows.items() if (found := _failed(row))}
    assert failed == {}
    assert rows["missing", "warm"]["calls"] == 0
    assert not {"READDIR", "READDIRPLUS"} & {name for row in rows.values() for name in row["operations"]}


def _failed(row: dict[str, Any]) -> dict[str, int]:
    return {name: errors for name, (_calls, errors) in row["operations"].items() if errors}


def test_entries_that_are_added_below_while_the_overlay_is_not_mounted_are_not_seen(
    farm: Farm, overlay: Overlay
) -> None:
    before = trees.listing(overlay.node, overlay.path, depth=1)
    content = trees.content(overlay.node, overlay.path)
    release = farm.server.output(f"ls {overlay.source} | head -n 1")
    late = ["late", f"{release}/late", f"{release}/python/sympy/late.py", f"{release}/new/late"]
    overlay.unmount()
    for name in late:
        farm.server.write(f"{overlay.source}/{name}", "late\n")
    try:
        overlay.mount()
        for name in late:
            assert overlay.node.ssh(f"test -e {overlay.lower}/{name}; test ! -e {overlay.path}/{name}").returncode == 0
        assert trees.listing(overlay.node, overlay.path, depth=1) == before
        assert trees.content(overlay.node, overlay.path) == content
        assert not overlay.finalize(allow_unmount=True).changed
    finally:
        farm.server.ssh(f"cd {overlay.source}; rm -rf {' '.join(late)} {release}/new")


def _contents(overlay: Overlay) -> str:
    return overlay.node.output(f"cd {overlay.path}; cat */bin/* */lib/*")


CONTENTS = "tool 1.0\ntool 2.0\ndata 1.0\ndata 2.0"
FIRST, SECOND = {"1.0", "1.0/bin", "1.0/lib"}, {"2.0", "2.0/bin", "2.0/lib"}


def test_marks_of_the_kernel_and_of_a_run_live_side_by_side(farm: Farm, small: Overlay) -> None:
    # Without the pass readdir, the kernel sees no complete directory before the run seals it.
    first = small.finalize(subtrees=["1.0"], passes=["copy_up", "seal"], seal="offline", allow_unmount=True)
    assert first.values["sealed"] == 3
    second = small.finalize(seal="kernel")
    assert second.values["finalized"], second.values["pending"]
    marks = small.marks()
    assert marks == {**dict.fromkeys(FIRST, "y"), **dict.fromkeys(SECOND, "z"), ".": "z"}
    small.unmount()
    for version in ("1.0", "2.0"):
        farm.server.write(f"{small.source}/{version}/bin/late", "late\n")
    small.mount()
    assert _contents(small) == CONTENTS
    again = small.finalize(allow_unmount=True)
    assert not again.changed
    assert small.marks() == marks
    # What the kernel hides does not keep a run from detaching the overlay.
    detached = small.finalize(detach=True, allow_unmount=True)
    assert detached.values["detached"], detached.values["pending"]
    small.node.ssh(f"umount {small.lower}; echo 3 >/proc/sys/vm/drop_caches")
    assert _contents(small) == CONTENTS


def test_a_directory_that_the_kernel_sealed_stays_readable_when_a_run_seals_the_one_above(small: Overlay) -> None:
    small.node.ssh(f"cd {small.path}; chown -R -h root:root 2.0/bin; ls -l 2.0/bin")
    assert small.marks()["2.0/bin"] == "z"
    result = small.finalize(passes=["copy_up", "seal"], allow_unmount=True)
    assert result.values["finalized"], result.values["pending"]
    assert small.marks() == {**dict.fromkeys(FIRST | SECOND, "y"), ".": ""}
    assert _contents(small) == CONTENTS
