# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of a view that the module ``view`` takes: those of its layer, of its mount, and of what becomes of older generations."""

from __future__ import annotations

import copy
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.views import layer_parameters

_OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "mountpoint": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["mounted", "unmounted", "absent"], "default": "mounted"},
    "locked_generation": {"type": "str"},
    "unresolved": {"type": "bool", "default": False},
    "leaving": {"type": "list", "elements": "dict", "default": []},
    "options": {"type": "dict", "default": {"nodev": True, "nosuid": True}},
    "data": {"type": "list", "elements": "path", "default": []},
    "roots": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "pattern": {"type": "str", "default": "{version}"},
        },
    },
    "switch": {"type": "str", "choices": ["auto", "beneath", "over", "replace", "never"], "default": "auto"},
    "inner_mounts": {"type": "str", "choices": ["carry", "drop"], "default": "carry"},
    "persist": {"type": "str", "choices": ["none", "systemd", "fstab"], "default": "none"},
    "writable": {"type": "str", "choices": ["none", "scratch", "upper"], "default": "none"},
    "scratch_size": {"type": "bytes", "default": "2G"},
    "discard_changes": {"type": "bool", "default": False},
    "data_images": {"type": "str", "choices": ["none", "trace", "everything", "only"], "default": "none"},
    "locked_data_images": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "release": {"type": "str", "required": True},
            "kind": {"type": "str", "choices": ["trace", "everything"], "required": True},
            "digest": {"type": "str", "required": True},
            "bytes_on_disk": {"type": "int", "required": True},
            "opens": {"type": "int", "default": 0},
            "complete": {"type": "bool", "default": False},
        },
    },
    "image_store": {"type": "path"},
    "data_budget": {"type": "bytes", "default": 0},
    "data_keep_free": {"type": "str", "default": "5%"},
    "keep": {"type": "int", "default": 3},
    "min_age": {"type": "float", "default": 3600.0},
    "health_check": {"type": "str", "default": ""},
    "health_timeout": {"type": "float", "default": 60.0},
    "health_user": {"type": "str", "default": "nobody"},
}


def options() -> dict[str, Any]:
    """Return the argument spec of a view, without the state directory. ``image_store`` is where its data images are installed from."""
    layer = copy.deepcopy(layer_parameters.OPTIONS)
    return {**layer, **_OPTIONS}
