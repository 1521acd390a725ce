#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: view_releases
short_description: Decide which releases a view shows, including those that are leaving it
version_added: 0.1.0
description:
  - Checks that each release that a view declares is on the software root, is ready and has a manifest, and compares a sample of its entries
    with the manifest.
  - Adds the releases that the view no longer declares. They linger at their place for O(linger) seconds, so that running software still
    finds the files that it opens late. The first run after that time leaves them out.
  - The module records the releases that the view declared last, and those that are leaving it, in the file C(.views/NAME.json) of the
    manifest store. So all hosts that get the result build the same generation, including hosts that are deployed later.
  - Run the module on one host, once for all hosts, and pass its result to M(renderfarm.overlay.metadata_layer).
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.ready_marker
  - renderfarm.overlay.options.ignore_names
options:
  name:
    description:
      - Name of the view. It may have letters, digits, V(.), V(_) and V(-).
      - Views with the same name and manifest store share one record, so releases of one linger in the other. Give them different names.
    type: str
    required: true
  root:
    description: Path of the software root.
    type: path
    required: true
  store:
    description: Directory of the manifests. It must exist, and this host must be able to write to it unless O(linger=0).
    type: path
    required: true
  releases:
    description: The releases that the view declares. Each must have a manifest in O(store).
    type: list
    elements: dict
    required: true
    suboptions:
      release:
        description: Path of the release below the software root.
        type: str
        required: true
      at:
        description:
          - Path of the release in the view; see M(renderfarm.overlay.metadata_layer). The default is its path below the software root.
        type: str
      source:
        description: Path of its data in the data layer. The default is its path below the software root.
        type: str
      include:
        description: Patterns of the paths of the release that the view shows. By default it shows all.
        type: list
        elements: str
        default: []
      exclude:
        description: Patterns of the paths of the release that the view does not show.
        type: list
        elements: str
        default: []
  links:
    description: The symbolic links that the view declares. No release lingers at, below or above their paths.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path of the link, relative to the root of the view.
        type: str
        required: true
      target:
        description: Target of the link.
        type: str
        required: true
  linger:
    description:
      - Seconds for which a release stays in the view after it has left the declaration. The default is two days.
      - A release lingers only if its place is its own path below the software root, and nothing else is declared at, below or above that
        place. A release at any other place, such as V(usd/current) or a place that several releases share, is removed at once.
      - The place of a release of one of several software roots may also be another directory, such as V(apps/usd), followed by the path of
        the release below its root.
      - A release is also removed at once if it was withdrawn (it no longer has its O(ready_marker)), is no longer on the software root, or
        has no manifest.
      - With V(0) nothing lingers, and the record is removed.
    type: int
    default: 172800
  sample:
    description:
      - Number of entries of each declared release that are compared with its manifest, besides the directory of the release. Each run draws
        another random sample; half of it are directories. The notes say which changes are noticed.
      - If a release differs from its manifest, the task fails and names the release and the first paths that differ.
      - With V(0) nothing is compared.
    type: int
    default: 20
  now:
    description:
      - Time of the decision in seconds since 1970. The default is the current time of this host.
      - Pass the returned C(now) of an earlier batch of the same rollout to make the same decision in this batch.
    type: int
notes:
  - The sample compares type, size, mtime and the targets of symbolic links. If the mtime of a directory differs, all entries in it are
    compared. So an added, removed or replaced name is noticed if its directory is in the sample, and an overwritten file if the file is.
    One run notices a release that was mostly overwritten. It may take many runs to notice a single file. The option C(rescan) of
    M(renderfarm.overlay.release_manifest) compares all entries.
  - The module reads each manifest. If this host mounts the software root through NFS, the sample causes a GETATTR for each entry, since
    cached attributes are not used, and a LOOKUP for each directory above it that is not in the cache. On the file server itself it causes
    no NFS calls.
seealso:
  - module: renderfarm.overlay.release_info
  - module: renderfarm.overlay.release_manifest
  - module: renderfarm.overlay.metadata_layer
"""

EXAMPLES = r"""
- name: Decide once what the view shows
  renderfarm.overlay.view_releases:
    name: software
    root: /net/software
    store: /net/manifests
    ready_marker: .ready
    releases:
      - release: houdini/20.5.410
      - release: usd/25.05
        at: usd/current
  register: shown
  run_once: true

- name: Build the layer of the view on each host
  renderfarm.overlay.metadata_layer:
    name: software
    store: /net/manifests
    releases: "{{ shown.releases }}"
