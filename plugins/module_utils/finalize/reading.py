# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read directories of a mounted overlay. Some kernels mark a directory as sealed when all of it has been read."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.copy_up import FATAL
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.directories import OverlayDirectory, depth
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_result import Pending
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.live_overlay import Overlay
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress


def read_directories(
    overlay: Overlay, directories: Sequence[OverlayDirectory], workers: int, progress: Progress = no_progress
) -> list[Pending]:
    """Read directories, the deepest first; return those that cannot be read.

    Raises OSError if the next directory would fail for the same reason.
    """

    def read(directory: OverlayDirectory, progress: Progress) -> tuple[list[Pending], list[OverlayDirectory]]:
        progress()
        try:
            with overlay.opened(directory.path) as fd:
                beneath.names(fd)
        except OSError as error:
            if error.errno in FATAL:
                raise
            return [Pending(directory.path, f"{error.strerror}")], []
        return [], []

    levels: dict[int, list[OverlayDirectory]] = {}
    for directory in directories:
        levels.setdefault(depth(directory.path), []).append(directory)
    failed: list[Pending] = []
    for level in sorted(levels, reverse=True):
        for found in parallel.walk(levels[level], read, workers, progress):
            failed += found
    return failed
