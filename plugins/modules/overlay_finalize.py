#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_finalize
short_description: Stop a writable overlay from asking its lower layer for names, or for anything
version_added: 0.1.0
description:
  - Copies the metadata of every entry in the lower layer of a mounted overlay up to its upper layer, and seals the directories there.
    Looking up names that do not exist and listing directories then no longer reach the lower layer, which usually is a file server. The
    content of files stays in the lower layer, and the kernel asks it for the attributes of each file that is not in memory.
  - With O(detach), copies the content too, and detaches the overlay. Nothing reaches the lower layer then. It may be unmounted.
  - Use it for overlays with an upper layer over a file server, such as overlays that users write to, or on kernels without data-only
    layers. A view over a layer of M(renderfarm.overlay.metadata_layer) does not need it.
  - All state is in the upper layer. A second run changes nothing, a run after an interrupted one continues it, and releases that have
    appeared in the lower layer since the last run are the only ones that are copied up.
  - The overlay may be in use, except while the module seals directories. It unmounts the overlay for that.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  path:
    description: Mountpoint of the overlay. It must be mounted writable, with an upper layer.
    type: path
    required: true
  subtrees:
    description:
      - The directories to finalize, as paths relative to O(path). By default, the whole overlay is finalized.
      - The rest of the overlay, and the parents of the subtrees, stay merged. What appears in the lower layer shows there.
    type: list
    elements: str
    default: []
  owner:
    description:
      - User, by name or uid, that becomes the owner of every entry that this run copies up. Entries that are in the upper layer already
        keep their owners.
      - By default, owners stay as they are.
      - Files whose owner or group changes lose their set-ID bits and capabilities, as with chown(2). See O(keep_setid).
      - An entry that differs from the lower layer when its owner would be changed, for example since a user has just put another file in
        its place, is left alone and returned as RV(pending).
    type: str
  group:
    description: Group, by name or gid, that becomes the group of these entries. By default, groups stay as they are.
    type: str
  keep_setid:
    description:
      - Whether files keep their set-user-ID and set-group-ID bits and their capabilities when O(owner) or O(group) changes.
      - A program that a publisher made set-user-ID for their own account then runs as O(owner).
      - The new owner may write to a file after its owner is changed, and before its bits and capabilities are set again. Set this only if
        O(owner) may be trusted with what these programs can do.
    type: bool
    default: false
  passes:
    description:
      - The passes to run. Their order is always the following.
      - V(copy_up) copies up the metadata of each entry that is not in the upper layer. If the overlay is mounted without C(metacopy=on),
        that copies the content too, which O(copy_content) must allow. Files with several names are left out unless the overlay is mounted
        with C(index=on), since they would become separate files.
      - V(readdir) reads each directory that is not sealed, the deepest ones first. Some kernels seal directories when they are read.
      - V(seal) seals each directory that is copied up with everything below it. See O(seal).
      - V(warm) reads the directories that the kernel has sealed, so that they are in memory after the overlay was mounted. It has no effect
        on kernels that do not seal directories.
    type: list
    elements: str
    choices: [copy_up, readdir, seal, warm]
    default: [copy_up, readdir, seal, warm]
  copy_content:
    description:
      - Whether the content of files may be copied to the upper layer. An overlay that is mounted without C(metacopy=on) copies it.
      - If it is V(false) and there is such content, the task fails before it changes anything, and returns the number of files and bytes.
    type: bool
    default: false
  detach:
    description:
      - Whether to make the overlay independent of its lower layers. It then works without the file server.
      - All content is copied to the upper layer, whatever O(copy_content) is. All directories are sealed. In the upper layer, the extended
        attribute C(overlay.origin) of each file is removed, by which the kernel finds the lower file, as are the entries of the index. The
        overlay is then mounted over an empty directory, whose path is that of the upper layer followed by C(.detached).
      - Give RV(lower) as the lower layer wherever the overlay is declared, for example in M(renderfarm.overlay.overlay_mount), and where it
        is mounted at boot. With C(index=on), the kernel refuses to mount it over its old lower layers.
      - It needs O(allow_unmount) and the whole overlay, so O(subtrees), O(merged_levels) and a selection of O(passes) are refused. If
        anything is RV(pending), the overlay is not detached, and the next run continues.
      - Files get other inode numbers, which stay the same from then on. Names of one file stay names of one file.
      - A program that runs from the overlay cannot be copied. It is returned as RV(pending).
      - An overlay that is mounted with C(nfs_export=on) is refused, since its file handles refer to the lower layers.
      - A detached overlay has nothing left to finalize, so later runs change nothing, with any options.
    type: bool
    default: false
  seal:
    description:
      - How directories are sealed. A sealed directory shows what is in the upper layer, and not what appears in the lower layer.
      - V(auto) lets the kernel seal directories that it marks when they are read (C(opaque=z)), and seals all others as V(offline) does.
        The module tries whether the kernel marks directories, as M(renderfarm.overlay.overlay_info) does (C(kernel_seal)).
      - V(offline) unmounts the overlay, gives each file its path in the lower layer as a redirect, marks the directories as opaque, and
        mounts the overlay again as it was. It needs O(allow_unmount).
      - V(kernel) leaves it to the kernel, and reports the directories that the kernel does not seal as RV(pending).
      - V(none) seals nothing.
      - The module cannot seal the root of an overlay. Names that it does not have are looked up in the lower layer, and new ones show. A
        kernel that seals directories seals the root too.
    type: str
    choices: [auto, offline, kernel, none]
    default: auto
  allow_unmount:
    description:
      - Whether the overlay may be unmounted if there are directories to seal. It stays unmounted for as long as it takes to read all of
        these directories in the lower layer and in the upper layer.
      - If the overlay is in use, or is mounted elsewhere too, the task fails and names the processes or mounts. What it copied up before
        stays.
      - If it is V(false), directories that could be sealed are returned as RV(pending).
    type: bool
    default: false
  merged_levels:
    description:
      - Directories up to this many levels below O(path) are not sealed, so releases that appear in them show. With releases named
        C(package/version), V(1) leaves the packages merged.
      - The default V(0) leaves only the root of the overlay merged.
      - A kernel that seals directories seals each one that anybody lists when all of its entries are copied up. Those that this option
        should have left merged are returned as RV(pending).
    type: int
    default: 0
  stale:
    description:
      - What to do about entries that were copied up and are gone from the lower layer since. The overlay still has their names, but cannot
        open them.
      - V(report) returns them as RV(pending).
      - V(remove) removes them from the upper layer, through the overlay, which may be in use. It removes only metadata that the kernel
        copied up. What users wrote or made stays, and is returned as RV(pending).
      - V(ignore) does not look for them.
      - Nothing is removed while the lower layer shows nothing at all. A symbolic link or special file is only removed with a directory that
        is gone, since a renamed one cannot be told from a stale one.
    type: str
    choices: [report, remove, ignore]
    default: report
  workers:
    description:
      - How many directories are worked on at the same time, from 1 to 256.
      - By default, 2 if all lower layers are on the host, and 8 if one is on a file server. More are faster with a distant server.
    type: int
