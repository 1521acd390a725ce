"""A third format of layers needs its own file and one line in each table: everything else follows from these."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.format_support import SUPPORT
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import (
    BuildReport,
    FormatSupport,
    LayerContent,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import (
    DIRECTORY,
    EROFS,
    FORMATS,
    Image,
    LayerFormat,
    published_format,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    generation_files,
    generations,
    image_store,
    layer_choice,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import (
    BuildGeneration,
    ViewState,
    plan_layer,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    GenerationName,
    layer_path,
    record_path,
)
from ansible_collections.renderfarm.overlay.tests.unit.views.test_layer_spec import SPEC

TOY = LayerFormat("toy", ".toybox", "toyfs", ("data_only",), ("trusted",))
IMAGE = Image("sha256:" + "0f" * 32, 3, "mktoy")
NOTHING = ViewState(True, frozenset(), None, None)
#: A declaration without releases, which needs no manifests.
EMPTY = replace(SPEC, placements=())


@dataclass(frozen=True)
class ToyBuilder:
    path: str = "/usr/bin/mktoy"

    def build_layer(self, path: str, content: LayerContent, progress: Progress) -> BuildReport:
        assert [entry.path for entry in content.composition.entries()] == [b"/"]
        Path(path).write_bytes(b"toy")
        progress()
        return BuildReport(bytes_on_disk=512, image=IMAGE)


def refuse() -> ToyBuilder:
    raise OverlayError("there is no mktoy")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the format as the most desirable one."""
    kept = dict(FORMATS)
    monkeypatch.setitem(SUPPORT, TOY.name, FormatSupport(ToyBuilder, lambda: None))
    FORMATS.clear()
    FORMATS.update({TOY.name: TOY, **kept})
    yield
    FORMATS.clear()
    FORMATS.update(kept)


def test_it_has_names_and_paths() -> None:
    spec = replace(SPEC, format="toy")
    assert spec.directory == f"{SPEC.generation}-toy"
    assert GenerationName.parse(spec.directory) == GenerationName(SPEC.generation, "toy")
    assert layer_path("/g", "toy") == "/g/layer.toybox"
    assert image_store.format_of("/images/0123456789abcdef.toybox") == TOY
    assert image_store.record_path("/images/0123456789abcdef.toybox") == "/images/0123456789abcdef.json"


def test_it_is_chosen_and_planned() -> None:
    for wanted in ("toy", "auto"):
        choice = layer_choice.choose_format(wanted, SPEC, NOTHING)
        assert (choice.format, choice.builder) == ("toy", ToyBuilder())
    assert choice.reason == "this host can mount images, and /usr/bin/mktoy makes them"
    spec = replace(SPEC, format=choice.format)
    plan = plan_layer(spec.directory, BuildGeneration(spec.generation, spec.format), NOTHING)
    assert [str(action) for action in plan] == [
        f"build generation {SPEC.generation} (toy)",
        f"make generation {SPEC.generation} current",
    ]
    there = ViewState(True, frozenset((spec.directory,)), spec.directory, None)
    kept = layer_choice.choose_format("auto", SPEC, there)
    assert (kept.format, kept.builder, kept.reason) == ("toy", None, "the generation is there in this format")
    assert plan_layer(spec.directory, None, there) == ()


@pytest.mark.parametrize("lacking", ["builder", "file system"])
def test_the_next_format_is_chosen_if_this_host_lacks_something(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    support = {
        "builder": FormatSupport(refuse, lambda: None),
        "file system": FormatSupport(ToyBuilder, lambda: "the kernel has no toyfs"),
    }
    reason = {"builder": "there is no mktoy", "file system": "the kernel has no toyfs"}[lacking]
    monkeypatch.setitem(SUPPORT, "toy", support[lacking])
    monkeypatch.setitem(SUPPORT, "erofs", FormatSupport(refuse, lambda: "the kernel has no EROFS"))
    choice = layer_choice.choose_format("auto", SPEC, NOTHING)
    assert (choice.format, choice.reason) == ("directory", f"no image, since {reason}; the kernel has no EROFS")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "redirect"}, "strategy redirect needs opaque directories, which the format toy lacks"),
        ({"xattr_namespace": "user"}, "the format toy holds overlay xattrs of the namespace trusted only"),
    ],
)
def test_a_layer_that_it_cannot_hold_is_refused_or_gets_another_format(change: dict[str, str], words: str) -> None:
    spec = replace(SPEC, **change)  # type: ignore[arg-type]
    with pytest.raises(OverlayError, match=f"view view cannot be an image: {words}"):
        layer_choice.choose_format("toy", spec, NOTHING)
    choice = layer_choice.choose_format("auto", spec, NOTHING)
    assert choice.format == "directory"
    assert words in choice.reason


def test_it_is_built_and_recorded(tmp_path: Path) -> None:
    spec = replace(EMPTY, format="toy")
    generation, _report = generations.build_layer(str(tmp_path), spec, None, generations.composed(spec))
    assert (generation.format, generation.image, generation.directory) == ("toy", IMAGE, spec.directory)
    assert os.listdir(tmp_path) == ["layer.toybox"]
    generation_files.write(record_path(str(tmp_path)), generation)
    assert generation_files.find(record_path(str(tmp_path))) == generation
    # An image has to have its digest and length.
    generation_files.write(record_path(str(tmp_path)), replace(generation, image=None))
    with pytest.raises(OverlayError, match="the digest and length of an image"):
        generation_files.find(record_path(str(tmp_path)))


def test_its_record_is_refused_by_a_version_that_does_not_know_it(tmp_path: Path) -> None:
    spec = replace(EMPTY, format="toy")
    generation, _report = generations.build_layer(str(tmp_path), spec, None, generations.composed(spec))
    generation_files.write(record_path(str(tmp_path)), generation)
    del FORMATS["toy"]
    assert json.loads(Path(record_path(str(tmp_path))).read_bytes())["format"] == "toy"
    with pytest.raises(OverlayError, match="field 'format' has to be one of erofs, directory"):
        generation_files.find(record_path(str(tmp_path)))
    assert GenerationName.parse(generation.directory) is None


def test_image_stores_hold_the_most_desirable_format() -> None:
    assert published_format() == TOY
    assert layer_choice.as_image(SPEC).format == "toy"
    assert image_store.image_path("/images", SPEC.generation) == f"/images/{SPEC.generation}.toybox"


def test_every_format_has_its_support() -> None:
    assert SUPPORT.keys() == FORMATS.keys() == {"toy", EROFS.name, DIRECTORY.name}
    assert [one.is_image for one in (TOY, EROFS, DIRECTORY)] == [True, True, False]
