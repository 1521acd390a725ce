"""Plans for a software root: when it is mounted, unmounted or refused, and its line of fstab."""

from __future__ import annotations

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mountpoint
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_options, root_plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.root_plan import (
    DeclaredRoot,
    ObservedRoot,
)
from ansible_collections.renderfarm.overlay.tests.unit.software_root.nfs_lines import (
    OVERLAY,
    PATH,
    SOURCE,
    V4,
    mount,
    spec,
)


def test_an_unmounted_software_root_is_mounted() -> None:
    assert [str(action) for action in root_plan.plan_mounted(spec(), Mountpoint(None, None), [], False)] == [
        "create directory /net/software",
        "mount filer:/export/software at /net/software",
    ]
    assert len(root_plan.plan_mounted(spec(), Mountpoint(None, True), [], False)) == 1


@pytest.mark.parametrize(
    ("declared", "state", "replace", "message"),
    [
        (spec(), Mountpoint(None, False), True, "/net/software is not empty"),
        (
            spec(source="other:/export"),
            Mountpoint(mount(V4), None),
            True,
            "a mount of filer:/export/software, not of other:/export",
        ),
        (spec(), Mountpoint(mount(OVERLAY), None), True, "a mount of type overlay"),
        (
            spec("rw"),
            Mountpoint(mount(V4), None),
            False,
            r"other options than declared \(ro: True -> False\).*'replace: true'",
        ),
        (
            spec("rw"),
            Mountpoint(mount(V4), None),
            True,
            "a layer of the overlay at /software.*nothing was unmounted",
        ),
    ],
)
def test_another_mount_or_a_full_directory_is_refused(
    declared: nfs_options.SoftwareRootSpec, state: Mountpoint, replace: bool, message: str
) -> None:
    with pytest.raises(OverlayError, match=message):
        root_plan.plan_mounted(declared, state, [mount(V4), mount(OVERLAY)], replace)


def test_a_mount_with_other_options_is_replaced_if_allowed() -> None:
    plan = root_plan.plan_mounted(spec("rw"), Mountpoint(mount(V4), None), [mount(V4)], replace=True)
    assert [type(action) for action in plan] == [root_plan.UnmountSoftwareRoot, root_plan.MountSoftwareRoot]


def test_a_trailing_slash_of_the_source_is_ignored() -> None:
    assert root_plan.plan_mounted(spec(source=f"{SOURCE}/"), Mountpoint(mount(V4), None), [], False) == ()


@pytest.mark.parametrize(
    ("wanted", "observed", "mounting", "planned"),
    [
        (None, 128, True, []),
        (1024, 128, False, ["read 1024 KiB ahead at /net/software"]),
        (1024, 1024, False, []),
        # A new mount has the default.
        (1024, 1024, True, ["read 1024 KiB ahead at /net/software"]),
        (1024, None, True, ["read 1024 KiB ahead at /net/software"]),
    ],
)
def test_read_ahead_is_set_if_it_differs_or_the_root_is_mounted(
    wanted: int | None, observed: int | None, mounting: bool, planned: list[str]
) -> None:
    assert [str(action) for action in root_plan.plan_read_ahead(PATH, wanted, observed, mounting)] == planned


@pytest.mark.parametrize("wanted", [0, -64, 100])
def test_a_read_ahead_that_the_kernel_cannot_keep_is_refused(wanted: int) -> None:
    with pytest.raises(OverlayError, match=f"read_ahead is {wanted}: it has to be a positive multiple of 64"):
        root_plan.plan_read_ahead(PATH, wanted, None, mounting=True)


def test_unmounting_is_planned_or_refused() -> None:
    live = Mountpoint(mount(V4), None)
    assert [str(action) for action in root_plan.plan_unmounted(PATH, live, [], absent=True)] == [
        "unmount /net/software",
        "remove directory /net/software",
    ]
    assert root_plan.plan_unmounted(PATH, Mountpoint(None, True), [], absent=False) == ()
    with pytest.raises(OverlayError, match="layer of the overlay at /software"):
        root_plan.plan_unmounted(PATH, live, [mount(OVERLAY)], absent=False)
    with pytest.raises(OverlayError, match="is not empty"):
        root_plan.plan_unmounted(PATH, Mountpoint(None, False), [], absent=True)


