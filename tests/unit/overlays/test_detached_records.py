"""Records of detached overlays: what they say, and what becomes of the numbers in them."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.detached_records import (
    DetachedMount,
    brought_up_to_date,
    from_json,
    is_seen,
    record_of,
    to_json,
)


def mount(number: int, device: str = "0:42", lower: bytes = b"/old", fstype: bytes = b"overlay") -> Mount:
    line = b"%d 1 %s / /v ro - %s overlay ro,lowerdir+=%s" % (number, device.encode(), fstype, lower)
    (found,) = parse(line)
    return found


RECORD = record_of(mount(90), {90, 131}, 1.5)


def test_a_record_reads_back_the_same() -> None:
    assert from_json(to_json(RECORD)) == RECORD
    odd = DetachedMount(b'/v \xff\n"', (7, 8), frozenset(), (b"/\xc3\xbc", b"/\x80"), 0.0)
    assert from_json(to_json(odd)) == odd


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"null", to_json(RECORD)[:-5], b'{"device": 3}', b"\xff"])
def test_what_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(RecordError):
        from_json(text)


@pytest.mark.parametrize(
    ("live", "numbers", "seen"),
    [
        ([], {90, 131}, False),
        # Mounted in another namespace still, or again bound to another place.
        ([mount(131)], {90, 131}, True),
        ([mount(200)], {90, 131, 200}, True),
        # The number was given to another mount, whose device may even be the same.
        ([mount(90, lower=b"/new")], {131}, False),
        ([mount(90, "0:43")], {131}, False),
        ([mount(90, fstype=b"tmpfs"), mount(131, "0:43")], set(), False),
        ([mount(5, "0:43")], {90, 131}, False),
    ],
)
def test_numbers_that_the_kernel_has_given_away_are_left_out(live: list[Mount], numbers: set[int], seen: bool) -> None:
    (current,) = brought_up_to_date([RECORD], live)
    assert current.mounts == numbers
    assert is_seen(current, live) == seen


def test_a_number_belongs_to_the_latest_record() -> None:
    later = record_of(mount(90, "0:50"), {90}, 2.5)
    assert [entry.mounts for entry in brought_up_to_date([RECORD, later], [])] == [{131}, {90}]
