"""AWX as the playbook configure.yml leaves it, and render nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.tests.awx.controller import Controller, serving
from ansible_collections.renderfarm.overlay.tests.awx.jobs import PROJECT, Farm, configure


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def controller(home: Path) -> Iterator[Controller]:
    """A stand-in for AWX, configured."""
    with serving(Controller(PROJECT)) as controller:
        done = configure(home, controller)
        assert done.returncode == 0, done.stdout + done.stderr
        yield controller


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("farm"))
    yield farm
    farm.stop()
