"""Paths in messages: readable, on one line, and telling different paths apart."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import show


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/a/b", "/a/b"),
        ("/straße/日本".encode(), "/straße/日本"),
        (b"/a b", "/a b"),
        (b"/a\nb\tc\r", "/a\\nb\\tc\\r"),
        (b"/\xff\xfe", "/\\xff\\xfe"),
        (b"/\x1b[31mred", "/\\x1b[31mred"),
        ("/\u202egnp.exe".encode(), "/\\u202egnp.exe"),
        (b"", ""),
    ],
)
def test_a_path_is_shown_on_one_line_without_control_characters(path: bytes, shown: str) -> None:
    assert show(path) == shown
    assert show(path).isprintable()