notes:
  - In the upper layer, a sealed directory has the extended attributes C(trusted.overlay.opaque) and C(trusted.renderfarm-overlay.sealed),
    and the files in it have C(trusted.overlay.redirect).
  - A run with O(detach) may be killed at any step. The overlay then reads as before, and the next run with O(detach) continues. Until
    then, the file whose content was being copied may have a wrong modification time.
  - Later runs do not visit a directory that is not sealed and was moved into a sealed one. It goes on working.
  - In check mode, the module reads and compares everything that a run does. It cannot know what would keep a directory from being sealed
    while the overlay is unmounted. It counts all directories that a run, or a kernel that seals directories, would try to seal. Such a
    kernel seals a directory whose entries are all copied up also when check mode reads it.
seealso:
  - module: renderfarm.overlay.overlay_mount
  - module: renderfarm.overlay.metadata_layer
"""

EXAMPLES = r"""
- name: Finalize an overlay that is not in use yet
  renderfarm.overlay.overlay_finalize:
    path: /software
    allow_unmount: true

- name: Finalize two releases with another owner, and leave the rest of the overlay merged
  renderfarm.overlay.overlay_finalize:
    path: /software
    subtrees:
      - houdini/20.5.410
      - maya/2025.1
    owner: render
    group: render
    allow_unmount: true

- name: Copy everything to the host, and detach the overlay from the file server
  renderfarm.overlay.overlay_finalize:
    path: /software
    detach: true
    allow_unmount: true
  register: software

- name: Keep the detached overlay, also after a reboot
  renderfarm.overlay.overlay_mount:
    path: /software
    lower: "{{ software.lower }}"
    upper: /var/lib/software/upper
    work: /var/lib/software/work
    persist: systemd

- name: Copy up new releases, and remove deleted ones, while software runs
  renderfarm.overlay.overlay_finalize:
    path: /software
    merged_levels: 1
    stale: remove
"""

RETURN = r"""
actions:
  description: The changes that were made, or in check mode would be made.
  type: list
  elements: str
  returned: success
  sample: [copy up the metadata of 22000 entries, seal 1400 directories]
copied_up:
  description: Number of entries that were copied up.
  type: int
  returned: success
  sample: 22000
content_files:
  description:
    - Number of files whose content was copied, or would be if the task fails without O(copy_content).
    - With O(detach), files that were in the upper layer without their content are included.
  type: int
  returned: success, or refused
  sample: 0
