# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find which layer of a view a mount shows."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import GenerationName


@dataclass(frozen=True)
class ShownLayer:
    """A layer of a view that is mounted."""

    mount: Mount
    #: The name of the directory of its generation.
    directory: str


def shown_layer(mount: Mount | None, generations: bytes) -> ShownLayer | None:
    """Return the layer of a view that a mount shows; None if it shows none. ``generations`` is the directory of the view's generations."""
    if mount is None or mount.fstype != b"overlay":
        return None
    lower = overlay_layers(mount).lower
    if not lower or not lower[0].startswith(generations + b"/"):
        return None
    directory = show(lower[0][len(generations) + 1 :].partition(b"/")[0])
    return ShownLayer(mount, directory) if GenerationName.parse(directory) else None
