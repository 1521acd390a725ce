"""Paths in messages are readable and on one line, and a denied permission comes with advice."""

from __future__ import annotations

import re

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import (
    did_you_mean,
    mentions,
    refusal_hint,
    show,
)


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


@pytest.mark.parametrize(
    ("as_root", "no_access", "fstype", "hint"),
    [
        (False, True, b"nfs4", "run the task as root"),
        (False, False, None, "run the task as root"),
        (True, True, b"nfs4", "the file server denies access to root of this host, as an export with root_squash"),
        (True, True, b"nfs", "the file server denies access to root"),
        (True, True, b"ext4", "root itself is refused"),
        (True, True, None, "root itself is refused"),
        (True, False, b"nfs4", "^$"),
    ],
)
def test_the_hint_depends_on_the_user_the_error_and_the_file_system(
    as_root: bool, no_access: bool, fstype: bytes | None, hint: str
) -> None:
    assert re.search(hint, refusal_hint(as_root, no_access, fstype))


@pytest.mark.parametrize(
    ("message", "name", "expected"),
    [
        ("release tool/1.0 does not exist: there is no /net/tool/1.0", "release tool/1.0", True),
        ("release tool/1.0.1 does not exist", "release tool/1.0", False),
        ("release tool/1.0-beta does not exist", "release tool/1.0", False),
        ("view tools: it is in use.", "view tool", False),
        ("it is in use by view tool.", "view tool", True),
        ("software root /net/software is not mounted", "view software", False),
        ("/net/software/tool/1.0/bin: Permission denied", "tool/1.0", True),
        ("/net/software/mytool/1.0: Permission denied", "tool/1.0", False),
    ],
)
def test_a_message_mentions_a_whole_name(message: str, name: str, expected: bool) -> None:
    assert mentions(message, name) is expected


def test_an_unknown_name_is_compared_without_what_all_names_begin_with() -> None:
    assert did_you_mean("houdini/20.5", ["houdini/20.5.410", "maya/2025"]) == ": did you mean houdini/20.5.410?"
    assert did_you_mean("x", ["houdini"]) == ""
    assert did_you_mean("overlay_zzz", ["overlay_abc"]) == ": did you mean overlay_abc?"
    assert did_you_mean("overlay_zzz", ["overlay_abc"], "overlay_") == ""
    assert did_you_mean("a\udcff", ["a\udcff\udcfe"]) == ": did you mean a\\xff\\xfe?"
