"""Generations: what a layer is called, and the record that it keeps of itself."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any, Callable

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    Counts,
    ManifestRecord,
    Placement,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import (
    Generation,
    LayerSpec,
    ViewPaths,
    generation_from_json,
    generation_id,
    generation_to_json,
    input_digest,
)


def placement(release: str, digest: str = "d", at: bytes | None = None, root: str = "/net/software") -> Placement:
    record = ManifestRecord(release, f"sha256:{digest * 64}", 10, Counts(1, 2, 3, 4), 5, False, root)
    place = release.encode()
    return Placement(f"/store/{release}.dump.gz", record, place if at is None else at, place)


SPEC = LayerSpec("view", (placement("a/1"), placement("b/1"), placement("c/1")), "directory", "data_only", "trusted")


def test_the_same_declaration_has_the_same_name_everywhere() -> None:
    # Written down, so that it also holds from one version to the next: a change needs another LAYER_FORMAT.
    assert input_digest(SPEC) == input_digest(replace(SPEC))
    assert generation_id(input_digest(SPEC)) == "e1d30bddeea50e05"


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


def generation(spec: LayerSpec, **more: Any) -> Generation:
    composition = names.composition_of(spec)
    digest = names.composition_digest(composition)
    return Generation(
        generation_id(digest),
        digest,
        spec.format,
        spec.strategy,
        "trusted",
        Counts(1, 2, 3, 4),
        5,
        6,
        composition,
        **more,
    )


IMAGE = Image("sha256:" + "0f" * 32, 4096, "mkcomposefs")
ODD = replace(
    SPEC,
    placements=(
        *MERGED,
        replace(placement("d", at=b"d/\xff \xc3\xbc\n"), include=(b"\xff", b"bin/*"), exclude=(b"x",)),
    ),
    format="erofs",
    owner=0,
    owner_map=((3, 4), (1, 2)),
    group_map=((3, 4),),
    mode="go-w",
    on_conflict="last",
    links=declared_links([(b"a/l", b"\xff")]),
)
GENERATIONS = [
    generation(SPEC),
    generation(replace(SPEC, placements=())),
    generation(ODD, image=IMAGE, conflicts=({"path": "/x", "kept": "a", "hidden": "b"},), conflict_count=101),
]


@pytest.mark.parametrize("written", GENERATIONS)
def test_a_record_survives_its_json(written: Generation) -> None:
    assert generation_from_json(generation_to_json(written), "view.json") == written


def altered(written: Generation, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a record with something of it changed."""
    fields = json.loads(generation_to_json(written))
    change(fields)
    return json.dumps(fields).encode()


def named_after(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """Return a change of the composition that the name follows, as somebody makes it who knows how names are made."""

    def changed(fields: dict[str, Any]) -> None:
        change(fields)
        composition = {
            name: value
            for name, value in fields.items()
            if name in names.composition_of(ODD) or name in ("owner_map", "precedence")
        }
        fields["digest"] = names.composition_digest(composition)
        fields["generation"] = generation_id(fields["digest"])

    return changed


ALTERED: list[Callable[[dict[str, Any]], object]] = [
    lambda fields: fields.update(generation="../../../../tmp/x"),
    lambda fields: fields.update(generation="0" * 16),
    lambda fields: fields.update(digest="sha256:" + "0" * 64),
    lambda fields: fields.update(digest="sha256:0"),
    lambda fields: fields.update(format="erofs/../../x"),
    lambda fields: fields.update(format="directory"),
    lambda fields: fields.update(format=["erofs"]),
    lambda fields: fields.update(strategy="x"),
    lambda fields: fields.update(xattr_namespace="../x"),
    lambda fields: fields.update(bytes="5"),
    lambda fields: fields.update(bytes=True),
    lambda fields: fields.update(bytes=-1),
    lambda fields: fields.update(bytes_on_disk=1 << 63),
    lambda fields: fields.update(entries=[]),
    lambda fields: fields["entries"].update(files=1.5),
    lambda fields: fields.update(image=None),
    lambda fields: fields["image"].update(digest="sha256:../x"),
    lambda fields: fields["image"].update(more=1),
    lambda fields: fields["releases"].pop(),
    lambda fields: fields["releases"][0].update(digest="sha256:" + "e" * 64),
    lambda fields: fields.update(owner=1),
    lambda fields: fields["owner_map"].append([5, 6]),
    lambda fields: fields.pop("mode"),
    lambda fields: fields["links"][0].update(target="/elsewhere"),
    lambda fields: fields["precedence"][0].reverse(),
    lambda fields: fields["conflicts"].append(1),
    lambda fields: fields.update(conflicts=0),
    lambda fields: fields.update(unknown=1),
    lambda fields: fields.update(layer_format="2"),
    lambda fields: fields.update(layer_format=names.LAYER_FORMAT + 1),
    named_after(lambda fields: fields["releases"][0].update(release="../x")),
    named_after(lambda fields: fields["releases"][0].update(release="/x")),
    named_after(lambda fields: fields["releases"][0].update(at="a/../../x")),
    named_after(lambda fields: fields["releases"][0].update(source="a//x")),
    named_after(lambda fields: fields["releases"][0].update(source=None)),
    named_after(lambda fields: fields["releases"][0].update(root="\0")),
    named_after(lambda fields: fields["releases"][0].update(root="/net/other")),
    named_after(lambda fields: fields["releases"][0].update(release="\ud800")),
    named_after(lambda fields: fields["releases"][0].update(release="x" * 5000)),
    named_after(lambda fields: fields["releases"][3].update(include=[["a"]])),
    named_after(lambda fields: fields["releases"][3].update(include=["a"] * 300)),
    named_after(lambda fields: fields.update(releases={})),
    named_after(lambda fields: fields.update(owner=1 << 32)),
    named_after(lambda fields: fields.update(owner_map=[[1]])),
]


@pytest.mark.parametrize("change", ALTERED)
def test_a_record_in_which_anything_is_not_what_it_should_be_is_refused_by_name(
    change: Callable[[dict[str, Any]], object],
) -> None:
    with pytest.raises(OverlayError, match=r"^/x/view\.json is not the record of a generation: ") as caught:
        generation_from_json(altered(GENERATIONS[2], change), "/x/view.json")
    assert not isinstance(caught.value, OutdatedError)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        generation_to_json(GENERATIONS[0])[:-20],
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"layer_format": ' + b"9" * 100_000 + b"}",
        b'{"layer_format": NaN}',
    ],
)
def test_what_is_no_record_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(OverlayError, match=r"^/x/view\.json is not the record"):
        generation_from_json(text, "/x/view.json")


def test_a_record_of_an_older_version_is_told_apart() -> None:
    text = altered(GENERATIONS[0], lambda fields: fields.update(layer_format=1))
    with pytest.raises(
        OutdatedError, match=r"^/x/view\.json: an older version .*build the layer again with metadata_layer"
    ):
        generation_from_json(text, "/x/view.json")


def test_what_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(OverlayError, match="cannot be recorded"):
        generation_to_json(replace(GENERATIONS[0], bytes=-1))


def test_releases_of_two_software_roots_are_no_view() -> None:
    spec = replace(SPEC, placements=(placement("max/2025"), placement("maya/2025", root="/net/maya")))
    with pytest.raises(OverlayError) as caught:
        names.check_composition("view", names.composition_of(spec))
    for word in ("max/2025", "/net/software", "maya/2025", "/net/maya", "one view shows releases of one software root"):
        assert word in str(caught.value)
    names.check_composition("view", names.composition_of(SPEC))


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
