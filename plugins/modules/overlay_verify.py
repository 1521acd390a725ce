#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_verify
short_description: Verify views, their layers and images, and writable overlays that were finalized
version_added: 0.1.0
description:
  - Compares what a view shows with the manifests of its releases, and the files that it opens with the software root.
  - A damaged layer looks healthy. A file whose content is gone has its size and mode, and only opening it fails. A file that has lost its
    mark as a metadata copy reads as zeros. So this module compares every attribute, and with O(level=open) opens every file.
  - Each problem has a code, which RV(problems) lists with what to do about it.
  - The layer is read on this host alone with O(level=metadata). The other levels ask the file server for each file, with several requests
    at a time. If it does not answer, the task fails after O(timeout) seconds, and its message names the file.
  - An overlay with an upper layer is checked as C(fsck.overlay) does, and for what would make a finalized overlay show wrong content.
    With O(level=open), the content of its metadata copies is looked up in the lower layers and opened.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.state_dir
attributes:
  check_mode:
    details: Check mode verifies, but repairs nothing. It does not record the result either, and verifies everything.
options:
  name:
    description: Name of the view to verify. Give either this or O(path).
    type: str
  path:
    description:
      - Mountpoint of an overlay to verify.
      - The overlay shows a view of O(state_dir), or it has an upper layer.
    type: path
  generation:
    description: Generation of the view O(name) to verify. By default it is the current one.
    type: str
  level:
    description:
      - V(metadata) compares the layer with the manifests in O(store), and an image with its digest. The file server is asked for the
        manifests only.
      - V(open) also looks up the content of each file in the data layers as the kernel does, compares size and mtime, and opens the file.
        It compares the names in each directory of a release on the software root with the manifest.
      - V(content) also reads all content. It compares it with the SHA-256 in manifests that were made with
        O(renderfarm.overlay.release_manifest#module:checksum=sha256), and data images with their digest.
    type: str
    choices: [metadata, open, content]
    default: metadata
  store:
    description:
      - The manifest store, as a directory, or as the address of a web server that serves it.
      - Without it, the overlay xattrs of a layer that is a directory are checked, and its number of entries.
    type: str
  data:
    description:
      - The data layers, such as the software root, in the order in which the view has them.
      - By default they are those of the mounted view.
      - Files of a view over several software roots are looked up in the root of their release, at the path that the last run of
        M(renderfarm.overlay.view) has recorded. O(data) cannot be given then.
    type: list
    elements: path
  sample:
    description:
      - Number of entries to draw at random and to verify, fit for a schedule. V(0) verifies all.
      - Entries that no manifest has are found in full verifications only.
    type: int
    default: 0
  ready_marker:
    description: Path, relative to a release, of a file that is written when the release is complete. It is no difference from the manifest.
    type: str
    default: ''
  ready_markers:
    description:
      - The ready markers of releases of some software roots, by the name of the root, for a view over several of them.
      - The releases of other roots have O(ready_marker).
    type: dict
    default: {}
  workers:
    description: Number of processes that read the layer. V(0) is the number of processors, up to 8.
    type: int
    default: 0
  threads:
    description: Number of requests that each process makes to the file server at a time, with the levels V(open) and V(content).
    type: int
    default: 8
  time_limit:
    description:
      - Seconds after which no further files are opened, and no further release is begun. V(0) is no limit.
      - The next run with the same O(level) goes on where this one ended, as it does after a run that was interrupted.
    type: float
    default: 0
  repair:
    description:
      - Make a damaged layer again, and switch the overlays that show it while they are in use.
      - A layer is built again from the manifests in O(store). An image is copied again from O(image_store), by its digest, or built again
        if it is not there. A data image is copied again from O(image_store). If a layer is made again, the data images of the view are
        compared with their digests at every O(level), since the switch mounts them anew.
      - What is wrong with the software root or with an upper layer is only reported.
    type: bool
    default: false
  image_store:
    description:
      - The image store from which O(repair) copies damaged images, as a directory, or as the address of a web server that serves it.
    type: path
  ca_path:
    description:
      - Path of a file on this host with the certificates of the authorities to trust for https addresses, in PEM format. By default those
        of the system are trusted.
      - Proxies and passwords are taken from where O(renderfarm.overlay.metadata_layer#module:ca_path) says.
    type: path
  metrics_file:
    description:
      - File on the managed node for metrics of the views of O(state_dir), which the textfile collector of node_exporter reads.
      - The conditions are those of O(renderfarm.overlay.view#module:metrics_file).
    type: path
  fail_on_problems:
    description: Fail if there are problems that were not repaired. The return values are the same in both cases.
    type: bool
    default: true
seealso:
  - module: renderfarm.overlay.view_info
  - module: renderfarm.overlay.release_manifest
"""

EXAMPLES = r"""
- name: Compare the layer of a view with its manifests, and make it again if it is damaged
  renderfarm.overlay.overlay_verify:
    name: software
    store: /net/software/.manifests
    image_store: /net/software/.manifests/.images
    repair: true

- name: Open a thousand files of a view, as a schedule does
  renderfarm.overlay.overlay_verify:
    path: /software
    level: open
    store: /net/software/.manifests
    sample: 1000
    fail_on_problems: false
  register: verified

- name: Read all content, for an hour each night
  renderfarm.overlay.overlay_verify:
    name: software
    level: content
    store: /net/software/.manifests
    time_limit: 3600
"""

RETURN = r"""
view:
  description: Name of the view; none for an overlay that shows no view.
  type: str
  returned: always
  sample: software
generation:
  description: The generation that was verified; none for an overlay that shows no view.
  type: str
  returned: always
  sample: 0123456789abcdef
level:
  description: How thoroughly it was verified.
  type: str
  returned: always
  sample: open
ok:
  description: Whether there are no problems.
  type: bool
  returned: always
  sample: false
complete:
  description: Whether everything was verified. The next run goes on if it was not.
  type: bool
  returned: always
  sample: true
left:
  description: The number of releases that were not verified to their end. What is in no release alone counts as one.
  type: int
  returned: always
  sample: 0
checked:
  description: The number of entries that were verified, also in runs that this one went on from.
  type: int
  returned: always
  sample: 105460
problems:
  description: The first 1,000 problems.
  type: list
  elements: dict
  returned: always
  contains:
    path:
      description: The path in the view, in the upper layer or, for a release, below the software root.
      type: str
      sample: /houdini/20.5.410/bin/hython
    code:
      description: The kind of problem.
      type: str
      sample: missing_target
    detail:
      description: What is wrong, as a sentence.
      type: str
      sample: no data layer has /houdini/20.5.410/bin/hython
    remedy:
      description: What to do about it.
      type: str
      sample: restore the release on the software root, or remove it from the view
counts:
  description: The number of problems of each code.
  type: dict
  returned: always
  sample: {"missing_target": 2}
repaired:
  description: The problems that were repaired. In check mode, those that would be.
  type: list
  elements: dict
  returned: always
  sample: []
actions:
  description: What was done to repair the view. In check mode, what would be done.
  type: list
  elements: str
  returned: always
  sample: [build generation 0123456789abcdef of view software again, switch the overlay at /software (beneath)]
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import after_verifying
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import repairing, subjects, upper_walk
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import CODES
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.repairing import RepairSources
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.subjects import Subject
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verify_task import (
    VerifiedView,
    VerifyOptions,
    VerifyTask,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verifying import LEVELS, METADATA


def main() -> None:
    spec = {
        "name": {"type": "str"},
        "path": {"type": "path"},
        "state_dir": runner.STATE_DIR,
        "generation": {"type": "str"},
        "level": {"type": "str", "choices": list(LEVELS), "default": METADATA},
        "store": {"type": "str"},
        "data": {"type": "list", "elements": "path"},
        "sample": {"type": "int", "default": 0},
        "ready_marker": runner.READY_MARKER,
        "ready_markers": {"type": "dict", "default": {}},
        "workers": {"type": "int", "default": 0},
        "threads": {"type": "int", "default": 8},
        "time_limit": {"type": "float", "default": 0.0},
        "repair": {"type": "bool", "default": False},
        "image_store": {"type": "path"},
        "ca_path": {"type": "path"},
        "fail_on_problems": {"type": "bool", "default": True},
        "metrics_file": {"type": "path"},
    }
    exclusive = [("name", "path"), ("path", "generation")]
    runner.run(spec, work, required_one_of=[("name", "path")], mutually_exclusive=exclusive)


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    runner.check_absolute(params["state_dir"], "state_dir")
    options = VerifyOptions.of(params, recorded=not context.check_mode)
    if params["path"] is None:
        subject = subjects.of_view(params["state_dir"], params["name"], params["generation"], params["data"])
        return _view(subject, options, params, context)
    runner.check_absolute(params["path"], "path")
    mount = subjects.at_mountpoint(os.fsencode(params["path"]))
    shown = subjects.of_mount(mount, params["state_dir"], params["data"])
    if shown is not None:
        return _view(shown, options, params, context)
    threads = params["threads"] if params["level"] != METADATA else 0
    findings = upper_walk.verify(mount, threads, context.progress, context.note)
    return _outcome(params, VerifiedView(findings), [], ())


def _view(subject: Subject, options: VerifyOptions, params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    task = VerifyTask(subject, options, context.timeout, context.progress, context.note)
    result = task.run()
    repaired: list[dict[str, Any]] = []
    plan: Plan = ()
    cannot = ""
    if params["repair"] and result.findings.mended:
        sources = RepairSources(result.spec, params["image_store"], options.access)
        try:
            plan = repairing.plan(subject, result.findings, sources)
            repaired = [one.as_dict() for one in result.findings.first if CODES[one.code].mended_by]
            context.carry_out(plan, repairing.handlers(subject, sources, context.timeout, context.progress))
            result = result if context.check_mode else task.run()
        except OverlayError as error:
            repaired, cannot = [], str(error)
    after_verifying.add_drift(result.findings, subject.paths, runner.explain)
    if params["metrics_file"] and not context.check_mode:
        after_verifying.write_metrics(params["metrics_file"], params["state_dir"], runner.explain)
    return _outcome(params, result, repaired, plan, cannot)


def _outcome(
    params: dict[str, Any], result: VerifiedView, repaired: list[dict[str, Any]], plan: Plan, cannot: str = ""
) -> runner.Outcome:
    findings = result.findings
    values = {**result.values(), "level": params["level"], "ok": not findings.total, "repaired": repaired}
    what = f"view {result.view}" if result.view else f"the overlay at {params['path']}"
    failure = f"{what} has {findings.summary()}" if findings.total else ""
    before = {"problems": [f"{one['path']}: {one['code']}" for one in repaired]}
    failures = [one for one in (failure if params["fail_on_problems"] else "", cannot) if one]
    return runner.Outcome(values, plan, before, {"problems": []}, result.warnings, "; ".join(failures))


if __name__ == "__main__":
    main()
