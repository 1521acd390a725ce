"""Run for some seconds what `make bench` runs for minutes: all modules at once, killed at random, while others read the views."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.tests.kernel import soak

SECONDS = 10.0


@pytest.mark.usefixtures("with_programs")
def test_views_stay_whole_whatever_is_killed(area: Path) -> None:
    found = soak.run(area, SECONDS, seed=1)
    assert found.errors == []
    assert found.failed_opens == []
    assert set(found.mounted.values()) == {1}
    assert found.left == []
    assert found.opens > 1000
    assert found.killed > 3
    assert found.changed > 10
