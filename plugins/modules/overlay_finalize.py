#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_finalize
short_description: Stop a writable overlay from asking its lower layer for names
version_added: 0.1.0
description:
  - Copies the metadata of all that is in the lower layer of a mounted overlay up to its upper layer, and then seals the directories there,
    so that looking for names that do not exist, listing directories and reading attributes no longer reach the lower layer, which usually
    is a file server. The content of files stays in the lower layer.
  - It is for overlays with an upper layer over a file server, as sites have that write to the overlay, or whose kernels have no data-only
    layers. A view over the layer of M(renderfarm.overlay.metadata_layer) needs none of it.
  - What was done is read from the upper layer, so a second run changes nothing, an interrupted one is continued, and releases that have
    appeared in the lower layer since are taken up alone.
  - The overlay may be in use, except for sealing by the module itself, for which it is unmounted for a moment.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  path:
    description: Mountpoint of the overlay. It has to be mounted, writable, with an upper layer.
    type: path
    required: true
  subtrees:
    description:
      - The directories to finalize, as paths relative to O(path). All of the overlay when it is empty.
      - The rest of the overlay stays merged, and goes on showing what appears in the lower layer. So do the parents of the subtrees.
    type: list
    elements: str
    default: []
  owner:
    description:
      - User, by name or number, that everything that is copied up by this run belongs to afterwards.
      - When it is left out, owners stay as they are. What is in the upper layer already is not changed.
      - Set-ID bits and capabilities of files whose owner or group changes go, as with chown(2), see O(keep_setid).
      - An entry that is not what the lower layer has at the moment in which its owner is changed, since somebody has put another one in its
        place, is left alone and reported as RV(pending).
    type: str
  group:
    description: The same for the group.
    type: str
  keep_setid:
    description:
      - Whether files keep their set-user-ID and set-group-ID bits and their capabilities when O(owner) or O(group) changes whose they are.
      - A program that a publisher has made set-user-ID for himself becomes one for O(owner) then.
      - Between the change of its owner and the setting of its bits and capabilities, the new owner may write to a file. Set this only where
        O(owner) may be trusted with what these programs may do.
    type: bool
    default: false
  passes:
    description:
      - What to do, always in this order.
      - V(copy_up) copies up the metadata of each entry that is not in the upper layer. With an overlay that is mounted without
        C(metacopy=on) that is the content as well, which O(copy_content) has to allow. Files with several names are left out unless the
        overlay is mounted with C(index=on), since they would become several files.
      - V(readdir) reads each directory that is not sealed, the deepest ones first, for kernels that mark directories themselves when they
        are read.
      - V(seal) seals the directories that are copied up with all that is below them, see O(seal).
      - V(warm) reads the directories that the kernel has marked once more, which is needed after each time that the overlay was mounted. On
        other kernels there are none.
    type: list
    elements: str
    choices: [copy_up, readdir, seal, warm]
    default: [copy_up, readdir, seal, warm]
  copy_content:
    description:
      - Whether the content of files may be copied to the upper layer, which an overlay does that is mounted without C(metacopy=on). When
        it is false and there is such content, the task fails before anything is changed, with the number of files and bytes.
    type: bool
    default: false
  seal:
    description:
      - How directories are sealed. A sealed directory shows what is in the upper layer, and no longer what appears in the lower one.
      - V(auto) leaves it to the kernel where that marks directories when they are read (C(opaque=z)), and is V(offline) for all that it
        does not mark.
      - V(offline) unmounts the overlay, gives each file its path in the lower layer as a redirect, marks the directories as opaque, and
        mounts the overlay again as it was. Needs O(allow_unmount).
      - V(kernel) only reads directories.
      - V(none) seals nothing.
      - The root of an overlay cannot be sealed. Names that are not in it are looked for in the lower layer, and new ones show.
    type: str
    choices: [auto, offline, kernel, none]
    default: auto
  allow_unmount:
    description:
      - Whether the overlay may be unmounted for sealing, when there is something to be sealed. It takes as long as reading all directories
        that are to be sealed in the lower layer and in the upper one.
      - When it is in use, or mounted elsewhere as well, the task fails with the names of the processes, and nothing is lost. What it copied
        up before that stays.
      - When it is false, what could be sealed is reported as RV(pending).
    type: bool
    default: false
  merged_levels:
    description:
      - Directories so many levels below O(path) are not sealed, so that releases which appear in them show. With releases as
        C(package/version), V(1) leaves the packages merged.
    type: int
    default: 0
  stale:
    description:
      - What to do about releases, directories and files that were copied up and are gone from the lower layer since. They still have their
        names in the overlay, and cannot be opened.
      - V(report) reports them as RV(pending).
      - V(remove) removes them from the upper layer, through the overlay, which may be in use. Only what the kernel has copied up as
        metadata is removed. What somebody has written or made stays, and is reported.
      - V(ignore) does not look for them.
      - Nothing is removed while the lower layer shows nothing at all. Links and special files whose names are gone by themselves are not
        looked for, since they may have been renamed.
    type: str
    choices: [report, remove, ignore]
    default: report
  workers:
    description:
      - How many directories are worked on at the same time.
      - When it is left out, 2 where the lower layers are on the host, and 8 where one is on a file server. With a server that is far away,
        more are faster.
    type: int
