"""Directories of an overlay, and sets of them."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.directories import (
    OverlayDirectory,
    depth,
    with_parents,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import Marks


def test_parents_include_the_root() -> None:
    assert with_parents([b"a/b/c", b"a/d"]) == {b"a/b/c", b"a/b", b"a", b"a/d", b""}
    assert with_parents([]) == set()


def test_the_depth_counts_levels_below_the_root() -> None:
    assert [depth(path) for path in (b"", b"a", b"a/b")] == [0, 1, 2]


def test_paths_of_entries_are_relative_to_the_root() -> None:
    assert OverlayDirectory(b"", b"/", None).child(b"a") == b"a"
    assert OverlayDirectory(b"a", b"/a", None).child(b"b") == b"a/b"


def test_a_directory_without_marks_is_merged_and_not_sealed() -> None:
    directory = OverlayDirectory(b"a", b"/a", None)
    assert directory.is_merged
    assert not directory.is_sealed
    assert not directory.is_sealed_by_kernel
    assert directory.merged_with() == b"/a"


@pytest.mark.parametrize(("marks", "by_kernel"), [(Marks(b"z"), True), (Marks(b"y", None, True, b"/a"), False)])
def test_a_run_or_the_kernel_sealed_a_directory(marks: Marks, by_kernel: bool) -> None:
    directory = OverlayDirectory(b"a", None, marks)
    assert directory.is_sealed is not by_kernel
    assert directory.is_sealed_by_kernel is by_kernel


def test_a_directory_of_the_upper_layer_alone_is_merged_with_nothing() -> None:
    directory = OverlayDirectory(b"a", None, Marks(opaque=b"y"))
    assert not directory.is_merged
    with pytest.raises(ValueError, match="upper layer alone"):
        directory.merged_with()
