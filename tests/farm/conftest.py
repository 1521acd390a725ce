"""The farm that `tests/farm/run` has started, for the tests beside it."""

from __future__ import annotations

import pytest
from farmlib import collection
from farmlib.machines import Farm


@pytest.fixture(scope="session")
def farm() -> Farm:
    if Farm.running is None:
        pytest.fail("these tests need a running farm: make farm ARGS=test")
    return Farm.running


@pytest.fixture(scope="module")
def deployment(farm: Farm) -> collection.Deployment:
    """The view of all releases, deployed by the collection's playbook and mounted on `new`."""
    return collection.deployment(farm)
