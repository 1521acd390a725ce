"""A mountpoint for trees of overlays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import NO_DATA
from ansible_collections.renderfarm.overlay.tests.kernel import support


@pytest.fixture
def view(area: Path) -> Iterator[Path]:
    """Make a mountpoint; unmount afterwards what is there, and the empty data layer that trees have at boot."""
    place = area / "view"
    place.mkdir()
    yield place
    support.unmount_all(place)
    support.unmount_all(NO_DATA)
