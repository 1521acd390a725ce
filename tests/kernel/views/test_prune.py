"""Generations that nobody needs are removed, and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, removal
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import ViewPaths
from ansible_collections.renderfarm.overlay.tests.kernel import support


@pytest.fixture
def state_dir(folder: Path) -> Path:
    place = folder / "state"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def layers(state_dir: Path, tools: tuple[Placement, ...]) -> list[Path]:
    """Five generations of a view, oldest first, the last one current; a minute apart."""
    found = []
    for number in range(5):
        layer, _generation, _report = support.build(state_dir, [tools[0]], owner=number)
        os.utime(layer.parent / "view.json", (1_000_000_000 + 60 * number,) * 2)
        found.append(layer)
    return found


def pruned(state_dir: Path, check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {"name": "view", "state_dir": str(state_dir), "keep": 0, "min_age": 0, **options}
    return support.module("overlay_prune", check=check, **arguments).ok


def there(layers: list[Path]) -> list[int]:
    return [number for number, layer in enumerate(layers) if layer.exists()]


def reasons(result: dict[str, Any], layers: list[Path]) -> dict[int, str]:
    """Return why generations were kept, by their numbers."""
    names = [layer.parent.name.partition("-")[0] for layer in layers]
    return {names.index(one["generation"]): one["reason"] for one in result["kept"]}


def test_the_current_and_the_previous_generation_stay(state_dir: Path, layers: list[Path]) -> None:
    expected = pruned(state_dir, check=True)
    assert there(layers) == [0, 1, 2, 3, 4]
    result = pruned(state_dir)
    assert there(layers) == [3, 4]
    assert result == expected
    assert reasons(result, layers) == {4: "it is the current generation", 3: "it is the previous generation"}
    assert len(result["removed"]) == 3
    assert result["changed"]
    assert set(os.listdir(state_dir / "views" / "view" / "generations")) == {layer.parent.name for layer in layers[3:]}
    again = pruned(state_dir)
    assert (again["changed"], again["removed"], again["bytes_freed"]) == (False, [], 0)
    assert sorted(os.listdir(state_dir / "views" / "view")) == ["current", "generations", "lock", "previous"]


def test_the_newest_and_the_young_stay(state_dir: Path, layers: list[Path]) -> None:
    os.utime(layers[0].parent / "view.json")
    result = pruned(state_dir, keep=3, min_age=600)
    # The first one was installed again a moment ago, and so is the newest of all.
    assert there(layers) == [0, 3, 4]
    assert not pruned(state_dir, keep=0, min_age=600)["changed"]
    assert reasons(pruned(state_dir, min_age=600), layers)[0] == "it is younger than 600 seconds"
    assert len(result["removed"]) == 2


def test_all_views_are_pruned_unless_one_is_named(
    state_dir: Path, layers: list[Path], tools: tuple[Placement, ...]
) -> None:
    others = [support.build(state_dir, [tools[1]], name="other", owner=number)[0] for number in range(3)]
    pruned(state_dir, name="other")
    assert (there(layers), there(others)) == ([0, 1, 2, 3, 4], [1, 2])
    arguments: dict[str, Any] = {"state_dir": str(state_dir), "keep": 0, "min_age": 0}
    assert {one["view"] for one in support.module("overlay_prune", **arguments).ok["removed"]} == {"view"}
    assert there(layers) == [3, 4]


def test_what_is_mounted_stays_wherever_that_is(state_dir: Path, folder: Path, root: Path, layers: list[Path]) -> None:
    with support.mounted(support.declared(folder / "view", [layers[0]], [root])), support.namespace("private") as pid:
        support.unmount_all(folder / "view")
        result = pruned(state_dir)
        where = f"it is mounted at {folder}/view in the mount namespace of process {pid}"
        assert reasons(result, layers)[0] == where
        assert there(layers) == [0, 3, 4]
    assert len(pruned(state_dir)["removed"]) == 1


@contextmanager
def standing_in(path: Path) -> Iterator[int]:
    with support.background(f"import os, sys\nos.chdir(sys.argv[1])\n{support.WAIT}", path) as process:
        yield process.pid


def test_what_a_process_has_kept_since_a_switch_stays(
    state_dir: Path, folder: Path, root: Path, layers: list[Path]
) -> None:
    view = folder / "view"
    first: dict[str, Any] = {"path": str(view), "lower": [str(layers[0])], "data": [str(root)]}
    assert support.module("overlay_mount", **first).ok["changed"]
    with standing_in(view / "tool") as pid:
        switched = support.module("overlay_mount", **{**first, "lower": [str(layers[4])]}).ok
        assert [one["pid"] for one in switched["users"]] == [pid]
        reason = reasons(pruned(state_dir), layers)[0]
        assert f"({pid})" in reason
        assert reason.startswith("it is used by ")
        assert there(layers) == [0, 3, 4]
    assert len(pruned(state_dir)["removed"]) == 1
    assert (view / "tool" / "1.0").is_dir()


def test_what_somebody_looks_into_stays(state_dir: Path, layers: list[Path]) -> None:
    with standing_in(layers[1] / "tool") as pid:
        assert "it is open in python" in reasons(pruned(state_dir), layers)[1]
        assert f"({pid})" in reasons(pruned(state_dir), layers)[1]
    assert there(layers) == [1, 3, 4]


def test_one_that_is_mounted_at_the_last_moment_is_put_back(
    state_dir: Path, folder: Path, root: Path, layers: list[Path]
) -> None:
    paths = ViewPaths.of(str(state_dir), "view")
    name = layers[0].parent.name
    with support.mounted(support.declared(folder / "view", [layers[0]], [root])) as view:
        assert removal.remove_generation(paths, name) == f"it is mounted at {view}"
        assert layers[0].is_dir()
        assert (view / "tool" / "1.0" / "bin").is_dir()
    assert not os.path.lexists(paths.removing)
    assert removal.remove_generation(paths, name) is None
    assert not layers[0].parent.exists()
    assert generations.observe(paths).generations == {layer.parent.name for layer in layers[1:]}


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
    # A copy that was interrupted a moment ago goes on when it is asked for again.
    assert incoming.exists()
    assert pruned(state_dir, keep=9)["remains"] == [str(incoming)]
    assert sorted(os.listdir(top)) == ["current", "generations", "lock", "previous"]
    assert there(layers) == [0, 1, 2, 3, 4]


def test_a_view_that_is_not_there_has_nothing_to_prune(state_dir: Path) -> None:
    result = pruned(state_dir)
    assert (result["changed"], result["removed"], result["kept"]) == (False, [], [])
    assert os.listdir(state_dir) == []


@pytest.mark.parametrize(
    ("option", "value"), [("keep", -1), ("min_age", -0.5), ("name", "../x"), ("state_dir", "here")]
)
def test_what_cannot_be_is_refused(state_dir: Path, option: str, value: Any) -> None:
    arguments = {"name": "view", "state_dir": str(state_dir), option: value}
    assert str(value) in support.module("overlay_prune", **arguments).message
