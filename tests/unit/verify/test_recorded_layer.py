"""A layer is declared again from the record of its generation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    EntryCounts,
    ManifestRecord,
    Placement,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.recorded_layer import spec_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verified_record import (
    LastVerified,
    verified_from_json,
    verified_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import (
    LayerSpec,
    composition_of,
    input_digest,
)


def record(number: int) -> ManifestRecord:
    return ManifestRecord(f"tool/{number}", f"sha256:{number:064x}", 9, EntryCounts(1), 0, False, "/net")


def found(release: str, digest: str) -> tuple[str, ManifestRecord]:
    made = record(int(release.partition("/")[2]))
    assert made.digest == digest
    return f"/store/{release}", made


def generation(spec: LayerSpec) -> Generation:
    digest = input_digest(spec)
    name = digest.partition(":")[2][:16]
    composition = composition_of(spec)
    return Generation(name, digest, "directory", "data_only", "trusted", EntryCounts(), 0, 0, composition)


PLACEMENTS = [
    Placement("/m", record(1), b"tool", b"tool/1"),
    Placement("/m", record(2), b"tool", b"tool/2", (b"bin",), (b"doc", b"*.txt")),
    Placement("/m", record(3), b"", b"tool/3"),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"on_conflict": "first"},
        {"on_conflict": "last", "links": (Link(b"tool/now", b"x"),)},
        {"owner": 5, "mode": "go-w"},
        {"owner_map": ((1, 2), (3, 4)), "group_map": ((5, 6),), "keep_setid": True},
    ],
)
def test_the_declaration_gives_the_same_generation(order: tuple[int, ...], options: dict[str, Any]) -> None:
    spec = LayerSpec(
        "view", tuple(PLACEMENTS[number] for number in order), "directory", "data_only", "trusted", **options
    )
    again = spec_of("view", generation(spec), found)
    assert input_digest(again) == input_digest(spec)
    assert again.rules.ownership == spec.rules.ownership
    if options.get("on_conflict") == "last":
        assert [one.record for one in again.placements] == [one.record for one in reversed(spec.placements)]


def test_a_contradicting_order_is_refused() -> None:
    spec = LayerSpec("view", tuple(PLACEMENTS), "directory", "data_only", "trusted", on_conflict="first")
    wrong = generation(spec)
    wrong.composition["precedence"] = [[0, 1], [1, 0]]
    with pytest.raises(OverlayError, match="contradicts"):
        spec_of("view", wrong, found)
    wrong.composition["precedence"] = [[2, 1, 0]]
    wrong.composition["owner"] = 7
    with pytest.raises(OverlayError, match="give the store"):
        spec_of("view", wrong, found)


def test_the_record_of_a_verification_is_read_again() -> None:
    last = LastVerified("0123456789abcdef", "open", 0, 1_795_791_600, 7, {"missing_target": 2, "wrong_size": 1})
    assert verified_from_json(verified_to_json(last)) == last
    assert last.problems == 3
    with pytest.raises(RecordError):
        verified_to_json(LastVerified("x", "open", 0, 1, 7))
