"""The filter rez_releases with contexts that rez itself resolved."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.filter.rez_releases import rez_releases

CHECKOUT = Path(__file__).resolve().parents[3]
REZ_ENV = CHECKOUT / ".build" / "venv-rez" / "bin" / "rez-env"

#: The definition of each package, by its path below a package repository.
PACKAGES = {
    "platform/linux": "",
    "python/3.10.14": "",
    "python/3.11.9": "",
    "usd/24.11": "requires = ['python-3']",
    "usd/25.05": "requires = ['python-3']\nvariants = [['platform-linux', 'python-3.10'], ['platform-linux', 'python-3.11']]",
    "houdini/20.5.332": "requires = ['usd-24', 'python-3.11']",
    "houdini/20.5.410": "requires = ['usd-25', 'python-3.11', '.feature.denoise-1']",
    "nuke/15.1v3": "requires = ['python-3.10']",
}
STUDIO = "tool/1.0"


def publish(repository: Path, packages: Mapping[str, str]) -> None:
    """Write packages into a package repository."""
    for path, definition in packages.items():
        name, version = path.split("/")
        (repository / path).mkdir(parents=True)
        (repository / path / "package.py").write_text(f"name = {name!r}\nversion = {version!r}\n{definition}\n")


def resolve(directory: Path, repositories: list[Path], *requests: str, works: bool = True) -> str:
    """Return the context that rez-env writes for some requests."""
    if not REZ_ENV.exists():
        pytest.fail(f"there is no {REZ_ENV}: make setup-test")
    context = directory / "context.rxt"
    environment = {
        "HOME": str(directory),
        "PATH": os.environ["PATH"],
        "REZ_PACKAGES_PATH": os.pathsep.join(map(str, repositories)),
        "REZ_DISABLE_HOME_CONFIG": "1",
    }
    done = subprocess.run(
        [REZ_ENV, *requests, "--output", context],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode == 0) == works, done.stderr
    return context.read_text(encoding="utf-8")


def test_a_resolve_gives_the_releases_that_rez_chose(tmp_path: Path) -> None:
    root = tmp_path / "software"
    publish(root, PACKAGES)
    releases = rez_releases(resolve(tmp_path, [root], "houdini"), str(root))
    assert sorted(releases) == ["houdini/20.5.410", "platform/linux", "python/3.11.9", "usd/25.05"]
    assert all((root / release / "package.py").exists() for release in releases)
    older = rez_releases(json.loads(resolve(tmp_path, [root], "houdini-20.5.332")), str(root), at="{package}")
    assert {"release": "usd/24.11", "at": "usd"} in older


def test_rez_resolves_the_same_in_a_repository_of_these_releases_alone(tmp_path: Path) -> None:
    root = tmp_path / "software"
    publish(root, PACKAGES)
    releases = rez_releases(resolve(tmp_path, [root], "houdini", "python"), str(root))
    view = tmp_path / "view"
    publish(view, {release: PACKAGES[release] for release in releases})
    assert rez_releases(resolve(tmp_path, [view], "houdini", "python"), str(view)) == releases


def test_packages_of_an_artist_are_named_and_not_dropped(tmp_path: Path) -> None:
    root, local = tmp_path / "software", tmp_path / "packages"
    publish(root, PACKAGES)
    publish(local, {STUDIO: "requires = ['nuke']"})
    context = resolve(tmp_path, [local, root], "tool")
    with pytest.raises(
        AnsibleFilterError, match=rf"1 package has no release: tool 1\.0 is in the repository '{local}'"
    ):
        rez_releases(context, str(root))
    assert rez_releases(context, str(root), exclude=["tool"]) == ["python/3.10.14", "nuke/15.1v3"]


def test_a_context_that_rez_could_not_resolve_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "software"
    publish(root, PACKAGES)
    with pytest.raises(AnsibleFilterError, match=r"status of the rez context is 'failed'.*rez says: .*python-3\.11 <"):
        rez_releases(resolve(tmp_path, [root], "houdini", "nuke", works=False), str(root))
