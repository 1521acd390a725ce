"""Provide the farm that `tests/farm/run` started to the tests in this directory."""

from __future__ import annotations

import pytest
from farmlib import collection
from farmlib.machines import Farm, Machine

VIEW_NODES = [node.name for node in Farm.running.view_nodes] if Farm.running else ["new"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-releases",
        action="store_true",
        help="test_finalize.py: finalize all releases instead of one; takes five more minutes",
    )


@pytest.fixture(scope="session")
def farm() -> Farm:
    if Farm.running is None:
        pytest.fail("these tests need a running farm: make farm ARGS=test")
    return Farm.running


@pytest.fixture(scope="module", params=VIEW_NODES)
def view_node(farm: Farm, request: pytest.FixtureRequest) -> Machine:
    """Return each render node that can have views."""
    return farm.nodes[request.param]


@pytest.fixture(scope="module")
def deployment(farm: Farm) -> collection.Deployment:
    """Deploy the view of all releases with the collection's playbook to each render node that can have it."""
    return collection.deployment(farm)
