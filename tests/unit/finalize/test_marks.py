"""What follows from the attributes of an upper layer, and how an overlay is mounted again."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import marks, remount_notes
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    Attributes,
    Counts,
    Marks,
    Pending,
    lower_path,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError


@pytest.mark.parametrize(
    ("parent", "marks", "expected"),
    [
        (b"/", Marks(), b"/name"),
        (b"/a/b", Marks(), b"/a/b/name"),
        (b"/a", Marks(redirect=b"old"), b"/a/old"),
        (b"/a", Marks(redirect=b"/x/old"), b"/x/old"),
        (None, Marks(), None),
        (None, Marks(redirect=b"old"), None),
        (None, Marks(redirect=b"/x/old"), b"/x/old"),
        (b"/a", Marks(opaque=b"y"), None),
        (b"/a", Marks(opaque=b"y", redirect=b"/x"), None),
        (b"/a", Marks(opaque=b"z"), b"/a/name"),
        (b"/a", Marks(opaque=b"x"), b"/a/name"),
    ],
)
def test_where_a_directory_is_looked_for(parent: bytes | None, marks: Marks, expected: bytes | None) -> None:
    assert lower_path(parent, b"name", marks) == expected


@pytest.mark.parametrize(
    ("parent", "redirect", "expected"),
    [
        (b"/", None, b"/name"),
        (b"/a", None, b"/a/name"),
        (b"/a", b"old", b"/a/old"),
        (b"/a", b"/elsewhere", None),
        (None, None, None),
        (b"/a", b"", b"/a/name"),
    ],
)
def test_which_redirect_a_copy_needs(parent: bytes | None, redirect: bytes | None, expected: bytes | None) -> None:
    assert marks.needed_redirect(parent, b"name", redirect) == expected


@pytest.mark.parametrize(
    ("marks", "sealed"),
    [
        (Marks(), False),
        (Marks(opaque=b"y"), False),
        (Marks(sealed_from=b"/a"), False),
        (Marks(opaque=b"y", copied=True, sealed_from=b"/a"), True),
        (Marks(opaque=b"y", sealed_from=b"/a"), False),
        (Marks(opaque=b"y", copied=True), False),
        (Marks(opaque=b"z"), True),
        (Marks(opaque=b"x", sealed_from=b"/a"), False),
    ],
)
def test_what_is_sealed(marks: Marks, sealed: bool) -> None:
    assert marks.sealed is sealed


@pytest.mark.parametrize("capability", [None, b"\x01\0\0\x02"])
def test_notes_of_owners_come_back(capability: bytes | None) -> None:
    wanted = Attributes(0o6755, 12, 4_000_000_000, capability)
    assert Attributes.from_note(wanted.to_note(77), 77) == wanted
    # With all xattrs of a file, ``cp -a`` copies the note too.
    assert Attributes.from_note(wanted.to_note(77), 78) is None


@pytest.mark.parametrize("note", [b"", b"y", b"6755 1 2 -", b"9 1 2 - 77", b"6755 1 2 zz 77", b"6755 1 2 - 77 1"])
def test_what_is_no_note_of_an_owner_is_none(note: bytes) -> None:
    assert Attributes.from_note(note, 77) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ()),
        ([b"b", b"a", b"a/"], (b"a", b"b")),
        ([b"a/b", b"a", b"ab", b"./a//b/c"], (b"a", b"ab")),
    ],
)
def test_subtrees_are_not_inside_of_each_other(given: list[bytes], expected: tuple[bytes, ...]) -> None:
    assert marks.chosen_subtrees(given) == expected


@pytest.mark.parametrize("given", [b"", b"/", b"..", b"a/../b"])
def test_subtrees_that_are_none_are_refused(given: bytes) -> None:
    with pytest.raises(OverlayError, match="subtree"):
        marks.chosen_subtrees([given])


def test_parents_reach_up_to_the_root() -> None:
    assert marks.with_parents([b"a/b/c", b"a/d"]) == {b"a/b/c", b"a/b", b"a", b"a/d", b""}
    assert marks.with_parents([]) == set()
    assert [marks.depth(path) for path in (b"", b"a", b"a/b")] == [0, 1, 2]


def test_what_is_pending_is_named_once_and_in_order_and_not_without_end() -> None:
    pending = [Pending(b"%04d" % number, "why") for number in reversed(range(300))] * 2 + [Pending(b"", "root")]
    named = marks.named(pending)
    assert named[0] == {"path": ".", "reason": "root"}
    assert [one["path"] for one in named[1:]] == [f"{number:04d}" for number in range(99)]


def test_what_is_pending_is_grouped_by_reason() -> None:
    pending = [Pending(b"%02d" % number, "why") for number in reversed(range(12))] * 2 + [Pending(b"", "root")]
    assert marks.by_reason(pending) == [
        {"reason": "why", "total": 12, "paths": [f"{number:02d}" for number in range(10)]},
        {"reason": "root", "total": 1, "paths": ["."]},
    ]
    assert marks.by_reason([]) == []


def test_a_plan_says_what_is_done_and_is_empty_when_nothing_is() -> None:
    assert marks.plan_of(None, Counts(already=5, directories_read=7, warmed=2), ()) == ()
    plan = marks.plan_of(b"/v", Counts(copied_up=3, sealed=2, restored=1), [b"b", b"a"])
    assert [str(action).split()[0] for action in plan] == ["mount", "finish", "copy", "remove", "remove", "seal"]


def mount_of(line: bytes) -> Mount:
    return next(parse(line))


MOUNT = (
    b"99 1 0:50 / /view rw,nosuid,noatime shared:7 - overlay software rw,seclabel,lowerdir+=/net/a\\054b,lowerdir+=/net/c,"
    b"upperdir=/disk/up\\040per,workdir=/disk/work,metacopy=on,userxattr"
)


def test_an_overlay_is_mounted_again_as_it_was() -> None:
    again = remount_notes.again(mount_of(MOUNT), ())
    assert again.spec.path == b"/view"
    assert again.spec.lower == (b"/net/a,b", b"/net/c")
    assert (again.spec.upper, again.spec.work) == (b"/disk/up per", b"/disk/work")
    assert again.spec.settings == ((b"metacopy", b"on"), (b"userxattr", None))
    assert again.spec.flags == {"nosuid", "noatime"}
    assert again.spec.source == b"software"
    assert again.shared
    assert not again.volatile
    assert remount_notes.from_json(remount_notes.to_json(again)) == again


@pytest.mark.parametrize(
    ("old", "new", "attribute", "expected"),
    [
        (b"metacopy=on", b"volatile", "volatile", True),
        (b"metacopy=on", b"fsync=volatile", "volatile", True),
        (b" shared:7", b"", "shared", False),
    ],
)
def test_what_else_belongs_to_a_mount(old: bytes, new: bytes, attribute: str, expected: bool) -> None:
    assert getattr(remount_notes.again(mount_of(MOUNT.replace(old, new)), ()), attribute) is expected


def test_strict_times_stay_strict() -> None:
    assert "strictatime" in remount_notes.again(mount_of(MOUNT.replace(b",noatime", b"")), ()).spec.flags
    assert "strictatime" not in remount_notes.again(mount_of(MOUNT.replace(b"noatime", b"relatime")), ()).spec.flags


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
def test_what_could_not_be_mounted_as_it_was_is_refused(old: bytes, new: bytes, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        remount_notes.again(mount_of(MOUNT.replace(old, new)), ())


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"path": 1}', b"null"])
def test_what_is_no_note_is_none(text: bytes) -> None:
    with pytest.raises(RecordError):
        remount_notes.from_json(text)


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
        ([b"/srv/tools"], marks.WORKERS_HERE),
        ([b"/srv/tools", b"/run/tools", b"/net/here/tools"], marks.WORKERS_HERE),
        ([b"/net/software"], marks.WORKERS_FAR),
        ([b"/srv/tools", b"/net"], marks.WORKERS_FAR),
        ([b"/cluster/software"], marks.WORKERS_FAR),
    ],
)
def test_more_processes_work_where_they_wait_for_a_file_server(lowers: list[bytes], workers: int) -> None:
    assert marks.usual_workers(lowers, MOUNTS) == workers
