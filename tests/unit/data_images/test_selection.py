"""Files for a data image are selected by heat and budget, and never what is kept from some users."""

from __future__ import annotations

import stat
import struct
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.image_plan import (
    BuildDataImage,
    RemoveDataImage,
    WantedImage,
    plan_absent,
    plan_present,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.selection import (
    ChosenFile,
    FilesLeftOut,
    Heat,
    Limits,
    Selection,
    check_listed,
    grants_all,
    named_files,
    release_files,
    select,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CHECKSUM_XATTR, Entry
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR
from ansible_collections.renderfarm.overlay.tests.unit.releases.test_data_image_record import IMAGE

NO_ID = (1 << 32) - 1
OPEN = Limits(private_allowed=False, longest_name=255)


def directory(path: bytes, mode: int = 0o755, xattrs: Any = ()) -> Entry:
    return Entry(path, stat.S_IFDIR | mode, 0, 2, 0, 0, 5, None, False, xattrs)


def regular(path: bytes, mode: int = 0o644, size: int = 10, xattrs: Any = ()) -> Entry:
    return Entry(path, stat.S_IFREG | mode, size, 1, 0, 0, 5, b"r" + path if size else None, False, xattrs)


def link(path: bytes, first: Entry) -> Entry:
    return first._replace(path=path, target=first.path, is_hardlink=True, xattrs=())


def chosen(name: bytes, size: int = 10, starts: int = 0, opens: int = 0, **more: Any) -> ChosenFile:
    return ChosenFile((name,), size, 5, None, more.pop("is_private", False), starts, opens)._replace(**more)


def acl(*entries: tuple[int, int, int]) -> Any:
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    return ((ACCESS_XATTR, value),)


def test_only_files_with_content_are_found() -> None:
    entries = [
        directory(b"/"),
        regular(b"/a"),
        regular(b"/empty", size=0),
        Entry(b"/link", stat.S_IFLNK | 0o777, 1, 1, 0, 0, 5, b"a", False, ()),
    ]
    assert set(release_files(entries, {})) == {b"a"}


def test_a_hard_link_is_one_file_with_the_heat_of_all_its_names() -> None:
    first = regular(b"/a", xattrs=((CHECKSUM_XATTR, b"ab"),))._replace(nlink=2)
    found = release_files([directory(b"/"), first, link(b"/b", first)], {b"a": Heat(1, 2), b"b": Heat(3, 4)})
    assert found[b"a"] is found[b"b"]
    assert found[b"a"] == ChosenFile((b"a", b"b"), 10, 5, b"ab", False, 3, 6)


@pytest.mark.parametrize(
    ("entry", "granted"),
    [
        (regular(b"/a", 0o644), True),
        (regular(b"/a", 0o044), True),
        (regular(b"/a", 0o640), False),
        (regular(b"/a", 0o604), False),
        (regular(b"/a", xattrs=acl((1, 6, NO_ID), (4, 4, NO_ID), (32, 4, NO_ID))), True),
        (regular(b"/a", xattrs=acl((1, 0, NO_ID), (2, 4, 7), (4, 4, NO_ID), (16, 4, NO_ID), (32, 4, NO_ID))), True),
        (regular(b"/a", xattrs=acl((1, 6, NO_ID), (2, 0, 7), (4, 4, NO_ID), (16, 4, NO_ID), (32, 4, NO_ID))), False),
        (regular(b"/a", xattrs=acl((1, 6, NO_ID), (4, 4, NO_ID), (8, 2, 7), (16, 4, NO_ID), (32, 4, NO_ID))), False),
        (regular(b"/a", xattrs=acl((1, 6, NO_ID), (2, 4, 7), (4, 4, NO_ID), (16, 0, NO_ID), (32, 4, NO_ID))), False),
    ],
)
def test_a_file_is_kept_from_some_users_by_mode_or_acl(entry: Entry, granted: bool) -> None:
    assert grants_all(entry, 4) == granted
    assert release_files([directory(b"/"), entry], {})[b"a"].is_private != granted


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o700])
def test_a_file_below_a_closed_directory_is_private_unless_another_name_is_open(mode: int) -> None:
    inner = regular(b"/c/d/a")
    entries = [directory(b"/"), directory(b"/c", mode), directory(b"/c/d"), inner, regular(b"/ca")]
    found = release_files(entries, {})
    assert (found[b"c/d/a"].is_private, found[b"ca"].is_private) == (True, False)
    shared = release_files([*entries, link(b"/z", inner)], {})
    assert not shared[b"c/d/a"].is_private
    assert all(file.is_private for file in release_files(entries, {}, closed_above=True).values())


