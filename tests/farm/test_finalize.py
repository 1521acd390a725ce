"""Test a writable overlay with the software root as a normal lower layer: once finalized, it sends no lookups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, measure, trees
from farmlib.collection import Result
from farmlib.machines import SOFTWARE, Farm, Machine, on_all

NODES = ("old", "new")
LOWER = "/net/finalized"
OVERLAY = "/finalized"


@dataclass(frozen=True)
class Tree:
    """Describe the lower layer of the overlay."""

    #: A release; empty for the whole software root.
    package: str
    #: Options of the NFS mount. For all releases, an emulated processor takes minutes longer with NFS 4 than with NFS 3.
    version: tuple[str, ...]
    entries: int
    directories: int

    @property
    def source(self) -> str:
        return f"{SOFTWARE}/{self.package}".rstrip("/")

    @property
    def work(self) -> measure.Configuration:
        return measure.Configuration(
            "overlay-finalized",
            "overlay, NFS as a normal lower layer, after `overlay_finalize`",
            setup=measure.kept(OVERLAY),
            root=OVERLAY,
            nfs=LOWER,
            teardown="true",
            nodes=NODES,
            work=("missing", "readdir", "open"),
            package=self.package,
        )


ONE_RELEASE = Tree("sympy/1.14.0", ("vers=4.2",), entries=1_500, directories=150)
ALL_RELEASES = Tree("", ("vers=3", "nolock"), entries=22_000, directories=5_000)


@dataclass(frozen=True)
class Finalized:
    """Hold the first run on one node, the calls measured after it, and the second run."""

    first: Result
    rows: dict[tuple[str, str], dict[str, Any]]
    second: Result


def finalize(farm: Farm, node: Machine, **options: Any) -> Result:
    return collection.module(
        farm, node, "overlay_finalize", {"path": OVERLAY, "allow_unmount": True, **options}, timeout=1800
    )


@pytest.fixture(scope="module")
def tree(request: pytest.FixtureRequest) -> Tree:
    return ALL_RELEASES if request.config.getoption("--all-releases") else ONE_RELEASE


@pytest.fixture(scope="module")
def nodes(farm: Farm, tree: Tree) -> Iterator[list[Machine]]:
    """Return render nodes with an overlay whose upper layer is on their disks and whose lower layer is the tree on NFS."""
    found = [farm.nodes[name] for name in NODES]
    # A separate mount, so that no view shares its caches and counts.
    options = ["ro", *tree.version, "nocto", "actimeo=3600", "nosharecache"]
    root = {"path": LOWER, "source": f"server:{tree.source}", "options": options}
    layers = {
        "lower": [LOWER],
        "upper": "/var/lib/finalized/upper",
        "work": "/var/lib/finalized/work",
    }

    def mount(node: Machine) -> None:
        collection.module(farm, node, "software_root", root)
        collection.module(farm, node, "overlay_mount", {"path": OVERLAY, **layers})

    on_all(found, mount)
    yield found
    on_all(
        found,
        lambda node: node.ssh(
            f"while mountpoint -q {OVERLAY}; do umount {OVERLAY}; done; umount {LOWER}; rm -rf {OVERLAY} /var/lib/finalized",
            timeout=600,
        ),
    )


@pytest.fixture(scope="module")
def results(farm: Farm, nodes: list[Machine], tree: Tree) -> dict[str, Finalized]:
    """Finalize the tree on all nodes at once, and return the results."""
    measure.install(farm, nodes, tree.package)

    def work(node: Machine) -> Finalized:
        first = finalize(farm, node)
        rows = {(row["work"], row["state"]): row for row in measure.rows(farm, node, tree.work)}
        print(node.name, first.values["actions"], [(*key, row["operations"]) for key, row in rows.items()])
        return Finalized(first, rows, finalize(farm, node))

    return on_all(nodes, work)


@pytest.fixture(params=NODES)
def node(farm: Farm, request: pytest.FixtureRequest) -> Machine:
    return farm.nodes[request.param]


@pytest.fixture
def finalized(results: dict[str, Finalized], node: Machine) -> Finalized:
    return results[node.name]


#: The root of the overlay, which cannot be opaque.
UNSEALED = 1


def test_the_whole_tree_is_copied_up_and_sealed(finalized: Finalized, tree: Tree) -> None:
    values = finalized.first.values
    assert finalized.first.changed
    assert values["pending"] == []
    assert values["finalized"]
    assert values["copied_up"] > tree.entries
    assert values["sealed"] > tree.directories


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_missing_names_send_nothing(finalized: Finalized, state: str) -> None:
    row = finalized.rows["missing", state]
    assert row["done"] == "5000 missing"
    assert row["calls"] == 0, row["operations"]


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_listing_of_everything_sends_one_call_for_each_directory_that_is_not_sealed(
    finalized: Finalized, state: str
) -> None:
    row = finalized.rows["readdir", state]
    operations = {name: calls for name, (calls, _errors) in row["operations"].items()}
    # ACCESS may follow once, if the client no longer has the access rights cached.
    assert set(operations) <= {"READDIR", "READDIRPLUS", "ACCESS"}, row
    assert max(operations.values(), default=0) <= UNSEALED, row


def test_a_first_open_looks_up_no_missing_names(finalized: Finalized) -> None:
    operations = finalized.rows["open", "cold"]["operations"]
    assert {name: errors for name, (_calls, errors) in operations.items() if errors} == {}


def test_a_second_run_changes_nothing(finalized: Finalized) -> None:
    assert not finalized.second.changed
    assert finalized.second.values["finalized"]
    assert finalized.second.values["directories_read"] <= UNSEALED


@pytest.mark.usefixtures("finalized")
def test_the_overlay_equals_the_tree_on_the_server_entry_by_entry(farm: Farm, node: Machine, tree: Tree) -> None:
    shown = trees.listing(node, OVERLAY, depth=1)
    assert int(shown.split()[0]) > tree.entries
    assert shown == trees.listing(farm.server, tree.source, depth=1)


@pytest.mark.usefixtures("finalized")
def test_files_of_the_overlay_have_the_content_on_the_server(farm: Farm, node: Machine, tree: Tree) -> None:
    assert trees.content(node, OVERLAY) == trees.content(farm.server, tree.source)


def test_the_next_run_copies_up_a_new_release_and_names_hidden_entries(
    farm: Farm, nodes: list[Machine], tree: Tree
) -> None:
    release = f"{tree.package}/trial".lstrip("/")
    farm.server.add_release(release, {"bin/tool": "one\n", "data/file": "one\n"})
    try:
        # As after the cached attributes of the directory have expired.
        on_all(nodes, lambda node: node.drop_caches())
        for node in nodes:
            assert node.output(f"cat {OVERLAY}/trial/bin/tool") == "one"
        # Only the subtree.
        first = on_all(nodes, lambda node: finalize(farm, node, subtrees=["trial/bin"]))
        assert [(found.values["pending"], found.values["copied_up"]) for found in first.values()] == [([], 1)] * 2

        farm.server.write(f"{tree.source}/trial/etc/licence", "secret\n", mode=0o600)
        farm.server.ssh(f"mkdir -m 700 {tree.source}/trial/private")
        on_all(nodes, lambda node: node.drop_caches())
        second = on_all(nodes, lambda node: finalize(farm, node, subtrees=["trial"]))
        for node in nodes:
            values = second[node.name].values
            print(node.name, values)
            pending = {found["path"]: found["reason"] for found in values["pending"]}
            assert "trial/private" in pending, pending
            assert not any(path.startswith("trial/bin") for path in pending), pending
            assert 0 < values["copied_up"] < 10, values
            assert node.output(f"cat {OVERLAY}/trial/bin/tool; ls {OVERLAY}/trial/etc").split() == ["one", "licence"]
    finally:
        farm.server.delete_release(release)
