"""Names of views and of the directories of generations, and paths below the state directory."""

from __future__ import annotations

import itertools

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import FORMATS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    GenerationName,
    ViewPaths,
    generation_of,
    layer_path,
    record_path,
)

ID = "4ff24b6d8e0c11a7"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (GenerationName(ID, "directory"), f"{ID}-directory"),
        (GenerationName(ID, "erofs"), f"{ID}-erofs"),
        (GenerationName(ID, "directory", "redirect"), f"{ID}-directory-redirect"),
        (GenerationName(ID, "directory", xattr_namespace="user"), f"{ID}-directory-user"),
        (GenerationName(ID, "directory", "redirect", "user"), f"{ID}-directory-redirect-user"),
    ],
)
def test_a_directory_is_named_after_its_generation_and_its_form(name: GenerationName, text: str) -> None:
    assert str(name) == text
    assert GenerationName.parse(text) == name
    assert generation_of(text) == ID


def test_every_form_of_a_generation_has_a_name_of_its_own() -> None:
    forms = itertools.product(FORMATS, ("data_only", "redirect"), ("trusted", "user"))
    names = [GenerationName(ID, *form) for form in forms]
    assert [GenerationName.parse(str(name)) for name in names] == names
    assert len({str(name) for name in names}) == len(names) == 8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        ID,
        f"{ID}-",
        f"{ID}-toy",
        f"-{ID}-erofs",
        f"{ID}-erofs-",
        f"{ID}-erofs-erofs",
        f"{ID}-directory-user-redirect",
        f"{ID}-directory-data_only",
        f"{ID}-directory-redirect-redirect",
        f"{ID}-directory-redirect-trusted",
        f"{ID}-directory.kept",
        f"{ID}/x-directory",
        f"../{ID}-directory",
        f"{ID} -directory",
        f"{ID}-directory\n",
        f"\u0661{ID}-directory",
        ".new-current",
    ],
)
def test_no_other_name_is_taken_for_that_of_a_generation(text: str) -> None:
    assert GenerationName.parse(text) is None
    assert generation_of(text) == text


@pytest.mark.parametrize("name", ["a", "A1", "houdini-20.5_x", "0", "a" * 100])
def test_the_name_of_a_view_becomes_a_directory(name: str) -> None:
    assert ViewPaths.of("/state", name).root == f"/state/views/{name}"


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "ä", "a" * 101, "a\0"])
def test_a_name_that_cannot_be_that_of_a_directory_is_refused(name: str) -> None:
    with pytest.raises(OverlayError, match=r"^view name "):
        ViewPaths.of("/state", name)


def test_everything_of_a_view_is_below_its_directory() -> None:
    paths = ViewPaths.of("/state", "v")
    assert paths.name == "v"
    assert paths.generation("x") == "/state/views/v/generations/x"
    assert paths.link("current") == "/state/views/v/current"
    assert layer_path(paths.generation("x"), "directory") == "/state/views/v/generations/x/layer"
    assert layer_path(paths.generation("x"), "erofs") == "/state/views/v/generations/x/layer.erofs"
    assert record_path(paths.generation("x")) == "/state/views/v/generations/x/view.json"
    assert {paths.staging, paths.lock} == {"/state/views/v/staging", "/state/views/v/lock"}
