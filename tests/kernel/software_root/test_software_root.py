"""Read-ahead of a mount and lines of fstab for a software root, on local file systems."""

from __future__ import annotations

import os
from pathlib import Path

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
