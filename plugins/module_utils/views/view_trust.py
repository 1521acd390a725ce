# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that nobody but root can exchange what a view is mounted from."""

from __future__ import annotations

import contextlib
import os
import stat

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.files import ASIDE_PREFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.trust import check_own, check_state_dir, linked
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import CURRENT, PREVIOUS, ViewPaths


def check_view(paths: ViewPaths) -> bool:
    """Return whether a view is there. Raises OverlayError when others than root can write to it, or where a directory of it is a link."""
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
            for folder in os.listdir(paths.generations):
                _check_generation(paths.generation(folder))
    return paths.root in there


def _check_generation(place: str) -> None:
    # A file, or a link that a killed run has left aside, is none, and is removed with what such runs leave.
    aside = os.path.basename(place).startswith(ASIDE_PREFIX)
    if not check_own(place, stat.S_IFDIR, stat.S_IFREG, *((stat.S_IFLNK,) if aside else ())):
        return
    if not os.path.isdir(place):
        return
    for name in ("view.json", "layer.erofs"):
        check_own(os.path.join(place, name), stat.S_IFREG)
    # The owner and mode of a directory layer are those that the view shows.
    layer = os.path.join(place, "layer")
    if os.path.islink(layer):
        raise linked(os.fsencode(layer))
