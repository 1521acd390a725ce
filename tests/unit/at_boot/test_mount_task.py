"""Reports of tasks that mount or unmount an overlay."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import mount_task
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_plan import (
    ReloadSystemd,
    RemoveUnit,
    Stored,
    WriteUnit,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_task import MountTask
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_units import Unit
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import CreateMountpoint, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    DetachOverlay,
    MountOverlay,
    MountpointState,
    SwitchOverlay,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import mount_spec

SPEC = mount_spec(b"/v", [b"/meta"], [b"/data"], {}, True)


def live(layer: bytes, path: bytes = b"/v") -> Mount:
    (mount,) = parse(b"66 63 0:40 / %s ro - overlay overlay ro,lowerdir+=%s,datadir+=/data\n" % (path, layer))
    return mount


OLD, NEW = live(b"/old"), live(b"/meta")
INNER = tuple(live(b"/x", b"/v/" + name) for name in (b"a", b"b"))
EMPTY = MountpointState(None, True)


def task(state: MountpointState, mounting: Plan, plan: Plan | None = None, units: tuple[Unit, ...] = ()) -> MountTask:
    # Without an old overlay a report asks for no processes and no mounts elsewhere.
    return MountTask(
        b"/v", state, SPEC, mounting, mounting if plan is None else plan, Stored(units, b""), [], None, set(), []
    )


def test_a_new_mount_is_reported_and_not_as_a_switch() -> None:
    found = mount_task.report(
        task(EMPTY, (CreateMountpoint(b"/v"), MountOverlay(SPEC))), MountpointState(NEW, None), False
    )
    assert found.values["mount"]["lower"] == ["/meta"]
    assert (found.values["switched"], found.values["method"]) == (False, None)
    assert (found.values["users"], found.values["elsewhere"], found.values["carried"]) == ([], [], [])
    assert (found.before, found.after) == ({}, SPEC.as_dict())
    assert found.warnings == []


def test_a_task_without_a_plan_has_no_diff() -> None:
    found = mount_task.report(task(MountpointState(OLD, None), ()), MountpointState(OLD, None), False)
    assert found.before == found.after
    assert found.before["lower"] == ["/old"]


@pytest.mark.parametrize("check_mode", [False, True])
def test_inner_mounts_are_carried_or_named_in_a_warning(check_mode: bool) -> None:
    before = MountpointState(OLD, None, inner=INNER)
    after = before if check_mode else MountpointState(NEW, None, inner=INNER[:1])
    switched = replace(task(before, (SwitchOverlay(SPEC, "beneath", "drop"),)), problems=["/v/b is unbindable"])
    found = mount_task.report(switched, after, check_mode)
    assert (found.values["switched"], found.values["method"]) == (True, "beneath")
    if check_mode:
        assert (found.values["carried"], found.warnings) == (["/v/a", "/v/b"], ["/v/b is unbindable"])
    else:
        assert (found.values["carried"], found.warnings) == (["/v/a"], ["/v/b has no place in the new overlay"])


@pytest.mark.parametrize(
    ("method", "below", "warned"), [("over", (OLD,), True), ("over", (), False), ("beneath", (), False)]
)
def test_an_old_overlay_below_the_new_one_is_named_in_a_warning(
    method: str, below: tuple[Mount, ...], warned: bool
) -> None:
    switched = task(MountpointState(OLD, None), (SwitchOverlay(SPEC, method),))
    found = mount_task.report(switched, MountpointState(NEW, None, below), False)
    assert any("old overlay at /v stays mounted below the new one" in warning for warning in found.warnings) == warned


def test_a_finished_switch_is_reported_as_beneath() -> None:
    found = mount_task.report(
        task(MountpointState(OLD, None, (NEW,)), (DetachOverlay(b"/v"),)), MountpointState(NEW, None), False
    )
    assert (found.values["switched"], found.values["method"]) == (True, "beneath")


def test_the_diff_shows_the_units_that_are_written_and_removed() -> None:
    old, gone = Unit("v.mount", b"old", True), Unit("image.mount", b"image", False)
    plan = (WriteUnit(replace(old, text=b"new")), RemoveUnit("image.mount"), ReloadSystemd())
    found = mount_task.report(
        task(MountpointState(NEW, None), (), plan, (old, gone, Unit("other.mount", b"other", True))),
        MountpointState(NEW, None),
        False,
    )
    assert found.before["at boot"] == {"units": {"v.mount": "old", "image.mount": "image"}, "to do": []}
    assert found.after["at boot"] == {"units": {"v.mount": "new"}, "to do": [str(action) for action in plan]}
    assert {**found.before, "at boot": None} == {**found.after, "at boot": None}