notes:
  - In the upper layer, sealed directories have the attributes C(trusted.overlay.opaque) and C(trusted.renderfarm-overlay.sealed), and the
    files in them C(trusted.overlay.redirect).
  - A directory that is not sealed and is moved into a sealed one is not looked at by later runs. It goes on working.
seealso:
  - module: renderfarm.overlay.overlay_mount
  - module: renderfarm.overlay.metadata_layer
"""

EXAMPLES = r"""
- name: Finalize an overlay that nobody uses yet
  renderfarm.overlay.overlay_finalize:
    path: /software
    allow_unmount: true

- name: Finalize two releases, with another owner, and let everything else go on showing what is new
  renderfarm.overlay.overlay_finalize:
    path: /software
    subtrees:
      - houdini/20.5.410
      - maya/2025.1
    owner: render
    group: render
    allow_unmount: true

- name: Take up new releases, and take away deleted ones, while software runs
  renderfarm.overlay.overlay_finalize:
    path: /software
    merged_levels: 1
    stale: remove
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [copy up the metadata of 22000 entries, seal 1400 directories]
copied_up:
  description: Entries that were copied up.
  type: int
  returned: success
  sample: 22000
content_files:
  description: Files whose content was copied, or, where the task fails without O(copy_content), would be.
  type: int
  returned: success, or refused
  sample: 0
content_bytes:
  description: Bytes of that content.
  type: int
  returned: success, or refused
  sample: 0
already:
  description: Entries that were in the upper layer before, without those of sealed directories.
  type: int
  returned: success
  sample: 12
restored:
  description: Files that a killed run had left with their owner changed and without their bits or capability, and that have them again.
  type: int
  returned: success
  sample: 0
setid_stripped:
  description: Files that lost set-ID bits or capabilities, since their owner or group was changed without O(keep_setid).
  type: int
  returned: success
  sample: 0
directories_read:
  description: Directories that were not sealed and were read.
  type: int
  returned: success
  sample: 1402
sealed:
  description: Directories that were sealed, by the module or, when they were read, by the kernel.
  type: int
  returned: success
  sample: 1400
warmed:
  description: Directories that the kernel has marked and that were read once more.
  type: int
  returned: success
  sample: 0
removed:
  description: What was removed since it is gone from the lower layer, as paths relative to the overlay.
  type: list
  elements: str
  returned: success
  sample: [houdini/19.5.303]
unmounted:
  description: Whether the overlay was unmounted, and mounted again.
  type: bool
  returned: success
  sample: true
pending:
  description: What is left to do or cannot be done, the first 100 of it, by path.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: Path relative to the overlay.
      type: str
      sample: houdini/20.5.410/licenses
    reason:
      description: Why.
      type: str
      sample: Permission denied
