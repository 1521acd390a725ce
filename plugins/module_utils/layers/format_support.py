# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what this host can do with each format of layers."""

from __future__ import annotations

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import directory_layer, erofs_layer
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import DIRECTORY, EROFS

#: The support for each format of ``layer_formats.FORMATS``, by its name.
SUPPORT = {EROFS.name: erofs_layer.SUPPORT, DIRECTORY.name: directory_layer.SUPPORT}
