"""A scan refuses what a manifest cannot describe, and reports what views cannot read."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, sampling
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan import Scan
from ansible_collections.renderfarm.overlay.tests.kernel import support

NOBODY = 65534


def scan(root: Path, release: str = "pkg/1") -> list[Entry]:
    return list(Scan(os.fsencode(root), os.fsencode(release)))


def plain(area: Path) -> Path:
    """Make a release with one directory and one file; return its path."""
    top = area / "root" / "pkg" / "1"
    (top / "sub").mkdir(parents=True)
    support.write(top / "sub" / "file", b"content")
    return top


@pytest.mark.parametrize(
    ("kind", "description"),
    [
        (stat.S_IFIFO, "a named pipe"),
        (stat.S_IFSOCK, "a socket"),
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFBLK, "a block device"),
    ],
)
def test_a_special_file_is_refused_by_name(area: Path, kind: int, description: str) -> None:
    path = plain(area) / "sub" / "odd\nname"
    if kind == stat.S_IFSOCK:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        os.mknod(path, kind | 0o644, os.makedev(1, 3))
    with pytest.raises(OverlayError, match=rf"/pkg/1/sub/odd\\nname is {description}: a release may have only"):
        scan(area / "root")


@pytest.mark.parametrize("what", ["tmpfs", "bind directory", "bind file", "bind of itself"])
@pytest.mark.parametrize("through", ["root", "link", "root/../root", "root//."])
def test_a_mount_inside_a_release_is_refused_by_name(area: Path, what: str, through: str) -> None:
    top = plain(area)
    (area / "link").symlink_to("root")
    (area / "root" / "else").mkdir()
    (top / "inner").mkdir()
    if what == "tmpfs":
        support.command("mount", "-t", "tmpfs", "tmpfs", top / "inner")
    elif what == "bind file":
        support.command("mount", "--bind", top / "sub" / "file", top / "sub" / "file")
    else:
        source = top / "inner" if what == "bind of itself" else area / "root" / "else"
        support.command("mount", "--bind", source, top / "inner")
    with pytest.raises(OverlayError, match=r"/root/pkg/1/(inner|sub/file) is a mount inside the release"):
        scan(Path(f"{area}/{through}"))


@pytest.mark.parametrize("place", ["pkg", "pkg/1"])
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_between_the_root_and_a_release_is_refused_by_name(area: Path, place: str, kind: str) -> None:
    # The kernel follows no redirect across a mount. A view would list every file and could open none.
    plain(area)
    path = area / "root" / place
    if kind == "tmpfs":
        support.command("mount", "-t", "tmpfs", "tmpfs", path)
        (area / "root" / "pkg" / "1").mkdir(exist_ok=True)
    else:
        support.command("mount", "--bind", path, path)
    with pytest.raises(
        OverlayError, match=rf"/root/{place} is a mount below the software root, such as a nested export"
    ):
        scan(area / "root")


def test_the_software_root_may_be_a_mount(area: Path) -> None:
    plain(area)
    support.command("mount", "--bind", area / "root", area / "root")
    assert len(scan(area / "root")) == 3


@pytest.mark.parametrize("link", ["pkg", "pkg/1"])
def test_a_symbolic_link_in_the_path_of_a_release_is_refused_by_name(area: Path, link: str) -> None:
    plain(area)
    path = area / "root" / link
    path.rename(area / "root" / "real")
    path.symlink_to(area / "root" / "real")
    with pytest.raises(OverlayError, match=rf"/root/{link} is a symbolic link: give the path of the release itself"):
        scan(area / "root")


def test_the_software_root_may_be_a_symbolic_link(area: Path) -> None:
    plain(area)
    (area / "link").symlink_to("root")
    assert len(scan(area / "link")) == 3


@pytest.mark.parametrize(
    ("root", "release", "reason"),
    [
        ("nowhere", "pkg/1", "software root .*/nowhere does not exist"),
        ("root/pkg/1/sub/file", "pkg/1", "is not a directory"),
        ("root", "pkg/2", "release pkg/2 does not exist: there is no .*/root/pkg/2$"),
        ("root", "pgk/1", r"release pgk/1 does not exist: there is no .*/root/pgk: did you mean pkg\?$"),
        ("root", "other/1", "release other/1 does not exist: there is no .*/root/other$"),
        ("root", "pkg/1/sub/file", "/sub/file is not a directory"),
    ],
)
def test_a_missing_root_or_release_is_refused_by_name(area: Path, root: str, release: str, reason: str) -> None:
    plain(area)
    with pytest.raises(OverlayError, match=reason):
        scan(area / root, release)


def scanned(area: Path, privileged: bool = True, **more: Any) -> support.Ran:
    """Run release_manifest for the release of ``plain``; without ``privileged`` as root with the rights of nobody, as with root_squash."""
    store = area / "store"
    store.mkdir(exist_ok=True)
    store.chmod(0o777)
    return support.module(
        "release_manifest",
        privileged=privileged,
        root=str(area / "root"),
        release="pkg/1",
        store=str(store),
        **more,
    )


@pytest.mark.parametrize("privileged", [True, False])
def test_files_that_not_everybody_may_read_are_named_whoever_scans(area: Path, privileged: bool) -> None:
    top = plain(area)
    support.write(top / "secret \udcff", b"x", 0o600)
    support.write(top / "of-a-group", b"x", 0o640)
    support.write(top / "empty, so not read", b"", 0o640)
    support.write(top / "denied-to-others", b"x", 0o644)
    granted = (
        (support.OWNER, 6),
        (support.USER, 4, 5001),
        (support.OWNING_GROUP, 4),
        (support.MASK, 4),
        (support.OTHER, 0),
    )
    os.setxattr(top / "denied-to-others", "system.posix_acl_access", support.acl(*granted))
    for name in ("secret \udcff", "of-a-group", "denied-to-others"):
        os.chown(top / name, NOBODY, NOBODY)
    (top / "closed" / "inner").mkdir(parents=True)
    support.write(top / "closed" / "inner" / "file", b"x")
    os.chown(top / "closed", NOBODY, NOBODY)
    (top / "closed").chmod(0o750)
    ran = scanned(area, privileged).ok
    assert ran["unreadable"] == ["/closed/", "/denied-to-others", "/of-a-group", "/secret \\xff"]
    assert ran["unreadable_count"] == 4
    assert "not everybody may read 4 of its files and directories" in str(ran["warnings"][0])
    assert ran["entries"]["directories"] == (4 if privileged else 3)


@pytest.mark.parametrize("place", ["", "pkg", "pkg/1"])
def test_a_release_below_a_directory_that_not_everybody_may_enter_is_reported(area: Path, place: str) -> None:
    plain(area)
    (area / "root" / place).chmod(0o750)
    ran = scanned(area).ok
    assert ran["unreadable"] == ["/"]


@pytest.mark.parametrize("mode", [0o700, 0o704, 0o750])
def test_a_directory_that_users_may_not_enter_is_recorded_without_its_content(area: Path, mode: int) -> None:
    top = plain(area)
    (top / "sub" / "inner").mkdir()
    (top / "sub").chmod(mode)
    os.chown(top / "sub", NOBODY, NOBODY)
    ran = scanned(area, privileged=False).ok
    assert (ran["unreadable"], ran["unlisted"], ran["unlisted_count"]) == (["/sub/"], ["/sub"], 1)
    assert "root of this host may not list 1 directories" in str(ran["warnings"])
    assert ran["entries"] == {"directories": 2, "files": 0, "symlinks": 0, "hardlinks": 0}
    assert not scanned(area, privileged=False, rescan=True).ok["changed"]
    place = Placement(
        f"{area}/store/pkg/1.dump.gz", manifest_store.read_record(f"{area}/store/pkg/1.dump.gz"), b"", b""
    )
    (_root, sub) = manifest_store.entries(place)
    assert (sub.path, sub.mode, sub.nlink, sub.uid) == (b"/sub", stat.S_IFDIR | mode, 2, NOBODY)


def test_a_directory_that_users_may_enter_and_the_scan_may_not_list_is_refused_by_name(area: Path) -> None:
    top = plain(area)
    (top / "sub").chmod(0o711)
    os.chown(top / "sub", NOBODY, NOBODY)
    message = scanned(area, privileged=False).message
    assert message.startswith(f"{top}/sub has mode 0711: everybody may enter it, and this host may not list it")
    assert [path for path in (area / "store").rglob("*") if path.is_file()] == []


def test_a_user_who_may_not_list_a_directory_is_refused(area: Path) -> None:
    top = plain(area)
    (top / "sub").chmod(0o700)

    def as_nobody(_progress: deadline.Progress) -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        scan(area / "root")

    with pytest.raises(PermissionError) as raised:
        deadline.run(as_nobody, 30)
    assert raised.value.filename == str(top / "sub")


def test_the_message_does_not_tell_root_to_run_as_root(area: Path) -> None:
    top = plain(area)
    os.chown(top, NOBODY, NOBODY)
    top.chmod(0o700)
    message = scanned(area, privileged=False).message
    assert message.startswith(f"{top}: Permission denied: root itself is refused, as happens in a user namespace")


def test_a_directory_too_deep_for_redirects_is_refused_by_name(area: Path) -> None:
    top = plain(area)
    support.command(
        "python3", "-c", "import os, sys\nos.chdir(sys.argv[1])\nfor _ in range(17):\n os.mkdir('d' * 250)\n os.chdir('d' * 250)\n"
        "open('f', 'w').write('x')", top,
    )  # fmt: skip
    with pytest.raises(OverlayError, match=r"/d+ is nested too deeply: \d+ bytes, and at most 3838"):
        scan(area / "root")


# ---- xattrs, read and written with pyxattr and with os


@pytest.fixture(params=["pyxattr", "os"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    assert xattrs.HAS_PYXATTR, "pyxattr is not installed, so these tests would not cover it"
    if request.param == "os":
        monkeypatch.setattr(xattrs, "HAS_PYXATTR", False)
        monkeypatch.setattr(xattrs, "write", xattrs._write_os)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_xattrs_are_read_and_written(area: Path) -> None:
    path = os.fsencode(area) + b"/file \xff"
    support.write(path, b"x")
    os.symlink(path, path + b"-link")
    assert xattrs.read(path, b"user.absent") is None
    xattrs.write(path, b"trusted.overlay.redirect", b"/\xff\x00")
    with open(path, "rb") as stream:
        xattrs.write(stream.fileno(), b"user.empty", b"")
        assert xattrs.read(stream.fileno(), b"user.empty") == b""
        assert xattrs.read(stream.fileno(), b"trusted.overlay.redirect") == b"/\xff\x00"
    assert xattrs.read(path, b"trusted.overlay.redirect") == b"/\xff\x00"
    # The xattrs of the symbolic link, not of its target.
    assert xattrs.read(path + b"-link", b"trusted.overlay.redirect") is None
    xattrs.write(path + b"-link", b"trusted.own", b"1")
    assert xattrs.read(path + b"-link", b"trusted.own") == b"1"
    with pytest.raises(PermissionError):
        xattrs.write(path + b"-link", b"user.not-on-links", b"1")
    with pytest.raises(FileNotFoundError):
        xattrs.read(path + b"-gone", b"user.x")


@pytest.mark.usefixtures("way")
def test_a_file_on_a_file_system_without_xattrs_has_none() -> None:
    assert xattrs.read(b"/proc/self/status", b"user.x") is None


@pytest.mark.usefixtures("way")
def test_a_scan_with_pyxattr_or_os_carries_the_same_xattrs(area: Path, root: Path, way: str) -> None:
    placement = support.scanned(area / "store", root, "odd/1")
    with_xattrs = [entry.path for entry in manifest_store.entries(placement) if entry.xattrs]
    assert with_xattrs == [
        b"/special/acl",
        b"/special/acl-default",
        b"/special/acl-directory",
        b"/special/acl-directory/inherits",
        b"/special/acl-empty",
        b"/special/acl-mask",
        b"/special/capable",
        b"/special/capable-and-empty",
    ], way
    layer, _generation, _report = support.build(area / "state", [placement])
    with support.mounted(support.declared(area / "view", [layer], [root])) as view:
        assert support.compare_trees(view / "odd/1/special", root / "odd/1/special") == []


def test_a_file_system_that_appears_in_a_release_while_it_is_compared_is_a_difference(area: Path) -> None:
    """An NFS client mounts a nested export when it is listed, after the directory was compared."""
    support.make_small_release(area / "root/tool/1", "1")
    placement = support.scanned(area / "store", area / "root", "tool/1")
    support.write(area / "root/tool/1/bin/added", b"")
    # The directory of the release itself is not compared.
    left = placement.record.entries.total - 1

    def mounting() -> None:
        # Called before each entry is compared. The directory is not the last one.
        nonlocal left
        left -= 1
        if left == 0:
            support.command("mount", "-t", "tmpfs", "tmpfs", area / "root/tool/1/bin")

    try:
        found = sampling.sample_differences(placement, str(area / "root"), 1000, progress=mounting)
    finally:
        support.unmount_all(area / "root/tool/1/bin")
    assert "/bin: it is gone" in found
