#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_store_prune
short_description: Remove old metadata images from an image store
version_added: 0.1.0
description:
  - Removes images of earlier generations, with their deltas, from an image store.
  - The images of O(needed) generations are kept, and so are the O(keep) newest images, those younger than O(min_age), and those in use on
    this host.
  - The module knows nothing of other hosts, so O(needed) has to name the generations that they have. The playbook C(prune) asks them.
  - A host that has installed an image does not need it in the store any more. An image that was removed is built again when a lock
    resolves to it, as long as the manifests of its releases are there.
  - Data images are not removed. See O(renderfarm.overlay.data_image#module:keep).
  - Run it on one host only.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  image_store:
    description: Directory of the images.
    type: path
    required: true
  needed:
    description: IDs of generations whose images are kept.
    type: list
    elements: str
    required: true
  keep:
    description: How many of the newest images of the store are kept. Those that are kept for another reason count among them.
    type: int
    default: 20
  min_age:
    description: How long an image has to have been in the store before it is removed, in seconds. The default is 30 days.
    type: float
    default: 2592000.0
seealso:
  - module: renderfarm.overlay.overlay_prune
  - module: renderfarm.overlay.release_retire
"""

EXAMPLES = r"""
- name: Remove images that are older than 90 days and that no host needs
  renderfarm.overlay.image_store_prune:
    image_store: /net/manifests/.images
    needed: [0123456789abcdef]
    min_age: 7776000
  run_once: true
"""

RETURN = r"""
actions:
  description: What was done. In check mode, what would be done.
  type: list
  elements: str
  returned: success
  sample: ["remove image 1b90e5a07c3d4e21 from the image store, since no host needs it"]
removed:
  description: The images that were removed, with the size of their files in bytes. In check mode, those that would be.
  type: list
  elements: dict
  returned: success
  sample: [{"generation": "1b90e5a07c3d4e21", "bytes": 17825792}]
kept:
  description: The images that are kept, each with the reason.
  type: list
  elements: dict
  returned: success
  sample: [{"generation": "0123456789abcdef", "reason": "a host or a lock needs it"}]
bytes_freed:
  description: Size of the files that were removed, in bytes.
  type: int
  returned: success
  sample: 17825792
"""

from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement import pruning_store


def main() -> None:
    runner.run(
        {
            "image_store": {"type": "path", "required": True},
            "needed": {"type": "list", "elements": "str", "required": True},
            "keep": {"type": "int", "default": 20},
            "min_age": {"type": "float", "default": 2592000.0},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Find images that no host needs, and remove them."""
    runner.check_absolute(params["image_store"], "image_store")
    for option in ("keep", "min_age"):
        if params[option] < 0:
            raise OverlayError(f"{option} must not be negative, and is {params[option]:g}")
    store = params["image_store"]
    found = pruning_store.observe(store, set(params["needed"]), params["keep"], params["min_age"], context.progress)
    context.carry_out(found.plan, pruning_store.handlers(store))
    values = found.values()
    removed = {one["generation"]: one["bytes"] for one in values["removed"]}
    return runner.Outcome(values, found.plan, {"images": removed} if removed else {}, {"images": {}} if removed else {})


if __name__ == "__main__":
    main()
