"""The farm that `tests/farm/run` has started, for the tests beside it."""

from __future__ import annotations

import pytest
from farmlib import collection
from farmlib.machines import Farm, Machine

VIEW_NODES = [node.name for node in Farm.running.view_nodes] if Farm.running else ["new"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-releases",
        action="store_true",
        help="test_finalize.py: all releases, and not a package; five minutes more",
    )


@pytest.fixture(scope="session")
def farm() -> Farm:
    if Farm.running is None:
        pytest.fail("these tests need a running farm: make farm ARGS=test")
    return Farm.running


@pytest.fixture(scope="module", params=VIEW_NODES)
def view_node(farm: Farm, request: pytest.FixtureRequest) -> Machine:
    """Each render node that can have views."""
    return farm.nodes[request.param]


@pytest.fixture(scope="module")
def deployment(farm: Farm) -> collection.Deployment:
    """The view of all releases, deployed by the collection's playbook and mounted on each render node that can have it."""
    return collection.deployment(farm)
