# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Former names, until every file uses those of the files below."""

from __future__ import annotations

from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    LARGEST_RECORD,
    LAYER_FORMAT,
    Generation,
    composition_digest,
    generation_from_json,
    generation_id,
    generation_to_json,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import (
    LayerSpec,
    composition_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    ViewPaths,
    layer_path,
    record_path,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import generation_of as id_of

__all__ = [
    "LARGEST_RECORD",
    "LAYER_FORMAT",
    "Generation",
    "LayerSpec",
    "ViewPaths",
    "composition_digest",
    "composition_of",
    "generation_from_json",
    "generation_id",
    "generation_to_json",
    "id_of",
    "layer_path",
    "record_path",
]
