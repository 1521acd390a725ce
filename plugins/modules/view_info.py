#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: view_info
short_description: Report where the views of a host stand
version_added: 0.1.0
description:
  - Returns a row for each view of a host. It says what the view shows, since when, and how that differs from the declaration.
  - Reads the state directory, the mounts in C(/proc), the units of systemd and C(/etc/fstab). It looks up no path on a data layer and no
    mountpoint, so it answers although a file server does not.
  - The filter P(renderfarm.overlay.view_report#filter) makes reports from the rows of many hosts.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes.info
  - renderfarm.overlay.options
options:
  views:
    description:
      - The declared views of the host, as M(renderfarm.overlay.declared_views) returns them.
      - These keys of a view are read. C(name), C(mountpoint), C(state), C(generation), C(options), C(data), C(data_images),
        C(persist), C(roots), C(state_dir), C(writable) and C(scratch_size). They mean the same as in M(renderfarm.overlay.view).
      - A view on the host that is not in the list has the status V(not declared).
      - Without this option each view is compared with what M(renderfarm.overlay.view) was given in its last run on the host.
      - A view that another module made has no such record. Its generation is compared with the current one, and its options, data layers
        and what mounts it at boot are not compared.
    type: list
    elements: dict
  generations:
    description:
      - The generation that each of O(views) is declared to show, by the name of the view, as a lock has it.
      - A view that is not named is compared with the generation that was declared in the last run on the host.
    type: dict
    default: {}
  state_dir:
    description: Directory on the host that holds the layers of all views. A view can have a C(state_dir) of its own.
    type: path
    default: /var/lib/renderfarm-overlay
seealso:
  - module: renderfarm.overlay.view
  - plugin: renderfarm.overlay.view_report
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Compare the views with what the last run declared
  renderfarm.overlay.view_info:
  register: found

- name: Compare the views with a declaration
  renderfarm.overlay.view_info:
    views:
      - name: software
        mountpoint: /software
        data: [/net/software]
        persist: systemd
    generations:
      software: 0123456789abcdef
"""

RETURN = r"""
report:
  description: A row for each view.
  type: list
  elements: dict
  returned: success
  contains:
    view:
      description: Name of the view.
      type: str
      sample: software
    status:
      description:
        - V(failed), V(drifted), V(held), V(as declared) or V(not declared). If several apply, the first of them.
      type: str
      sample: drifted
    generation:
      description: The generation that is mounted at the mountpoint; none if none is.
      type: str
      sample: 0123456789abcdef
    declared_generation:
      description: The generation that is declared; none if it is not known, or if the view is not declared to be mounted.
      type: str
      sample: fedcba9876543210
    since:
      description:
        - When the generation that is mounted became the current one, in UTC.
        - None if the generation that is mounted is not the current one.
      type: str
      sample: '2026-11-27T15:00:00Z'
    mountpoint:
      description: Where the view is declared to be mounted; where it is mounted if that is not known.
      type: str
      sample: /software
    releases:
      description: The releases that the mounted generation shows.
      type: list
      elements: str
      sample: [houdini/20.5.410]
    drift:
      description: A sentence for each difference from the declaration.
      type: list
      elements: str
      sample: [it shows generation 0123456789abcdef instead of fedcba9876543210]
    failure:
      description: Why the last run failed, and what record is damaged; empty if neither is so.
      type: str
      sample: ''
    hold:
      description: The hold that keeps the view at a generation; none if there is none.
      type: dict
      sample: {"generation": "0123456789abcdef", "until": 1795633020, "reason": "renders are black"}
    bytes_on_disk:
      description: Disk space of all generations of the view, in bytes, as their records say.
      type: int
      sample: 9437184
    data_images:
      description: The data images that the view is mounted with.
      type: list
      elements: dict
      sample: [{"release": "houdini/20.5.410", "id": "9f2c5e0c1f0a6c0e", "bytes_on_disk": 3221225472}]
    detached:
      description: Whether the view is mounted without the software root.
      type: bool
      sample: false
    parts:
      description:
        - The mounted parts of a view over several software roots that may have equal paths. Empty for all other views.
        - C(path) is the mountpoint of a part, C(data) are the data layers that its files are read from, and C(roots) are the names of the
          software roots whose releases it shows.
      type: list
      elements: dict
      sample: [{"path": /software/maya, "data": [/net/maya], "roots": [maya]}]
    verified:
      description:
        - What the last complete run of M(renderfarm.overlay.overlay_verify) found; none if there was none.
        - It has the C(time) in UTC, the C(generation), the C(level), the C(sample), the number of C(problems), and their C(counts) by code.
      type: dict
      sample:
        time: '2026-11-27T03:00:00Z'
        generation: 0123456789abcdef
        level: open
        sample: 1000
        problems: 2
        counts: {"missing_target": 2}
    last_run:
      description: When M(renderfarm.overlay.view) last worked on the view, in UTC; none if it never did.
      type: str
      sample: '2026-11-27T15:00:00Z'
"""

from collections.abc import Mapping
from typing import Any

from ansible.module_utils.common.text.formatters import human_to_bytes

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import host_report
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths

#: The keys of a view that are read, each with its type and its default.
_KEYS: dict[str, tuple[Any, Any]] = {
    "name": (str, None),
    "mountpoint": (str, None),
    "state": (str, "mounted"),
    "generation": (str, None),
    "options": (Mapping, {"nodev": True, "nosuid": True}),
    "data": (list, []),
    "roots": (list, []),
    "data_images": (str, "none"),
    "persist": (str, "none"),
    "state_dir": (str, None),
    "writable": (str, "none"),
    "scratch_size": ((int, str), "2G"),
}


def main() -> None:
    spec = {
        "views": {"type": "list", "elements": "dict"},
        "generations": {"type": "dict", "default": {}},
        "state_dir": runner.STATE_DIR,
    }
    runner.run(spec, work)


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Report all views, the declared ones first."""
    runner.check_absolute(params["state_dir"], "state_dir")
    given = params["views"]
    views = [_declared(view, params) for view in given or ()]
    rows = host_report.of_views(views, runner.explain)
    context.progress()
    state_dirs = [params["state_dir"], *(view["state_dir"] for view in views)]
    names = {view["name"] for view in views}
    rows += host_report.of_others(state_dirs, names, given is not None, runner.explain)
    return runner.Outcome({"report": rows})


def _declared(view: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a view that are read. Raises OverlayError if one is missing or has another type."""
    found = {"locked_generation": params["generations"].get(view.get("name"))}
    for key, (kind, default) in _KEYS.items():
        value = view.get(key)
        found[key] = default if value is None or value == "" else value
        if found[key] is not None and not isinstance(found[key], kind):
            raise OverlayError(f"view {view.get('name')}: {key} has the value {value!r}: give another type")
    try:
        found["scratch_size"] = human_to_bytes(found["scratch_size"])
    except ValueError:
        raise OverlayError(f"view {view.get('name')}: scratch_size must be a size, such as 2G") from None
    found["state_dir"] = found["state_dir"] or params["state_dir"]
    for key in ("name", "mountpoint"):
        if found[key] is None:
            raise OverlayError(f"view {view.get('name')}: {key} is missing: give it")
    ViewPaths.of(found["state_dir"], found["name"])
    for key in ("mountpoint", "state_dir"):
        runner.check_absolute(found[key], f"view {found['name']}: {key}")
    return found


if __name__ == "__main__":
    main()
