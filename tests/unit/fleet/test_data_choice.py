"""Choosing data images: within the budget, the free space and the layers of an overlay, and the same ones from run to run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import (
    LockedImage,
    Space,
    as_layers,
    bytes_to_keep_free,
    choose,
    hottest_first,
    images_of,
    size_in_bytes,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MOST_LAYERS

PLENTY = Space(None, 1 << 40, 0)


def image(number: int, size: int = 10, opens: int = 0, **fields: Any) -> LockedImage:
    values = {"release": f"a/{number}", "kind": "trace", "digest": f"sha256:{number:064x}", "complete": False, **fields}
    # The ID is the beginning of the digest.
    values["digest"] = f"sha256:{number:016x}" + "0" * 48
    return LockedImage(bytes_on_disk=size, opens=opens, **values)


def numbers(images: Any) -> list[int]:
    return [int(one.id, 16) for one in images]


def test_everything_is_installed_if_there_is_space_and_the_hottest_first() -> None:
    found = choose([], [image(1, opens=5), image(2, opens=50), image(3, 1, opens=50)], {}, PLENTY)
    assert numbers(found.install) == [3, 2, 1]
    assert (found.keep, found.left_out) == ((), ())


def test_what_is_installed_stays_though_a_hotter_image_is_new() -> None:
    installed = {image(1).id: 10}
    found = choose([], [image(1), image(2, opens=99)], installed, Space(15, 100, 0))
    assert (numbers(found.keep), numbers(found.install)) == ([1], [])
    assert found.reason(image(2)) == "data_budget is 15 bytes, and 10 of them are in use"
    assert found.reason(image(1)) == ""
    # The next run decides the same.
    assert choose([], [image(1), image(2, opens=99)], installed, Space(15, 100, 0)) == found


def test_a_smaller_budget_lets_the_coldest_go() -> None:
    installed = {image(number).id: 10 for number in (1, 2, 3)}
    found = choose([], [image(1, opens=1), image(2, opens=3), image(3, opens=2)], installed, Space(20, 100, 0))
    assert numbers(found.keep) == [2, 3]
    assert numbers(one for one, _reason in found.left_out) == [1]


def test_images_of_a_view_without_a_software_root_precede_installed_ones_of_others() -> None:
    found = choose([image(1)], [image(2, opens=9)], {image(2).id: 10}, Space(15, 100, 0))
    assert (numbers(found.install), numbers(found.keep)) == ([1], [])


def test_images_of_other_views_are_in_the_budget() -> None:
    assert numbers(choose([], [image(1)], {}, Space(20, 100, 0, others=11)).install) == []
    assert numbers(choose([], [image(1)], {}, Space(20, 100, 0, others=10)).install) == [1]


def test_a_full_disk_leaves_images_out_and_keeps_those_that_are_there() -> None:
    found = choose([], [image(1), image(2)], {image(1).id: 10}, Space(None, 14, 5))
    assert (numbers(found.keep), numbers(found.install)) == ([1], [])
    assert found.reason(image(2)) == "14 bytes of the disk are free, and data_keep_free keeps 5"
    assert numbers(choose([], [image(1)], {image(1).id: 10}, Space(None, 0, 5)).keep) == [1]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.booleans(), st.booleans()), max_size=12),
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(0, 100),
)
def test_no_limit_is_exceeded_and_a_second_run_decides_the_same(
    drawn: list[tuple[int, int, bool, bool]], budget: int, free: int, keep_free: int
) -> None:
    images = [image(number, size, opens) for number, (size, opens, _there, _required) in enumerate(drawn)]
    installed = {one.id: one.bytes_on_disk for one, values in zip(images, drawn) if values[2]}
    required = [one for one, values in zip(images, drawn) if values[3]]
    wanted = [one for one in images if one not in required]
    found = choose(required, wanted, installed, Space(budget, free, keep_free))
    chosen = [*found.install, *found.keep]
    assert sum(one.bytes_on_disk for one in chosen) <= budget
    new = sum(one.bytes_on_disk for one in found.install)
    assert not new or free - new >= keep_free
    assert sorted([*chosen, *(one for one, _reason in found.left_out)], key=numbers_key) == images
    after = {one.id: one.bytes_on_disk for one in chosen}
    again = choose(required, wanted, after, Space(budget, free - new, keep_free))
    assert set(chosen) <= {*again.keep, *again.install} or required


def numbers_key(one: LockedImage) -> int:
    return int(one.id, 16)


def test_an_overlay_has_so_many_layers_and_takes_the_hottest() -> None:
    images = [image(number, opens=number) for number in range(MOST_LAYERS)]
    taken, left = as_layers(images, (), 2)
    assert (len(taken), numbers(left)) == (MOST_LAYERS - 2, [1, 0])
    taken, left = as_layers(images, {image(0).id}, 2)
    assert numbers(left) == [2, 1]


def test_hottest_is_by_opens_for_each_byte() -> None:
    assert numbers(hottest_first([image(1, 10, 10), image(2, 1000, 20), image(3, 0, 1)])) == [3, 1, 2]


def test_a_view_uses_the_images_of_its_kind() -> None:
    trace, everything = image(1), image(2, kind="everything", release="a/1")
    assert images_of("trace", [trace, everything]) == (trace,)
    assert images_of("only", [trace, everything]) == images_of("everything", [trace, everything]) == (everything,)
    assert images_of("none", [trace, everything]) == ()


@pytest.mark.parametrize(
    ("declared", "kept"), [("5%", 50), ("0", 0), ("0%", 0), ("100%", 1000), ("2.5%", 25), ("1K", 1024), ("10", 10)]
)
def test_a_part_of_the_disk_stays_free(declared: str, kept: int) -> None:
    assert bytes_to_keep_free(declared, 1000) == kept


@pytest.mark.parametrize("declared", ["", "x", "101%", "-1", "5 %", "0G", "1e3"])
def test_other_words_for_it_are_refused(declared: str) -> None:
    with pytest.raises(ValueError, match="is not a size above 0"):
        bytes_to_keep_free(declared, 1000)


def test_sizes_have_units() -> None:
    assert [size_in_bytes(one) for one in ("1", "2K", "1.5m", "3GB", "1t")] == [1, 2048, 3 << 19, 3 << 30, 1 << 40]
