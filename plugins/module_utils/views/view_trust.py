# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that only root can replace what a view is mounted from."""

from __future__ import annotations

import contextlib
import os
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import FORMATS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.files import ASIDE_PREFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.trust import check_own, check_state_dir, linked
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    PREVIOUS,
    RECORD,
    ViewPaths,
    layer_path,
)


def check_view(paths: ViewPaths) -> bool:
    """Return whether a view exists.

    Raises OverlayError if users other than root can write to it, or if one of its directories is a symbolic link.
    """
    views_dir = os.path.dirname(paths.root)
    if not check_state_dir(os.path.dirname(views_dir)):
        return False
    directories = [views_dir, paths.root, paths.generations, paths.staging, paths.incoming, paths.removing]
    there = {path for path in directories if check_own(path, stat.S_IFDIR)}
    for name in (CURRENT, PREVIOUS):
        check_own(paths.link(name), stat.S_IFLNK)
    check_own(paths.lock, stat.S_IFREG)
    if paths.generations in there:
        # Another run may be removing the view.
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(paths.generations):
                _check_generation(paths.generation(name))
    return paths.root in there


def _check_generation(place: str) -> None:
    # A killed run may have left a file or a symbolic link. Neither is a generation, and pruning removes them.
    aside = os.path.basename(place).startswith(ASIDE_PREFIX)
    if not check_own(place, stat.S_IFDIR, stat.S_IFREG, *((stat.S_IFLNK,) if aside else ())):
        return
    if not os.path.isdir(place):
        return
    check_own(os.path.join(place, RECORD), stat.S_IFREG)
    for one in FORMATS.values():
        layer = layer_path(place, one.name)
        if one.is_image:
            check_own(layer, stat.S_IFREG)
        elif os.path.islink(layer):
            # The owner and mode of a layer that is a directory are those that the view shows, so they are not checked.
            raise linked(os.fsencode(layer))
