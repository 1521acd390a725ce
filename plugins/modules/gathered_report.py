#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gathered_report
short_description: Make a report of the views of all hosts of a play
version_added: 0.1.0
description:
  - Gathers what M(renderfarm.overlay.view_info) or M(renderfarm.overlay.view) returned on each host of the play, and makes a report of it.
    Hosts that were unreachable or failed are in it.
  - Run it with C(run_once). Such a task runs for the first host that is left in a play. To report unreachable hosts although no host
    is left, give the tasks before it C(ignore_unreachable) and C(ignore_errors).
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
      - The first of them that says something about the views of a host counts.
    type: list
    elements: str
    required: true
  declared:
    description: The name of the variable that a task with M(renderfarm.overlay.declared_views) registered. O(unresolved) needs it.
    type: str
    default: ''
  lock:
    description: The lock of the views, as text or as a dictionary. Rows without releases get those of the lock.
    type: raw
  unresolved:
    description: The views that could not be resolved, by name, each with the reason. They are failed on the hosts that declare them.
    type: dict
    default: {}
  view:
    description: The name of the one view that is reported. If it is empty, all are.
    type: str
    default: ''
  ends_above:
    description:
      - The C(max_fail_percentage) of the play. Make the report only if the run ends with this batch of hosts, since all of them failed or
        more than this percentage. Otherwise a later play can make it.
      - Without it, the report is always made.
    type: float
  directory:
    description:
      - A directory on the controller, as an absolute path. The report is written there as V(views.html), V(views.csv) and V(views.json).
      - It is created if it does not exist.
    type: path
  usage:
    description:
      - What uses releases, as M(renderfarm.overlay.gathered_usage) returns it. The page then shows it too, and it can be searched by
        release, host and view.
    type: dict
  width:
    description: How many columns the terminal has.
    type: int
    default: 120
seealso:
  - module: renderfarm.overlay.view_info
  - plugin: renderfarm.overlay.view_report
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Find out where the views stand
  renderfarm.overlay.view_info:
  register: found
  ignore_errors: true
  ignore_unreachable: true

- name: Make a report
  renderfarm.overlay.gathered_report:
    results: [found]
    directory: /srv/reports
  run_once: true
  register: made

- name: Show it
  ansible.builtin.debug:
    msg: "{{ made.table }}"
  run_once: true
"""

RETURN = r"""
table:
  description: The lines of a table for a terminal; empty if no report was made.
  type: list
  elements: str
  returned: success
  sample: ["2 hosts at 2026-11-27T15:00:00Z"]
summary:
  description: Counts, generations and problems, as P(renderfarm.overlay.view_report#filter) makes them.
  type: dict
  returned: if a report was made
  sample: {"status": "as declared", "hosts": 2}
waiting:
  description: The hosts that the run has not come to.
  type: list
  elements: str
  returned: success
  sample: []
"""
