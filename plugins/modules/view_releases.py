#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: view_releases
short_description: Decide which releases a view shows, those that are leaving it included
version_added: 0.1.0
description:
  - Takes the releases that a view declares, checks that each is on the software root and ready, and compares a sample of its files with
    its manifest.
  - Adds the releases that the view declared before and does not declare any more. They linger at their place for O(linger) seconds, so that
    software that runs from them still finds what it loads late. The first run after that leaves them out.
  - What a view declared last, and what is leaving it since when, is recorded in the file C(.views/NAME.json) of the manifest store, so that
    every host that is given the result has the same generation, and so has a host that is deployed to later.
  - Run it on one host, once for all hosts, and give what it returns to M(renderfarm.overlay.metadata_layer).
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.ready_marker
options:
  name:
    description:
      - Name of the view; letters, digits, V(.), V(_) and V(-).
      - Views that share a manifest store and have the same name share their record, so one lingers in the other. Give them different names.
    type: str
    required: true
  root:
    description: The software root.
    type: path
    required: true
  store:
    description: Directory with the manifests. It has to exist, and this host has to be able to write to it unless O(linger=0).
    type: path
    required: true
  releases:
    description: The releases that the view declares. Each has to have a manifest in O(store).
    type: list
    elements: dict
    required: true
    suboptions:
      release:
        description: Path of the release below the software root.
        type: str
        required: true
      at:
        description: Where the release appears; see M(renderfarm.overlay.metadata_layer). By default its path below the software root.
        type: str
      source:
        description: Where its data is in the data layer. By default its path below the software root.
        type: str
      include:
        description: Patterns of what of the release the view shows.
        type: list
        elements: str
        default: []
      exclude:
        description: Patterns of what of the release the view does not show.
        type: list
        elements: str
        default: []
  links:
    description: The symbolic links that the view declares. Nothing lingers at, inside or above their places.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where the link is, relative to the root of the view.
        type: str
        required: true
      target:
        description: Where it leads.
        type: str
        required: true
  linger:
    description:
      - Seconds for which a release that left the declaration stays in the view.
      - It stays only where its place is its own path below the software root, and where nothing else is declared at, inside or above that
        place. A release at any other place, such as V(usd/current) or a place that several releases are merged at, goes at once.
      - A release that was withdrawn (it has no O(ready_marker) any more), is gone from the software root or has no manifest goes at once.
      - With V(0) everything goes at once, and the record is removed.
    type: int
    default: 172800
  sample:
    description:
      - How many entries of each declared release are compared with its manifest, besides the release's own directory. They are drawn anew
        in each run, half of them directories; see the notes for what is noticed.
      - A release that differs fails the task by its name, together with the first paths that differ.
      - With V(0) nothing is compared.
    type: int
    default: 20
  now:
    description:
      - Seconds since 1970 at which to decide what has lingered long enough. By default the time of this host.
      - Give the C(now) that an earlier batch of the same rollout returned, and this batch decides as that one did.
    type: int
notes:
  - The sample compares type, size, mtime and the targets of symbolic links. A directory whose mtime differs is listed, and all that is
    in it compared. So a name that was added, removed or replaced is noticed when its directory is in the sample, and a file that was
    overwritten when the file is. A release that was largely overwritten is noticed by the next run; a single file may take many runs.
    The option C(rescan) of M(renderfarm.overlay.release_manifest) compares everything.
  - It costs the reading of each manifest. Where this host has an NFS mount of the software root, it also costs a LOOKUP for each directory
    on the way that the host does not know yet, and a GETATTR for each entry, since cached attributes are not believed. On the file server
    itself there are no calls.
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

- name: Build its layer on each host
  renderfarm.overlay.metadata_layer:
    name: software
    store: /net/manifests
    releases: "{{ shown.releases }}"
"""

RETURN = r"""
releases:
  description: What the view shows, as M(renderfarm.overlay.metadata_layer) takes it; first what is declared, then what is leaving.
  type: list
  elements: dict
  returned: success
  sample: [{"release": "usd-core/26.12", "at": "usd-core/26.12", "source": "usd-core/26.12"}]
leaving:
  description: The releases that are not declared any more and linger, in the order of their places.
  type: list
  elements: dict
  returned: success
  contains:
    release:
      description: Path of the release below the software root, which is its place in the view too.
      type: str
      sample: usd-core/26.11
    since:
      description: When it left the declaration, in UTC.
      type: str
      sample: '2026-11-25T18:57:00Z'
    until:
      description: The first run after that time leaves it out.
      type: str
      sample: '2026-11-27T18:57:00Z'
left:
  description: The releases that the view has shown until this run and does not show any more.
  type: list
  elements: dict
  returned: success
  contains:
    release:
      description: Path of the release below the software root.
      type: str
      sample: usd-core/26.08
    at:
      description: Where it was in the view.
      type: str
      sample: usd-core/26.08
    reason:
      description: Why it does not linger, or not any longer.
      type: str
      sample: it has lingered for 172800 seconds
record:
  description: Path of the record.
  type: str
  returned: success
  sample: /net/manifests/.views/software.json
now:
  description: The time at which this was decided, in seconds since 1970; see O(now).
  type: int
  returned: success
  sample: 1795633020
