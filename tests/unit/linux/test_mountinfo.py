"""Mountinfo is read as the kernel writes it. The lines come from real kernels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    OverlayLayers,
    containing_mount,
    described,
    join_lowerdir,
    overlay_layers,
    parse,
    split_lowerdir,
    stack,
    top_mount,
    unescape,
)

META = b"/mnt/me,ta:a b\\c=d\xff\n\"'#"
DATA = b"/mnt/da,ta:a b\\c=d\xff"

# Linux 6.18: layers given through lowerdir+ and datadir+, and the same layers through lowerdir alone.
ONE_BY_ONE = (
    rb"66 63 0:40 / /mnt/v rw,relatime - overlay ren\040der "
    b"ro,lowerdir+=/mnt/me\\054ta:a\\040b\\134c=d\xff\\012\"'#,datadir+=/mnt/da\\054ta:a\\040b\\134c=d\xff,"
    b"redirect_dir=on,metacopy=on\n"
)
IN_ONE = (
    rb"66 63 0:40 / /mnt/v rw,relatime - overlay ren\040der "
    b"ro,lowerdir=/mnt/me\\134\\054ta\\134:a\\040b\\134\\134c=d\xff\\012\"'#"
    b"::/mnt/da\\134\\054ta\\134:a\\040b\\134\\134c=d\xff,redirect_dir=on,metacopy=on\n"
)


def only(text: bytes) -> Mount:
    (mount,) = parse(text)
    return mount


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"70 27 0:51 / /net/a ro - nfs4 server:/srv/a\\040b ro,vers=4.2", b"/srv/a b"),
        (b"71 27 0:51 / /net/c ro - nfs [fe80::1]:/srv/c/ ro,vers=3", b"/srv/c"),
        (b"72 27 0:51 / /net ro - nfs4 server:/ ro,vers=4.2", b"/"),
        (b"73 27 8:1 /srv/a /net/a rw - ext4 server:/srv rw", b"/srv/a"),
    ],
)
def test_the_directory_that_a_mount_of_nfs_shows_is_that_of_its_source(line: bytes, shown: bytes) -> None:
    assert only(line + b"\n").shown == shown


@pytest.mark.parametrize("line", [ONE_BY_ONE, IN_ONE])
def test_the_layers_of_an_overlay_are_decoded_whatever_bytes_they_have(line: bytes) -> None:
    mount = only(line)
    assert (mount.id, mount.parent, mount.device, mount.path) == (66, 63, (0, 40), b"/mnt/v")
    assert (mount.fstype, mount.source, mount.propagation) == (b"overlay", b"ren der", ())
    settings = ((b"ro", None), (b"redirect_dir", b"on"), (b"metacopy", b"on"))
    assert overlay_layers(mount) == OverlayLayers((META,), (DATA,), None, None, settings)


def test_an_overlay_is_returned_with_its_layers_and_options() -> None:
    assert described(only(ONE_BY_ONE)) == {
        "path": "/mnt/v",
        "root": "/",
        "lower": ["/mnt/me,ta:a b\\c=d\\xff\\n\"'#"],
        "data": ["/mnt/da,ta:a b\\c=d\\xff"],
        "upper": None,
        "work": None,
        "options": {"redirect_dir": "on", "metacopy": "on"},
        "flags": ["rw", "relatime"],
        "propagation": [],
    }


def test_a_writable_overlay_has_its_upper_and_work_directory() -> None:
    line = (
        b"615 29 0:52 / /var/lib/docker/overlay2/x/merged rw,relatime shared:309 - overlay overlay "
        b"rw,lowerdir=/l/A:/l/B:/l/C,upperdir=/u/di\\054ff,workdir=/w/work,nouserxattr\n"
    )
    layers = overlay_layers(only(line))
    assert layers.lower == (b"/l/A", b"/l/B", b"/l/C")
    assert (layers.data, layers.upper, layers.work) == ((), b"/u/di,ff", b"/w/work")
    assert only(line).propagation == (b"shared:309",)


@pytest.mark.parametrize(
    ("line", "path", "fstype", "propagation"),
    [
        (b"22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:13 - proc proc rw", b"/proc", b"proc", 1),
        (b"28 1 254:0 / / rw,relatime - ext4 /dev/vda rw", b"/", b"ext4", 0),
        (b"40 28 0:35 / /a\\040-\\040b rw shared:1 master:2 propagate_from:3 - tmpfs - rw", b"/a - b", b"tmpfs", 3),
        (
            b"41 28 0:36 / /m\\011\\012\\134 rw unbindable - fuse.sshfs u@h:/x rw,user_id=0",
            b"/m\t\n\\",
            b"fuse.sshfs",
            1,
        ),
        (b"42 28 0:37 / /e rw - tmpfs  rw", b"/e", b"tmpfs", 0),
        (b"43 28 0:3 net:[4026531992] /run/netns/x rw shared:4 - nsfs nsfs rw", b"/run/netns/x", b"nsfs", 1),
        (b"44 28 0:38 /vol /n rw - nfs4 srv:/soft\\040ware ro,vers=4.2,addr=fe80::1%eth0", b"/n", b"nfs4", 0),
    ],
)
def test_lines_of_other_file_systems_are_read(line: bytes, path: bytes, fstype: bytes, propagation: int) -> None:
    mount = only(line + b"\n")
    assert (mount.path, mount.fstype, len(mount.propagation)) == (path, fstype, propagation)


def test_an_empty_source_is_read() -> None:
    assert only(b"42 28 0:37 / /e rw - tmpfs  rw,size=1k\n").source == b""


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (b"a\\040b", b"a b"),
        (b"\\134040", b"\\040"),
        (b"\\0", b"\\0"),
        (b"\\9", b"\\9"),
        (b"\\377", b"\xff"),
        (b"", b""),
    ],
)
def test_octal_escapes_are_undone_once(escaped: bytes, plain: bytes) -> None:
    assert unescape(escaped) == plain


@pytest.mark.parametrize(
    ("value", "lower", "data"),
    [
        (b"/a", [b"/a"], []),
        (b"/a:/b", [b"/a", b"/b"], []),
        (b"/a::/d", [b"/a"], [b"/d"]),
        (b"/a:/b::/d::/e", [b"/a", b"/b"], [b"/d", b"/e"]),
        (rb"/a\:b:/c\\", [b"/a:b", b"/c\\"], []),
        (rb"/a\\:/b", [b"/a\\", b"/b"], []),
        (rb"/a\,b", [b"/a,b"], []),
    ],
)
def test_a_list_of_layers_is_split_as_overlayfs_does(value: bytes, lower: list[bytes], data: list[bytes]) -> None:
    assert split_lowerdir(value) == (lower, data)


PATHS = st.lists(st.binary(min_size=1).map(lambda name: b"/" + name), max_size=4)


@given(PATHS.filter(bool), PATHS)
def test_joined_layers_are_split_again(lower: list[bytes], data: list[bytes]) -> None:
    assert split_lowerdir(join_lowerdir(lower, data)) == (lower, data)


def mounts(*listed: tuple[int, int, bytes]) -> list[Mount]:
    text = b"".join(
        b"%d %d 0:%d / %s rw - tmpfs t rw\n" % (number, parent, number, path) for number, parent, path in listed
    )
    return list(parse(text))


ROOT = (1, 0, b"/")


@pytest.mark.parametrize(
    ("listed", "path", "expected"),
    [
        ([ROOT], b"/a", None),
        ([ROOT], b"/", 1),
        ([ROOT, (2, 1, b"/a")], b"/a", 2),
        ([ROOT, (2, 1, b"/a")], b"/a/b", None),
        ([ROOT, (2, 1, b"/a"), (3, 2, b"/a")], b"/a", 3),
        # A mount that was mounted beneath is listed last, and is covered.
        ([ROOT, (3, 4, b"/a"), (4, 1, b"/a")], b"/a", 3),
        ([ROOT, (2, 1, b"/a"), (3, 2, b"/a"), (4, 3, b"/a")], b"/a", 4),
        # A mount covers the parent directory, so that a mount inside that is unreachable.
        ([ROOT, (2, 1, b"/a/b"), (3, 1, b"/a")], b"/a/b", None),
        ([ROOT, (2, 1, b"/a/b"), (3, 1, b"/a"), (4, 3, b"/a/b")], b"/a/b", 4),
        ([ROOT, (2, 1, b"/a"), (3, 2, b"/a/b"), (4, 2, b"/a")], b"/a/b", None),
        # In a chroot that is not a mountpoint, the parent is not listed.
        ([(2, 9, b"/a"), (3, 2, b"/a/b")], b"/a/b", 3),
        ([(2, 9, b"/a")], b"/", None),
        # The root of the first mount namespace is its own parent.
        ([(1, 1, b"/"), (2, 1, b"/a")], b"/a", 2),
        ([(1, 1, b"/"), (2, 1, b"/"), (3, 2, b"/a")], b"/a", 3),
    ],
)
def test_the_top_mount_is_the_visible_one(
    listed: list[tuple[int, int, bytes]], path: bytes, expected: int | None
) -> None:
    found = top_mount(mounts(*listed), path)
    assert (found.id if found else None) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [(b"/", 1), (b"/x", 1), (b"/a", 2), (b"/a/x/y", 2), (b"/ab", 1), (b"/a/b", 3), (b"/a/b/c", 3)],
)
def test_a_path_is_contained_in_the_nearest_mount_above_it(path: bytes, expected: int) -> None:
    found = containing_mount(mounts(ROOT, (2, 1, b"/a"), (3, 2, b"/a/b")), path)
    assert found
    assert found.id == expected


def test_a_covered_mount_contains_no_path() -> None:
    found = containing_mount(mounts(ROOT, (2, 1, b"/a/b"), (3, 1, b"/a")), b"/a/b/c")
    assert found
    assert found.id == 3


def test_a_stack_is_listed_from_the_visible_mount_down() -> None:
    text = b"""\
1 0 8:1 / / rw - ext4 disk rw
2 1 0:40 / /v ro - overlay overlay ro
4 2 0:42 / /v ro - overlay overlay ro
3 4 0:41 / /v ro - overlay overlay ro
5 1 0:43 / /w ro - overlay overlay ro
"""
    mounts = list(parse(text))
    assert [mount.id for mount in stack(mounts, b"/v")] == [3, 4, 2]
    assert [mount.id for mount in stack(mounts, b"/w")] == [5]
    assert stack(mounts, b"/x") == []
    assert [mount.id for mount in stack(mounts, b"/")] == [1]
