# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the views of a host, as the module ``view`` takes them."""

from __future__ import annotations

import copy
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.views import layer_parameters

#: What overlay_mount takes and a view of releases does not.
NOT_WRITABLE = {"upper": None, "work": None, "scratch": None, "read_only": None}


def view_options(state_dir: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an argument spec that is about one view. ``state_dir`` is the part about that option."""
    layer = copy.deepcopy(layer_parameters.OPTIONS)
    # A view is built on its host or installed, and never published.
    del layer["image_store"]
    layer["releases"]["options"]["digest"] = {"type": "str"}
    options = {
        **layer,
        "name": {"type": "str", "required": True},
        "mountpoint": {"type": "path", "required": True},
        "state": {"type": "str", "choices": ["mounted", "unmounted", "absent"], "default": "mounted"},
        "locked_generation": {"type": "str"},
        "options": {"type": "dict", "default": {"nodev": True, "nosuid": True}},
        "data": {"type": "list", "elements": "path", "default": []},
        "switch": {"type": "str", "choices": ["auto", "beneath", "over", "replace", "never"], "default": "auto"},
        "inner_mounts": {"type": "str", "choices": ["carry", "drop"], "default": "carry"},
        "persist": {"type": "str", "choices": ["none", "systemd", "fstab"], "default": "none"},
        "keep": {"type": "int", "default": 3},
        "min_age": {"type": "float", "default": 3600.0},
        "health_check": {"type": "str", "default": ""},
        "health_timeout": {"type": "float", "default": 60.0},
        "health_user": {"type": "str", "default": "nobody"},
        "state_dir": state_dir,
    }
    return {
        "options": options,
        "mutually_exclusive": [("image", "generation")],
        "required_together": [("image", "image_digest")],
    }
