"""What the xattrs of an upper layer mean."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    Marks,
    OwnerChange,
    copied_from,
    empty_lower,
    lower_path,
    mtime_from_note,
    mtime_to_note,
    needed_redirect,
)


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
def test_the_lower_path_of_a_directory_follows_its_marks(
    parent: bytes | None, marks: Marks, expected: bytes | None
) -> None:
    assert lower_path(parent, b"name", marks) == expected


@pytest.mark.parametrize(
    ("parent", "marks", "expected"),
    [
        (b"/a", Marks(), b"/a/name"),
        (b"/a", Marks(opaque=b"y"), b"/a/name"),
        (b"/a", Marks(opaque=b"y", redirect=b"old"), b"/a/old"),
        (b"/a", Marks(opaque=b"y", copied=True, sealed_from=b"/x"), b"/x"),
        (None, Marks(), None),
        (None, Marks(sealed_from=b"/x"), b"/x"),
    ],
)
def test_the_source_of_a_copied_directory_is_found_whatever_hides_it(
    parent: bytes | None, marks: Marks, expected: bytes | None
) -> None:
    assert copied_from(parent, b"name", marks) == expected


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
def test_a_copy_needs_an_absolute_redirect(
    parent: bytes | None, redirect: bytes | None, expected: bytes | None
) -> None:
    assert needed_redirect(parent, b"name", redirect) == expected


@pytest.mark.parametrize(
    ("marks", "sealed"),
    [
        (Marks(), False),
        (Marks(opaque=b"y"), False),
        (Marks(sealed_from=b"/a"), False),
        (Marks(opaque=b"y", copied=True, sealed_from=b"/a"), True),
        (Marks(opaque=b"y", sealed_from=b"/a"), False),
        (Marks(opaque=b"y", copied=True), False),
        (Marks(opaque=b"z"), False),
        (Marks(opaque=b"x", sealed_from=b"/a"), False),
    ],
)
def test_a_directory_is_sealed_with_all_below_it_by_all_three_marks(marks: Marks, sealed: bool) -> None:
    assert marks.sealed is sealed


def test_the_kernel_seals_a_directory_alone() -> None:
    marks = Marks(opaque=b"z", copied=True, sealed_from=b"/a")
    assert marks.sealed_by_kernel
    assert not marks.sealed


@pytest.mark.parametrize("capability", [None, b"\x01\0\0\x02"])
def test_the_note_of_an_owner_change_is_read_as_written(capability: bytes | None) -> None:
    change = OwnerChange(0o6755, 12, 4_000_000_000, capability)
    assert OwnerChange.from_note(change.to_note(77), 77) == change


def test_the_note_of_an_owner_change_is_invalid_for_another_inode() -> None:
    """``cp -a`` copies the note with all other xattrs of a file."""
    assert OwnerChange.from_note(OwnerChange(0o6755, 12, 13, None).to_note(77), 78) is None


@pytest.mark.parametrize("note", [b"", b"y", b"6755 1 2 -", b"9 1 2 - 77", b"6755 1 2 zz 77", b"6755 1 2 - 77 1"])
def test_a_malformed_note_of_an_owner_change_is_ignored(note: bytes) -> None:
    assert OwnerChange.from_note(note, 77) is None


@pytest.mark.parametrize("mtime_ns", [0, 1, -1, 1_700_000_000_123_456_789])
def test_the_note_of_an_mtime_is_valid_for_its_file_only(mtime_ns: int) -> None:
    note = mtime_to_note(mtime_ns, 7)
    assert mtime_from_note(note, 7) == mtime_ns
    assert mtime_from_note(note, 8) is None


@pytest.mark.parametrize("note", [b"", b"1", b"1 7 7", b"x 7", b"1 x", b"%d 7" % (1 << 63)])
def test_a_malformed_note_of_an_mtime_is_ignored(note: bytes) -> None:
    assert mtime_from_note(note, 7) is None


@pytest.mark.parametrize("upper", [b"/disk/upper", b"/disk/upper/"])
def test_the_empty_directory_is_beside_the_upper_layer(upper: bytes) -> None:
    assert empty_lower(upper) == b"/disk/upper.detached"