"""

RETURN = r"""
releases:
  description:
    - The releases that the view shows, as for the option C(releases) of M(renderfarm.overlay.metadata_layer).
    - The declared ones come first, then those that linger.
  type: list
  elements: dict
  returned: success
  sample: [{"release": "usd-core/26.12", "at": "usd-core/26.12", "source": "usd-core/26.12"}]
leaving:
  description: The releases that are no longer declared and linger, sorted by their places.
  type: list
  elements: dict
  returned: success
  contains:
    release:
      description: Path of the release below the software root, which is also its place in the view.
      type: str
      sample: usd-core/26.11
    since:
      description: Time at which the release left the declaration, in UTC.
      type: str
      sample: '2026-11-25T18:57:00Z'
    until:
      description: Time until which it lingers, in UTC. The first run after that leaves it out.
      type: str
      sample: '2026-11-27T18:57:00Z'
left:
  description: The releases that the view showed until this run and no longer shows.
  type: list
  elements: dict
  returned: success
  contains:
    release:
      description: Path of the release below the software root.
      type: str
      sample: usd-core/26.08
    at:
      description: Place that the release had in the view.
      type: str
      sample: usd-core/26.08
    reason:
      description: Why it does not linger, or no longer lingers.
      type: str
      sample: it has lingered for 172800 seconds
record:
  description: Path of the record.
  type: str
  returned: success
  sample: /net/manifests/.views/software.json
now:
  description: Time of the decision in seconds since 1970; see O(now).
  type: int
  returned: success
  sample: 1795633020
"""

import os
import time
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import patterns, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import linger, release_checks, view_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ForgetReleases, RecordReleases
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths


def main() -> None:
    required: dict[str, Any] = {"type": "str", "required": True}
    globs = {"type": "list", "elements": "str", "default": []}
    release = {
        "release": required,
        "at": {"type": "str"},
        "source": {"type": "str"},
        "include": globs,
        "exclude": globs,
    }
    link = {"path": required, "target": required}
    runner.run(
        {
            "name": required,
            "root": {"type": "path", "required": True},
            "store": {"type": "path", "required": True},
            "releases": {"type": "list", "elements": "dict", "required": True, "options": release},
            "links": {"type": "list", "elements": "dict", "default": [], "options": link},
            "ready_marker": runner.READY_MARKER,
            "ignore_names": patterns.IGNORE_NAMES,
            "linger": {"type": "int", "default": 172800},
            "sample": {"type": "int", "default": 20},
            "now": {"type": "int"},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Check the declared releases, decide which others linger, and write the record."""
    _check(params)
    name, store, seconds = params["name"], params["store"], params["linger"]
    sources = release_checks.RootSources.of({**params, "roots": []})
    declared = [linger.placed(**one) for one in params["releases"]]
    before = view_record.read(store, name)
    os.close(scan.open_root(os.fsencode(params["root"])))
    paths = [one.release for one in declared]
    release_checks.check_declared(name, sources, paths, params["sample"], context.note.write, context.progress)
    links = _link_paths(params)
    lingering = [one.placed.release for one in linger.candidates(declared, links, before)[0]]
    unusable = release_checks.unusable_releases(sources, paths, lingering, context.progress)
    now = int(time.time()) if params["now"] is None else params["now"]
    decision = linger.decide(declared, links, before, now, seconds, unusable)
    record = decision.record
    plan = linger.plan_record(name, before, record, seconds)
    handlers: Handlers = {
        RecordReleases: lambda _action: view_record.write(store, name, record),
        ForgetReleases: lambda _action: view_record.remove(store, name),
    }
    context.carry_out(plan, handlers)
    values = {
        "releases": [one.as_dict() for one in (*declared, *(one.placed for one in record.leaving))],
        "leaving": view_record.leaving_values(record, seconds),
        "left": [one.as_dict() for one in decision.left],
        "record": view_record.path_of(store, name),
        "now": now,
    }
    after = record if seconds else None
    diffs = (view_record.diff_values(before, seconds), view_record.diff_values(after, seconds))
    return runner.Outcome(values, plan, *diffs)


def _check(params: dict[str, Any]) -> None:
    for option in ("root", "store"):
        runner.check_absolute(params[option], option)
    ViewPaths.of("/", params["name"])
    for option in ("linger", "sample"):
        if params[option] < 0:
            raise OverlayError(f"{option} must be 0 or more, not {params[option]}")


def _link_paths(params: dict[str, Any]) -> list[str]:
    given = [(os.fsencode(one["path"]), os.fsencode(one["target"])) for one in params["links"]]
    return [os.fsdecode(link.path) for link in declared_links(given)]


if __name__ == "__main__":
    main()
