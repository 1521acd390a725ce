"""Host names as ranges: short, complete, and exact."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_ranges import fold_hosts, natural_key


def expanded(folded: str) -> list[str]:
    """Return the names that a range stands for. What is in brackets is numbers; those with leading zeros keep their width."""
    match = re.search(r"\[([0-9,-]+)\]", folded)
    if match is None:
        return [folded]
    names = []
    for span in match[1].split(","):
        first, _dash, last = span.partition("-")
        width = len(first) if first[0] == "0" else 0
        for number in range(int(first), int(last or first) + 1):
            names += expanded(folded[: match.start()] + str(number).zfill(width) + folded[match.end() :])
    return names


@pytest.mark.parametrize(
    ("hosts", "ranges"),
    [
        ([], []),
        (["nfs"], ["nfs"]),
        (["render7", "render7"], ["render7"]),
        ([f"render{number:03d}" for number in (*range(1, 121), 130)], ["render[001-120,130]"]),
        ([f"render{number}" for number in range(8, 13)], ["render[8-12]"]),
        (["r1", "r01", "r001", "r2", "r02"], ["r[1-2,01-02,001]"]),
        (["n098", "n099", "n100", "n101"], ["n[098-101]"]),
        (["render2.dc1.example.com", "render1.dc1.example.com"], ["render[1-2].dc1.example.com"]),
        ([f"rack{rack}-node{node:02d}" for rack in (1, 2) for node in (1, 2, 3)], ["rack[1-2]-node[01-03]"]),
        (["rack1-node1", "rack2-node2"], ["rack1-node1", "rack2-node2"]),
        (["b1", "a1", "nfs", "b2"], ["a1", "b[1-2]", "nfs"]),
        (["10.0.0.9", "10.0.0.10"], ["10.0.0.[9-10]"]),
        (["a[1-3]", "a1,2", "a1", "a2"], ["a[1-2]", "a1,2", "a[1-3]"]),
        (["a٣", "a٤"], ["a٣", "a٤"]),
        (["1", "2"], ["[1-2]"]),
    ],
)
def test_hosts_are_folded(hosts: list[str], ranges: list[str]) -> None:
    assert sorted(fold_hosts(hosts)) == sorted(ranges)
    assert fold_hosts(reversed(hosts)) == fold_hosts(hosts)


NAMES = st.lists(st.from_regex(r"\A(n|rack)([0-9]{1,3})(-x)?(0?[0-9]{1,2})?(\.lan)?\Z"), max_size=60)


@given(NAMES)
def test_ranges_stand_for_exactly_the_hosts(hosts: list[str]) -> None:
    names = [name for one in fold_hosts(hosts) for name in expanded(one)]
    assert sorted(names) == sorted(set(hosts))


def test_very_long_numbers_are_folded_too() -> None:
    assert fold_hosts(["n" + "1" * 5000, "n" + "1" * 4999 + "2"]) == ["n" + "1" * 4995 + "[11111-11112]"]


def test_names_are_sorted_by_their_numbers() -> None:
    assert sorted(["n10", "n9", "n", "n09", "m11"], key=natural_key) == ["m11", "n", "n09", "n9", "n10"]