pending_total:
  description: How much is pending in all.
  type: int
  returned: success
  sample: 0
pending_by_reason:
  description: All that is pending by reason, the most frequent one first.
  type: list
  elements: dict
  returned: success
  contains:
    reason:
      description: Why.
      type: str
      sample: Permission denied
    total:
      description: How many entries are pending for this reason.
      type: int
      sample: 2
    paths:
      description: The first ten of their paths, relative to the overlay.
      type: list
      elements: str
      sample: [houdini/20.5.410/licenses, maya/2025.1/licenses]
finalized:
  description:
    - Whether nothing is pending, so that all of the chosen subtrees is copied up and sealed, as far as O(passes), O(seal) and
      O(merged_levels) ask for it.
  type: bool
  returned: success
  sample: true
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import marks, passes
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.copy_up import Wanted
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.passes import Outcome, Request
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import accounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show

_MOST_WORKERS = 256


def main() -> None:
    runner.run(
        {
            "path": {"type": "path", "required": True},
            "subtrees": {"type": "list", "elements": "str", "default": []},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "keep_setid": {"type": "bool", "default": False},
            "copy_content": {"type": "bool", "default": False},
            "passes": {
                "type": "list",
                "elements": "str",
                "choices": list(marks.PASSES),
                "default": list(marks.PASSES),
            },
            "seal": {"type": "str", "choices": ["auto", "offline", "kernel", "none"], "default": "auto"},
            "allow_unmount": {"type": "bool", "default": False},
            "merged_levels": {"type": "int", "default": 0},
            "stale": {"type": "str", "choices": ["report", "remove", "ignore"], "default": "report"},
            "workers": {"type": "int"},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    runner.check_absolute(params["path"], "path")
    if params["workers"] is not None and not 1 <= params["workers"] <= _MOST_WORKERS:
        raise OverlayError(f"workers must be from 1 to {_MOST_WORKERS}, and is {params['workers']}")
    if params["merged_levels"] < 0:
        raise OverlayError(f"merged_levels must not be negative, and is {params['merged_levels']}")
    owner, group = params["owner"], params["group"]
    wanted = Wanted(
        owner=None if owner is None else accounts.number(owner, "owner", accounts.user),
        group=None if group is None else accounts.number(group, "group", accounts.group),
        copy_up="copy_up" in params["passes"],
        keep_setid=params["keep_setid"],
        copy_content=params["copy_content"],
        check_mode=context.check_mode,
    )
    request = Request(
        path=os.fsencode(os.path.realpath(params["path"])),
        subtrees=marks.chosen_subtrees([os.fsencode(one) for one in params["subtrees"]]),
        passes=frozenset(params["passes"]),
        seal=params["seal"],
        allow_unmount=params["allow_unmount"],
        stale=params["stale"],
        merged_levels=params["merged_levels"],
        wanted=wanted,
        workers=params["workers"],
        patience=context.timeout,
    )
    return _described(passes.run(request, context.progress))


def _described(found: Outcome) -> runner.Outcome:
    pending = marks.named(found.pending)
    values = {
        **found.counts.as_dict(),
        "removed": [show(path) for path in sorted(found.removed)],
        "unmounted": found.unmounted,
        "pending": pending,
        "pending_total": len(set(found.pending)),
        "pending_by_reason": marks.by_reason(found.pending),
        "finalized": not found.pending and not found.refusal,
    }
    counts = found.counts
    before = {
        "mounted": found.mounted_again is None,
        "in upper": counts.already,
        "owners half changed": counts.restored,
        "sealed by this run": 0,
        "gone from the lower layers": values["removed"],
    }
    after = {
        "mounted": True,
        "in upper": counts.already + counts.copied_up,
        "owners half changed": 0,
        "sealed by this run": counts.sealed,
        "gone from the lower layers": [],
    }
    if found.refusal:
        before = after = {}
    warnings = [marks.stripped(found.stripped)] if found.stripped else []
    return runner.Outcome(values, found.plan, before, after, warnings, found.refusal)


if __name__ == "__main__":
    main()
