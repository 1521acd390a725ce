"""A software root over NFS: the declaration against lines of mountinfo, as Linux 6.1 and 6.12 print them."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, parse
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import MountpointState
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_options

PATH = b"/net/software"
SOURCE = "filer:/export/software"
V4 = (
    b"90 29 0:48 / /net/software ro,nodev,noatime shared:40 - nfs4 filer:/export/software ro,vers=4.2,rsize=262144,wsize=262144,"
    b"namlen=255,acregmin=3600,acregmax=3600,acdirmin=3600,acdirmax=3600,hard,nocto,proto=tcp,timeo=600,retrans=2,sec=sys,"
    b"clientaddr=10.0.2.16,local_lock=none,addr=10.0.2.15\n"
)
#: With actimeo=60: the two parts whose default that is are not printed.
V3 = (
    b"91 29 0:49 / /net/software rw,relatime shared:41 - nfs filer:/export/software rw,vers=3,rsize=1048576,wsize=1048576,"
    b"namlen=255,acregmin=60,acdirmin=60,soft,nolock,proto=tcp,nconnect=4,timeo=600,retrans=2,sec=sys,mountaddr=10.0.2.15,mountvers=3,"
    b"mountproto=tcp,lookupcache=pos,local_lock=all,addr=10.0.2.15\n"
)
DEFAULT_OPTIONS = ("ro", "vers=4.2", "hard", "nocto", "actimeo=3600", "nodev")
OVERLAY = b"95 29 0:50 / /software ro - overlay overlay ro,lowerdir+=/state/layer,datadir+=/net/software,redirect_dir=on,metacopy=on\n"


def mount(line: bytes) -> Mount:
    (live,) = parse(line)
    return live


def spec(*options: str, source: str = SOURCE) -> nfs_options.SoftwareRootSpec:
    return nfs_options.software_root_spec(PATH, source, "nfs", options)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (V4, DEFAULT_OPTIONS),
        (V4, ()),
        (V4, ("acregmin=3600", "acregmax=3600", "acdirmin=3600", "acdirmax=3600")),
        (V4, ("actimeo=03600",)),
        (V4, ("vers=4",)),
        (V4, ("nfsvers=4.2",)),
        (V4, ("v4.2",)),
        (V4, ("rsize=1048576", "wsize=262144")),
        (V4, ("tcp", "proto=tcp", "timeo=600", "retrans=2", "sec=sys")),
        (V4, ("lookupcache=all", "nconnect=1", "ac", "acl", "rdirplus", "resvport", "sharecache", "lock")),
        (V4, ("suid", "exec", "diratime")),
        (V4, ("_netdev", "nofail", "x-systemd.automount", "retry=0", "bg", "defaults", "relatime", "nouser")),
        (
            V3,
            (
                "vers=3",
                "rw",
                "soft",
                "nolock",
                "actimeo=60",
                "nconnect=4",
                "lookupcache=pos",
                "mountport=635",
                "dev",
                "atime",
            ),
        ),
    ],
)
def test_a_live_mount_is_as_declared(line: bytes, options: tuple[str, ...]) -> None:
    declared = spec(*options)
    assert nfs_options.differences(declared, mount(line)) == {}
    assert nfs_options.plan_mounted(declared, MountpointState(mount(line), None), [], replace=False) == ()
    assert nfs_options.declared_by(mount(line), declared) == declared.as_dict()


@pytest.mark.parametrize(
    ("line", "option", "found"),
    [
        (V4, "rw", {"ro": (True, False)}),
        (V4, "nosuid", {"nosuid": (False, True)}),
        (V4, "atime", {"noatime": (True, False)}),
        (V4, "vers=4.1", {"vers": ("4.2", "4.1")}),
        (V4, "vers=3", {"vers": ("4.2", "3")}),
        (V4, "soft", {"on_timeout": ("hard", "soft")}),
        (V4, "cto", {"cto": (False, True)}),
        (V4, "rsize=131072", {"rsize": ("262144", "131072")}),
        (V4, "nconnect=4", {"nconnect": ("1", "4")}),
        (V4, "lookupcache=none", {"lookupcache": ("all", "none")}),
        (V4, "fsc", {"fsc": (False, True)}),
        (V3, "hard", {"on_timeout": ("soft", "hard")}),
        (V3, "nocto", {"cto": (True, False)}),
        (V3, "lock", {"lock": (False, True)}),
        (V3, "vers=4", {"vers": ("3", "4")}),
        (
            V3,
            "actimeo=3600",
            dict.fromkeys(("acregmin", "acregmax", "acdirmin", "acdirmax"), ("60", "3600")),
        ),
    ],
)
def test_a_difference_is_named(line: bytes, option: str, found: dict[str, Any]) -> None:
    assert nfs_options.differences(spec(option), mount(line)) == found


def test_where_nothing_is_mounted_it_is_mounted() -> None:
    assert [str(action) for action in nfs_options.plan_mounted(spec(), MountpointState(None, None), [], False)] == [
        "create directory /net/software",
        "mount filer:/export/software at /net/software",
    ]
    assert len(nfs_options.plan_mounted(spec(), MountpointState(None, True), [], False)) == 1


@pytest.mark.parametrize(
    ("declared", "state", "replace", "message"),
    [
        (spec(), MountpointState(None, False), True, "/net/software is not empty"),
        (
            spec(source="other:/export"),
            MountpointState(mount(V4), None),
            True,
            "a mount of filer:/export/software, not of other:/export",
        ),
        (spec(), MountpointState(mount(OVERLAY), None), True, "a mount of type overlay"),
        (
            spec("rw"),
            MountpointState(mount(V4), None),
            False,
            r"other options than declared \(ro: True -> False\).*'replace: true'",
        ),
        (
            spec("rw"),
            MountpointState(mount(V4), None),
            True,
            "a layer of the overlay at /software.*nothing was unmounted",
        ),
    ],
)
def test_what_is_in_the_way_is_left_alone(
    declared: nfs_options.SoftwareRootSpec, state: MountpointState, replace: bool, message: str
) -> None:
    with pytest.raises(OverlayError, match=message):
        nfs_options.plan_mounted(declared, state, [mount(V4), mount(OVERLAY)], replace)


def test_other_options_are_a_new_mount_when_that_is_wanted() -> None:
    plan = nfs_options.plan_mounted(spec("rw"), MountpointState(mount(V4), None), [mount(V4)], replace=True)
    assert [type(action) for action in plan] == [nfs_options.UnmountSoftwareRoot, nfs_options.MountSoftwareRoot]


def test_a_trailing_slash_is_the_same_source() -> None:
    assert nfs_options.plan_mounted(spec(source=f"{SOURCE}/"), MountpointState(mount(V4), None), [], False) == ()


@pytest.mark.parametrize(
    ("wanted", "observed", "mounting", "planned"),
    [
        (None, 128, True, []),
        (1024, 128, False, ["read 1024 KiB ahead at /net/software"]),
        (1024, 1024, False, []),
        # The kernel forgets it with the mount.
        (1024, 1024, True, ["read 1024 KiB ahead at /net/software"]),
        (1024, None, True, ["read 1024 KiB ahead at /net/software"]),
    ],
)
def test_read_ahead_is_set_where_it_differs(
    wanted: int | None, observed: int | None, mounting: bool, planned: list[str]
) -> None:
    assert [str(action) for action in nfs_options.plan_read_ahead(PATH, wanted, observed, mounting)] == planned


@pytest.mark.parametrize("wanted", [0, -64, 100])
def test_a_read_ahead_that_the_kernel_would_change_is_refused(wanted: int) -> None:
    with pytest.raises(OverlayError, match=f"read_ahead is {wanted}: it has to be a positive multiple of 64"):
        nfs_options.plan_read_ahead(PATH, wanted, None, mounting=True)


def test_unmounting() -> None:
    live = MountpointState(mount(V4), None)
    assert [str(action) for action in nfs_options.plan_unmounted(PATH, live, [], absent=True)] == [
        "unmount /net/software",
        "remove directory /net/software",
    ]
    assert nfs_options.plan_unmounted(PATH, MountpointState(None, True), [], absent=False) == ()
    with pytest.raises(OverlayError, match="layer of the overlay at /software"):
        nfs_options.plan_unmounted(PATH, live, [mount(OVERLAY)], absent=False)
    with pytest.raises(OverlayError, match="is not empty"):
        nfs_options.plan_unmounted(PATH, MountpointState(None, False), [], absent=True)


@pytest.mark.parametrize(
    "source", ["filer:/export", "10.0.0.1:/", "[fe80::1%eth0]:/export", "filer.example.com:/a/b c"]
)
def test_an_export_is_taken(source: str) -> None:
    assert spec(source=source).source == source


@pytest.mark.parametrize("source", ["", "/export", "filer", "-ofiler:/x", "filer:export", "fi ler:/x", ":/x", "a/b:/x"])
def test_what_is_no_export_is_refused(source: str) -> None:
    with pytest.raises(OverlayError, match="is not an NFS export"):
        spec(source=source)


@pytest.mark.parametrize("option", ["", "ro,nodev", "a b", "a\nb", "a#b"])
def test_what_would_break_a_list_of_options_is_refused(option: str) -> None:
    with pytest.raises(OverlayError, match="may not be empty or contain"):
        spec(option)


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
    assert nfs_options.fstab_line(spec("ro")) == LINE
    assert nfs_options.edited_fstab(before, PATH, LINE) == after
    assert nfs_options.edited_fstab(after, PATH, LINE) == after
    assert b"\nfiler:" not in b"\n" + nfs_options.edited_fstab(after, PATH, None)


def test_spaces_in_fstab_are_escaped() -> None:
    declared = nfs_options.software_root_spec(b"/net/soft ware", "filer:/a b", "nfs4", ("ro", "hard"))
    line = nfs_options.fstab_line(declared)
    assert line == b"filer:/a\\040b /net/soft\\040ware nfs4 ro,hard 0 0\n"
    assert nfs_options.edited_fstab(line, b"/net/soft ware", None) == b""
