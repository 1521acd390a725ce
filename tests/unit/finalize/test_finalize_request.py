"""What a run is asked to do, and what follows from that alone."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_request import (
    MOST_WORKERS,
    PASSES,
    WORKERS_FAR,
    WORKERS_HERE,
    check_detach,
    check_numbers,
    chosen_subtrees,
    default_workers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import parse


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ()),
        ([b"b", b"a", b"a/"], (b"a", b"b")),
        ([b"a/b", b"a", b"ab", b"./a//b/c"], (b"a", b"ab")),
    ],
)
def test_subtrees_inside_others_are_left_out(given: list[bytes], expected: tuple[bytes, ...]) -> None:
    assert chosen_subtrees(given) == expected


@pytest.mark.parametrize("given", [b"", b"/", b"..", b"a/../b"])
def test_a_subtree_must_be_a_path_below_the_overlay(given: bytes) -> None:
    with pytest.raises(OverlayError, match="subtree"):
        chosen_subtrees([given])


@pytest.mark.parametrize("workers", [None, 1, MOST_WORKERS])
def test_numbers_in_range_are_accepted(workers: int | None) -> None:
    check_numbers(workers, 0)


@pytest.mark.parametrize(
    ("workers", "merged_levels", "message"),
    [
        (0, 0, "workers must be from 1 to 256, not 0"),
        (MOST_WORKERS + 1, 0, "workers must be from 1 to 256, not 257"),
        (None, -1, "merged_levels must be 0 or more, not -1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(workers: int | None, merged_levels: int, message: str) -> None:
    with pytest.raises(OverlayError, match=message):
        check_numbers(workers, merged_levels)


@pytest.mark.parametrize("seal", ["auto", "offline"])
def test_a_whole_overlay_can_be_detached(seal: str) -> None:
    check_detach((), PASSES, seal, 0)


@pytest.mark.parametrize(
    ("subtrees", "passes", "seal", "merged_levels", "message"),
    [
        ((b"tool",), PASSES, "auto", 0, "leave 'subtrees' out"),
        ((), PASSES, "auto", 1, "leave 'merged_levels' out"),
        ((), ("seal",), "auto", 0, "copy_up and seal"),
        ((), ("copy_up",), "auto", 0, "copy_up and seal"),
        ((), PASSES, "kernel", 0, "set it to offline, not kernel"),
        ((), PASSES, "none", 0, "set it to offline, not none"),
    ],
)
def test_what_leaves_a_part_merged_is_refused(
    subtrees: tuple[bytes, ...], passes: tuple[str, ...], seal: str, merged_levels: int, message: str
) -> None:
    with pytest.raises(OverlayError, match=message):
        check_detach(subtrees, passes, seal, merged_levels)


MOUNTS = tuple(
    parse(
        b"""\
20 1 253:1 / / rw - ext4 /dev/vda1 rw
21 20 0:40 / /net rw - nfs4 server:/srv rw,vers=4.2
22 20 0:41 / /run rw - tmpfs tmpfs rw
23 20 0:42 / /cluster rw - wekafs weka rw
24 21 0:43 / /net/here rw - overlay overlay rw
"""
    )
)


@pytest.mark.parametrize(
    ("lowers", "workers"),
    [
        ([b"/srv/tools"], WORKERS_HERE),
        ([b"/srv/tools", b"/run/tools", b"/net/here/tools"], WORKERS_HERE),
        ([b"/net/software"], WORKERS_FAR),
        ([b"/srv/tools", b"/net"], WORKERS_FAR),
        ([b"/cluster/software"], WORKERS_FAR),
    ],
)
def test_more_processes_work_if_a_lower_layer_is_on_a_file_server(lowers: list[bytes], workers: int) -> None:
    assert default_workers(lowers, MOUNTS) == workers
