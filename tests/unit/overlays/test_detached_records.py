"""Records of detached overlays, and the mount IDs in them."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.detached_records import (
    DetachedMount,
    brought_up_to_date,
    from_json,
    is_mounted,
    record_of,
    to_json,
)


def mount(mount_id: int, device: str = "0:42", lower: bytes = b"/old", fstype: bytes = b"overlay") -> Mount:
    line = b"%d 1 %s / /v ro - %s overlay ro,lowerdir+=%s" % (mount_id, device.encode(), fstype, lower)
    (found,) = parse(line)
    return found


RECORD = record_of(mount(90), {90, 131}, 1.5)


def test_a_record_reads_back_the_same() -> None:
    assert from_json(to_json(RECORD)) == RECORD
    odd = DetachedMount(b'/v \xff\n"', (7, 8), frozenset(), (b"/\xc3\xbc", b"/\x80"), 0.0)
    assert from_json(to_json(odd)) == odd


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"null", to_json(RECORD)[:-5], b'{"device": 3}', b"\xff"])
def test_a_text_that_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(RecordError):
        from_json(text)


@pytest.mark.parametrize(
    ("live", "mount_ids", "mounted"),
    [
        ([], {90, 131}, False),
        # Still mounted in another namespace, or bound to another place.
        ([mount(131)], {90, 131}, True),
        ([mount(200)], {90, 131, 200}, True),
        # Another mount has the mount ID; it may have the same device.
        ([mount(90, lower=b"/new")], {131}, False),
        ([mount(90, "0:43")], {131}, False),
        ([mount(90, fstype=b"tmpfs"), mount(131, "0:43")], set(), False),
        ([mount(5, "0:43")], {90, 131}, False),
    ],
)
def test_reused_mount_ids_are_removed_from_a_record(live: list[Mount], mount_ids: set[int], mounted: bool) -> None:
    (current,) = brought_up_to_date([RECORD], live)
    assert current.mounts == mount_ids
    assert is_mounted(current, live) == mounted


def test_a_mount_id_belongs_to_the_latest_record() -> None:
    later = record_of(mount(90, "0:50"), {90}, 2.5)
    assert [entry.mounts for entry in brought_up_to_date([RECORD, later], [])] == [{131}, {90}]
