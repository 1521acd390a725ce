"""Directories with the mark of a kernel that seals directories itself.

The marks are set by hand. ``tests/farm/test_patched.py`` has such a kernel.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import live_overlay
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.writable import (
    OPAQUE,
    Overlay,
    attribute,
    copied,
    overlay_at,
    sealed,
)

DIRECTORIES = 8


@pytest.fixture
def software(area: Path) -> Path:
    lower = area / "lower"
    support.make_small_release(lower / "tool" / "1.0", "one")
    support.make_small_release(lower / "tool" / "2.0", "two")
    support.make_small_release(lower / "other" / "1.0", "three")
    return lower


@pytest.fixture
def overlay(area: Path, software: Path) -> Overlay:
    """Return an overlay whose entries are all copied up."""
    overlay = overlay_at(area, software)
    overlay.finalize(passes=["copy_up", "readdir"])
    return overlay


@pytest.fixture
def kernel_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the module take this kernel for one that seals directories."""
    monkeypatch.setattr(live_overlay, "_kernel_seals", lambda: True)


def mark(overlay: Overlay, *paths: str) -> None:
    """Mark directories of the upper layer as such a kernel does; by default, all of them."""
    overlay.unmount()
    found = [path for path in (overlay.upper, *overlay.upper.rglob("*")) if path.is_dir()]
    for path in map(overlay.upper.joinpath, paths) if paths else found:
        os.setxattr(path, OPAQUE, b"z")
    overlay.mount()


@pytest.mark.usefixtures("kernel_seals")
def test_directories_that_the_kernel_sealed_are_not_sealed_again(overlay: Overlay) -> None:
    mark(overlay)
    result = overlay.finalize(allow_unmount=True)
    assert result["finalized"]
    assert not result["changed"]
    assert not result["unmounted"]
    assert result["directories_read"] == 0
    assert result["warmed"] == DIRECTORIES + 1
    assert attribute(overlay.upper / "tool", OPAQUE) == b"z"
    assert not overlay.finalize(seal="kernel")["changed"]


@pytest.mark.usefixtures("kernel_seals")
def test_what_is_below_a_directory_that_the_kernel_sealed_is_finalized(area: Path, software: Path) -> None:
    overlay = overlay_at(area, software)
    for path in (overlay.path / "tool", overlay.path / "other"):
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    mark(overlay, "", "tool", "other")
    result = overlay.finalize(allow_unmount=True)
    assert result["finalized"]
    assert copied(overlay, "tool/1.0/bin/tool")
    assert sealed(overlay, "tool/1.0")
    assert attribute(overlay.upper / "tool", OPAQUE) == b"z"
    assert not overlay.finalize(allow_unmount=True)["changed"]
    assert support.compare_trees(overlay.path, software) == []


@pytest.mark.usefixtures("kernel_seals")
def test_a_directory_that_the_kernel_sealed_is_opaque_in_an_opaque_one(overlay: Overlay, software: Path) -> None:
    mark(overlay, "other", "tool/1.0/bin", "tool/2.0", "tool/2.0/bin")
    result = overlay.finalized()
    assert result["sealed"] == 7
    assert sealed(overlay, "tool/1.0/bin")
    assert sealed(overlay, "tool/2.0/bin")
    assert sealed(overlay, "other/1.0")
    assert attribute(overlay.upper / "other", OPAQUE) == b"z"
    assert support.compare_trees(overlay.path, software) == []


@pytest.mark.usefixtures("kernel_seals")
def test_an_overlay_with_marks_of_the_kernel_is_detached(overlay: Overlay, software: Path) -> None:
    mark(overlay)
    result = overlay.finalize(detach=True, allow_unmount=True)
    assert result["detached"], result["pending"]
    assert result["sealed"] == DIRECTORIES
    assert sealed(overlay, "tool/1.0/bin")
    assert support.compare_trees(overlay.path, software) == []


@pytest.mark.usefixtures("kernel_seals")
def test_levels_that_the_kernel_does_not_leave_merged_are_reported(overlay: Overlay) -> None:
    mark(overlay)
    result = overlay.finalize(merged_levels=1, allow_unmount=True)
    assert [one["path"] for one in result["pending"]] == [".", "other", "tool"]
    assert "merged_levels" in result["pending"][0]["reason"]
    assert not result["changed"]


@pytest.mark.usefixtures("kernel_seals")
def test_check_mode_expects_the_kernel_to_seal(area: Path, software: Path) -> None:
    overlay = overlay_at(area, software)
    result = overlay.finalize(seal="kernel", _ansible_check_mode=True)
    assert result["finalized"]
    assert not copied(overlay, "tool")


def test_marks_of_another_kernel_are_ignored(overlay: Overlay, software: Path) -> None:
    """Names in such a directory would be looked up in the lower layers, so a run seals it."""
    mark(overlay)
    assert overlay.finalized()["sealed"] == DIRECTORIES
    assert sealed(overlay, "tool")
    assert support.compare_trees(overlay.path, software) == []
