"""A view changes owners, groups and modes by its rules."""

from __future__ import annotations

import itertools
import stat
import subprocess
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import (
    OwnershipRules,
    changed_mode,
    parse_mode,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def test_mapped_owners_are_mapped_and_all_others_become_the_owner() -> None:
    assert [OwnershipRules().uid(one) for one in (0, 5)] == [0, 5]
    assert [OwnershipRules(owner=0).uid(one) for one in (0, 5)] == [0, 0]
    mapped = OwnershipRules(owner=9, owner_map=((5, 50), (50, 1)), group_map=((0, 7),))
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
def test_a_mode_changes_as_chmod_changes_it(expression: str, tmp_path: Path) -> None:
    modes = [
        special | mode for special, mode in itertools.product((0, 0o1000, 0o6000), (0, 0o421, 0o640, 0o755, 0o777))
    ]
    paths: list[Path] = []
    for mode in modes:
        for kind in ("file", "directory"):
            path = tmp_path / f"{kind}-{mode:o}"
            path.mkdir() if kind == "directory" else path.touch()
            path.chmod(mode)
            paths.append(path)
    before = [path.lstat().st_mode for path in paths]
    subprocess.run(["chmod", "--", expression, *paths], check=True)
    changes = parse_mode(expression)
    assert [changed_mode(mode, changes) for mode in before] == [path.lstat().st_mode for path in paths]
    for path in paths:
        path.chmod(0o700)


def test_symbolic_links_keep_their_mode() -> None:
    assert changed_mode(stat.S_IFLNK | 0o777, parse_mode("a=")) == stat.S_IFLNK | 0o777


@pytest.mark.parametrize("given", ["", "0755", "+x", "go", "go-w,", "a+rz", "a~r", "u=rg", "a+r a+x", "go-w\n"])
def test_an_invalid_symbolic_mode_is_refused(given: str) -> None:
    with pytest.raises(OverlayError, match=r"^mode .* is no symbolic mode"):
        parse_mode(given)
