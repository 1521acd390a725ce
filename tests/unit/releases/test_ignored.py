"""Names that are no part of a release are known by their patterns."""

from __future__ import annotations

import pytest
import yaml

from ansible_collections.renderfarm.overlay.plugins.doc_fragments.options import ModuleDocFragment
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import (
    DEFAULT_IGNORED_NAMES,
    IgnoredNames,
)


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        (b".nfs000000000a1b2c3d00000001", True),
        (b".nfsrc", False),
        (b"~snapshot", True),
        (b"#recycle", True),
        (b"@eaDir", True),
        (b"@eaDirs", False),
        (b"lost+found", True),
        (b"core.cpython-311.pyc.140234", True),
        (b"core.cpython-311.pyc", False),
        (b"__pycache__", False),
        (b"\xff\n", False),
    ],
)
def test_the_usual_names_are_known(name: bytes, ignored: bool) -> None:
    assert (name in IgnoredNames()) is ignored


def test_a_path_is_ignored_by_any_of_its_names() -> None:
    assert IgnoredNames().in_path(b"/a/.snapshot/b")
    assert not IgnoredNames().in_path(b"/a/snapshot/b")


def test_patterns_are_of_bytes_and_match_whole_names() -> None:
    names = IgnoredNames(["\udcff*", "a?"])
    assert [one in names for one in (b"\xff", b"\xffx", b"ab", b"abc", b"a\n")] == [True, True, True, False, True]
    assert b".snapshot" not in IgnoredNames([])


@pytest.mark.parametrize("pattern", ["", "a/b", "*****", "x" * 256])
def test_what_is_no_pattern_of_a_name_is_refused(pattern: str) -> None:
    with pytest.raises(OverlayError, match="is not the pattern of a name"):
        IgnoredNames([pattern])


def test_the_documentation_has_the_default() -> None:
    documented = yaml.safe_load(ModuleDocFragment.IGNORE_NAMES)["options"]["ignore_names"]["default"]
    assert documented == list(DEFAULT_IGNORED_NAMES)
