"""A view equals its releases, for every kind of entry and on every file system."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import inode_space
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.conftest import FILESYSTEMS


def test_the_odd_release_has_many_entries_of_each_kind(odd: Placement) -> None:
    entries = odd.record.entries
    assert entries.files > 20_000
    assert min(entries.directories, entries.symlinks) > 40
    assert entries.hardlinks == 9


@pytest.mark.parametrize("namespace", ["trusted", "user"])
@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_a_view_equals_its_releases(
    disks: dict[str, Path],
    area: Path,
    root: Path,
    odd: Placement,
    tools: Sequence[Placement],
    kind: str,
    namespace: str,
) -> None:
    state_dir = disks[kind] / f"state-{namespace}"
    elsewhere = replace(tools[1], at=b"else/where")
    layer, generation, report = support.build(state_dir, [elsewhere, odd, tools[0]], namespace)
    assert generation.entries.files == odd.record.entries.files + 2 * tools[0].record.entries.files
    options: dict[str, Any] = {"userxattr": True} if namespace == "user" else {}
    spec = support.declared(area / "view", [layer], [root], **options)
    with support.mounted(spec) as view:
        assert sorted(os.listdir(view)) == ["else", "odd", "tool"]
        assert support.compare_trees(view / "odd" / "1", root / "odd" / "1") == []
        assert support.compare_trees(view / "tool" / "1.0", root / "tool" / "1.0") == []
        assert support.compare_trees(view / "else" / "where", root / "tool" / "2.0") == []
    tally = report.tally
    warnings = inode_space.spill_warning(str(state_dir), tally.files, report.spilled, report.bytes_on_disk)
    if kind == "ext4-256":
        (warning,) = warnings
        assert "inodes of ext4" in warning
        assert "mkfs.ext4 -I 512" in warning
        assert report.bytes_on_disk > odd.record.entries.files * 4096
    else:
        assert warnings == []
        assert report.bytes_on_disk < 40_000_000
    assert inode_space.attributes_fit(str(disks[kind]), namespace) == (kind != "ext4-256")


def test_a_tree_has_the_same_manifest_on_every_file_system(
    disks: dict[str, Path], store: Path, root: Path, odd: Placement
) -> None:
    expected = Path(odd.manifest).read_bytes()
    for kind in ("tmpfs", "xfs", "ext4-256"):
        copy = disks[kind] / "root"
        (copy / "odd").mkdir(parents=True)
        support.command("cp", "-a", root / "odd" / "1", copy / "odd" / "1")
        placement = support.scanned(store.parent / f"store-{kind}", copy, "odd/1", root_name=odd.record.root)
        assert placement.record == odd.record
        assert Path(placement.manifest).read_bytes() == expected
        support.command("rm", "-rf", copy)


def test_a_manifest_has_as_many_entries_as_its_record_says(odd: Placement) -> None:
    entries = list(manifest_store.entries(odd))
    assert len(entries) == odd.record.entries.total
    assert sum(entry.size for entry in entries if entry.target and not entry.is_hardlink and not entry.is_directory)


def test_checksums_are_recorded_but_not_copied_to_the_layer(area: Path, root: Path) -> None:
    placement = support.scanned(area / "store", root, "tool/1.0", checksum=True)
    assert placement.record.checksums
    with_checksum = [entry for entry in manifest_store.entries(placement) if entry.xattrs]
    assert [entry.path for entry in with_checksum] == [b"/bin/tool", b"/version"]
    layer, _generation, _report = support.build(area / "state", [placement])
    assert set(os.listxattr(layer / "tool/1.0/version")) == {"trusted.overlay.metacopy", "trusted.overlay.redirect"}


def test_owner_and_group_replace_those_of_the_release(area: Path, root: Path, odd: Placement) -> None:
    layer, _generation, _report = support.build(area / "state", [odd], owner=77, group=88)
    with support.mounted(support.declared(area / "view", [layer], [root])) as view:
        listed = support.listing(view)
        assert {(status.st_uid, status.st_gid) for status in listed.values()} == {(77, 88)}
        theirs = support.listing(root / "odd" / "1")
        # As after chown(2), no file runs as its new owner or group, and none has capabilities.
        for path, status in theirs.items():
            lost = stat.S_ISUID | stat.S_ISGID if stat.S_ISREG(status.st_mode) else 0
            assert listed[b"/odd/1" + path].st_mode == status.st_mode & ~lost
        assert support.capability_of(os.fsencode(view) + b"/odd/1/special/capable") is None


def test_source_is_the_path_in_the_data_layer(area: Path, root: Path, tools: Sequence[Placement]) -> None:
    placement = replace(tools[0], source=b"1.0", at=b"")
    layer, _generation, _report = support.build(area / "state", [placement])
    with support.mounted(support.declared(area / "view", [layer], [root / "tool"])) as view:
        assert support.compare_trees(view, root / "tool" / "1.0") == []


def test_a_tree_of_a_thousand_levels_is_built_and_removed(area: Path) -> None:
    top = area / "root" / "deep" / "1"
    top.mkdir(parents=True)
    support.command(
        "python3",
        "-c",
        "import os, sys\nos.chdir(sys.argv[1])\nfor _ in range(1500):\n os.mkdir('d')\n os.chdir('d')\nopen('f', 'w').write('deep')",
        top,
    )
    done = support.module("release_manifest", root=str(area / "root"), release="deep/1", store=str(area / "store")).ok
    assert done["entries"]["directories"] == 1501
    arguments: dict[str, Any] = {"name": "v", "state_dir": str(area / "state")}
    built = support.module("metadata_layer", releases=[{"manifest": done["manifest"]}], **arguments).ok
    with support.mounted(support.declared(area / "view", [Path(built["layer"])], [area / "root"])) as view:
        path = view / "deep" / "1" / Path(*["d"] * 1500) / "f"
        assert path.read_text() == "deep"
    assert support.module("metadata_layer", state="absent", **arguments).ok["changed"]
    assert not (area / "state" / "views" / "v").exists()
