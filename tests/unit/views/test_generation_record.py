"""The record of a generation is read as it was written, and any other record is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Callable

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import EntryCounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    LAYER_FORMAT,
    Generation,
    composition_digest,
    generation_from_json,
    generation_id,
    generation_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import (
    LayerSpec,
    composition_of,
)
from ansible_collections.renderfarm.overlay.tests.unit.views.test_layer_spec import MERGED, SPEC, placement


def generation(spec: LayerSpec, **more: Any) -> Generation:
    composition = composition_of(spec)
    digest = composition_digest(composition)
    return Generation(
        generation_id(digest),
        digest,
        spec.format,
        spec.strategy,
        "trusted",
        EntryCounts(1, 2, 3, 4),
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
def test_a_record_is_read_as_it_was_written(written: Generation) -> None:
    assert generation_from_json(generation_to_json(written), "view.json") == written


def altered(written: Generation, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the record of a generation with one change."""
    fields = json.loads(generation_to_json(written))
    change(fields)
    return json.dumps(fields).encode()


def named_after(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """Return a change of the composition that also adapts the digest and the ID, as an attacker would make it."""

    def changed(fields: dict[str, Any]) -> None:
        change(fields)
        composition = {
            name: value
            for name, value in fields.items()
            if name in composition_of(ODD) or name in ("owner_map", "precedence")
        }
        fields["digest"] = composition_digest(composition)
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
    lambda fields: fields.update(layer_format=LAYER_FORMAT + 1),
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
def test_a_record_with_one_wrong_field_is_refused_by_path(
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
def test_text_that_is_not_a_record_is_refused_by_path(text: bytes) -> None:
    with pytest.raises(OverlayError, match=r"^/x/view\.json is not the record"):
        generation_from_json(text, "/x/view.json")


def test_a_record_of_an_older_version_is_reported_as_such() -> None:
    text = altered(GENERATIONS[0], lambda fields: fields.update(layer_format=1))
    with pytest.raises(
        OutdatedError, match=r"^/x/view\.json: an older version .*build the layer again with metadata_layer"
    ):
        generation_from_json(text, "/x/view.json")


def test_a_record_that_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(OverlayError, match="cannot be recorded"):
        generation_to_json(replace(GENERATIONS[0], bytes=-1))
