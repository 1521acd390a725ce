"""File systems and releases that the kernel tests share. All but ``on_disk`` are in memory, and are removed when the tests end."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import module_server, support

FILESYSTEMS = ("tmpfs", "xfs", "ext4-256", "ext4-512")


def pytest_collection_finish() -> None:
    """Refuse tests that import what only a controller has: modules forked from here would print warnings, not return them."""
    if "ansible._internal" in sys.modules:
        raise pytest.UsageError("a kernel test imports a part of Ansible's controller: do that in a process of its own")


@pytest.fixture(scope="session")
def arena() -> Iterator[Path]:
    """Mount a file system in memory, at a short path, for all tests."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as directory:
        os.chmod(directory, 0o755)
        support.command("mount", "-t", "tmpfs", "-o", "mode=0755,size=4g,nr_inodes=0", "tmpfs", directory)
        try:
            yield Path(directory)
        finally:
            support.command("umount", "--lazy", directory)


@pytest.fixture(scope="session", autouse=True)
def private_run(arena: Path) -> None:
    """Mount a private /run, so that the tests do not write notes to that of this machine."""
    (arena / "run").mkdir()
    support.command("mount", "--bind", arena / "run", "/run")


@pytest.fixture(scope="session", autouse=True)
def modules() -> Iterator[None]:
    """Start the server that runs modules."""
    with module_server.started():
        yield


@pytest.fixture(scope="session")
def disks(arena: Path) -> Iterator[dict[str, Path]]:
    """Mount a file system of each type that holds layers."""
    place = arena / "disks"
    place.mkdir()
    with ExitStack() as stack:
        yield {kind: stack.enter_context(support.filesystem(place, kind)) for kind in FILESYSTEMS}


@pytest.fixture(scope="session")
def root(arena: Path) -> Path:
    """Make a software root with a release that has every oddity, and two plain releases."""
    top = arena / "root"
    outside = arena / "root" / "outside"
    outside.mkdir(parents=True)
    support.make_release(top / "odd" / "1", outside)
    support.make_small_release(top / "tool" / "1.0", "one")
    support.make_small_release(top / "tool" / "2.0", "two")
    return top


@pytest.fixture(scope="session")
def store(arena: Path) -> Path:
    """Return the path of the shared manifest store."""
    return arena / "store"


@pytest.fixture(scope="session")
def odd(store: Path, root: Path) -> Placement:
    """Scan the release that has every oddity."""
    return support.scanned(store, root, "odd/1")


@pytest.fixture(scope="session")
def tools(store: Path, root: Path) -> tuple[Placement, Placement]:
    """Scan the two plain releases."""
    return support.scanned(store, root, "tool/1.0"), support.scanned(store, root, "tool/2.0")


@pytest.fixture
def area(arena: Path) -> Iterator[Path]:
    """Make a directory for the test, in memory, with a manifest store; unmount everything inside it afterwards."""
    path = Path(tempfile.mkdtemp(dir=arena))
    path.chmod(0o755)
    (path / "store").mkdir(0o755)
    yield path
    for mount in reversed(namespaces.own_mounts()):
        if mount.path.startswith(os.fsencode(path) + b"/"):
            support.unmount_all(mount.path)


@pytest.fixture
def with_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the programs that make images to the PATH of modules."""
    monkeypatch.setenv("PATH", f"{support.PROGRAMS}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """Provide a directory on a disk. The kernel can mount an image on tmpfs only through a loop device."""
    with tempfile.TemporaryDirectory(prefix="kernel-", dir="/var/tmp") as name:
        path = Path(name)
        yield path
        for mount in reversed(namespaces.own_mounts()):
            if mount.path.startswith(os.fsencode(path) + b"/"):
                support.unmount_all(mount.path)