LINE = b"filer:/export/software /net/software nfs ro 0 0\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", LINE),
        (b"/dev/sda1 / ext4 defaults 0 1", b"/dev/sda1 / ext4 defaults 0 1\n" + LINE),
        (b"# /net/software\nold:/x /net/software/ nfs rw 0 0\n\n", b"# /net/software\n" + LINE + b"\n"),
        (b"#old:/x /net/software nfs\n", b"#old:/x /net/software nfs\n" + LINE),
        (b"a:/x /net/software nfs\nb:/x /net/software nfs\n", LINE),
        (b"a:/x /net/software2 nfs rw 0 0\n", b"a:/x /net/software2 nfs rw 0 0\n" + LINE),
        (LINE, LINE),
    ],
)
def test_fstab_has_one_line_for_the_software_root(before: bytes, after: bytes) -> None:
    assert root_plan.root_line(spec("ro")) == LINE
    assert fstab_lines.replaced(before, PATH, LINE) == after
    assert fstab_lines.replaced(after, PATH, LINE) == after
    assert b"\nfiler:" not in b"\n" + fstab_lines.replaced(after, PATH, None)


def test_spaces_in_fstab_are_escaped() -> None:
    declared = nfs_options.software_root_spec(b"/net/soft ware", "filer:/a b", "nfs4", ("ro", "hard"))
    line = root_plan.root_line(declared)
    assert line == b"filer:/a\\040b /net/soft\\040ware nfs4 ro,hard 0 0\n"
    assert fstab_lines.replaced(line, b"/net/soft ware", None) == b""


def test_a_number_sign_in_fstab_is_not_escaped() -> None:
    # systemd's generator would not undo the escape (getmntent(3)).
    declared = nfs_options.software_root_spec(b"/net/#1", "filer:/a#b", "nfs", ("ro",))
    line = root_plan.root_line(declared)
    assert line == b"filer:/a#b /net/#1 nfs ro 0 0\n"
    assert fstab_lines.replaced(b"filer:/a\\043b /net/\\0431 nfs ro 0 0\n", b"/net/#1", line) == line


def declared_root(*options: str, absent: bool = False, read_ahead: int | None = None) -> DeclaredRoot:
    return DeclaredRoot(PATH, None if absent else spec(*options), absent, True, read_ahead, in_fstab=True)


def test_the_plan_and_the_diff_cover_mount_read_ahead_and_fstab() -> None:
    observed = ObservedRoot(Mountpoint(mount(V4), None), [mount(V4)], 128, b"")
    declared = declared_root("rw", read_ahead=1024)
    plan = root_plan.plan_root(declared, observed)
    assert [str(action) for action in plan] == [
        "unmount /net/software",
        "mount filer:/export/software at /net/software",
        "read 1024 KiB ahead at /net/software",
        "write the line for /net/software in /etc/fstab",
    ]
    before, after = root_plan.diff_of(declared, observed, plan)
    assert (before["options"], after["options"]) == ({"ro": True}, {"ro": False})
    assert (before["read_ahead"], after["read_ahead"]) == (128, 1024)
    assert (before["fstab"], after["fstab"]) == ("as it is", "write the line for /net/software in /etc/fstab")


def test_a_plan_without_a_mount_leaves_the_mount_in_the_diff_unchanged() -> None:
    observed = ObservedRoot(Mountpoint(mount(V4), None), [mount(V4)], 128, b"")
    plan = root_plan.plan_root(declared_root("ro"), observed)
    assert not root_plan.changes_mount(plan)
    before, after = root_plan.diff_of(declared_root("ro"), observed, plan)
    assert {name for name in after if after[name] != before[name]} == {"fstab"}


def test_an_absent_software_root_leaves_nothing_in_the_diff() -> None:
    observed = ObservedRoot(Mountpoint(mount(V4), None), [mount(V4)], 128, LINE)
    declared = declared_root(absent=True)
    plan = root_plan.plan_root(declared, observed)
    assert [str(action) for action in plan] == [
        "unmount /net/software",
        "remove directory /net/software",
        "remove the line for /net/software in /etc/fstab",
    ]
    before, after = root_plan.diff_of(declared, observed, plan)
    assert before["source"] == SOURCE
    assert set(after) == {"fstab"}


def test_options_that_a_new_mount_lacks_are_a_warning() -> None:
    assert root_plan.ignored_options(spec("vers=4.2"), mount(V4)) == []
    assert root_plan.ignored_options(None, mount(V4)) == root_plan.ignored_options(spec("rw"), None) == []
    (warning,) = root_plan.ignored_options(spec("nconnect=4"), mount(V4))
    assert "nconnect is 1, not 4" in warning


def test_a_mountpoint_inside_of_another_one_is_not_mounted_at_the_same_time() -> None:
    paths = [b"/net/a/b/c", b"/net/x", b"/net/a/b", b"/net/ab", b"/net/a", b"/net/x"]
    assert root_plan.grouped(paths) == [[3], [0, 2, 4], [1, 5]]
    assert root_plan.grouped([]) == []
