# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs that change the same view at the same time do so one after the other."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import removal, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_that_waits_too_long_names_the_view(tmp_path: Path) -> None:
    paths = ViewPaths.of(str(tmp_path / "state"), "software")
    with (
        view_state.locked(paths, 1),
        pytest.raises(OverlayError, match=f"another run has been at work on {paths.root}"),
        view_state.locked(paths, 0.2),
    ):
        pass


def test_a_run_that_waited_for_a_removal_holds_a_lock_that_excludes_others(tmp_path: Path) -> None:
    paths = ViewPaths.of(str(tmp_path / "state"), "software")
    waits = threading.Event()
    has_lock, may_end = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with view_state.locked(paths, 30, waits.set):
            has_lock.set()
            may_end.wait(30)

    waiting = threading.Thread(target=wait_for_it)
    with view_state.locked(paths, 1):
        waiting.start()
        assert waits.wait(30)
        removal.remove_view(paths)
    assert has_lock.wait(30)
    try:
        assert os.path.exists(paths.lock)
        with pytest.raises(OverlayError, match="another run"), view_state.locked(paths, 0.2):
            pass
    finally:
        may_end.set()
        waiting.join()
