"""Which actions move a directory within an overlay, and when it cannot be moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.move_plan import (
    MoveSpec,
    MoveState,
    TreeSize,
    marker_of,
    parse_marker,
    plan_move,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse


def mount(line: bytes) -> Mount:
    (found,) = parse(line + b"\n")
    return found


OVERLAY = mount(b"66 63 0:40 / /v rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w")
READ_ONLY = mount(b"66 63 0:40 / /v ro - overlay overlay ro,lowerdir=/l,upperdir=/u,workdir=/w")
WITHOUT_UPPER = mount(b"66 63 0:40 / /v rw - overlay overlay rw,lowerdir=/l:/m")
DISK = mount(b"20 1 8:1 / / rw - ext4 /dev/sda1 rw")
ON = ((b"metacopy", b"on"), (b"redirect_dir", b"on"))
SPEC = MoveSpec(b"/v/a", b"/v/b/c")
STATE = MoveState(OVERLAY, OVERLAY, (), TreeSize(3, 1, b"/a/x/y"), "none", 256, ON)


@pytest.mark.parametrize(
    ("changes", "actions"),
    [
        ({}, ["move directory /v/a to /v/b/c"]),
        ({"destination": "empty"}, ["move directory /v/a to /v/b/c"]),
        ({"destination": "moving"}, ["move directory /v/a to /v/b/c"]),
        ({"tree": None, "destination": "moving"}, ["finish moving directory /v/a to /v/b/c"]),
        ({"tree": None, "destination": "other"}, []),
        ({"tree": None, "destination": "empty"}, []),
    ],
)
def test_a_move_is_begun_or_continued_or_finished(changes: dict[str, Any], actions: list[str]) -> None:
    assert [str(action) for action in plan_move(SPEC, replace(STATE, **changes))] == actions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tree": None}, "neither /v/a nor /v/b/c exists"),
        ({"destination": "other"}, "/v/b/c exists, and not from an earlier move of /v/a"),
        ({"below": (b"/v/a/m",)}, "/v/a has a mount at /v/a/m"),
        ({"source_mount": DISK, "destination_mount": DISK}, "/v/a is not in an overlay with an upper layer"),
        ({"source_mount": WITHOUT_UPPER}, "/v/a is not in an overlay with an upper layer"),
        ({"source_mount": READ_ONLY, "destination_mount": READ_ONLY}, "is mounted read-only"),
        ({"destination_mount": DISK}, "are not in the same overlay"),
        ({"settings": ON[1:]}, "the overlay at /v is mounted without metacopy=on"),
        ({"settings": (ON[0], (b"redirect_dir", b"follow"))}, "the overlay at /v is mounted without redirect_dir=on"),
        ({"longest_redirect": 5}, "/a/x/y has 6 bytes, .* has at most 5: raise"),
    ],
)
def test_a_move_that_cannot_be_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        plan_move(SPEC, replace(STATE, **changes))


@pytest.mark.parametrize("destination", [b"/v/a", b"/v/a/b", b"/v"])
def test_a_directory_is_not_moved_into_itself(destination: bytes) -> None:
    with pytest.raises(OverlayError, match="or one is inside the other"):
        plan_move(MoveSpec(b"/v/a", destination), STATE)


def test_the_mountpoint_of_an_overlay_is_not_moved() -> None:
    with pytest.raises(OverlayError, match="/v is the mountpoint of the overlay"):
        plan_move(MoveSpec(b"/v", b"/x"), STATE)


def test_a_marker_is_read_as_it_was_written() -> None:
    assert parse_marker(marker_of(b"/a path\xff", b"/b", -5)) == (b"/a path\xff", b"/b", -5)


@pytest.mark.parametrize("value", [b"", b" ", b"x /a\0/b"])
def test_a_malformed_marker_is_ignored(value: bytes) -> None:
    assert parse_marker(value) is None
