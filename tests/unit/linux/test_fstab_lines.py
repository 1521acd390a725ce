"""Lines of fstab survive writing and reading, and editing one mountpoint keeps all other lines byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.fstab_lines import FstabFields

#: Any bytes but NUL, often those that fstab treats specially.
TEXTS = st.one_of(
    st.text("# \t\n\\0134\r\v\fa", min_size=1).map(str.encode),
    st.binary(min_size=1).filter(lambda text: b"\0" not in text),
)
OPTIONS = st.lists(TEXTS.map(lambda text: text.replace(b",", b"")).filter(bool), min_size=1, max_size=4)


@given(TEXTS, TEXTS, TEXTS, OPTIONS)
@example(b"#", b"#", b"#", [b"#"])
@example(b"a b", b"/c\td", b"e\nf", [b"g\\h"])
@example(b"\\043", b"/\\040", b"\\", [b"\\134"])
@example(b"\xff", b"/\xc3", b"\r", [b"a\r"])
def test_a_line_is_read_as_it_was_made(source: bytes, path: bytes, fstype: bytes, options: list[bytes]) -> None:
    line = fstab_lines.make_line(source, path, fstype, b",".join(options))
    assert line.endswith(b" 0 0\n")
    assert line.count(b"\n") == 1
    assert fstab_lines.read_line(line) == FstabFields(source, path, fstype, tuple(options))
    assert fstab_lines.is_of(line, path)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (b"a b", b"a\\040b /m t o 0 0\n"),
        (b"a\tb\nc\\d", b"a\\011b\\012c\\134d /m t o 0 0\n"),
        # Only at the start of a line is a number sign a comment.
        (b"#a#", b"\\043a# /m t o 0 0\n"),
        (b"a#\xff\r", b"a#\xff\r /m t o 0 0\n"),
    ],
)
def test_only_what_would_be_misread_is_escaped(source: bytes, line: bytes) -> None:
    assert fstab_lines.make_line(source, b"/m", b"t", b"o") == line


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b"a /b c d,e 0 1\n", FstabFields(b"a", b"/b", b"c", (b"d", b"e"))),
        (b" \t a \t /b\tc  d", FstabFields(b"a", b"/b", b"c", (b"d",))),
        (b"a /b\r\n", FstabFields(b"a", b"/b")),
        (b"\\043a /b\\043 c d#", FstabFields(b"#a", b"/b#", b"c", (b"d#",))),
        (b"# a /b c d", None),
        (b"  #a /b c d", None),
        (b"a", None),
        (b"", None),
        (b" \n", None),
    ],
)
def test_a_line_of_others_is_read_as_mount_reads_it(line: bytes, fields: FstabFields | None) -> None:
    assert fstab_lines.read_line(line) == fields


LINES = st.lists(st.one_of(TEXTS, st.just(b"# comment"), st.just(b"x /m t o"), st.just(b"y /m/ t o 0 0")), max_size=6)


@given(LINES.map(b"\n".join), st.one_of(st.none(), st.just(b"z /m t o 0 0\n")))
def test_all_other_lines_are_kept_byte_for_byte(text: bytes, line: bytes | None) -> None:
    edited = fstab_lines.replaced(text, b"/m", line)
    kept = [one for one in fstab_lines.split(text) if not fstab_lines.is_of(one, b"/m")]
    found = [one for one in fstab_lines.split(edited) if not fstab_lines.is_of(one, b"/m")]
    # A missing newline at the end of the text is added if a line follows.
    assert [one.rstrip(b"\n") for one in found] == [one.rstrip(b"\n") for one in kept]
    assert found[:-1] == kept[:-1]
    assert [one for one in fstab_lines.split(edited) if fstab_lines.is_of(one, b"/m")] == [one for one in [line] if one]
    assert fstab_lines.replaced(edited, b"/m", line) == edited


@given(TEXTS)
def test_a_text_is_the_sum_of_its_lines(text: bytes) -> None:
    lines = fstab_lines.split(text)
    assert fstab_lines.join(lines) == text
    assert all(line.endswith(b"\n") for line in lines[:-1])
    assert all(line.count(b"\n") <= 1 for line in lines)


def test_a_carriage_return_does_not_end_a_line() -> None:
    text = b"# old:\rx /m t o\n"
    assert fstab_lines.replaced(text, b"/m", None) == text
