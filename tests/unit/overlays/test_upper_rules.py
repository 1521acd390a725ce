"""Upper layers: what is refused by what is known about them, without asking a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    Writable,
    mount_spec,
    scratch_space,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.upper_rules import (
    Folder,
    Place,
    UpperState,
    check_upper,
    record_of,
)

SPEC = mount_spec(b"/v", [b"/meta"], [b"/data"], {}, False, (), Writable(b"/k/upper", b"/k/work"))
ROOT = (Folder(b"/", 0, 0o40755), Folder(b"/k", 0, 0o40755))


def mount(kind: bytes, options: bytes = b"rw", flags: bytes = b"rw", number: int = 20) -> Mount:
    (found,) = parse(b"%d 1 0:%d / /m %s - %s source %s\n" % (number, number, flags, kind, options))
    return found


def state(kind: bytes = b"ext4", options: bytes = b"rw", flags: bytes = b"rw") -> UpperState:
    on = mount(kind, options, flags)
    places = [Place(path, True, on, (*ROOT, Folder(path, 0, 0o40755))) for path in SPEC.kept]
    return UpperState(places[0], places[1], None, None)


@pytest.mark.parametrize("kind", [b"ext4", b"xfs", b"btrfs", b"tmpfs"])
def test_a_local_file_system_holds_an_upper_layer(kind: bytes) -> None:
    check_upper(SPEC, state(kind), None)


@pytest.mark.parametrize("kind", [b"nfs", b"nfs4", b"cifs", b"smb3", b"9p", b"vfat", b"overlay", b"erofs", b"squashfs"])
def test_other_file_systems_are_refused_by_name(kind: bytes) -> None:
    with pytest.raises(OverlayError, match=f"upper layer /k/upper is on a file system of type {kind.decode()}, which"):
        check_upper(SPEC, state(kind), None)


@pytest.mark.parametrize(("options", "flags"), [(b"ro", b"rw"), (b"rw", b"ro,nosuid")])
def test_a_read_only_one_is_refused(options: bytes, flags: bytes) -> None:
    with pytest.raises(OverlayError, match="mounted read-only"):
        check_upper(SPEC, state(options=options, flags=flags), None)


def folders(*modes: tuple[int, int]) -> tuple[Folder, ...]:
    return tuple(Folder(path, owner, mode) for path, (owner, mode) in zip((b"/", b"/k", b"/k/upper"), modes))


SAFE = (0, 0o40755)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (folders(SAFE, SAFE, SAFE), None),
        (folders(SAFE, (0, 0o41777), SAFE), None),  # nobody can exchange what is root's in a sticky folder
        (folders(SAFE, (0, 0o40700), (1000, 0o40777)), None),  # nobody comes so far
        (folders(SAFE, SAFE), None),
        (folders(SAFE, (0, 0o40777), SAFE), "folder /k, above upper layer /k/upper, can be written to .*0777"),
        (folders((0, 0o40777), (0, 0o40700), SAFE), "folder /, above upper layer"),
        (folders(SAFE, (0, 0o40710), (0, 0o40775)), "upper layer /k/upper can be written to"),
        (folders(SAFE, SAFE, (0, 0o41777)), "upper layer /k/upper can be written to"),
        (folders(SAFE, SAFE, (1000, 0o40755)), "upper layer /k/upper belongs to user 1000"),
        (folders(SAFE, (5, 0o40700), SAFE), "folder /k, above upper layer /k/upper, belongs to user 5"),
    ],
)
def test_nobody_but_root_can_get_at_it(found: Sequence[Folder], reason: str | None) -> None:
    given = replace(state(), upper=replace(state().upper, folders=tuple(found)))
    if reason is None:
        check_upper(SPEC, given, None)
        return
    with pytest.raises(OverlayError, match=reason):
        check_upper(SPEC, given, None)


def test_both_have_to_be_on_one_mount() -> None:
    given = replace(state(), work=replace(state().work, mount=mount(b"ext4", number=21)))
    with pytest.raises(OverlayError, match="/k/upper and work directory /k/work are not on the same mount"):
        check_upper(SPEC, given, None)


def test_the_note_tells_lower_layers_apart_and_passes_over_data_layers() -> None:
    kept = Writable(b"/k/upper", b"/k/work")
    other_data = mount_spec(b"/w", [b"/meta"], [], {}, False, (), kept)
    turned = mount_spec(b"/v", [b"/b", b"/a"], [], {}, False, (), kept)
    check_upper(other_data, replace(state(), record=record_of(SPEC)), None)
    for lower in ([b"/a", b"/b"], [b"/b"], [b"/b:/a"]):
        spec = mount_spec(b"/v", lower, [], {}, False, (), kept)
        with pytest.raises(OverlayError, match=r"used over other lower layers \(/b:/a\)"):
            check_upper(spec, replace(state(), record=record_of(turned)), None)


def test_a_note_about_many_layers_has_a_bound() -> None:
    many = mount_spec(b"/v", [b"/layer%d" % number for number in range(400)], [], {}, False)
    assert len(record_of(many)) < 1200
    fewer = mount_spec(b"/v", list(many.lower[:-1]), [], {}, False)
    assert record_of(many) != record_of(fewer)


def overlay(path: bytes, upper: bytes, work: bytes) -> Mount:
    (found,) = parse(
        b"66 63 0:40 / %s rw - overlay overlay rw,lowerdir=/l,upperdir=%s,workdir=%s\n" % (path, upper, work)
    )
    return found


@pytest.mark.parametrize(
    ("upper", "work", "used"),
    [
        (b"/k/upper", b"/k/work", True),
        (b"/k/upper2", b"/k/work2", False),
        (b"/k/upper/below", b"/w", True),
        (b"/k", b"/w", True),
        (b"/u", b"/k/work", True),
    ],
)
def test_directories_of_another_overlay_are_refused(upper: bytes, work: bytes, used: bool) -> None:
    other = overlay(b"/other", upper, work)
    given = replace(state(), overlays=((4711, other),))
    if not used:
        check_upper(SPEC, given, None)
        return
    with pytest.raises(OverlayError, match="in use by the overlay at /other in the mount namespace of process 4711"):
        check_upper(SPEC, given, None)


@pytest.mark.parametrize(
    ("pid", "number", "propagation", "goes"),
    [
        (None, 7, (b"shared:3",), True),
        # Another mount of it, here or in a namespace to which unmounting does not spread.
        (None, 8, (), False),
        (4711, 8, (), False),
        (4711, 8, (b"shared:4",), False),
        (4711, 8, (b"shared:3",), True),
        (4711, 8, (b"master:3",), True),
    ],
)
def test_what_is_unmounted_before_is_not_in_the_way(
    pid: int | None, number: int, propagation: tuple[bytes, ...], goes: bool
) -> None:
    leaving = replace(overlay(b"/view", b"/k/upper", b"/k/work"), id=7, propagation=(b"shared:3",))
    given = replace(state(), overlays=((pid, replace(leaving, id=number, propagation=propagation)),))
    if goes:
        check_upper(SPEC, given, leaving)
        return
    with pytest.raises(OverlayError, match="in use by the overlay at /view"):
        check_upper(SPEC, given, leaving)


def test_scratch_space_has_its_size_in_its_name() -> None:
    assert scratch_space(2 << 30).upper == b"/run/renderfarm-overlay/scratch-2147483648/upper"
    assert scratch_space(2 << 30).place == b"/run/renderfarm-overlay/scratch-2147483648"
    spec = mount_spec(b"/v", [b"/meta"], [], {}, False, (), scratch_space(1))
    assert (spec.kept, spec.upper) == ((), b"/run/renderfarm-overlay/scratch-1/upper")
    with pytest.raises(OverlayError, match="'scratch' is for writing"):
        mount_spec(b"/v", [b"/meta"], [], {}, True, (), scratch_space(1))


def test_escapes_in_the_kernels_report_are_undone() -> None:
    layers = overlay_layers(overlay(b"/v", b"/a\\134\\134b\\134\\054\\040c", b"/w"))
    assert layers.upper == b"/a\\b, c"
