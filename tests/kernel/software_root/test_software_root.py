"""Read-ahead of a mount and lines of fstab for a software root, on local file systems."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.root_plan import SetReadAhead
from ansible_collections.renderfarm.overlay.tests.kernel import support


def test_read_ahead_is_set_in_the_kernel(area: Path) -> None:
    with support.filesystem(area, "xfs") as place:
        live = support.live(place)
        assert live
        before = nfs_mount.read_ahead(live)
        assert before
        try:
            apply(SetReadAhead(os.fsencode(place), before * 2), nfs_mount.handlers(10))
            assert nfs_mount.read_ahead(live) == before * 2
        finally:
            # The value belongs to the loop device, which the next test may use.
            apply(SetReadAhead(os.fsencode(place), before), nfs_mount.handlers(10))


def test_read_ahead_that_the_kernel_does_not_report_is_an_error(area: Path) -> None:
    (area / "memory").mkdir()
    support.command("mount", "-t", "tmpfs", "memory", area / "memory")
    with pytest.raises(OverlayError, match="memory: the kernel does not report the read-ahead of this mount"):
        apply(SetReadAhead(os.fsencode(area / "memory"), 1024), nfs_mount.handlers(10))


def test_several_roots_are_declared_together_and_each_failure_is_named(area: Path) -> None:
    (area / "full").mkdir()
    support.write(area / "full" / "file")
    roots = [{"path": str(area / name), "source": f"localhost:/export/{name}"} for name in ("one", "full", "two")]
    planned = support.module("software_root", check=True, roots=[roots[0], {**roots[2], "read_ahead": 128}]).ok
    assert planned["actions"] == [
        f"create directory {area / 'one'}",
        f"mount localhost:/export/one at {area / 'one'}",
        f"create directory {area / 'two'}",
        f"mount localhost:/export/two at {area / 'two'}",
        f"read 128 KiB ahead at {area / 'two'}",
    ]
    assert set(planned["diff"]["after"]) == {str(area / "one"), str(area / "two")}
    message = support.module("software_root", roots=roots).message
    assert f"mounting localhost:/export/one at {area / 'one'}" in message
    assert f"mountpoint {area / 'full'} is not empty" in message
    assert f"mounting localhost:/export/two at {area / 'two'}" in message
    assert not (area / "one").exists()
    assert not (area / "two").exists()


def test_a_root_that_is_not_mounted_has_no_list_of_releases(area: Path) -> None:
    (area / "root" / "1.0").mkdir(parents=True)
    given: dict[str, Any] = {"root": str(area / "root"), "pattern": "{version}", "package": "root", "mounted": True}
    assert "is not mounted, and its releases would seem to be gone" in support.module("release_info", **given).message
    support.command("mount", "--bind", area / "root", area / "root")
    assert [one["path"] for one in support.module("release_info", **given).ok["releases"]] == ["1.0"]
