# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that nobody but root can exchange the layers of an overlay."""

from __future__ import annotations

import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.still_paths import REMOTE
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.trust import check_way
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec


def check_layers(spec: MountSpec, live: list[Mount]) -> None:
    """Raises OverlayError for a layer of an overlay that others than root can exchange, as far as it decides what others may read or run.

    That are images, the layers over a data layer, and the places of an upper layer and its work directory. What is on a file server is
    trusted like the software that is there, and is not looked at, since the server may be gone.
    """
    for path in (*spec.images, *(spec.directories if spec.data else ())):
        if path not in spec.data and not _is_remote(path, live):
            # Owner and mode of the layer of a generation are those that the view shows.
            of_generation = os.path.lexists(os.path.join(os.path.dirname(path), b"view.json"))
            check_way(os.path.dirname(path) if of_generation else path, unless_hidden=True)
    for path in spec.kept:
        if not _is_remote(path, live):
            check_way(path, unless_hidden=True)


def _is_remote(path: bytes, live: list[Mount]) -> bool:
    mount = containing_mount(live, path)
    return mount is not None and mount.fstype.startswith(REMOTE)
