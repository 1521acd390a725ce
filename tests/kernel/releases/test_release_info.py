# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find releases on a software root, also as a user who may not list all of it, and in a manifest store."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, manifest_writer, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern
from ansible_collections.renderfarm.overlay.tests.kernel import support

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534


@pytest.fixture
def software_root() -> Iterator[Path]:
    """Yield a software root that everybody may read, unlike the temporary directories of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        for release in ("usd/25.05", "usd/.staging", "houdini/20.5.410", ".snapshot/hourly"):
            (root / release).mkdir(parents=True)
        (root / "usd/current").symlink_to("25.05")
        (root / "usd/README").touch()
        (root / "private").mkdir(0o700)
        yield root


def as_nobody(root: Path) -> tuple[list[str], list[str]]:
    """Return the releases that an unprivileged user finds, and the directories that this user may not list."""

    def find(_progress: deadline.Progress) -> tuple[list[str], list[str]]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        passed_over = scan.PassedOver()
        found = scan.find_releases(str(root), Pattern.parse("{package}/{version}"), passed_over)
        return sorted(release.path for release in found), passed_over.unlisted

    return deadline.run(find, 30)


def test_a_directory_that_may_not_be_listed_does_not_hide_other_releases(software_root: Path) -> None:
    found, unlisted = as_nobody(software_root)
    assert found == ["houdini/20.5.410", "usd/25.05"]
    assert unlisted == [str(software_root / "private")]


def test_a_release_without_its_ready_marker_has_the_time_of_its_last_change(area: Path) -> None:
    for release in ("usd/1", "usd/2"):
        (area / release).mkdir(parents=True)
    (area / "usd" / "1" / ".ready").touch()
    os.utime(area / "usd" / "2", (0, 86400))
    found = support.module("release_info", root=str(area), ready_marker=".ready").ok["releases"]
    assert [one["not_ready_since"] for one in found] == [None, "1970-01-02T00:00:00Z"]


@pytest.mark.parametrize(("prefix", "platform"), [("", ""), ("", "/linux"), ("v", ""), ("usd-", "")])
def test_a_release_that_rez_is_writing_or_ignores_is_not_ready_and_is_not_scanned(
    area: Path, prefix: str, platform: str
) -> None:
    """The markers lie beside the directory of the version and have its version alone, also if the release is a directory in it."""
    root, store = area / "root", area / "manifests"
    store.mkdir()
    for version in ("1.0", "1.1", "1.2", "1.20"):
        (root / f"usd/{prefix}{version}{platform}").mkdir(parents=True)
    for marker in (".building1.2", ".ignore1.1"):
        (root / "usd" / marker).touch()
    pattern = f"{{package}}/{prefix}{{version}}{platform}"
    found = support.module("release_info", root=str(root), pattern=pattern).ok["releases"]
    assert [(one["version"], one["ready"], one["held_back_by"]) for one in found] == [
        ("1.0", True, None),
        ("1.1", False, ".ignore1.1"),
        ("1.2", False, ".building1.2"),
        ("1.20", True, None),
    ]
    given: dict[str, Any] = {"root": str(root), "store": str(store)}
    release = f"usd/{prefix}1.2{platform}"
    refused = support.module("release_manifest", release=release, **given)
    assert f"release {release} is not ready: .building1.2 beside it" in refused.message
    assert os.listdir(store) == []
    (root / "usd" / ".building1.2").unlink()
    assert support.module("release_manifest", release=release, **given).ok["changed"]
    assert support.module("release_manifest", release=release.replace("1.2", "1.20"), **given).ok["changed"]


def test_a_rez_package_without_a_version_is_named(area: Path) -> None:
    root = area / "root"
    for package in ("site", "studio/python-3.9", "usd/1.0", "usd/2.0"):
        (root / package).mkdir(parents=True)
    for definition in ("site/package.py", "studio/package.yaml", "usd/1.0/package.py", "package.py"):
        (root / definition).touch()
    (root / "usd" / "package.yml").mkdir()
    given: dict[str, Any] = {"root": str(root), "ready_marker": "package.py"}
    found = support.module("release_info", **given).ok
    assert [one["path"] for one in found["releases"] if one["ready"]] == ["usd/1.0"]
    assert found["unversioned"] == [
        {"path": "site", "definition": "package.py"},
        {"path": "studio", "definition": "package.yaml"},
    ]
    named = support.module("release_info", prefix="net", **given).ok["unversioned"]
    assert [one["path"] for one in named] == ["net/site", "net/studio"]
    for pattern in ("{package}/{version}/{variant}", "{package}/*/{version}"):
        found = support.module("release_info", pattern=pattern, **given).ok
        assert len(found["unversioned"]) == (2 if "variant" in pattern else 0)


def test_what_file_servers_leave_is_neither_a_release_nor_a_part_of_one(area: Path) -> None:
    root, store = area / "root", area / "manifests"
    store.mkdir()
    for directory in (
        "usd/1.0/lib/@eaDir",
        "usd/1.0/.snapshot/daily.0",
        "usd/@eaDir/x",
        "#recycle/9.9",
        "~snapshot/1.0",
    ):
        (root / directory).mkdir(parents=True)
    for name in ("lib/a.so", "lib/.nfs0000000000000001", "lib/m.cpython-311.pyc.1234", ".snapshot/daily.0/old"):
        (root / "usd/1.0" / name).write_text("x")
    given: dict[str, Any] = {"root": str(root), "store": str(store)}
    assert [one["path"] for one in support.module("release_info", **given).ok["releases"]] == ["usd/1.0"]
    scanned = support.module("release_manifest", release="usd/1.0", **given)
    assert scanned.ok["entries"] == {"directories": 2, "files": 1, "symlinks": 0, "hardlinks": 0}
    assert sorted(scanned.ok["ignored"]) == [
        "/.snapshot",
        "/lib/.nfs0000000000000001",
        "/lib/@eaDir",
        "/lib/m.cpython-311.pyc.1234",
    ]
    assert "4 files and directories are left out because of their names" in str(scanned.ok["warnings"])
    # Neither that one goes nor that another one comes is a change of the release. A new file is one.
    (root / "usd/1.0/lib/.nfs0000000000000001").unlink()
    (root / "usd/1.0/lib/@eaDir").rmdir()
    (root / "usd/1.0/lost+found").mkdir()
    assert not support.module("release_manifest", release="usd/1.0", rescan=True, **given).ok["changed"]
    (root / "usd/1.0/lib/b.so").touch()
    message = support.module("release_manifest", release="usd/1.0", rescan=True, **given).message
    assert "/lib/b.so: added" in message


def test_a_manifest_of_an_older_version_may_have_names_that_are_ignored_now(area: Path) -> None:
    root, store = area / "root", area / "manifests"
    store.mkdir()
    (root / "usd/1.0/@eaDir").mkdir(parents=True)
    (root / "usd/1.0/@eaDir/x").touch()
    (root / "usd/1.0/a").touch()
    given: dict[str, Any] = {"root": str(root), "store": str(store), "release": "usd/1.0"}
    assert support.module("release_manifest", ignore_names=[], **given).ok["entries"]["files"] == 2
    shutil.rmtree(root / "usd/1.0/@eaDir")
    assert not support.module("release_manifest", rescan=True, **given).ok["changed"]
    declared: dict[str, Any] = {
        "name": "tools",
        "root": str(root),
        "store": str(store),
        "releases": [{"release": "usd/1.0"}],
    }
    assert support.module("view_releases", **declared).ok["releases"]


@pytest.mark.parametrize(("order", "last"), [("vendor", "2.0"), ("pep440", "2.0"), ("rez", "2.0-rc1")])
def test_releases_are_listed_in_the_order_of_their_versions(area: Path, order: str, last: str) -> None:
    for version in ("2.0", "2.0-rc1", "1.9"):
        (area / "usd" / version).mkdir(parents=True)
    found = support.module("release_info", root=str(area), version_order=order).ok["releases"]
    assert [found[0]["version"], found[-1]["version"]] == ["1.9", last]


def test_a_root_that_may_not_be_listed_is_an_error_and_not_an_empty_list(software_root: Path) -> None:
    software_root.chmod(0o700)
    with pytest.raises(PermissionError) as caught:
        as_nobody(software_root)
    assert caught.value.filename == str(software_root)


def test_an_image_store_in_the_manifest_store_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "software" / "usd" / "25.05").mkdir(parents=True)
    store = tmp_path / "manifests"
    store.mkdir()
    manifest_writer.write(str(store), str(tmp_path / "software"), "usd/25.05", checksum=False)
    (store / ".images" / ".new").mkdir(parents=True)
    (store / ".images" / "4ff24b6d8e0c11a7.json").write_text("{}")
    listed: list[None] = []
    pattern = Pattern.parse("{package}/{version}")
    found = list(manifest_store.find_manifests(str(store), pattern, lambda: listed.append(None)))
    assert [release.path for release in found] == ["usd/25.05"]
    assert len(listed) == len(["the store", "usd"])


def manifests_as_nobody(store: Path) -> list[str]:
    """Return the releases that an unprivileged user finds in a manifest store."""

    def find(_progress: deadline.Progress) -> list[str]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return [
            release.path for release in manifest_store.find_manifests(str(store), Pattern.parse("{package}/{version}"))
        ]

    return deadline.run(find, 30)


def test_a_directory_of_a_store_that_may_not_be_listed_does_not_hide_other_manifests(software_root: Path) -> None:
    store = software_root / "store"
    store.mkdir()
    for release in ("usd/25.05", "houdini/20.5.410"):
        manifest_writer.write(str(store), str(software_root), release, checksum=False)
    (store / "lost+found").mkdir(0o700)
    (store / "houdini").chmod(0o700)
    assert manifests_as_nobody(store) == ["usd/25.05"]


def test_a_store_that_may_not_be_listed_is_an_error_and_not_an_empty_store(software_root: Path) -> None:
    store = software_root / "store"
    store.mkdir(0o700)
    with pytest.raises(PermissionError) as caught:
        manifests_as_nobody(store)
    assert caught.value.filename == str(store)


def test_links_are_listed_with_where_they_lead(software_root: Path) -> None:
    (software_root / "houdini" / "20.5").symlink_to(software_root / "houdini" / "20.5.410")
    (software_root / "houdini" / "21.0.100").symlink_to("/vol2/houdini")
    (software_root / "maya").symlink_to("/vol2/maya")
    (software_root / "houdini" / "notes").symlink_to("20.5.410/notes")
    (software_root / ".hidden").symlink_to("usd")
    found = support.module("release_info", root=str(software_root)).ok
    assert [(one["path"], one["release"], one["link"]) for one in found["links"]] == [
        ("houdini/20.5", "houdini/20.5.410", {"path": "houdini/20.5", "target": "20.5.410"}),
        ("houdini/21.0.100", None, None),
        ("houdini/notes", None, None),
        ("maya", None, None),
        ("usd/current", "usd/25.05", {"path": "usd/current", "target": "25.05"}),
    ]
    assert found["links"][3]["reason"] == "it leads to /vol2/maya, which is outside of the software root"
    assert "houdini/21.0.100" not in [one["path"] for one in found["releases"]]
