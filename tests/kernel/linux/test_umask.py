# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and directories that modules make have the same modes whatever the umask."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached
from ansible_collections.renderfarm.overlay.tests.kernel import support

USUAL = 0o022


@contextmanager
def umask(number: int) -> Iterator[None]:
    before = os.umask(number)
    try:
        yield
    finally:
        os.umask(before)


def all_modules(area: Path, root: Path) -> None:
    """Run every module so that it makes each kind of file and directory that it can make, below ``directory``."""
    store, state, images = (str(area / name) for name in ("store", "state", "store/.images"))
    layer: dict[str, Any] = {"name": "view", "state_dir": state, "store": store}
    # A store must exist before a module uses it.
    os.mkdir(store)
    os.chmod(store, 0o755)
    one, both = [{"release": "tool/1.0"}], [{"release": "tool/1.0"}, {"release": "tool/2.0"}]

    def run(name: str, /, **arguments: Any) -> dict[str, Any]:
        return support.module(name, **arguments).ok

    for release in ("tool/1.0", "tool/2.0"):
        run("release_manifest", root=str(root), release=release, store=store)
    run("view_releases", name="view", root=str(root), store=store, releases=one)
    first = run("metadata_layer", **layer, releases=one, format="directory")
    second = run("metadata_layer", **layer, releases=both, format="erofs")
    published = run("metadata_layer", **layer, releases=one, image_store=images)
    other = {"name": "other", "state_dir": state}
    run("metadata_layer", **other, image=published["image"], image_digest=published["image_digest"])
    mount: dict[str, Any] = {"path": str(area / "shows" / "dragon"), "data": [str(root)]}
    run("overlay_mount", **mount, lower=[first["layer"]])
    with support.background(f"import os, sys\nos.chdir({mount['path']!r})\n{support.WAIT}"):
        # The old overlay is in use, so that the switch writes a note.
        run("overlay_mount", **mount, lower=[second["layer"]])
        upper = {name: str(area / "uppers" / name) for name in ("upper", "work")}
        run("overlay_mount", path=str(area / "written" / "here"), lower=[str(root)], **upper)


def modes(area: Path) -> dict[bytes, str]:
    found = {path: stat.filemode(status.st_mode) for path, status in support.listing(area).items()}
    # The software in a view is not made by a module.
    views = (b"/shows/dragon/", b"/written/here/")
    return {path: mode for path, mode in found.items() if not path.startswith(views)}


@pytest.fixture
def usual(area: Path, root: Path) -> dict[bytes, str]:
    place = area / "usual"
    place.mkdir()
    with umask(USUAL):
        all_modules(place, root)
    return modes(place)


@pytest.mark.usefixtures("with_programs")
@pytest.mark.parametrize("number", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(area: Path, root: Path, usual: dict[bytes, str], number: int) -> None:
    place = area / "other"
    place.mkdir()
    shutil.rmtree(os.path.dirname(detached.DIRECTORY))
    with umask(number):
        all_modules(place, root)
    assert modes(place) == usual
    for path in (
        b"/store/tool",
        b"/store/.images",
        b"/store/.views",
        b"/shows",
        b"/shows/dragon",
        b"/written",
        b"/state/views",
    ):
        assert usual[path] == "drwxr-xr-x"
    assert usual[b"/state"] == "drwx------"
    assert usual[b"/state/views/view/lock"] == "-rw-------"
    assert {mode for path, mode in usual.items() if path.endswith((b".json", b".gz", b".erofs"))} == {"-rw-r--r--"}
    notes = Path(detached.DIRECTORY)
    assert [stat.filemode(path.stat().st_mode) for path in (notes.parent, notes)] == ["drwxr-xr-x", "drwx------"]
    assert {stat.filemode(path.stat().st_mode) for path in notes.iterdir()} == {"-rw-------"}


def test_a_store_that_a_group_shares_stays_shared(area: Path, root: Path) -> None:
    store = area / "store"
    store.mkdir(exist_ok=True)
    os.chown(store, 0, 1234)
    store.chmod(0o2775)
    assert support.module("release_manifest", root=str(root), release="tool/1.0", store=str(store)).ok["changed"]
    made = (store / "tool").stat()
    assert (made.st_mode & 0o7777, made.st_gid) == (0o2775, 1234)
