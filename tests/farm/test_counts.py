"""Test that looking for software through a view sends the NFS server nothing; only opening and reading it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from farmlib import measure
from farmlib.machines import Farm, Machine

READS = {"READ", "READ_PLUS"}
STARTS = ("start-usd", "start-qt", "start-numpy")


@pytest.fixture(scope="module")
def rows(farm: Farm, view_node: Machine) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the calls through the collection's view, by work and state."""
    with farm.server.long_lease(farm.nodes.values()):
        found = measure.rows(farm, view_node, measure.COLLECTION)
    return {(row["work"], row["state"]): row for row in found}


@pytest.fixture(scope="module")
def old_rows(farm: Farm) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the calls of the node without data-only layers, for the work that sends nothing there."""
    configuration = replace(measure.COLLECTION, name="collection-old", work=("missing", "readdir"))
    return {(row["work"], row["state"]): row for row in measure.rows(farm, farm.nodes["old"], configuration)}


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("work", ["missing", "stat", "readdir"])
def test_missing_names_stats_and_listings_send_nothing(
    rows: dict[tuple[str, str], dict[str, Any]], work: str, state: str
) -> None:
    row = rows[work, state]
    assert row["calls"] == 0, row["operations"]


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("work", ["missing", "readdir"])
def test_missing_names_and_listings_send_nothing_without_data_only_layers_either(
    old_rows: dict[tuple[str, str], dict[str, Any]], work: str, state: str
) -> None:
    row = old_rows[work, state]
    assert row["calls"] == 0, row["operations"]


@pytest.mark.parametrize("state", ["cold", "warm"])
@pytest.mark.parametrize("work", STARTS)
def test_starting_software_looks_up_no_missing_names(
    rows: dict[tuple[str, str], dict[str, Any]], work: str, state: str
) -> None:
    row = rows[work, state]
    failed = {name: errors for name, (_calls, errors) in row["operations"].items() if errors}
    assert failed == {}, row


def test_a_first_open_sends_what_the_path_walk_and_the_open_need(
    rows: dict[tuple[str, str], dict[str, Any]],
) -> None:
    operations = {name: calls for name, (calls, _errors) in rows["open", "cold"]["operations"].items()}
    # The caches were really cold: every file was opened on the server.
    assert operations.get("OPEN", 0) + operations.get("OPEN_NOATTR", 0) == measure.OPENS
    assert set(operations) <= {"LOOKUP", "ACCESS", "OPEN", "OPEN_NOATTR", "CLOSE", "GETATTR", *READS}, operations
    assert operations.get("GETATTR", 0) <= 1


@pytest.mark.parametrize("work", ["open", *STARTS])
def test_opening_a_file_again_sends_nothing(rows: dict[tuple[str, str], dict[str, Any]], work: str) -> None:
    row = rows[work, "warm"]
    assert row["calls"] == 0, row["operations"]


@pytest.mark.parametrize("work", STARTS)
def test_starting_software_lists_no_directory_on_the_server(
    rows: dict[tuple[str, str], dict[str, Any]], work: str
) -> None:
    assert "READDIR" not in rows[work, "cold"]["operations"]
