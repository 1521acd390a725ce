"""Owners, groups and modes that a view has instead of those of its releases."""

from __future__ import annotations

import itertools
import stat
import subprocess
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    Attributes,
    changed_mode,
    parse_mode,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def test_owners_are_mapped_and_those_that_are_not_named_become_the_owner() -> None:
    assert [Attributes().uid(one) for one in (0, 5)] == [0, 5]
    assert [Attributes(owner=0).uid(one) for one in (0, 5)] == [0, 0]
    mapped = Attributes(owner=9, owner_map=((5, 50), (50, 1)), group_map=((0, 7),))
    assert [mapped.uid(one) for one in (0, 5, 50)] == [9, 50, 1]
    assert [mapped.gid(one) for one in (0, 5)] == [7, 5]


EXPRESSIONS = [
    "go-w",
    "a+rX",
    "go-w,a+rX",
    "u=rwx,g=rx,o=",
    "g=u,o=g",
    "u+g,o-u",
    "a-s",
    "ug+s",
    "u=s",
    "g=rxs",
    "a+t",
    "o+t,u+t",
    "a=",
    "a=X",
    "a-x+X",
    "ugo=r-r+w",
    "u=rwX,go=rX",
    "a=u",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_modes_become_what_chmod_makes_of_them(expression: str, tmp_path: Path) -> None:
    modes = [
        special | mode for special, mode in itertools.product((0, 0o1000, 0o6000), (0, 0o421, 0o640, 0o755, 0o777))
    ]
    made: list[Path] = []
    for mode in modes:
        for kind in ("file", "directory"):
            path = tmp_path / f"{kind}-{mode:o}"
            path.mkdir() if kind == "directory" else path.touch()
            path.chmod(mode)
            made.append(path)
    before = [path.lstat().st_mode for path in made]
    subprocess.run(["chmod", "--", expression, *made], check=True)
    changes = parse_mode(expression)
    assert [changed_mode(mode, changes) for mode in before] == [path.lstat().st_mode for path in made]
    for path in made:
        path.chmod(0o700)


def test_links_keep_their_mode() -> None:
    assert changed_mode(stat.S_IFLNK | 0o777, parse_mode("a=")) == stat.S_IFLNK | 0o777


@pytest.mark.parametrize("given", ["", "0755", "+x", "go", "go-w,", "a+rz", "a~r", "u=rg", "a+r a+x", "go-w\n"])
def test_what_is_no_symbolic_mode_is_refused(given: str) -> None:
    with pytest.raises(OverlayError, match=r"^mode .* is no symbolic mode"):
        parse_mode(given)
