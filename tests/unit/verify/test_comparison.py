"""Lines of a layer are compared with those of its manifests, however they are cut into parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.comparison import Comparison
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.overlay_marks import file_problem
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import (
    MOST_KEPT,
    Findings,
    as_record,
    from_record,
)

TREE = [
    b"/ 0 40755 3 0 0 0 1.0 - - -",
    b"/a 0 40755 2 0 0 0 1.0 - - -",
    b"/a/one 5 100644 1 0 0 0 1.0 tool/one - -",
    b"/a/two 5 100644 2 0 0 0 1.0 tool/two - -",
    b"/a.b 3 120777 1 0 0 0 1.0 one - -",
    b"/b 5 @100644 2 0 0 0 1.0 /a/two - -",
]


def parts(lines: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(lines), size):
        yield lines[start : start + size]


def compared(found: list[bytes], size: int = 2, other_size: int = 3) -> dict[bytes, str]:
    findings = Findings()
    Comparison(findings).run(parts(TREE, size), parts(found, other_size))
    assert findings.checked == len(found)
    assert len(findings.first) == findings.total
    return {problem.path: problem.code for problem in findings.first}


@pytest.mark.parametrize("size", [1, 2, 4, 9])
@pytest.mark.parametrize("other_size", [1, 3, 9])
def test_the_parts_make_no_difference(size: int, other_size: int) -> None:
    assert compared(TREE, size, other_size) == {}
    assert compared(TREE[:1] + TREE[4:], size, other_size) == {b"/a": "missing_entry"}
    assert compared(TREE[:-1], size, other_size) == {b"/b": "missing_entry"}
    assert compared([], size, other_size) == {b"/": "missing_entry"}
    more = [*TREE[:2], b"/a/new 0 40755 2 0 0 0 1.0 - - -", b"/a/new/x 0 100644 1 0 0 0 1.0 - - -", *TREE[2:]]
    assert compared(more, size, other_size) == {b"/a/new": "unknown_entry"}
    assert compared([*TREE, b"/c 0 100644 1 0 0 0 1.0 - - -"], size, other_size) == {b"/c": "unknown_entry"}


@pytest.mark.parametrize(
    ("number", "line", "code"),
    [
        (2, b"/a/one 5 100600 1 0 0 0 1.0 tool/one - -", "entry_differs"),
        (2, b"/a/one 5 100644 1 0 0 0 1.7 tool/one - -", "entry_differs"),
        (2, b"/a/one 5 100644 1 0 0 0 1.0 tool/two - -", "entry_differs"),
        (2, b"/a/one 0 40755 2 0 0 0 1.0 - - -", "entry_differs"),
        (4, b"/a.b 3 120777 1 0 0 0 1.0 two - -", "entry_differs"),
        (5, b"/b 5 100644 1 0 0 0 1.0 tool/two - -", "lost_hard_links"),
        (5, b"/b 5 @100644 2 0 0 0 1.0 /a/one - -", "lost_hard_links"),
    ],
)
def test_a_difference_has_its_code(number: int, line: bytes, code: str) -> None:
    found = [*TREE[:number], line, *TREE[number + 1 :]]
    assert compared(found) == {line.split(b" ")[0]: code}


def test_findings_keep_the_first_problems_and_count_all() -> None:
    findings = Findings()
    for number in range(MOST_KEPT + 5):
        findings.add(b"/\xff%d" % number, "missing_target")
    findings.add(b"/", "wrong_size", "detail")
    assert (len(findings.first), findings.total) == (MOST_KEPT, MOST_KEPT + 6)
    assert from_record(as_record(findings)) == findings
    both = Findings(checked=3)
    both.merge(findings)
    both.merge(findings)
    assert both.counts == {"missing_target": 2 * MOST_KEPT + 10, "wrong_size": 2}
    with pytest.raises(KeyError):
        findings.add(b"/", "unknown")


@pytest.mark.parametrize(
    ("metacopy", "redirect", "code"),
    [
        (None, None, None),
        (b"", b"/a/b", None),
        (b"\0\4\0\0", b"/a", None),
        (b"", None, "metacopy_without_redirect"),
        (None, b"/a", "redirect_without_metacopy"),
        (b"\0\5\0\0", b"/a", "invalid_metacopy"),
        (b"", b"", "relative_redirect"),
        (b"", b"/a/../b", "escaping_redirect"),
        (b"", b"/a/b/", "double_slash_redirect"),
    ],
)
def test_the_xattrs_of_a_file_are_checked(metacopy: bytes | None, redirect: bytes | None, code: str | None) -> None:
    assert file_problem(metacopy, redirect) == code
