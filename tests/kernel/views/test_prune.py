"""Generations that are not needed any more are removed, and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import removal, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support


@pytest.fixture
def state_dir(area: Path) -> Path:
    place = area / "state"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def layers(state_dir: Path, tools: tuple[Placement, ...]) -> list[Path]:
    """Return the layers of five generations of a view, a minute apart and oldest first. The last one is current."""
    found = []
    for number in range(5):
        layer, _generation, _report = support.build(state_dir, [tools[0]], owner=number)
        os.utime(layer.parent / "view.json", (1_000_000_000 + 60 * number,) * 2)
        found.append(layer)
    return found


def pruned(state_dir: Path, check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {"name": "view", "state_dir": str(state_dir), "keep": 0, "min_age": 0, **options}
    return support.module("overlay_prune", check=check, **arguments).ok


def existing(layers: list[Path]) -> list[int]:
    """Return the positions of the layers that exist."""
    return [number for number, layer in enumerate(layers) if layer.exists()]


def reasons(result: dict[str, Any], layers: list[Path]) -> dict[int, str]:
    """Map the positions of generations that were kept to the reasons."""
    names = [layer.parent.name.partition("-")[0] for layer in layers]
    return {names.index(one["generation"]): one["reason"] for one in result["kept"]}


def test_the_current_and_the_previous_generation_are_kept(state_dir: Path, layers: list[Path]) -> None:
    expected = pruned(state_dir, check=True)
    assert existing(layers) == [0, 1, 2, 3, 4]
    result = pruned(state_dir)
    assert existing(layers) == [3, 4]
    assert result == expected
    assert reasons(result, layers) == {4: "it is the current generation", 3: "it is the previous generation"}
    assert len(result["removed"]) == 3
    assert result["changed"]
    assert set(os.listdir(state_dir / "views" / "view" / "generations")) == {layer.parent.name for layer in layers[3:]}
    again = pruned(state_dir)
    assert (again["changed"], again["removed"], again["bytes_freed"]) == (False, [], 0)
    assert sorted(os.listdir(state_dir / "views" / "view")) == ["current", "generations", "lock", "previous"]


def test_the_newest_and_the_young_generations_are_kept(state_dir: Path, layers: list[Path]) -> None:
    os.utime(layers[0].parent / "view.json")
    result = pruned(state_dir, keep=3, min_age=600)
    # The first one now counts as installed a moment ago, so it is the newest.
    assert existing(layers) == [0, 3, 4]
    assert not pruned(state_dir, keep=0, min_age=600)["changed"]
    assert reasons(pruned(state_dir, min_age=600), layers)[0] == "it is younger than 600 seconds"
    assert len(result["removed"]) == 2


def test_all_views_are_pruned_unless_one_is_named(
    state_dir: Path, layers: list[Path], tools: tuple[Placement, ...]
) -> None:
    others = [support.build(state_dir, [tools[1]], name="other", owner=number)[0] for number in range(3)]
    pruned(state_dir, name="other")
    assert (existing(layers), existing(others)) == ([0, 1, 2, 3, 4], [1, 2])
    arguments: dict[str, Any] = {"state_dir": str(state_dir), "keep": 0, "min_age": 0}
    assert {one["view"] for one in support.module("overlay_prune", **arguments).ok["removed"]} == {"view"}
    assert existing(layers) == [3, 4]


def test_a_generation_that_is_mounted_in_any_namespace_is_kept(
    state_dir: Path, area: Path, root: Path, layers: list[Path]
) -> None:
    with support.mounted(support.declared(area / "view", [layers[0]], [root])), support.namespace("private") as pid:
        support.unmount_all(area / "view")
        result = pruned(state_dir)
        where = f"it is mounted at {area}/view in the mount namespace of process {pid}"
        assert reasons(result, layers)[0] == where
        assert existing(layers) == [0, 3, 4]
    assert len(pruned(state_dir)["removed"]) == 1


@contextmanager
def working_in(path: Path) -> Iterator[int]:
    """Run a process whose working directory is ``path``, and yield its PID."""
    with support.background(f"import os, sys\nos.chdir(sys.argv[1])\n{support.WAIT}", path) as process:
        yield process.pid


def test_a_generation_that_a_process_uses_since_before_a_switch_is_kept(
    state_dir: Path, area: Path, root: Path, layers: list[Path]
) -> None:
    view = area / "view"
    first: dict[str, Any] = {"path": str(view), "lower": [str(layers[0])], "data": [str(root)]}
    assert support.module("overlay_mount", **first).ok["changed"]
    with working_in(view / "tool") as pid:
        switched = support.module("overlay_mount", **{**first, "lower": [str(layers[4])]}).ok
        assert [one["pid"] for one in switched["users"]] == [pid]
        reason = reasons(pruned(state_dir), layers)[0]
        assert f"({pid})" in reason
        assert reason.startswith("it is used by ")
        assert existing(layers) == [0, 3, 4]
    assert len(pruned(state_dir)["removed"]) == 1
    assert (view / "tool" / "1.0").is_dir()


def test_a_generation_whose_layer_a_process_has_open_is_kept(state_dir: Path, layers: list[Path]) -> None:
    with working_in(layers[1] / "tool") as pid:
        assert "it is open in python" in reasons(pruned(state_dir), layers)[1]
        assert f"({pid})" in reasons(pruned(state_dir), layers)[1]
    assert existing(layers) == [1, 3, 4]


def test_a_generation_that_is_mounted_at_the_last_moment_is_put_back(
    state_dir: Path, area: Path, root: Path, layers: list[Path]
) -> None:
    paths = ViewPaths.of(str(state_dir), "view")
    name = layers[0].parent.name
    with support.mounted(support.declared(area / "view", [layers[0]], [root])) as view:
        assert removal.remove_generation(paths, name) == f"it is mounted at {view}"
        assert layers[0].is_dir()
        assert (view / "tool" / "1.0" / "bin").is_dir()
    assert not os.path.lexists(paths.removing)
    assert removal.remove_generation(paths, name) is None
    assert not layers[0].parent.exists()
    assert view_state.observe(paths).generations == {layer.parent.name for layer in layers[1:]}


def test_what_killed_runs_have_left_is_removed(state_dir: Path, layers: list[Path]) -> None:
    top = state_dir / "views" / "view"
    left = [top / "staging", top / "removing", top / "generations" / "0123456789abcdef-directory"]
    for path in left:
        (path / "layer" / "deep").mkdir(parents=True)
        support.write(path / "layer" / "deep" / "file", b"x")
    os.symlink("nowhere", top / ".new-current")
    incoming = top / "incoming"
    incoming.mkdir()
    support.write(incoming / "part", b"x")
    result = pruned(state_dir, keep=9, min_age=1000)
    assert sorted(result["remains"]) == sorted(map(str, [*left, top / ".new-current"]))
    # A copy that was interrupted a moment ago continues when the image is installed again, so it is kept.
    assert incoming.exists()
    assert pruned(state_dir, keep=9)["remains"] == [str(incoming)]
    assert sorted(os.listdir(top)) == ["current", "generations", "lock", "previous"]
    assert existing(layers) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["copy", "copy-directory", "ID-directory.kept", "ID-erofs", "ID-directory-user"])
def test_a_directory_whose_name_is_not_that_of_its_generation_is_not_a_generation(
    state_dir: Path, layers: list[Path], name: str
) -> None:
    generation = layers[0].parent
    copy = generation.with_name(name.replace("ID", generation.name.partition("-")[0]))
    generation.rename(copy)
    assert {one.parent.name for one in layers[1:]} == view_state.observe(
        ViewPaths.of(str(state_dir), "view")
    ).generations
    with working_in(copy / "layer"):
        result = pruned(state_dir, keep=9)
        assert (len(result["kept"]), result["remains"], result["changed"]) == (4, [], False)
    result = pruned(state_dir, keep=9)
    assert (len(result["kept"]), result["remains"]) == (4, [str(copy)])
    assert not copy.exists()


@pytest.mark.parametrize("check", [True, False])
def test_a_damaged_record_keeps_its_generation_and_no_other(state_dir: Path, layers: list[Path], check: bool) -> None:
    record = layers[1].parent / "view.json"
    record.write_bytes(b"{}")
    ran = support.module("overlay_prune", check=check, state_dir=str(state_dir), keep=0, min_age=0)
    assert f"{record} is not the record of a generation" in ran.message
    assert len(ran.result["removed"]) == 2
    assert (ran.result["changed"], ran.result["remains"]) == (True, [])
    assert existing(layers) == ([0, 1, 2, 3, 4] if check else [1, 3, 4])


@pytest.mark.parametrize("check", [True, False])
def test_a_view_that_cannot_be_pruned_does_not_keep_others_from_being_pruned(
    state_dir: Path, layers: list[Path], tools: tuple[Placement, ...], check: bool
) -> None:
    layer, _generation, _report = support.build(state_dir, [tools[1]], name="open")
    # Users may write to it, so it is not to be trusted.
    layer.parent.chmod(0o777)
    ran = support.module("overlay_prune", check=check, state_dir=str(state_dir), keep=0, min_age=0)
    assert str(layer.parent) in ran.message
    assert [one["view"] for one in ran.result["removed"]] == ["view"] * 3
    assert existing(layers) == ([0, 1, 2, 3, 4] if check else [3, 4])
    assert layer.is_dir()


def test_a_view_that_does_not_exist_has_nothing_to_prune(state_dir: Path) -> None:
    result = pruned(state_dir)
    assert (result["changed"], result["removed"], result["kept"]) == (False, [], [])
    assert os.listdir(state_dir) == []


@pytest.mark.parametrize(
    ("option", "value"), [("keep", -1), ("min_age", -0.5), ("name", "../x"), ("state_dir", "here")]
)
def test_an_option_that_is_not_usable_is_refused(state_dir: Path, option: str, value: Any) -> None:
    arguments = {"name": "view", "state_dir": str(state_dir), option: value}
    assert str(value) in support.module("overlay_prune", **arguments).message
