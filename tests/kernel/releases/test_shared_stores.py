# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishers who may write to a store cannot make root write elsewhere, with links or by replacing directories meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_writer
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, image_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec
from ansible_collections.renderfarm.overlay.tests.kernel import support

NOBODY = 65534
OLD = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def home(area: Path) -> Path:
    """Make files that a publisher wants root to overwrite or remove; return their directory."""
    place = area / "home"
    (place / "inner").mkdir(parents=True)
    for path in (place / "layer.erofs", place / "1.0.json", place / "1.0.dump.gz", place / "inner" / "letter"):
        support.write(path, b"dear")
    return place


def untouched(home: Path) -> bool:
    return sorted(path.name for path in home.rglob("*") if path.is_file() and path.read_bytes() == b"dear") == [
        "1.0.dump.gz",
        "1.0.json",
        "layer.erofs",
        "letter",
    ]


@pytest.fixture
def shared(area: Path) -> Path:
    place = area / "shared"
    place.mkdir()
    place.chmod(0o777)
    return place


def test_only_private_directories_of_root_are_removed_as_abandoned(shared: Path, home: Path) -> None:
    ours, theirs, moved, public = (shared / f".new-{name}" for name in ("ours", "theirs", "moved", "public"))
    for path, uid, mode in ((ours, 0, 0o700), (theirs, NOBODY, 0o700), (public, 0, 0o755)):
        path.mkdir()
        support.write(path / "file", b"x")
        os.chown(path, uid, uid)
        path.chmod(mode)
    home.rename(moved)
    (shared / ".new-link").symlink_to(moved)
    support.write(shared / ".new-file", b"x")
    for path in shared.iterdir():
        os.utime(path, OLD, follow_symlinks=False)
    files.remove_abandoned(str(shared), uid=0)
    assert sorted(os.listdir(shared)) == [".new-moved", ".new-public", ".new-theirs"]
    assert untouched(moved)
    assert (theirs / "file").exists()


def test_an_image_is_not_written_through_a_link_in_its_directory(
    shared: Path, home: Path, tools: tuple[Placement, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory in which the image is built is replaced, as soon as it exists, by one with a link in it."""
    build = generations.build_layer

    def replace_first(aside: str, *more: Any) -> Any:
        (made,) = shared.iterdir()
        made.rename(shared / "away")
        made.mkdir()
        (made / "layer.erofs").symlink_to(home / "layer.erofs")
        (made / "inner").symlink_to(home / "inner")
        return build(aside, *more)

    monkeypatch.setattr(generations, "build_layer", replace_first)
    monkeypatch.setenv("PATH", f"{support.PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    spec = LayerSpec("view", (tools[0],), "erofs", "data_only", "trusted")
    generation = image_store.publish(str(shared), spec, erofs_layer.find_builder(), generations.composed(spec))
    assert untouched(home)
    image = image_store.image_path(str(shared), generation.id)
    assert generation.image
    assert generation.image.packed
    assert erofs_layer.file_digest(f"{image}.gz", lambda: None) == generation.image.packed.digest
    # The publisher could rename the directory but not enter it.
    assert os.listdir(shared / "away") == []


@pytest.mark.parametrize("action", ["present", "absent"])
def test_a_symbolic_link_to_a_directory_in_a_manifest_store_is_refused(
    shared: Path, home: Path, root: Path, action: str
) -> None:
    (shared / "tool").symlink_to(home)
    arguments: dict[str, Any] = {"root": str(root), "release": "tool/1.0", "store": str(shared), "state": action}
    if action == "absent":
        assert (
            f"{shared}/tool is no directory, or a symbolic link"
            in support.module("release_manifest", **arguments).message
        )
    else:
        with pytest.raises(OverlayError, match=f"{shared}/tool is no directory, or a symbolic link"):
            manifest_writer.write(str(shared), str(root), "tool/1.0", checksum=False)
    assert untouched(home)


def test_a_directory_replaced_by_a_link_during_a_scan_is_not_followed(
    shared: Path, home: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = getattr(manifest_writer, "_scan_into")  # noqa: B009 (mypy)

    def replace_first(*arguments: Any) -> Any:
        (shared / "tool").rename(shared / "away")
        (shared / "tool").symlink_to(home)
        return scan(*arguments)

    monkeypatch.setattr(manifest_writer, "_scan_into", replace_first)
    manifest_writer.write(str(shared), str(root), "tool/1.0", checksum=False)
    assert untouched(home)
    assert sorted(os.listdir(shared / "away")) == ["1.0.dump.gz", "1.0.json"]


def test_a_tree_with_a_mount_in_it_is_not_removed(area: Path, home: Path) -> None:
    for name in ("a", "b"):
        (area / "tree" / name).mkdir(parents=True)
    support.command("mount", "--bind", home, area / "tree" / "a")
    with pytest.raises(OverlayError, match=f"something is mounted at {area}/tree/a"):
        files.remove_tree(str(area / "tree"))
    assert untouched(home)
    support.command("umount", area / "tree" / "a")
    files.remove_tree(str(area / "tree"))
    assert not (area / "tree").exists()
