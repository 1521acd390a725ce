#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: resolved_views
short_description: Resolve the views of all hosts to a lock, once
version_added: 0.1.0
description:
  - Resolves views on one host, for all hosts of a play. Lists the releases on the software root, chooses those of each view, scans those
    that have no manifest, decides which releases linger, and builds images where views have C(build=central).
  - Returns a lock that says what each view was resolved to. M(renderfarm.overlay.view) brings a host to it. So every host and every batch
    of a rollout show the same, whatever is published meanwhile.
  - Fails before anything is changed if the declaration of any host has a problem, and reports the problems of all hosts together.
  - A view that cannot be resolved does not keep the others from it. RV(failures) names it.
  - Run it with C(run_once), and with C(delegate_to) for the host that scans. It runs modules of the collection there.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
attributes:
  check_mode:
    description: Can run in C(check_mode) and return changed status prediction without modifying the target.
    support: full
    details: Check mode scans and builds nothing. RV(pending) names the views that need it.
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in C(check_mode)), when in diff mode.
    support: none
  platform:
    description: Target OS/families that can be operated against.
    platforms: linux
    support: full
options:
  declared:
    description: For each host of the play, by its name, what M(renderfarm.overlay.declared_views) returned on it.
    type: dict
    required: true
  scan_host:
    description: Name of the host that scans. The paths of the software root and of the stores are taken from its declaration.
    type: str
    default: ''
  mounted_root:
    description:
      - Path of the software root that an earlier task has mounted on O(scan_host), for views over one root.
      - If nothing is mounted there, this host cannot list the releases, and RV(obstacle) says so. Without this option, the directory below
        the mount would seem to be a software root without releases.
    type: str
    default: ''
  lock:
    description:
      - A lock of an earlier resolution, as text or as a dictionary. Nothing is listed, scanned or built then.
      - A view that is not in the lock is in RV(failures).
    type: raw
  resolve:
    description: With V(false), only check the declarations of the hosts. Only RV(problems) and RV(mounts) are returned then.
    type: bool
    default: true
seealso:
  - module: renderfarm.overlay.declared_views
  - module: renderfarm.overlay.view_lock
  - module: renderfarm.overlay.view
"""

EXAMPLES = r"""
- name: Resolve the views
  renderfarm.overlay.resolved_views:
    declared: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'declared'))) }}"
    scan_host: "{{ ansible_play_hosts | first }}"
  delegate_to: "{{ ansible_play_hosts | first }}"
  run_once: true
  register: resolved
"""

RETURN = r"""
lock:
  description: What the views were resolved to.
  type: dict
  returned: success
  sample: {"format": 1, "views": []}
text:
  description: The same as text, with one line for each release, to be kept in a file.
  type: str
  returned: success
  sample: '{"format": 1, "views": []}'
failures:
  description: The views that could not be resolved, by name, each with the reason.
  type: dict
  returned: success
  sample: {"software": "these releases have a manifest, but are not on the software root /net/software any more: houdini/20.5.410"}
messages:
  description: The same as sentences that name the views.
  type: list
  elements: str
  returned: success
  sample: []
pending:
  description: In check mode, the views that cannot be resolved without changing something, by name, each with the reason.
  type: dict
  returned: success
  sample: {}
leaving:
  description: A sentence for each view that shows releases which are no longer declared.
  type: list
  elements: str
  returned: success
  sample: ["view software: no longer declared, and still shown: usd/1 until 2026-11-29T15:00:00Z"]
passed_over:
  description:
    - A sentence for each of the first releases on the software root that have no ready marker, of the first symbolic links that are not
      shown, and of the first rez packages without a version.
  type: list
  elements: str
  returned: success
  sample: []
obstacle:
  description: Why this host could not list, scan or build, although another one may.
  type: str
  returned: if there is one
  sample: the module failed
mounts:
  description:
    - The software roots to mount on the host that scans, for the option O(renderfarm.overlay.software_root#module:roots).
  type: list
  elements: dict
  returned: if O(resolve=false)
  sample: [{"path": "/net/maya", "source": "filer:/vol/maya"}]
problems:
  description: What is wrong with the declaration, one line for each of the first 30 problems.
  type: list
  elements: str
  returned: failure
  sample: []
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [scan release houdini/20.5.410]
"""
