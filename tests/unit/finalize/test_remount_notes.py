"""How an overlay is mounted again, from what the kernel reports of it."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import remount_notes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError

MOUNT = (
    b"99 1 0:50 / /view rw,nosuid,noatime shared:7 - overlay software rw,seclabel,lowerdir+=/net/a\\054b,lowerdir+=/net/c,"
    b"upperdir=/disk/up\\040per,workdir=/disk/work,metacopy=on,userxattr"
)


def mount_of(line: bytes) -> Mount:
    return next(parse(line))


def test_the_spec_has_all_that_the_kernel_reports() -> None:
    found = remount_notes.remount_spec(mount_of(MOUNT), ())
    assert found.spec.path == b"/view"
    assert found.spec.lower == (b"/net/a,b", b"/net/c")
    assert (found.spec.upper, found.spec.work) == (b"/disk/up per", b"/disk/work")
    assert found.spec.settings == ((b"metacopy", b"on"), (b"userxattr", None))
    assert found.spec.flags == {"nosuid", "noatime"}
    assert found.spec.source == b"software"
    assert found.shared
    assert not found.volatile


def test_the_note_is_read_as_written() -> None:
    found = remount_notes.remount_spec(mount_of(MOUNT), (b"/net/c.erofs",))
    assert remount_notes.from_json(remount_notes.to_json(found)) == found


@pytest.mark.parametrize(
    ("old", "new", "attribute", "expected"),
    [
        (b"metacopy=on", b"volatile", "volatile", True),
        (b"metacopy=on", b"fsync=volatile", "volatile", True),
        (b" shared:7", b"", "shared", False),
    ],
)
def test_volatile_and_shared_are_recognised(old: bytes, new: bytes, attribute: str, expected: bool) -> None:
    assert getattr(remount_notes.remount_spec(mount_of(MOUNT.replace(old, new)), ()), attribute) is expected


@pytest.mark.parametrize(("flag", "strict"), [(b"", True), (b",relatime", False), (b",noatime", False)])
def test_a_strict_atime_stays_strict(flag: bytes, strict: bool) -> None:
    line = MOUNT.replace(b",noatime", flag)
    assert ("strictatime" in remount_notes.remount_spec(mount_of(line), ()).spec.flags) is strict


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"shared:7", b"master:7", "master"),
        (b"nosuid", b"idmapped", "idmapped"),
        (b"0:50 /", b"0:50 /part", "bind mount"),
        (b"=/net/c", b"=net/c", "relative path net/c"),
        (b"=/disk/work", b"=work", "relative path work"),
    ],
)
def test_a_mount_that_would_differ_is_refused(old: bytes, new: bytes, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        remount_notes.remount_spec(mount_of(MOUNT.replace(old, new)), ())


def test_a_detached_overlay_is_mounted_over_one_directory() -> None:
    found = remount_notes.remount_spec(mount_of(MOUNT), (b"/net/c.erofs",))
    over = remount_notes.over(found, b"/disk/up per.detached")
    assert (over.spec.lower, over.spec.data, over.spec.images) == ((b"/disk/up per.detached",), (), ())
    assert (over.spec.writable, over.spec.settings, over.spec.flags) == (
        found.spec.writable,
        found.spec.settings,
        found.spec.flags,
    )
    assert remount_notes.from_json(remount_notes.to_json(over)) == over


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"path": 1}', b"null"])
def test_a_malformed_note_is_refused(text: bytes) -> None:
    with pytest.raises(RecordError):
        remount_notes.from_json(text)
