"""Versions of software releases are compared by their numbers and pre-release words."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.versions import compare, version_key

ORDERED = [
    ["1.9", "1.10", "1.10.1", "2"],
    ["15.1v3", "15.1v12", "15.2v1"],
    ["20.5.332", "20.5.410", "20.5.1000", "21.0.1"],
    ["2.0.dev1", "2.0a1", "2.0b1", "2.0pre1", "2.0rc1", "2.0rc2", "2.0", "2.0.1"],
    ["1.0-alpha", "1.0-beta", "1.0-rc", "1.0"],
    ["2025", "2025.1", "2025.2", "2026"],
    ["1.0", "1.0p1", "1.0.1"],
    ["v1.2", "V1.3", "v1.10"],
    ["0.9", "0.10", "0.10.0.1"],
    ["", "0.1"],
]
EQUAL = [
    ("1.0", "1"),
    ("1.0.0", "1"),
    ("v1.2", "1.2"),
    ("1-2_3", "1.2.3"),
    ("1.0RC1", "1.0rc1"),
    ("2.0rc1", "2rc1"),
    ("1.01", "1.1"),
    ("1.0alpha1", "1.0a1"),
]
PAIRS = [pair for chain in ORDERED for pair in itertools.combinations(chain, 2)]


@pytest.mark.parametrize(("earlier", "later"), PAIRS)
def test_an_earlier_version_is_less_than_a_later_one(earlier: str, later: str) -> None:
    holding = {relation for relation in ("==", "!=", "<", "<=", ">", ">=") if compare(earlier, relation, later)}
    assert holding == {"!=", "<", "<="}
    assert compare(later, ">", earlier)


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_spellings_of_one_version_are_equal(left: str, right: str) -> None:
    assert {relation for relation in ("==", "!=", "<", "<=", ">", ">=") if compare(left, relation, right)} == {
        "==",
        "<=",
        ">=",
    }


@given(st.text(), st.text())
def test_any_two_texts_can_be_compared(left: str, right: str) -> None:
    assert (version_key(left) < version_key(right)) == (version_key(right) > version_key(left))


@pytest.mark.parametrize("relation", ["=", "~=", "", "=>"])
def test_an_unknown_comparison_is_refused(relation: str) -> None:
    with pytest.raises(OverlayError, match="is not a version comparison"):
        compare("1", relation, "2")
