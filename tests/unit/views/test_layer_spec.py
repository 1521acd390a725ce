"""The name of a generation follows from everything that decides what the view shows, and from nothing else."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    EntryCounts,
    ManifestRecord,
    Placement,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    check_composition,
    generation_id,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import (
    LayerSpec,
    composition_of,
    input_digest,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import GenerationName


def placement(release: str, digest: str = "d", at: bytes | None = None, root: str = "/net/software") -> Placement:
    record = ManifestRecord(release, f"sha256:{digest * 64}", 10, EntryCounts(1, 2, 3, 4), 5, False, root)
    place = release.encode()
    return Placement(f"/store/{release}.dump.gz", record, place if at is None else at, place)


SPEC = LayerSpec("view", (placement("a/1"), placement("b/1"), placement("c/1")), "directory", "data_only", "trusted")


def test_a_declaration_has_the_same_generation_on_every_host() -> None:
    # A literal ID, so that versions of the collection agree as well. If it has to change, raise LAYER_FORMAT.
    assert input_digest(SPEC) == input_digest(replace(SPEC))
    assert generation_id(input_digest(SPEC)) == "e1d30bddeea50e05"


def test_the_order_of_separate_releases_and_the_name_of_the_view_have_no_effect() -> None:
    digests = {input_digest(replace(SPEC, placements=order)) for order in itertools.permutations(SPEC.placements)}
    assert digests == {input_digest(SPEC)} == {input_digest(replace(SPEC, name="other"))}


def test_the_path_of_a_manifest_has_no_effect() -> None:
    moved = replace(SPEC.placements[0], manifest="/elsewhere/x.dump.gz")
    assert input_digest(replace(SPEC, placements=(moved, *SPEC.placements[1:]))) == input_digest(SPEC)


MERGED = tuple(replace(one, at=b"") for one in SPEC.placements)
CHANGED = [
    replace(SPEC, placements=SPEC.placements[1:]),
    replace(SPEC, placements=(placement("a/1", digest="e"), *SPEC.placements[1:])),
    replace(SPEC, placements=(placement("a/1", at=b"a/x"), *SPEC.placements[1:])),
    replace(SPEC, placements=(replace(SPEC.placements[0], source=b"x"), *SPEC.placements[1:])),
    replace(SPEC, placements=(replace(SPEC.placements[0], at=b"\xff"), *SPEC.placements[1:])),
    replace(SPEC, placements=(replace(SPEC.placements[0], at=b"\xfe"), *SPEC.placements[1:])),
    replace(SPEC, placements=tuple(placement(name, root="/net/other") for name in ("a/1", "b/1", "c/1"))),
    replace(SPEC, owner=0),
    replace(SPEC, owner=1),
    replace(SPEC, owner=1, keep_setid=True),
    replace(SPEC, owner_map=((0, 1),), keep_setid=True),
    replace(SPEC, group=0),
    replace(SPEC, group=1),
    replace(SPEC, owner_map=((0, 1),)),
    replace(SPEC, group_map=((0, 1),)),
    replace(SPEC, mode="go-w"),
    replace(SPEC, links=declared_links([(b"current", b"c/1")])),
    replace(SPEC, links=declared_links([(b"current", b"b/1")])),
    replace(SPEC, placements=(replace(SPEC.placements[0], include=(b"bin",)), *SPEC.placements[1:])),
    replace(SPEC, placements=(replace(SPEC.placements[0], exclude=(b"bin",)), *SPEC.placements[1:])),
    replace(SPEC, placements=MERGED),
    replace(SPEC, placements=MERGED, on_conflict="first"),
    replace(SPEC, placements=MERGED, on_conflict="last"),
    replace(SPEC, links=declared_links([(b"a/1/l", b"x")])),
    replace(SPEC, links=declared_links([(b"a/1/l", b"x")]), on_conflict="first"),
]


@pytest.mark.parametrize(
    ("spec", "form"),
    [
        (SPEC, "directory"),
        (replace(SPEC, format="erofs"), "erofs"),
        (replace(SPEC, strategy="redirect"), "directory-redirect"),
        (replace(SPEC, xattr_namespace="user"), "directory-user"),
        (replace(SPEC, strategy="redirect", xattr_namespace="user"), "directory-redirect-user"),
    ],
)
def test_the_form_of_a_layer_changes_its_directory_but_not_its_generation(spec: LayerSpec, form: str) -> None:
    assert spec.generation == SPEC.generation == generation_id(input_digest(SPEC))
    assert spec.directory == f"{SPEC.generation}-{form}"
    parsed = GenerationName.parse(spec.directory)
    assert parsed == GenerationName(SPEC.generation, spec.format, spec.strategy, spec.xattr_namespace)


def test_everything_that_changes_the_view_changes_its_generation() -> None:
    found = [input_digest(spec) for spec in [SPEC, *CHANGED]]
    assert len(set(found)) == len(found)


def test_options_without_effect_on_the_view_do_not_change_its_generation() -> None:
    first, *others = SPEC.placements
    filtered = [replace(first, exclude=patterns) for patterns in ((b"x", b"y"), (b"y", b"x", b"y"))]
    assert len({input_digest(replace(SPEC, placements=(one, *others))) for one in filtered}) == 1
    maps = [((1, 2), (3, 4)), ((3, 4), (1, 2))]
    assert len({input_digest(replace(SPEC, owner_map=one, group_map=one)) for one in maps}) == 1
    # Nothing overlaps, so there can be no conflict.
    outside = declared_links([(b"a/current", b"1")])
    for links in ((), outside):
        spec = replace(SPEC, links=links)
        assert {input_digest(replace(spec, on_conflict=rule)) for rule in ("first", "last")} == {input_digest(spec)}


def test_keep_setid_has_an_effect_only_if_owners_are_mapped() -> None:
    assert input_digest(replace(SPEC, keep_setid=True)) == input_digest(SPEC)
    assert replace(SPEC, keep_setid=True).rules == SPEC.rules


def test_the_order_of_overlapping_releases_matters_if_on_conflict_uses_it() -> None:
    def digests(on_conflict: str, backwards: bool = False) -> list[str]:
        orders = list(itertools.permutations(MERGED))
        return [
            input_digest(
                replace(SPEC, placements=tuple(reversed(order)) if backwards else order, on_conflict=on_conflict)
            )
            for order in orders
        ]

    assert len(set(digests("error"))) == 1
    assert len(set(digests("first"))) == 6
    assert digests("first") == digests("last", backwards=True)


def test_another_layer_format_number_gives_another_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    before = input_digest(SPEC)
    monkeypatch.setattr(generation_record, "LAYER_FORMAT", generation_record.LAYER_FORMAT + 1)
    assert input_digest(SPEC) != before


def test_releases_of_two_software_roots_cannot_be_one_view() -> None:
    spec = replace(SPEC, placements=(placement("max/2025"), placement("maya/2025", root="/net/maya")))
    with pytest.raises(OverlayError) as caught:
        check_composition("view", composition_of(spec))
    for word in ("max/2025", "/net/software", "maya/2025", "/net/maya", "one view shows releases of one software root"):
        assert word in str(caught.value)
    check_composition("view", composition_of(SPEC))
