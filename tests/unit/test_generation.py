"""Generations: what a layer is called, and the record that it keeps of itself."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.core import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.generation import (
    Generation,
    Image,
    LayerSpec,
    ViewPaths,
    generation_from_json,
    generation_id,
    generation_to_json,
    input_digest,
    releases_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import Counts, ManifestRecord, Placement


def placement(release: str, digest: str = "d", at: bytes | None = None) -> Placement:
    record = ManifestRecord(release, f"sha256:{digest}", 10, Counts(1, 2, 3, 4), 5, False)
    place = release.encode()
    return Placement(f"/store/{release}.dump.gz", record, place if at is None else at, place)


SPEC = LayerSpec("view", (placement("a/1"), placement("b/1"), placement("c/1")), "directory", "data_only", "trusted")


def test_the_same_declaration_has_the_same_name_everywhere() -> None:
    # Written down, so that it also holds from one version to the next: a change needs another LAYER_FORMAT.
    assert input_digest(SPEC) == input_digest(replace(SPEC))
    assert generation_id(input_digest(SPEC)) == "3737a386372d0af9"


def test_the_order_of_releases_and_the_name_of_the_view_make_no_difference() -> None:
    digests = {input_digest(replace(SPEC, placements=order)) for order in itertools.permutations(SPEC.placements)}
    assert digests == {input_digest(SPEC)} == {input_digest(replace(SPEC, name="other"))}


def test_where_a_manifest_lies_makes_no_difference() -> None:
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
    ("spec", "folder"),
    [
        (SPEC, "directory"),
        (replace(SPEC, format="erofs"), "erofs"),
        (replace(SPEC, strategy="redirect"), "directory-redirect"),
        (replace(SPEC, xattr_namespace="user"), "directory-user"),
        (replace(SPEC, strategy="redirect", xattr_namespace="user"), "directory-redirect-user"),
    ],
)
def test_how_a_host_keeps_a_layer_is_told_by_its_folder_and_not_by_its_name(spec: LayerSpec, folder: str) -> None:
    name = generation_id(input_digest(SPEC))
    assert input_digest(spec) == input_digest(SPEC)
    assert spec.folder == f"{name}-{folder}"
    assert names.id_of(spec.folder) == name


def test_everything_that_shapes_the_layer_gives_it_another_name() -> None:
    found = [input_digest(spec) for spec in [SPEC, *CHANGED]]
    assert len(set(found)) == len(found)


def test_what_makes_no_difference_to_the_view_makes_none_to_its_name() -> None:
    first, *others = SPEC.placements
    filtered = [replace(first, exclude=patterns) for patterns in ((b"x", b"y"), (b"y", b"x", b"y"))]
    assert len({input_digest(replace(SPEC, placements=(one, *others))) for one in filtered}) == 1
    maps = [((1, 2), (3, 4)), ((3, 4), (1, 2))]
    assert len({input_digest(replace(SPEC, owner_map=one, group_map=one)) for one in maps}) == 1
    # Nothing overlaps, so nothing can be in conflict.
    outside = declared_links([(b"a/current", b"1")])
    for links in ((), outside):
        spec = replace(SPEC, links=links)
        assert {input_digest(replace(spec, on_conflict=rule)) for rule in ("first", "last")} == {input_digest(spec)}


def test_keeping_set_id_bits_makes_a_difference_only_where_owners_are_mapped() -> None:
    assert input_digest(replace(SPEC, keep_setid=True)) == input_digest(SPEC)
    assert replace(SPEC, keep_setid=True).rules == SPEC.rules


def test_the_order_of_releases_counts_where_they_overlap_and_it_decides() -> None:
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


def test_another_layer_format_gives_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = input_digest(SPEC)
    monkeypatch.setattr(names, "LAYER_FORMAT", names.LAYER_FORMAT + 1)
    assert input_digest(SPEC) != before


GENERATION = Generation(
    id="0123456789abcdef",
    digest="sha256:0123456789abcdef",
    format="directory",
    strategy="data_only",
    xattr_namespace="trusted",
    entries=Counts(1, 2, 3, 4),
    bytes=5,
    bytes_on_disk=6,
    releases=releases_of((*SPEC.placements, placement("d", at=b"d/\xff \xc3\xbc\n"))),
)


def test_a_record_survives_its_json() -> None:
    assert generation_from_json(generation_to_json(GENERATION), "view.json") == GENERATION
    merged = replace(
        GENERATION,
        releases=releases_of([replace(placement("a"), include=(b"\xff", b"bin/*"), exclude=(b"x",))]),
        links=names.links_of(declared_links([(b"a/l", b"\xff")])),
        conflicts=({"path": "/x", "kept": "a", "hidden": "b"},),
        conflict_count=101,
        image=Image("sha256:00ff", 4096, "mkcomposefs"),
    )
    assert generation_from_json(generation_to_json(merged), "view.json") == merged


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff", generation_to_json(GENERATION)[:-20]])
def test_what_is_no_record_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(OverlayError, match=r"^/x/view\.json is not the record"):
        generation_from_json(text, "/x/view.json")


@pytest.mark.parametrize("name", ["a", "A1", "houdini-20.5_x", "0", "a" * 100])
def test_the_name_of_a_view_becomes_a_folder(name: str) -> None:
    assert ViewPaths.of("/state", name).root == f"/state/views/{name}"


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "ä", "a" * 101, "a\0"])
def test_a_name_that_is_no_good_folder_is_refused(name: str) -> None:
    with pytest.raises(OverlayError, match=r"^view name "):
        ViewPaths.of("/state", name)


def test_all_of_a_view_is_in_its_folder() -> None:
    paths = ViewPaths.of("/state", "v")
    assert paths.generation("x") == "/state/views/v/generations/x"
    assert paths.link("current") == "/state/views/v/current"
    assert names.layer_path(paths.generation("x"), "directory") == "/state/views/v/generations/x/layer"
    assert names.layer_path(paths.generation("x"), "erofs") == "/state/views/v/generations/x/layer.erofs"
    assert names.record_path(paths.generation("x")) == "/state/views/v/generations/x/view.json"
    assert {paths.staging, paths.lock} == {"/state/views/v/staging", "/state/views/v/lock"}