def test_the_hottest_files_are_taken_until_the_budget_is_spent() -> None:
    files = [
        chosen(b"a", 10, 1, 9),
        chosen(b"b", 10, 2, 2),
        chosen(b"c", 10, 2, 3),
        chosen(b"large", 30, 9, 9),
        chosen(b"d", 5),
    ]
    left_out = FilesLeftOut()
    found = select(files, 5, Limits(False, 255, 25), left_out)
    assert [file.path for file in found.files] == [b"b", b"c", b"d"]
    assert left_out.as_dict() == {"budget": {"count": 2, "paths": ["large", "a"]}}
    assert (found.size, found.opens, found.complete) == (25, 5, False)


@pytest.mark.parametrize(
    ("file", "limits", "reason"),
    [
        (chosen(b"a", is_private=True), OPEN, "private"),
        (chosen(b"a", is_private=True), Limits(True, 255), None),
        (chosen(b"d/" + b"x" * 255), Limits(False, 254), "unstorable"),
        (chosen(b"d/" + b"x" * 255), OPEN, None),
        (chosen(b"a", mtime_ns=-1), OPEN, "unstorable"),
        (chosen(b"a"), Limits(False, 255, 9), "budget"),
        (chosen(b"a"), Limits(False, 255, 10), None),
        (chosen(b"a"), Limits(False, 255, 0), "budget"),
    ],
)
def test_a_file_is_left_out_with_its_reason(file: ChosenFile, limits: Limits, reason: str | None) -> None:
    left_out = FilesLeftOut()
    assert select([file], 1, limits, left_out).complete == (reason is None)
    assert list(left_out.as_dict()) == ([reason] if reason else [])


def test_a_name_that_the_manifest_lacks_is_unknown_and_each_file_is_taken_once() -> None:
    file = chosen(b"a", names=(b"a", b"b"))
    left_out = FilesLeftOut()
    assert named_files({b"a": file, b"b": file}, [b"b", b"gone", b"a"], left_out) == (file,)
    assert left_out.as_dict() == {"unknown": {"count": 1, "paths": ["gone"]}}


def test_listed_files_must_exist() -> None:
    check_listed({b"a": chosen(b"a")}, [b"a", b"empty"], {b"empty"})
    with pytest.raises(OverlayError, match="no regular files x0, x1, x2, x3, x4 and 2 more"):
        check_listed({}, [b"x%d" % number for number in range(7)], ())


@pytest.mark.parametrize(
    "other",
    [
        chosen(b"b"),
        chosen(b"a", 11),
        chosen(b"a", mtime_ns=6),
        chosen(b"a", sha256=b"00"),
        chosen(b"a", names=(b"a", b"b")),
    ],
)
def test_another_selection_has_another_digest(other: ChosenFile) -> None:
    def digest(file: ChosenFile, source: bytes = b"r", compression: str = "lz4hc") -> str:
        return Selection((file,), FilesLeftOut(), True).digest(source, compression)

    file = chosen(b"a")
    assert digest(file) == digest(file._replace(starts=5, opens=9))
    assert len({digest(file), digest(other), digest(file, b"s"), digest(file, compression="zstd")}) == 4


def wanted(files: tuple[ChosenFile, ...] = (chosen(b"a"),)) -> WantedImage:
    return WantedImage("r", "trace", IMAGE.manifest_digest, IMAGE.selection, Selection(files, FilesLeftOut(), False))


BUILD = BuildDataImage("r", "trace", 1, 10)


@pytest.mark.parametrize(
    ("image", "older", "keep", "plan"),
    [
        (None, [], 2, (BUILD,)),
        (IMAGE, [], 2, ()),
        (IMAGE, ["1", "2", "3"], 2, (RemoveDataImage("r", "3"),)),
        (IMAGE, ["1"], 0, (RemoveDataImage("r", "1"),)),
    ],
)
def test_an_image_is_built_if_it_is_missing_and_older_ones_are_removed(
    image: Any, older: list[str], keep: int, plan: Any
) -> None:
    assert plan_present(wanted(), image, older, keep) == plan


@pytest.mark.parametrize("field", ["manifest_digest", "selection"])
def test_an_image_of_another_manifest_or_selection_is_superseded(field: str) -> None:
    other = IMAGE.__class__(**{**IMAGE.__dict__, field: "sha256:" + "0" * 64})
    assert plan_present(wanted(), other, ["1", "2"], 2) == (BUILD, RemoveDataImage("r", "2"))
    assert plan_present(wanted(()), other, [], 2) == ()


def test_all_images_of_a_release_are_removed() -> None:
    assert plan_absent("r", ["1", "2"]) == (RemoveDataImage("r", "1"), RemoveDataImage("r", "2"))