"""

import os
import time
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, sampling, scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import linger, view_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import ViewPaths
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ForgetReleases, RecordReleases
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.linger import Decision, Placed, Record

#: Releases that a message names.
_NAMED = 5


def main() -> None:
    patterns = {"type": "list", "elements": "str", "default": []}
    runner.run(
        {
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "store": {"type": "path", "required": True},
            "releases": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "release": {"type": "str", "required": True},
                    "at": {"type": "str"},
                    "source": {"type": "str"},
                    "include": patterns,
                    "exclude": patterns,
                },
            },
            "links": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "str", "required": True}, "target": {"type": "str", "required": True}},
            },
            "ready_marker": runner.READY_MARKER,
            "linger": {"type": "int", "default": 172800},
            "sample": {"type": "int", "default": 20},
            "now": {"type": "int"},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    _check(params)
    name, store = params["name"], params["store"]
    declared = [
        linger.placed(one["release"], one["at"], one["source"], one["include"], one["exclude"])
        for one in params["releases"]
    ]
    before = view_record.read(store, name)
    os.close(scan.open_root(os.fsencode(params["root"])))
    _check_releases(declared, params, context)
    now = int(time.time()) if params["now"] is None else params["now"]
    decision = _decide(declared, before, now, params, context)
    plan = _plan(name, before, decision.record, params["linger"])

    handlers: Handlers = {
        RecordReleases: lambda _action: view_record.write(store, name, decision.record),
        ForgetReleases: lambda _action: view_record.remove(store, name),
    }
    context.carry_out(plan, handlers)
    values = {
        "releases": [one.as_dict() for one in (*declared, *(one.placed for one in decision.record.leaving))],
        "leaving": _leaving(decision.record, params["linger"]),
        "left": [
            {"release": one.placed.release, "at": one.placed.at or "/", "reason": one.reason} for one in decision.left
        ],
        "record": view_record.path_of(store, name),
        "now": now,
    }
    after = decision.record if params["linger"] else None
    return runner.Outcome(values, plan, _shown(before, params["linger"]), _shown(after, params["linger"]))


def _check(params: dict[str, Any]) -> None:
    """Refuse what cannot be before anything is read."""
    for option in ("root", "store"):
        runner.check_absolute(params[option], option)
    ViewPaths.of("/", params["name"])
    for option in ("linger", "sample"):
        if params[option] < 0:
            raise OverlayError(f"{option} must be 0 or more, not {params[option]}")


def _check_releases(declared: list[Placed], params: dict[str, Any], context: runner.Context) -> None:
    """Raises OverlayError that names the declared releases which cannot be shown, or are not what their manifests say any more."""
    problems = []
    for release in dict.fromkeys(one.release for one in declared):
        context.note.write(f"release {release}")
        problem = view_record.trouble(params["root"], params["store"], release, params["ready_marker"])
        if not problem and params["sample"]:
            path = manifest_store.manifest_path(params["store"], release)
            place = os.fsencode(release)
            placement = Placement(path, manifest_store.read_record(path), place, place)
            found = sampling.differences(
                placement, params["root"], params["sample"], params["ready_marker"], context.progress
            )
            if found:
                problem = f"release {release} is no longer what its manifest says: {', '.join(found)}; {_REMEDY}"
        if problem:
            problems.append(problem if release in problem else f"release {release}: {problem}")
        context.progress()
    if problems:
        more = f" (and {len(problems) - _NAMED} more releases)" if len(problems) > _NAMED else ""
        raise OverlayError(f"view {params['name']}: {'; '.join(problems[:_NAMED])}{more}")


_REMEDY = (
    "a release never changes, so publish this under a new version; or, if this is what the release is to be, remove its manifest"
    " (release_manifest with state: absent) and deploy again"
)


def _decide(
    declared: list[Placed], before: Record | None, now: int, params: dict[str, Any], context: runner.Context
) -> Decision:
    links = [
        os.fsdecode(link.path)
        for link in declared_links((os.fsencode(one["path"]), os.fsencode(one["target"])) for one in params["links"])
    ]
    unusable = {}
    root = next((view_record.root_of(params["store"], one.release) for one in declared), None)
    for one in linger.candidates(declared, links, before)[0]:
        reason = view_record.trouble(params["root"], params["store"], one.placed.release, params["ready_marker"])
        if not reason and root not in (None, view_record.root_of(params["store"], one.placed.release)):
            reason = f"release {one.placed.release} is of another software root than the releases of the view"
        if reason:
            unusable[one.placed.release] = reason
        context.progress()
    return linger.decide(declared, links, before, now, params["linger"], unusable)


def _plan(name: str, before: Record | None, after: Record, seconds: int) -> Plan:
    if not seconds:
        return () if before is None else (ForgetReleases(name),)
    return () if before == after else (RecordReleases(name),)


def _shown(record: Record | None, seconds: int) -> dict[str, Any]:
    """Return a view's releases for the diff."""
    if record is None:
        return {}
    until = {one["release"]: one["until"] for one in _leaving(record, seconds)}
    return {
        "declared": [f"{one.release} at {one.at or '/'}" for one in record.declared],
        "leaving": [f"{release} until {until[release]}" for release in until],
    }


def _leaving(record: Record, seconds: int) -> list[dict[str, str]]:
    return [
        {"release": one.placed.release, "since": _utc(one.since), "until": _utc(one.since + seconds)}
        for one in record.leaving
    ]


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


if __name__ == "__main__":
    main()
