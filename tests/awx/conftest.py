"""AWX as the playbook configure.yml leaves it, and render nodes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.tests.awx.controller import Controller, serving
from ansible_collections.renderfarm.overlay.tests.awx.jobs import PROJECT, Farm, environment

SITE = (
    "-e",
    "farm_project_url=https://git.example.com/render/awx.git",
    "-e",
    "farm_image=registry.example.com/overlay-ee:1",
)


def play(home: Path, controller: Controller, playbook: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of the project that calls the API."""
    env = {
        **environment(home),
        "CONTROLLER_HOST": controller.url,
        "CONTROLLER_OAUTH_TOKEN": "token",
        "ANSIBLE_PIPELINING": "1",
    }
    argv = ["ansible-playbook", playbook, *arguments]
    return subprocess.run(argv, cwd=PROJECT, env=env, check=False, capture_output=True, text=True)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def controller(home: Path) -> Iterator[Controller]:
    """A stand-in for AWX, configured."""
    with serving(Controller(PROJECT)) as controller:
        done = play(home, controller, "configure.yml", *SITE)
        assert done.returncode == 0, done.stdout + done.stderr
        yield controller


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("farm"))
    yield farm
    farm.stop()
