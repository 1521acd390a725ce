#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: view_lock_info
short_description: Read the locks of the views that a host shows
version_added: 0.1.0
description:
  - Says for each view of a host which generation it shows, since when, and the lock that the host was brought to it with.
    P(renderfarm.overlay.promoted_lock#filter) makes a lock for other hosts from it.
  - Reads files and mounts of the host, and asks no file server.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes.info
  - renderfarm.overlay.options
options:
  views:
    description:
      - The views of the host, as M(renderfarm.overlay.declared_views) returns them. Each has C(name) and C(mountpoint), and may have
        C(state_dir). Views that are not to be mounted, and views with a generation of their own, are left out.
    type: list
    elements: dict
    required: true
seealso:
  - module: renderfarm.overlay.declared_views
  - module: renderfarm.overlay.view
"""

EXAMPLES = r"""
- name: Read what this host shows
  renderfarm.overlay.view_lock_info:
    views:
      - name: software
        mountpoint: /software
"""

RETURN = r"""
views:
  description: The views.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Name of the view.
      type: str
      sample: software
    generation:
      description: The current generation; none if the view was never shown.
      type: str
      sample: 0123456789abcdef
    mounted:
      description: Whether it is mounted.
      type: bool
      sample: true
    seconds:
      description: For how many seconds it has been the current one.
      type: int
      sample: 86400
    hold:
      description: The hold that keeps the view at a generation; none if there is none.
      type: dict
      sample: {"generation": "0123456789abcdef", "until": 0, "reason": "black frames"}
    failure:
      description: Why the last run failed; empty if it did not.
      type: str
      sample: ''
    lock:
      description: What the view was locked to when the host was last brought to it; none if there was no lock.
      type: dict
      sample: {"name": "software", "generation": "0123456789abcdef", "releases": [], "leaving": [], "image_digest": null}
"""

import time
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import shown_lock
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def main() -> None:
    runner.run({"views": {"type": "list", "elements": "dict", "required": True}}, work)


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Read the views, one after the other."""
    found = []
    for given in params["views"]:
        view = {"state_dir": runner.DEFAULT_STATE_DIR, **given}
        for name in ("name", "mountpoint"):
            if not isinstance(view.get(name), str):
                raise OverlayError(f"a view has no {name}: give it")
        for name in ("mountpoint", "state_dir"):
            runner.check_absolute(view[name], f"view {view['name']}: {name}")
        if view.get("state", "mounted") == "mounted" and not view.get("generation"):
            context.note.write(f"view {view['name']}")
            found.append(shown_lock.read(view, int(time.time())))
    return runner.Outcome({"views": found})


if __name__ == "__main__":
    main()
