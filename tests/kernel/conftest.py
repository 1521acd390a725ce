"""File systems and releases that the kernel tests share. All of it is in memory and goes when the tests end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import module_server, support

FILESYSTEMS = ("tmpfs", "xfs", "ext4-256", "ext4-512")


@pytest.fixture(scope="session")
def arena() -> Iterator[Path]:
    """A file system in memory for everything, at a short path."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        os.chmod(folder, 0o755)
        support.command("mount", "-t", "tmpfs", "-o", "mode=0755,size=4g,nr_inodes=0", "tmpfs", folder)
        try:
            yield Path(folder)
        finally:
            support.command("umount", "--lazy", folder)


@pytest.fixture(scope="session", autouse=True)
def run_folder(arena: Path) -> None:
    """A /run of the tests' own: what they note there is nothing to this machine."""
    (arena / "run").mkdir()
    support.command("mount", "--bind", arena / "run", "/run")


@pytest.fixture(scope="session", autouse=True)
def modules() -> Iterator[None]:
    """What runs modules."""
    with module_server.started():
        yield


@pytest.fixture(scope="session")
def disks(arena: Path) -> Iterator[dict[str, Path]]:
    """One of each kind of file system that layers are put on."""
    folder = arena / "disks"
    folder.mkdir()
    with ExitStack() as stack:
        yield {kind: stack.enter_context(support.filesystem(folder, kind)) for kind in FILESYSTEMS}


@pytest.fixture(scope="session")
def root(arena: Path) -> Path:
    """A software root with a release of every oddity and two plain ones."""
    top = arena / "root"
    outside = arena / "root" / "outside"
    outside.mkdir(parents=True)
    support.make_release(top / "odd" / "1", outside)
    support.make_small_release(top / "tool" / "1.0", "one")
    support.make_small_release(top / "tool" / "2.0", "two")
    return top


@pytest.fixture(scope="session")
def store(arena: Path) -> Path:
    return arena / "store"


@pytest.fixture(scope="session")
def odd(store: Path, root: Path) -> Placement:
    return support.scanned(store, root, "odd/1")


@pytest.fixture(scope="session")
def tools(store: Path, root: Path) -> tuple[Placement, Placement]:
    return support.scanned(store, root, "tool/1.0"), support.scanned(store, root, "tool/2.0")


@pytest.fixture
def folder(arena: Path) -> Iterator[Path]:
    """A folder of the test's own, in memory, with a manifest store; whatever is left mounted in it is unmounted."""
    path = Path(tempfile.mkdtemp(dir=arena))
    path.chmod(0o755)
    (path / "store").mkdir(0o755)
    yield path
    for mount in reversed(namespaces.own_mounts()):
        if mount.path.startswith(os.fsencode(path) + b"/"):
            support.unmount_all(mount.path)


@pytest.fixture
def with_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules find the programs that make images."""
    monkeypatch.setenv("PATH", f"{support.PROGRAMS}{os.pathsep}{os.environ['PATH']}")
