"""What the module does besides mounting, on a file system of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.nfs import SetReadAhead
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import software_root
from ansible_collections.renderfarm.overlay.tests.kernel import support


def test_the_kernel_reads_ahead_as_much_as_it_is_told(folder: Path) -> None:
    with support.filesystem(folder, "xfs") as place:
        live = support.live(place)
        assert live
        before = software_root.read_ahead(live)
        assert before
        try:
            software_root.apply(SetReadAhead(os.fsencode(place), before * 2), 10)
            assert software_root.read_ahead(live) == before * 2
        finally:
            # It is the loop device's, which the next test may get.
            software_root.apply(SetReadAhead(os.fsencode(place), before), 10)


def test_where_the_kernel_does_not_say_it_cannot_be_set(folder: Path) -> None:
    (folder / "memory").mkdir()
    support.command("mount", "-t", "tmpfs", "memory", folder / "memory")
    with pytest.raises(OverlayError, match="memory: the kernel does not say how much it reads ahead there"):
        software_root.apply(SetReadAhead(os.fsencode(folder / "memory"), 1024), 10)
