"""What the module does besides mounting, on a file system of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import SetReadAhead
from ansible_collections.renderfarm.overlay.tests.kernel import support


def test_the_kernel_reads_ahead_as_much_as_it_is_told(folder: Path) -> None:
    with support.filesystem(folder, "xfs") as place:
        live = support.live(place)
        assert live
        before = nfs_mount.read_ahead(live)
        assert before
        try:
            apply(SetReadAhead(os.fsencode(place), before * 2), nfs_mount.handlers(10))
            assert nfs_mount.read_ahead(live) == before * 2
        finally:
            # It is the loop device's, which the next test may get.
            apply(SetReadAhead(os.fsencode(place), before), nfs_mount.handlers(10))


def test_where_the_kernel_does_not_say_it_cannot_be_set(folder: Path) -> None:
    (folder / "memory").mkdir()
    support.command("mount", "-t", "tmpfs", "memory", folder / "memory")
    with pytest.raises(OverlayError, match="memory: the kernel does not say how much it reads ahead there"):
        apply(SetReadAhead(os.fsencode(folder / "memory"), 1024), nfs_mount.handlers(10))
