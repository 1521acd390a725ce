"""The rights in the record of a layer are read as written, and capabilities are checked as the kernel does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import capability
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import KEPT, PathCount, Rights


def test_all_paths_are_counted_and_the_first_ones_are_kept() -> None:
    paths = PathCount()
    for number in range(KEPT + 5):
        paths.add(b"/%d" % number)
    assert (paths.count, len(paths.first)) == (KEPT + 5, KEPT)
    assert paths.listed(2) == "/0, /1, ..."
    rights = Rights(narrowed=paths)
    assert Rights.from_dict(json.loads(json.dumps(rights.as_dict()))) == rights
    assert Rights.from_dict({}) == Rights()


@pytest.mark.parametrize(
    "fields",
    [
        {"privileged": "1"},
        {"privileged": True},
        {"privileged": -1},
        {"privileged": 1.0},
        {"privileged": 1, "privileged_paths": "/a"},
        {"privileged": 1, "privileged_paths": [1]},
        {"privileged": 0, "privileged_paths": ["/a"]},
        {"privileged": 50, "privileged_paths": ["/a"] * 11},
    ],
)
def test_an_invalid_count_or_list_of_paths_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError), match="privileged"):
        Rights.from_dict(fields)


V2 = b"\1\0\0\2" + bytes(16)
V3 = b"\1\0\0\3" + bytes(16)


@pytest.mark.parametrize("value", [V2, b"\0" + V2[1:], V3 + b"\1\0\0\0"])
def test_capabilities_that_the_kernel_writes_are_accepted(value: bytes) -> None:
    assert capability.problem(value) is None


@pytest.mark.parametrize(
    "value",
    [b"", b"garbage", V2[:-1], V2 + b"\0", b"\2" + V2[1:], b"\1\0\0\1" + bytes(8), V3, V3 + bytes(4), V3 + b"\xff" * 4],
)
def test_capabilities_that_the_kernel_would_refuse_or_change_are_refused(value: bytes) -> None:
    assert capability.problem(value)


@given(st.binary(max_size=30))
def test_any_bytes_are_accepted_or_refused_without_an_exception(value: bytes) -> None:
    if capability.problem(value) is None:
        assert len(value) in (20, 24)
