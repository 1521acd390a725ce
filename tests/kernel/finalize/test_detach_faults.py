"""Make each important system call of detaching fail, or be its last one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.test_faults import FINALIZING, Faults, run
from ansible_collections.renderfarm.overlay.tests.kernel.writable import Overlay, shown


def test_a_failed_detaching_leaves_an_overlay_that_reads_as_before(area: Path) -> None:
    faults = Faults()
    lower = area / "lower"
    support.make_small_release(lower / "tool" / "1.0", "one")
    support.make_small_release(lower / "tool" / "2.0", "two")
    (lower / "tool/1.0/bin/tool").chmod(0o6755)
    overlay = Overlay(area / "overlay", (lower,))
    wanted = {"path": str(overlay.path), "allow_unmount": True, "detach": True}
    by_hand = False

    def files() -> dict[bytes, Any]:
        return {path: (one, os.lstat(os.fsencode(overlay.path) + path).st_mtime_ns) for path, one in content().items()}

    def content() -> dict[bytes, Any]:
        return {path: (one[:3], one[4]) for path, one in shown(overlay.path).items()}

    def around() -> Iterator[None]:
        nonlocal by_hand
        overlay.mount()
        # One release is in the upper layer without its content, and the other one is not there yet.
        run("overlay_finalize", path=str(overlay.path), subtrees=["tool/2.0"], allow_unmount=True)
        before, steady = files(), content()
        yield
        by_hand = not by_hand
        if support.live(overlay.path) is None and by_hand:
            # The kernel refuses the old lower layer if the new one was given to it before the fault.
            with contextlib.suppress(OverlayError):
                overlay.mount()
        if support.live(overlay.path):
            assert content() == steady
        result = run("overlay_finalize", **wanted)
        assert result["detached"], result["pending"]
        assert files() == before
        assert (overlay.path / "tool/1.0/version").stat().st_nlink == 2
        assert not run("overlay_finalize", **wanted)["changed"]
        overlay.unmount()
        shutil.rmtree(overlay.area)
        overlay.__post_init__()

    faults.most_of_a_kind = 6
    faults.each(FINALIZING, "overlay_finalize", wanted, around)
    assert faults.kinds >= 9
    assert faults.runs >= 50
