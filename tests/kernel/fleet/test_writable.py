"""Views that users write to: nothing that was written is lost unless that was declared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import writable_view
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_view import Farm
from ansible_collections.renderfarm.overlay.tests.kernel.test_modules import everything

#: The keys of a view with scratch space. Large enough for any test, and small enough for any machine.
SCRATCH = {"writable": "scratch", "scratch_size": "16M"}
UPPER = {"writable": "upper"}


@pytest.fixture
def farm(area: Path) -> Farm:
    return Farm(area)


def one_view(farm: Farm, *releases: str, **keys: Any) -> list[dict[str, Any]]:
    """Return the view software alone, as the module takes it."""
    return farm.views(farm.lock(*releases) if releases else [], **keys)[:1]


def upper(farm: Farm) -> list[Path]:
    return sorted((farm.top / "state" / "views" / "software" / "changes").glob("*/upper"))


@pytest.mark.parametrize("strategy", ["data_only", "redirect"])
@pytest.mark.parametrize("kind", ["scratch", "upper"])
def test_a_view_with_changes_stays_at_its_generation_until_they_may_be_discarded(
    farm: Farm, kind: str, strategy: str
) -> None:
    keys = {**(SCRATCH if kind == "scratch" else UPPER), "strategy": strategy}
    view = farm.top / "software"
    assert farm.bring(one_view(farm, "usd/1", **keys)).ok["changed"]
    assert not farm.bring(one_view(farm, "usd/1", **keys)).ok["changed"]
    # Without changes it is switched as any view is.
    assert farm.bring(one_view(farm, "usd/2", **keys)).ok["views"][0]["switched"]
    assert farm.shown() == ["2"]
    assert len(upper(farm)) == (kind == "upper")
    (view / "usd" / "2" / "file").write_text("patched")
    (view / "usd" / "2" / "new").write_text("new")
    assert (farm.root / "usd" / "2" / "file").read_text() == "usd/2"
    assert not farm.bring(one_view(farm, "usd/2", **keys)).ok["changed"]
    before = set(everything(farm.top / "state"))
    for check in (True, False):
        ran = farm.bring(one_view(farm, "usd/1", **keys), check=check)
        assert "view software stays as it is, since it was written to: " in ran.message
        assert "discard_changes: true" in ran.message
        if kind == "upper":
            assert "2 files over generation " in ran.message
            assert "usd/2/file, usd/2/new" in ran.message
        else:
            assert "inodes in its scratch space" in ran.message
        assert (view / "usd" / "2" / "file").read_text() == "patched"
    assert set(everything(farm.top / "state")) == before
    (view / "usd" / "2" / "later").write_text("still writable")
    views = one_view(farm, "usd/1", **keys, discard_changes=True)
    would = farm.bring(views, check=True).ok["actions"]
    assert any("discard what was written to view software" in action for action in would)
    assert (view / "usd" / "2" / "new").exists()
    assert farm.bring(views).ok["actions"] == would
    assert farm.shown() == ["1"]
    assert len(upper(farm)) == (kind == "upper")
    assert not farm.bring(views).ok["changed"]


@pytest.mark.parametrize("keys", [SCRATCH, UPPER])
def test_a_view_becomes_writable_under_its_users_and_read_only_again(farm: Farm, keys: dict[str, Any]) -> None:
    assert farm.bring(one_view(farm, "usd/1")).ok["changed"]
    view = farm.top / "software"
    with (view / "usd" / "1" / "file").open() as held:
        assert farm.bring(one_view(farm, "usd/1", **keys)).ok["views"][0]["method"] == "beneath"
        assert held.read() == "usd/1"
    (view / "own").write_text("own")
    assert "it was written to" in farm.bring(one_view(farm, "usd/1")).message
    (view / "own").unlink()
    assert farm.bring(one_view(farm, "usd/1")).ok["changed"]
    assert upper(farm) == []
    with pytest.raises(OSError, match="Read-only"):
        (view / "own").write_text("own")


@pytest.mark.parametrize("keys", [SCRATCH, UPPER])
def test_a_writable_view_in_use_is_not_switched(farm: Farm, keys: dict[str, Any]) -> None:
    assert farm.bring(one_view(farm, "usd/1", **keys)).ok["changed"]
    view = farm.top / "software"
    for mode in ("r", "a"):
        with (view / "usd" / "1" / "file").open(mode):
            (view / "usd" / "1" / "file").stat()
            message = farm.bring(one_view(farm, "usd/2", **keys)).message
            assert f"({os.getpid()})" in message or "it was written to" in message
            assert farm.shown() == ["1"]
    # It was not left read-only.
    (view / "own").write_text("own")


def test_what_is_written_while_scratch_space_is_checked_is_not_lost(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert farm.bring(one_view(farm, "usd/1", **SCRATCH)).ok["changed"]
    second = one_view(farm, "usd/2", **SCRATCH)
    check = writable_view.check_may_leave
    calls: list[Any] = []

    def write_after_check(*arguments: Any) -> None:
        check(*arguments)
        if not calls:
            (farm.top / "software" / "late").write_text("late")
        calls.append(arguments)

    monkeypatch.setattr(writable_view, "check_may_leave", write_after_check)
    with support.forked_module("view", {"views": second}) as child:
        child.go()
        ran = child.finish()
    assert "inodes in its scratch space" in ran.message
    assert (farm.top / "software" / "late").read_text() == "late"


def test_changes_in_an_upper_layer_outlive_unmounting_and_pruning(farm: Farm) -> None:
    keys: dict[str, Any] = UPPER
    assert farm.bring(one_view(farm, "usd/1", **keys)).ok["changed"]
    (farm.top / "software" / "own").write_text("own")
    assert farm.bring(one_view(farm, state="unmounted", **keys)).ok["changed"]
    # The mountpoint is empty, and another generation would hide the changes.
    assert "own" in farm.bring(one_view(farm, "usd/2", **keys)).message
    support.module(
        "metadata_layer",
        name="software",
        state_dir=str(farm.top / "state"),
        store=str(farm.store),
        releases=[{"release": "usd/2"}],
    )
    for _time in range(2):
        support.module(
            "metadata_layer",
            name="software",
            state_dir=str(farm.top / "state"),
            store=str(farm.store),
            releases=[{"release": "qt/1"}],
        )
    pruned = support.module("overlay_prune", name="software", state_dir=str(farm.top / "state"), keep=0, min_age=0).ok
    assert any("what was written to it is in" in one["reason"] for one in pruned["kept"])
    assert farm.bring(one_view(farm, "usd/1", **keys)).ok["changed"]
    assert (farm.top / "software" / "own").read_text() == "own"


def test_a_view_with_changes_is_not_removed(farm: Farm) -> None:
    assert farm.bring(one_view(farm, "usd/1", **UPPER)).ok["changed"]
    (farm.top / "software" / "own").write_text("own")
    absent = one_view(farm, state="absent")
    assert "own" in farm.bring(absent).message
    assert (farm.top / "software" / "own").read_text() == "own"
    assert farm.bring(one_view(farm, state="unmounted")).ok["changed"]
    assert "own" in farm.bring(absent).message
    removed = support.module("metadata_layer", name="software", state_dir=str(farm.top / "state"), state="absent")
    assert "what was written to it is in" in removed.message
    assert farm.bring(one_view(farm, state="absent", discard_changes=True)).ok["changed"]
    assert not (farm.top / "state" / "views" / "software").exists()


def test_scratch_space_with_changes_is_not_unmounted(farm: Farm) -> None:
    assert farm.bring(one_view(farm, "usd/1", **SCRATCH)).ok["changed"]
    (farm.top / "software" / "own").write_text("own")
    for state in ("unmounted", "absent"):
        for check in (True, False):
            assert "scratch space" in farm.bring(one_view(farm, state=state), check=check).message
    changed = one_view(farm, "usd/1", **SCRATCH, options={"noatime": True})
    for check in (True, False):
        assert "scratch space" in farm.bring(changed, check=check).message
    assert (farm.top / "software" / "own").read_text() == "own"
    assert farm.bring(one_view(farm, state="absent", discard_changes=True)).ok["changed"]
    assert not (farm.top / "software").exists()


def test_the_root_of_a_writable_view_belongs_to_the_owner_of_the_view(farm: Farm) -> None:
    for number, keys in enumerate((SCRATCH, UPPER)):
        name = f"owned{number}"
        locked = farm.lock("usd/1", owner="nobody")
        views = [{**farm.views(locked, owner="nobody", **keys)[0], "name": name, "mountpoint": str(farm.top / name)}]
        assert farm.bring(views).ok["changed"]
        done = subprocess.run(
            [
                "setpriv",
                "--reuid",
                "nobody",
                "--clear-groups",
                "touch",
                farm.top / name / "mine",
                farm.top / name / "usd" / "1" / "file",
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_an_upper_layer_in_use_elsewhere_is_not_discarded(farm: Farm) -> None:
    assert farm.bring(one_view(farm, "usd/1", **UPPER)).ok["changed"]
    (farm.top / "software" / "own").write_text("own")
    with support.namespace("private") as pid:
        message = farm.bring(one_view(farm, "usd/2", **UPPER, discard_changes=True)).message
        assert f"in the mount namespace of process {pid}" in message
        assert (farm.top / "software" / "own").exists()
    assert farm.bring(one_view(farm, "usd/2", **UPPER, discard_changes=True)).ok["changed"]
    assert farm.shown() == ["2"]
