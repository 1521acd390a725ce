#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gathered_usage
short_description: Report what uses releases on all hosts of a play
version_added: 0.1.0
description:
  - Gathers what M(renderfarm.overlay.release_usage_info) returned on each host of the play, and says for each release which hosts use it
    and what is in the way of retiring it.
  - Hosts that were unreachable or failed are named. By default they count as using every release.
  - Run it with C(run_once), after tasks with C(ignore_unreachable) and C(ignore_errors).
  - Runs on the controller alone and connects to no host.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details: Check mode writes no files.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: none
  platform:
    description: Target OS/families that can be operated against.
    platforms: all
    support: N/A
    details: The action runs on the controller.
options:
  results:
    description:
      - The names of the variables that the tasks registered.
      - The first of them that says something about the releases of a host counts.
    type: list
    elements: str
    required: true
  releases:
    description: The releases to report. Without them, these are all that hosts have reported.
    type: list
    elements: str
    default: []
  unreachable_use:
    description: Whether hosts of which the use is unknown count as using every release.
    type: bool
    default: true
  directory:
    description:
      - A directory on the controller, as an absolute path. The usage is written there as V(usage.csv) and V(usage.json).
      - It is created if it does not exist.
    type: path
seealso:
  - module: renderfarm.overlay.release_usage_info
"""

EXAMPLES = r"""
- name: Find out what uses the release
  renderfarm.overlay.release_usage_info:
    releases: [houdini/19.5.805]
  register: found
  ignore_errors: true
  ignore_unreachable: true

- name: Gather it
  renderfarm.overlay.gathered_usage:
    results: [found]
    releases: [houdini/19.5.805]
  run_once: true
  register: gathered

- name: Show it
  ansible.builtin.debug:
    msg: "{{ gathered.table }}"
  run_once: true
"""

RETURN = r"""
table:
  description: The lines of a table for a terminal.
  type: list
  elements: str
  returned: success
  sample: ["2 hosts at 2026-11-27T15:00:00Z", "houdini/19.5.805: not in use"]
obstacles:
  description: The releases that cannot be retired, each with the reasons.
  type: dict
  returned: success
  sample: {"houdini/19.5.805": ["1 process on render01 uses it (hython (4711))"]}
reasons:
  description: A sentence for each of RV(obstacles).
  type: list
  elements: str
  returned: success
  sample: ["houdini/19.5.805: 1 process on render01 uses it (hython (4711))"]
usage:
  description: The hosts, those of which the use is unknown, and for each release its processes and views by host.
  type: dict
  returned: success
  sample: {"hosts": ["render01"], "unknown": {}, "releases": []}
"""
