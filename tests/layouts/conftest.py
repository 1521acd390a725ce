"""Layouts that real tools wrote, and views of them that one run of the playbook deploys."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.tests.layouts.site_of_views import Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return the site, deployed once."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.make()
    site.deploy()
    yield site
    for mountpoint in site.shown.iterdir():
        subprocess.run(["umount", "--lazy", mountpoint], check=False, capture_output=True)


@pytest.fixture(scope="session")
def repository(site: Site) -> Path:
    """Return the package repository of rez."""
    return site.roots / "rez"
