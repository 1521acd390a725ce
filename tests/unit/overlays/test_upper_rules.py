"""Rules about upper layers: the states that are refused, without a kernel."""

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
    OwnedDirectory,
    UpperDirectory,
    UpperState,
    check_upper,
    lower_record,
)

SPEC = mount_spec(b"/v", [b"/meta"], [b"/data"], {}, False, (), Writable(b"/k/upper", b"/k/work"))
ROOT = (OwnedDirectory(b"/", 0, 0o40755), OwnedDirectory(b"/k", 0, 0o40755))


def mount(kind: bytes, options: bytes = b"rw", flags: bytes = b"rw", mount_id: int = 20) -> Mount:
    (found,) = parse(b"%d 1 0:%d / /m %s - %s source %s\n" % (mount_id, mount_id, flags, kind, options))
    return found


def state(kind: bytes = b"ext4", options: bytes = b"rw", flags: bytes = b"rw") -> UpperState:
    on = mount(kind, options, flags)
    upper, work = (UpperDirectory(path, True, on, (*ROOT, OwnedDirectory(path, 0, 0o40755))) for path in SPEC.kept)
    return UpperState(upper, work, None, None)


@pytest.mark.parametrize("kind", [b"ext4", b"xfs", b"btrfs", b"tmpfs"])
def test_a_local_file_system_holds_an_upper_layer(kind: bytes) -> None:
    check_upper(SPEC, state(kind), None)


@pytest.mark.parametrize("kind", [b"nfs", b"nfs4", b"cifs", b"smb3", b"9p", b"vfat", b"overlay", b"erofs", b"squashfs"])
def test_other_file_systems_are_refused_by_name(kind: bytes) -> None:
    with pytest.raises(
        OverlayError, match=f"upper layer /k/upper is on a file system of type {kind.decode()}, which lacks"
    ):
        check_upper(SPEC, state(kind), None)


@pytest.mark.parametrize(("options", "flags"), [(b"ro", b"rw"), (b"rw", b"ro,nosuid")])
def test_a_read_only_file_system_is_refused(options: bytes, flags: bytes) -> None:
    with pytest.raises(OverlayError, match="mounted read-only"):
        check_upper(SPEC, state(options=options, flags=flags), None)


def owned(*owners: tuple[int, int]) -> tuple[OwnedDirectory, ...]:
    """Return the directories of an upper layer from the root down, with their uids and modes."""
    return tuple(OwnedDirectory(path, uid, mode) for path, (uid, mode) in zip((b"/", b"/k", b"/k/upper"), owners))


SAFE = (0, 0o40755)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (owned(SAFE, SAFE, SAFE), None),
        (owned(SAFE, (0, 0o41777), SAFE), None),  # others cannot rename root's entries of a sticky directory
        (owned(SAFE, (0, 0o40700), (1000, 0o40777)), None),  # only root can enter /k
        (owned(SAFE, SAFE), None),
        (owned(SAFE, (0, 0o40777), SAFE), "directory /k, above upper layer /k/upper, is writable by others .*0777"),
        (owned((0, 0o40777), (0, 0o40700), SAFE), "directory /, above upper layer"),
        (owned(SAFE, (0, 0o40710), (0, 0o40775)), "upper layer /k/upper is writable by others"),
        (owned(SAFE, SAFE, (0, 0o41777)), "upper layer /k/upper is writable by others"),
        (owned(SAFE, SAFE, (1000, 0o40755)), "upper layer /k/upper belongs to uid 1000"),
        (owned(SAFE, (5, 0o40700), SAFE), "directory /k, above upper layer /k/upper, belongs to uid 5"),
    ],
)
def test_an_upper_layer_that_others_can_write_to_is_refused(
    found: Sequence[OwnedDirectory], reason: str | None
) -> None:
    given = replace(state(), upper=replace(state().upper, directories=tuple(found)))
    if reason is None:
        check_upper(SPEC, given, None)
        return
    with pytest.raises(OverlayError, match=reason):
        check_upper(SPEC, given, None)


def test_an_upper_layer_and_its_work_directory_must_be_on_one_mount() -> None:
    given = replace(state(), work=replace(state().work, mount=mount(b"ext4", mount_id=21)))
    with pytest.raises(OverlayError, match="/k/upper and work directory /k/work are not on the same mount"):
        check_upper(SPEC, given, None)


def test_other_lower_layers_than_recorded_are_refused_and_other_data_layers_are_not() -> None:
    kept = Writable(b"/k/upper", b"/k/work")
    other_data = mount_spec(b"/w", [b"/meta"], [], {}, False, (), kept)
    turned = mount_spec(b"/v", [b"/b", b"/a"], [], {}, False, (), kept)
    check_upper(other_data, replace(state(), record=lower_record(SPEC)), None)
    for lower in ([b"/a", b"/b"], [b"/b"], [b"/b:/a"]):
        spec = mount_spec(b"/v", lower, [], {}, False, (), kept)
        with pytest.raises(OverlayError, match=r"used over other lower layers \(/b:/a\)"):
            check_upper(spec, replace(state(), record=lower_record(turned)), None)


def test_a_record_of_many_layers_has_a_bounded_length() -> None:
    many = mount_spec(b"/v", [b"/layer%d" % number for number in range(400)], [], {}, False)
    assert len(lower_record(many)) < 1200
    fewer = mount_spec(b"/v", list(many.lower[:-1]), [], {}, False)
    assert lower_record(many) != lower_record(fewer)


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
    ("pid", "mount_id", "propagation", "goes"),
    [
        (None, 7, (b"shared:3",), True),
        # Another mount of the overlay, here or in a namespace to which unmounting does not propagate.
        (None, 8, (), False),
        (4711, 8, (), False),
        (4711, 8, (b"shared:4",), False),
        (4711, 8, (b"shared:3",), True),
        (4711, 8, (b"master:3",), True),
    ],
)
def test_an_overlay_that_is_unmounted_first_does_not_count_as_in_use(
    pid: int | None, mount_id: int, propagation: tuple[bytes, ...], goes: bool
) -> None:
    leaving = replace(overlay(b"/view", b"/k/upper", b"/k/work"), id=7, propagation=(b"shared:3",))
    given = replace(state(), overlays=((pid, replace(leaving, id=mount_id, propagation=propagation)),))
    if goes:
        check_upper(SPEC, given, leaving)
        return
    with pytest.raises(OverlayError, match="in use by the overlay at /view"):
        check_upper(SPEC, given, leaving)


def test_the_path_of_scratch_space_has_its_size() -> None:
    assert scratch_space(2 << 30).upper == b"/run/renderfarm-overlay/scratch-2147483648/upper"
    assert scratch_space(2 << 30).place == b"/run/renderfarm-overlay/scratch-2147483648"
    spec = mount_spec(b"/v", [b"/meta"], [], {}, False, (), scratch_space(1))
    assert (spec.kept, spec.upper) == ((), b"/run/renderfarm-overlay/scratch-1/upper")
    with pytest.raises(OverlayError, match="'scratch' and 'read_only' exclude each other"):
        mount_spec(b"/v", [b"/meta"], [], {}, True, (), scratch_space(1))


def test_escapes_in_the_report_of_the_kernel_are_undone() -> None:
    layers = overlay_layers(overlay(b"/v", b"/a\\134\\134b\\134\\054\\040c", b"/w"))
    assert layers.upper == b"/a\\b, c"