content_bytes:
  description: Size of that content in bytes.
  type: int
  returned: success, or refused
  sample: 0
already:
  description: Number of entries that were in the upper layer before. Entries of sealed directories are counted with O(detach) only.
  type: int
  returned: success
  sample: 12
restored:
  description: Number of files whose change of owner a killed run began and this run finished, with their bits and capabilities.
  type: int
  returned: success
  sample: 0
setid_stripped:
  description: Number of files that lost set-ID bits or capabilities when their owner or group was changed without O(keep_setid).
  type: int
  returned: success
  sample: 0
directories_read:
  description: Number of directories that were not sealed and were read.
  type: int
  returned: success
  sample: 1402
sealed:
  description: Number of directories that were sealed, by the module or by the kernel.
  type: int
  returned: success
  sample: 1400
warmed:
  description: Number of directories that the kernel has sealed and that were read.
  type: int
  returned: success
  sample: 0
removed:
  description: Paths, relative to the overlay, of entries that were removed since they are gone from the lower layer.
  type: list
  elements: str
  returned: success
  sample: [houdini/19.5.303]
unmounted:
  description: Whether the overlay was unmounted, and mounted again.
  type: bool
  returned: success
  sample: true
detached:
  description: Whether the overlay is detached, by this run or an earlier one. In check mode, whether it would be.
  type: bool
  returned: success
  sample: false
lower:
  description:
    - The lower layers of the overlay after the run, its data layers last. In check mode, those that it would have.
    - Those of a detached overlay are the empty directory that it can be mounted over without the file server.
  type: list
  elements: str
  returned: success
  sample: [/net/software]
pending:
  description: The first 100 entries that are left to do or cannot be done, sorted by path.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: Path relative to the overlay.
      type: str
      sample: houdini/20.5.410/licenses
    reason:
      description: Why the entry is pending.
      type: str
      sample: Permission denied
pending_total:
  description: Number of all pending entries.
  type: int
  returned: success
  sample: 0
pending_by_reason:
  description: All pending entries by reason, the most frequent reason first.
  type: list
  elements: dict
  returned: success
  contains:
    reason:
      description: Why the entries are pending.
      type: str
      sample: Permission denied
    total:
      description: Number of entries that are pending for this reason.
      type: int
      sample: 2
    paths:
      description: The first ten of their paths, relative to the overlay.
      type: list
      elements: str
      sample: [houdini/20.5.410/licenses, maya/2025.1/licenses]
finalized:
  description:
    - Whether nothing is pending. Everything in the chosen subtrees is then copied up and sealed, as far as O(passes), O(seal) and
      O(merged_levels) ask for it.
  type: bool
  returned: success
  sample: true
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import passes
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_request import (
    PASSES,
    SEALS,
    STALE,
    Request,
    Wanted,
    check_detach,
    check_numbers,
    chosen_subtrees,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import accounts


def main() -> None:
    runner.run(
        {
            "path": {"type": "path", "required": True},
            "subtrees": {"type": "list", "elements": "str", "default": []},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "keep_setid": {"type": "bool", "default": False},
            "copy_content": {"type": "bool", "default": False},
            "detach": {"type": "bool", "default": False},
            "passes": {"type": "list", "elements": "str", "choices": list(PASSES), "default": list(PASSES)},
            "seal": {"type": "str", "choices": list(SEALS), "default": "auto"},
            "allow_unmount": {"type": "bool", "default": False},
            "merged_levels": {"type": "int", "default": 0},
            "stale": {"type": "str", "choices": list(STALE), "default": "report"},
            "workers": {"type": "int"},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    runner.check_absolute(params["path"], "path")
    check_numbers(params["workers"], params["merged_levels"])
    owner, group = params["owner"], params["group"]
    wanted = Wanted(
        owner=None if owner is None else accounts.number(owner, "owner", accounts.user),
        group=None if group is None else accounts.number(group, "group", accounts.group),
        copy_up="copy_up" in params["passes"],
        keep_setid=params["keep_setid"],
        copy_content=params["copy_content"],
        check_mode=context.check_mode,
        detach=params["detach"],
    )
    request = Request(
        path=os.fsencode(os.path.realpath(params["path"])),
        subtrees=chosen_subtrees([os.fsencode(one) for one in params["subtrees"]]),
        passes=frozenset(params["passes"]),
        seal=params["seal"],
        allow_unmount=params["allow_unmount"],
        stale=params["stale"],
        merged_levels=params["merged_levels"],
        wanted=wanted,
        workers=params["workers"],
        patience=context.timeout,
    )
    if request.wanted.detach:
        check_detach(request.subtrees, request.passes, request.seal, request.merged_levels)
    result = passes.run(request, context.progress)
    return runner.Outcome(
        result.values, result.plan, result.before, result.after, result.warnings, failure=result.refusal
    )


if __name__ == "__main__":
    main()
