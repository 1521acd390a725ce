"""Versions of software releases are compared by their numbers and pre-release words."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from pathlib import Path

import packaging.version
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.versions import (
    ORDERS,
    compare,
    is_prerelease,
    version_key,
)

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
    ["20.5_old", "20.5-wip", "20.5-beta", "20.5rc1", "20.5", "20.5+local", "20.5+studio.2", "20.5.1"],
    ["20.5.bak", "20.5.wip", "20.5"],
    ["1.0.2", "1.0.2j", "1.0.2k", "1.0.3"],
    ["2025a", "2025b", "2026a"],
    ["1.0b1", "1.0", "1.0b"],
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
#: Parts of versions as studios have them, from which random ones are made.
PARTS = [
    "0",
    "1",
    "2",
    "01",
    "10",
    "20",
    "a",
    "b",
    "rc",
    "alpha",
    "dev",
    "post",
    "wip",
    "old",
    "local",
    "v",
    "r",
    "Beta",
]
CHECKOUT = Path(__file__).resolve().parents[3]
#: Prints whether each version is earlier than the next one, in rez's order.
IN_REZ = """
import json, sys
from rez.version import Version
versions = [Version(text) for text in json.load(sys.stdin)]
print(json.dumps([one < other for one, other in zip(versions, versions[1:])]))
"""
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


def random_versions(separators: str, count: int) -> list[str]:
    """Return versions, the same in each run, with many that are nearly alike."""
    chance = random.Random(440)
    return [
        "".join(chance.choice(PARTS) + chance.choice(separators) for _part in range(chance.randint(1, 5))).rstrip(
            separators
        )
        + chance.choice(["", "", "1", "0"])
        for _version in range(count)
    ]


def test_the_order_pep440_is_that_of_packaging() -> None:
    versions = []
    for text in random_versions(".-+!", 30_000):
        try:
            versions.append((packaging.version.Version(text), text))
        except packaging.version.InvalidVersion:
            assert version_key(text, "pep440")[1] == 0, text
    assert len(versions) > 2_000
    for (one, left), (other, right) in itertools.pairwise(versions):
        assert (one < other, one == other) == (
            compare(left, "<", right, "pep440"),
            compare(left, "==", right, "pep440"),
        ), (left, right)
        assert one.is_prerelease == is_prerelease(left, "pep440")


def test_the_order_rez_is_that_of_rez() -> None:
    versions = random_versions(".-_", 4_000)
    rez = CHECKOUT / ".build" / "venv-rez" / "bin" / "python"
    said = subprocess.run([rez, "-c", IN_REZ], input=json.dumps(versions), capture_output=True, text=True, check=True)
    earlier = json.loads(said.stdout)
    assert 1_000 < sum(earlier) < 3_000
    for (left, right), expected in zip(itertools.pairwise(versions), earlier):
        assert compare(left, "<", right, "rez") == expected, (left, right)


@pytest.mark.parametrize("order", ORDERS)
@given(st.text(), st.text())
def test_any_two_texts_can_be_compared_in_each_order(order: str, left: str, right: str) -> None:
    assert compare(left, "<", right, order) == compare(right, ">", left, order)


@pytest.mark.parametrize(
    ("version", "vendor", "pep440"),
    [
        ("20.5.410", False, False),
        ("20.5-wip", True, True),
        ("20.5.bak", True, True),
        ("20.5_old", True, True),
        ("2.0-beta", True, True),
        ("2.0rc1", True, True),
        ("2.0.dev3", True, True),
        ("2.0+local", False, False),
        ("2.0+rc1", False, False),
        ("2.0.post1", False, False),
        ("15.1v3", False, False),
        ("1.0.2k", False, False),
        ("1.0b", False, True),
        ("gold", False, False),
    ],
)
def test_pre_releases_and_copies_are_known(version: str, vendor: bool, pep440: bool) -> None:
    assert (is_prerelease(version), is_prerelease(version, "rez"), is_prerelease(version, "pep440")) == (
        vendor,
        vendor,
        pep440,
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["current", "latest", "Latest"])
def test_a_name_that_says_which_version_is_meant_is_never_the_newest(name: str, order: str) -> None:
    assert all(compare(name, "<", other, order) for other in ("0", "0.1a1", "H20.5", "zoo", "1.0-wip"))
