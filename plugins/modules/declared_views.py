#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: declared_views
short_description: Check and complete the views that a host declares
version_added: 0.1.0
description:
  - Reads the variables C(overlay_views) and C(overlay_*) of a host, checks them, and returns each view with a value for every key.
  - Finds all problems, not only the first. Each is one line that names the view and the key. The task itself does not fail, so that
    M(renderfarm.overlay.resolved_views) can report the problems of all hosts together.
  - Runs on the controller alone and connects to no host.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details: The action never changes anything.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: N/A
    details: The action never changes anything.
  platform:
    description: Target OS/families that can be operated against.
    platforms: all
    support: N/A
    details: The action runs on the controller.
seealso:
  - module: renderfarm.overlay.resolved_views
  - module: renderfarm.overlay.view
"""

EXAMPLES = r"""
- name: Check the declaration
  renderfarm.overlay.declared_views:
  register: declared
"""

RETURN = r"""
views:
  description: The views, each with a value for every key.
  type: list
  elements: dict
  returned: always
  sample: [{"name": "software", "mountpoint": "/software", "releases": [{"release": "houdini/20.5.410"}]}]
names:
  description: The names of all views that the host declares.
  type: list
  elements: str
  returned: always
  sample: [software]
chosen:
  description: The one view that is wanted; empty if all are.
  type: str
  returned: always
  sample: ''
mounts:
  description: The software roots that are mounted on the host, for the option O(renderfarm.overlay.software_root#module:roots).
  type: list
  elements: dict
  returned: always
  sample: [{"path": "/net/maya", "source": "filer:/vol/maya"}]
software_root:
  description:
    - The software root of views over one root, if the host is to mount it before it lists releases (C(overlay_source)). Empty if it is
      not.
  type: dict
  returned: always
  sample: {"path": "/net/software", "source": "filer:/export/software"}
problems:
  description: What is wrong with the declaration, one line for each problem.
  type: list
  elements: str
  returned: always
  sample: ["view software: format must be auto, directory or erofs, not the text 'erfs': did you mean erofs?"]
"""
