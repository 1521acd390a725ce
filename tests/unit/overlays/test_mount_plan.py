"""Plans: the actions that lead from a state to the declaration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    MountpointState,
    check_places,
    plan_mounted,
    plan_unmounted,
    switch_method,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import mount_spec
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import EntryCounts, ManifestRecord
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest_plan import plan_manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import (
    BuildGeneration,
    ViewState,
    plan_layer,
    plan_view_removal,
)

RECORD = ManifestRecord("a/1", "sha256:0", 1, EntryCounts(), 0, False)


@pytest.mark.parametrize(
    ("wanted", "record", "remains", "actions"),
    [
        (True, None, False, ["scan release a/1"]),
        (True, None, True, ["scan release a/1"]),
        (True, RECORD, True, []),
        (False, None, False, []),
        (False, RECORD, True, ["remove the manifest of release a/1"]),
        (False, None, True, ["remove the manifest of release a/1"]),
    ],
)
def test_manifests(wanted: bool, record: ManifestRecord | None, remains: bool, actions: list[str]) -> None:
    assert [str(action) for action in plan_manifest("a/1", wanted, record, remains)] == actions


def state(*generations: str, current: str | None = None, previous: str | None = None) -> ViewState:
    return ViewState(True, frozenset(generations), current, previous)


@pytest.mark.parametrize(
    ("there", "actions"),
    [
        (state(), ["build generation g (erofs)", "make generation g current"]),
        (state("f-erofs", current="f-erofs"), ["build generation g (erofs)", "make generation g current"]),
        (state("f-erofs", "g-erofs", current="f-erofs"), ["make generation g current"]),
        (state("g-erofs"), ["make generation g current"]),
        (state("f-erofs", "g-erofs", current="g-erofs", previous="f-erofs"), []),
        # Another form of the same generation is not the one that is declared.
        (state("g-directory", current="g-directory"), ["build generation g (erofs)", "make generation g current"]),
        # The link is there and the generation is not: someone removed it by hand.
        (state(current="g-erofs"), ["build generation g (erofs)"]),
    ],
)
def test_layers(there: ViewState, actions: list[str]) -> None:
    assert [str(action) for action in plan_layer("g-erofs", BuildGeneration("g", "erofs"), there)] == actions


def test_a_generation_that_is_there_needs_only_to_be_made_current() -> None:
    assert [str(action) for action in plan_layer("f-erofs", None, state("f-erofs", "g-erofs", current="g-erofs"))] == [
        "make generation f current"
    ]


def test_a_view_is_removed_unless_it_is_in_use() -> None:
    assert [str(action) for action in plan_view_removal("v", state("g"), {})] == ["remove all generations of view v"]
    assert plan_view_removal("v", ViewState(False, frozenset(), None, None), {}) == ()
    assert plan_view_removal("v", state("g"), {"g-directory": []})
    with pytest.raises(
        OverlayError, match=r"view v is in use .*\(generation g: it is mounted at /s, it is on loop0\): unmount it"
    ):
        plan_view_removal("v", state("g"), {"g-directory": ["it is mounted at /s", "it is on loop0"]})


SPEC = mount_spec(b"/v", [b"/meta"], [b"/data"], {}, True)
DEFAULTS = {b"metacopy": b"N", b"redirect_dir": b"N", b"redirect_always_follow": b"Y"}


def live(options: bytes, fstype: bytes = b"overlay") -> Mount:
    (mount,) = parse(b"66 63 0:40 / /v ro,relatime - %s somewhere %s\n" % (fstype, options))
    return mount


SAME = live(b"ro,lowerdir+=/meta,datadir+=/data,metacopy=on")
OTHER = live(b"ro,lowerdir+=/old,datadir+=/data,metacopy=on")


@pytest.mark.parametrize("switch", ["auto", "beneath", "over", "replace", "never"])
@pytest.mark.parametrize(
    ("there", "actions"),
    [
        (MountpointState(None, None), ["create directory /v", "mount overlay at /v"]),
        (MountpointState(None, True), ["mount overlay at /v"]),
        (MountpointState(SAME, None), []),
    ],
)
def test_mounting(there: MountpointState, actions: list[str], switch: str) -> None:
    assert [str(action) for action in plan_mounted(SPEC, there, DEFAULTS, switch)] == actions


NEITHER = live(b"ro,lowerdir+=/older,datadir+=/data,metacopy=on")
BENEATH, OVER, REPLACE = (f"switch the overlay at /v ({method})" for method in ("beneath", "over", "replace"))
DETACH = "detach the topmost overlay at /v, which covers another one"
DROP = "detach the overlays that the one at /v covers"


@pytest.mark.parametrize(
    ("switch", "stack", "actions", "without_beneath"),
    [
        ("auto", [OTHER], [BENEATH], [OVER, DROP]),
        ("beneath", [OTHER], [BENEATH], None),
        ("over", [OTHER], [OVER], [OVER]),
        ("replace", [OTHER], [REPLACE], [REPLACE]),
        # A switch was killed between its two steps: the declared overlay is already there, below the old one.
        ("auto", [OTHER, SAME], [DETACH], [DETACH]),
        ("beneath", [OTHER, SAME], [DETACH], None),
        ("over", [OTHER, SAME], [DETACH], [DETACH]),
        ("replace", [OTHER, SAME], [REPLACE], [REPLACE]),
        # The same, and then another overlay was declared: it is put on top, and then the others are dropped without being seen.
        ("auto", [OTHER, NEITHER], [BENEATH, DROP], [OVER, DROP]),
        ("over", [OTHER, NEITHER], [OVER], [OVER]),
        # The same, and then the old overlay was declared again; or 'over' has covered another one.
        ("auto", [SAME, OTHER], [DROP], [DROP]),
        ("beneath", [SAME, OTHER], [DROP], [DROP]),
        ("over", [SAME, OTHER], [], []),
        ("replace", [SAME, OTHER], [], []),
        ("never", [SAME, OTHER], [], []),
        ("auto", [SAME, SAME], [DROP], [DROP]),
        ("over", [NEITHER, SAME, OTHER], [DETACH], [DETACH]),
        ("auto", [NEITHER, SAME, OTHER], [DETACH, DROP], [DETACH, DROP]),
        # Uncovering the lowest overlay would show the one in the middle.
        ("auto", [NEITHER, OTHER, SAME], [BENEATH, DROP], [OVER, DROP]),
        ("over", [NEITHER, OTHER, SAME], [OVER, DROP], [OVER, DROP]),
        ("over", [NEITHER, OTHER, OTHER], [OVER], [OVER]),
    ],
)
def test_switching(switch: str, stack: list[Mount], actions: list[str], without_beneath: list[str] | None) -> None:
    there = MountpointState(stack[0], None, tuple(stack[1:]), can_drop=True, droppable=len(stack) - 1)

    def planned(there: MountpointState, beneath: bool) -> list[str]:
        return [str(action) for action in plan_mounted(SPEC, there, DEFAULTS, switch, beneath)]

    assert planned(there, True) == actions
    # A kernel before 5.15 cannot drop covered overlays.
    cannot = replace(there, can_drop=False, droppable=0)
    assert planned(cannot, True) == [action for action in actions if action != DROP]
    if without_beneath is None:
        with pytest.raises(OverlayError, match="this kernel cannot mount beneath it"):
            planned(there, False)
    else:
        assert planned(there, False) == without_beneath


@pytest.mark.parametrize(
    ("stack", "switch", "method"),
    [
        ([OTHER], "auto", "beneath"),
        ([OTHER], "over", "over"),
        ([OTHER], "replace", "replace"),
        ([OTHER, NEITHER], "auto", "beneath"),
        # The killed switch of an earlier run is finished.
        ([OTHER, SAME], "auto", "beneath"),
        ([NEITHER, SAME, OTHER], "auto", "beneath"),
        # The topmost overlay stays.
        ([SAME, OTHER], "auto", None),
        ([SAME], "auto", None),
    ],
)
def test_the_method_is_that_by_which_the_topmost_overlay_changes(
    stack: list[Mount], switch: str, method: str | None
) -> None:
    there = MountpointState(stack[0], None, tuple(stack[1:]), can_drop=True, droppable=len(stack) - 1)
    assert switch_method(plan_mounted(SPEC, there, DEFAULTS, switch)) == method
    assert switch_method(plan_mounted(SPEC, MountpointState(None, True), DEFAULTS, switch)) is None


INSIDE = replace(SAME, id=7, parent=1, path=b"/v/plugins", fstype=b"tmpfs")


@pytest.mark.parametrize(
    ("inner", "inner_below", "actions"),
    [
        ((INSIDE,), (INSIDE,), [DETACH]),
        # The mounts inside have changed since, so the overlay below has outdated ones.
        ((INSIDE,), (), [BENEATH, DROP]),
        ((), (INSIDE,), [BENEATH, DROP]),
        ((INSIDE,), (replace(INSIDE, device=(0, 99)),), [BENEATH, DROP]),
    ],
)
def test_a_covered_overlay_is_uncovered_only_with_the_same_mounts_inside(
    inner: tuple[Mount, ...], inner_below: tuple[Mount, ...], actions: list[str]
) -> None:
    there = MountpointState(OTHER, None, (SAME,), inner, inner_below, can_drop=True, droppable=1)
    assert [str(action) for action in plan_mounted(SPEC, there, DEFAULTS, "auto")] == actions
    # The same with 'over', which leaves no copy of the declared overlay below.
    over = [OVER if action == BENEATH else action for action in actions]
    assert [str(action) for action in plan_mounted(SPEC, there, DEFAULTS, "over")] == over


def test_an_overlay_with_mounts_inside_is_not_unmounted_and_these_are_named() -> None:
    reason = r"overlay at /v has mounts inside of it, so it cannot be unmounted: unmount /v/plugins \(tmpfs\) first"
    there = MountpointState(OTHER, None, inner=(INSIDE,))
    with pytest.raises(OverlayError, match=reason):
        plan_mounted(SPEC, there, DEFAULTS, "replace")
    for absent in (False, True):
        with pytest.raises(OverlayError, match=reason):
            plan_unmounted(b"/v", there, absent)
    # An overlay that equals the declaration is not unmounted.
    assert plan_mounted(SPEC, replace(there, mount=SAME), DEFAULTS, "replace") == ()


@pytest.mark.parametrize(
    ("there", "switch", "reason"),
    [
        (MountpointState(None, False), "auto", "mountpoint /v is not empty, .*: empty it, or choose another"),
        (
            MountpointState(live(b"rw", b"nfs4"), None),
            "replace",
            "mount of type nfs4 from somewhere, which is left alone: unmount it, or choose another mountpoint",
        ),
        (
            MountpointState(OTHER, None),
            "never",
            r"differs .* \(lower: .*/old.* -> .*/meta.*\), and 'switch' is never: declare",
        ),
        (
            MountpointState(OTHER, None, (SAME,)),
            "never",
            r"\(lower: .*/old.* -> .*/meta.*\), and 'switch' is never: declare",
        ),
    ],
)
def test_a_mountpoint_that_cannot_be_used_is_refused_by_name(there: MountpointState, switch: str, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        plan_mounted(SPEC, there, DEFAULTS, switch)


@pytest.mark.parametrize(
    ("path", "lower", "data", "reason"),
    [
        (b"/data/v", b"/meta", b"/data", "inside of the data layer /data"),
        (b"/data", b"/meta", b"/data", "inside of the data layer /data"),
        (b"/v", b"/meta", b"/", "inside of the data layer /"),
        (b"/v", b"/v/meta", b"/data", "would cover its own layer /v/meta"),
        (b"/v", b"/meta", b"/v/data", "would cover its own layer /v/data"),
        (b"/meta/v", b"/meta", b"/data", "mountpoint /meta/v is inside of its own layer /meta"),
        (b"/", b"/meta", b"/data", "would cover its own layer /meta"),
    ],
)
def test_a_mountpoint_inside_or_above_a_layer_is_refused_by_name(
    path: bytes, lower: bytes, data: bytes, reason: str
) -> None:
    with pytest.raises(OverlayError, match=reason):
        check_places(mount_spec(path, [lower], [data], {}, True))


@pytest.mark.parametrize("path", [b"/database", b"/dat", b"/v", b"/metadata", b"/x/data"])
def test_a_mountpoint_beside_its_layers_is_accepted(path: bytes) -> None:
    check_places(mount_spec(path, [b"/meta"], [b"/data"], {}, True))


@pytest.mark.parametrize(
    ("there", "absent", "actions"),
    [
        (MountpointState(None, None), False, []),
        (MountpointState(None, True), False, []),
        (MountpointState(None, False), False, []),
        (MountpointState(SAME, None), False, ["unmount the overlay at /v"]),
        (MountpointState(None, None), True, []),
        (MountpointState(None, True), True, ["remove directory /v"]),
        (MountpointState(OTHER, None), True, ["unmount the overlay at /v", "remove directory /v"]),
    ],
)
def test_unmounting(there: MountpointState, absent: bool, actions: list[str]) -> None:
    assert [str(action) for action in plan_unmounted(b"/v", there, absent)] == actions


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (MountpointState(live(b"rw", b"tmpfs"), None), "mount of type tmpfs .* left alone"),
        (MountpointState(None, False), "/v is not empty, so it is not removed: empty it, or use 'state: unmounted'"),
    ],
)
def test_another_mount_and_a_directory_with_entries_are_not_removed(there: MountpointState, reason: str) -> None:
    with pytest.raises(OverlayError, match=reason):
        plan_unmounted(b"/v", there, absent=True)
