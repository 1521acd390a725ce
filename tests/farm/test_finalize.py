"""A writable overlay that has the software root as a normal lower layer: once finalized, it asks the server for no names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from farmlib import collection, measure, trees
from farmlib.collection import Result
from farmlib.machines import SOFTWARE, Farm, Machine, on_all

NODES = ("old", "new")
#: One package of the software root, with two releases: an emulated processor takes minutes for the whole of it.
PACKAGE = "sympy"
SOURCE = f"{SOFTWARE}/{PACKAGE}"
ENTRIES = 3_000
LOWER = "/net/finalized"
OVERLAY = "/finalized"
#: The overlay stays mounted; what makes it cold is that nothing of it or below it is in memory any more.
WORK = measure.Configuration(
    "overlay-finalized",
    "overlay, NFS as a normal lower layer, after `overlay_finalize`",
    setup=f"mountpoint -q {OVERLAY}; for again in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done",
    root=OVERLAY,
    nfs=LOWER,
    teardown="true",
    nodes=NODES,
    work=("missing", "readdir", "open"),
    package=PACKAGE,
)


@dataclass(frozen=True)
class Finalized:
    """An overlay on one node after its first run, what has been asked for since, and what the second run did."""

    first: Result
    rows: dict[tuple[str, str], dict[str, Any]]
    second: Result


def finalize(farm: Farm, node: Machine, **options: Any) -> Result:
    return collection.module(
        farm, node, "overlay_finalize", {"path": OVERLAY, "allow_unmount": True, **options}, timeout=900
    )


@pytest.fixture(scope="module")
def nodes(farm: Farm) -> Iterator[list[Machine]]:
    """Render nodes with an overlay that has an upper layer on their disks and the package on NFS as a normal lower one."""
    found = [farm.nodes[name] for name in NODES]
    # A mount of its own, so that no view shares what is cached and counted.
    options = ["ro", "vers=4.2", "nocto", "actimeo=3600", "nosharecache"]
    root = {"path": LOWER, "source": f"server:{SOURCE}", "options": options}
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
def results(farm: Farm, nodes: list[Machine]) -> dict[str, Finalized]:
    """What finalizing the package came to, on all nodes at once."""
    measure.install(farm, nodes, PACKAGE)

    def work(node: Machine) -> Finalized:
        first = finalize(farm, node)
        rows = {(row["work"], row["state"]): row for row in measure.rows(farm, node, WORK)}
        print(node.name, first.values["actions"], [(*key, row["operations"]) for key, row in rows.items()])
        return Finalized(first, rows, finalize(farm, node))

    return on_all(nodes, work)


@pytest.fixture(params=NODES)
def node(farm: Farm, request: pytest.FixtureRequest) -> Machine:
    return farm.nodes[request.param]


@pytest.fixture
def finalized(results: dict[str, Finalized], node: Machine) -> Finalized:
    return results[node.name]


#: The root of the overlay, which the kernel knows no mark for.
UNSEALED = 1


def test_all_of_the_tree_is_copied_up_and_sealed(finalized: Finalized) -> None:
    values = finalized.first.values
    assert finalized.first.changed
    assert values["pending"] == []
    assert values["finalized"]
    assert values["copied_up"] > ENTRIES
    assert values["sealed"] > 300


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_missing_names_send_nothing(finalized: Finalized, state: str) -> None:
    row = finalized.rows["missing", state]
    assert row["done"] == "5000 missing"
    assert row["calls"] == 0, row


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_listing_of_everything_sends_one_call_for_each_directory_that_is_not_sealed(
    finalized: Finalized, state: str
) -> None:
    row = finalized.rows["readdir", state]
    operations = {name: calls for name, (calls, _errors) in row["operations"].items()}
    # And whether it may be read is asked once, where the client does not know it any more.
    assert set(operations) <= {"READDIR", "ACCESS"}, row
    assert max(operations.values(), default=0) <= UNSEALED, row


def test_a_first_open_looks_up_nothing_that_is_not_there(finalized: Finalized) -> None:
    operations = finalized.rows["open", "cold"]["operations"]
    assert {name: errors for name, (_calls, errors) in operations.items() if errors} == {}


def test_a_second_run_changes_nothing(finalized: Finalized) -> None:
    assert not finalized.second.changed
    assert finalized.second.values["finalized"]
    assert finalized.second.values["directories_read"] <= UNSEALED


@pytest.mark.usefixtures("finalized")
def test_the_overlay_is_the_tree_on_the_server_entry_by_entry(farm: Farm, node: Machine) -> None:
    shown = trees.listing(node, OVERLAY, depth=1)
    assert int(shown.split()[0]) > ENTRIES
    assert shown == trees.listing(farm.server, SOURCE, depth=1)


@pytest.mark.usefixtures("finalized")
def test_files_of_the_overlay_have_the_content_on_the_server(farm: Farm, node: Machine) -> None:
    assert trees.content(node, OVERLAY) == trees.content(farm.server, SOURCE)


def test_a_release_that_appears_is_taken_up_by_the_next_run_and_what_is_hidden_is_named(
    farm: Farm, nodes: list[Machine]
) -> None:
    farm.server.add_release(f"{PACKAGE}/trial", {"bin/tool": "one\n", "data/file": "one\n"})
    try:
        # As when the time is over for which the client believes what it knows of a folder.
        on_all(nodes, lambda node: node.ssh("for again in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done"))
        for node in nodes:
            assert node.output(f"cat {OVERLAY}/trial/bin/tool") == "one"
        # The subtree alone.
        first = on_all(nodes, lambda node: finalize(farm, node, subtrees=["trial/bin"]))
        assert [(found.values["pending"], found.values["copied_up"]) for found in first.values()] == [([], 1)] * 2

        farm.server.write(f"{SOURCE}/trial/etc/licence", "secret\n", mode=0o600)
        farm.server.ssh(f"mkdir -m 700 {SOURCE}/trial/private")
        on_all(nodes, lambda node: node.ssh("for again in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done"))
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
        farm.server.delete_release(f"{PACKAGE}/trial")
