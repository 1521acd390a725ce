#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_mount
short_description: Mount, switch and unmount kernel overlays
version_added: 0.1.0
description:
  - Mounts an overlay of the given layers, unless the kernel reports that it is mounted.
  - Layers may be directories or EROFS images.
  - If the mounted overlay has other layers or options, the module switches it. It mounts the new overlay beneath the old one and then
    detaches the old one. Running software never finds the mountpoint empty, and keeps its open files.
  - Paths may contain any characters, including commas, colons, spaces and backslashes. There may be hundreds of layers.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  path:
    description:
      - The mountpoint. The module creates it if it does not exist.
      - If nothing is mounted there, it must be empty.
    type: path
    required: true
  lower:
    description:
      - The lower layers, top first. For a view, give the layer of M(renderfarm.overlay.metadata_layer).
      - Each is a directory, or an EROFS image file whose name ends in C(.erofs).
      - Only the overlay sees the mount of an image, which goes with the overlay. The kernel reports it as the path without C(.erofs).
      - Required with O(state=mounted).
    type: list
    elements: path
    default: []
  data:
    description:
      - The data layers, in the order in which the kernel searches them. The view does not show their names. Files of O(lower) get their
        content from them.
      - Each is a directory, or an EROFS image file whose name ends in C(.erofs), such as a data image of
        M(renderfarm.overlay.data_image). Give images before the software root, so that files are read from them. What is true of images in
        O(lower) is true of these.
      - The record of a data image is the file next to it whose name ends in C(.json) instead of C(.erofs). By it the module checks that the
        image is of a release that O(lower) shows, and was made with the same manifest. It fails if the image is not.
      - An image without a record is compared like a directory.
      - Data images need data-only layers, so they exclude O(strategy=redirect). O(lower) and O(data) have at most 500 layers together.
      - A layer is one file system. The kernel follows no redirect into an export that is mounted inside another export.
      - The kernel searches each data layer for the path of a file, and takes the first that has it. Several data layers must therefore be
        copies of one software root, whole or in part. An example is a local copy of some releases, followed by the software root itself.
      - Releases of another software root need their own view and mountpoint.
      - The module checks this before it mounts or switches an overlay. It fails if the layers are of different software roots, if the data
        layers differ in a sample of the files of a release, by size and mtime, or if a data layer that is not empty has none of the
        releases.
      - If a layer has no record of its releases, the module compares the files that data layers have at the same path, among their first
        10000 names.
    type: list
    elements: path
    default: []
  strategy:
    description:
      - How the kernel uses the layers of O(data). Give what M(renderfarm.overlay.metadata_layer) returns for its layer.
      - With V(data_only) they are data-only layers.
      - With V(redirect) they are ordinary lower layers, for kernels before Linux 6.5. The mountpoint shows the directory C(view) of the
        overlay. The first of O(lower) must be a layer of this strategy, since its opaque directories keep lookups out of O(data). The
        kernel reports all layers as lower layers.
    type: str
    choices: [data_only, redirect]
    default: data_only
  options:
    description:
      - Options of the overlay are C(metacopy), C(redirect_dir), C(index), C(nfs_export), C(xino), C(verity), C(userxattr) and C(volatile).
      - Options of the mount are C(nosuid), C(nodev), C(noexec), C(noatime) and C(nodiratime).
      - Give V(true) for an option without a value.
      - The module fails, with the reason, for options that the kernel would refuse or ignore, or with which files would lose content.
      - The module sets the following options unless they are given, since render nodes may have different defaults.
      - With O(data) it sets C(metacopy=on) and C(redirect_dir=on).
      - With an upper layer it sets C(metacopy=on), C(redirect_dir=on), C(index=on) and C(nfs_export=off). With C(nfs_export=on) it sets
        C(metacopy=off) instead.
      - With C(userxattr) it sets neither C(metacopy) nor C(redirect_dir), and the kernel chooses both.
      - With an upper layer and no O(data), and with O(strategy=redirect), it sets C(xino=off). With C(xino) the kernel looks up each name
        in the ordinary lower layers when it lists a directory.
      - With an upper layer over O(data), or with C(nfs_export=on), it sets C(xino=auto).
      - With C(metacopy=on) a change of owner or mode copies no content. With C(redirect_dir=on) directories can be renamed.
      - With C(index=on) hard links are preserved. The kernel cannot keep an index over some layers, such as another overlay. The module
        then fails until C(index=off) is given.
      - With C(volatile) the kernel syncs nothing to the disk of the upper layer. It does not mount this upper layer again after it was
        unmounted or the render node went down.
    type: dict
    default: {}
  upper:
    description:
      - The directory that holds what is written to the overlay. The root of the overlay has its owner and mode.
      - The module creates it and O(work) if they do not exist, owned by root.
      - The module fails if its file system cannot hold an upper layer (such as NFS), if it was used over other lower layers, or if another
        overlay uses it.
      - The module fails if others than root can write to it or to a directory above it. Below a directory that only root can enter, it may
        be writable.
      - Entries that were added to a lower layer do not matter. A new generation of a view is another lower layer, and needs an empty
        directory.
      - The xattr C(trusted.renderfarm-overlay.lower) of this directory holds the lower layers.
    type: path
  work:
    description:
      - The directory in which the kernel prepares files for O(upper).
      - It must be on the same mount as O(upper), and separate from it.
    type: path
  scratch:
    description:
      - The size of a tmpfs that is the upper layer of the overlay, such as V(2G). Use it for files that need not outlive the overlay.
      - Only the overlay sees the tmpfs, which goes with the overlay.
      - The kernel reports it as O(upper), in a directory of C(/run/renderfarm-overlay) with the size in its name.
      - It excludes O(upper) and O(persist).
    type: bytes
  read_only:
    description:
      - Whether to mount read-only.
      - The default is V(false) with O(upper) or O(scratch), and V(true) otherwise.
      - An overlay without O(upper) and O(scratch) is never writable.
    type: bool
  state:
    description:
      - With V(mounted) the declared overlay is mounted at O(path), and is the topmost mount there.
      - With V(unmounted) no overlay is mounted at O(path). The module fails if the overlay is in use, here or where the mount has
        propagated to, and names the processes. It also fails if there are mounts inside of it, and names these.
      - V(absent) is V(unmounted), and also removes the empty directory.
    type: str
    choices: [mounted, unmounted, absent]
    default: mounted
  switch:
    description:
      - How to replace a mounted overlay that differs from the declaration.
      - V(beneath) mounts the new overlay beneath the old one, and then detaches the old one. It needs Linux 6.5, and fails without it.
      - V(over) mounts the new overlay on top of the old one. The old one stays mounted, covered, until both are unmounted. If the old one
        is declared again, the one on top is detached.
      - V(auto) is V(beneath) if the kernel can mount beneath. Otherwise it is V(over), and then detaches the old overlay if the kernel can
        (Linux 5.15). With both, software finds the old or the new overlay at every moment.
      - V(replace) unmounts the old overlay first. It fails if that is in use or has mounts inside of it. Between the two, software finds no
        overlay.
      - V(never) fails, and names what differs.
      - An overlay with an upper layer can only be switched with V(replace), since two overlays cannot write to one upper layer. This loses
        what was written to O(scratch).
      - Overlays may be left covered, by a killed run or by V(over). The next run with V(auto) or V(beneath) detaches them (Linux 5.15).
        They are not seen while that happens.
    type: str
    choices: [auto, beneath, over, replace, never]
    default: auto
  inner_mounts:
    description:
      - What to do with mounts inside an overlay that is switched, such as a bind mount of plug-ins.
      - The module carries them over, with the mounts inside them, before the new overlay is seen. Each mount keeps its options and its
        propagation.
      - A mount cannot be carried over if it is unbindable, or if it has no place in the new overlay. It has none if there is nothing of
        that name, a file instead of a directory, or a symbolic link on the path.
      - With V(carry) the module then fails, names each of these mounts, and changes nothing.
      - With V(drop) it leaves them behind, with a warning for each.
    type: str
    choices: [carry, drop]
    default: carry
  persist:
    description:
      - What mounts the overlay when the render node starts.
      - V(systemd) writes a mount unit for O(path), and one for each image, to C(/etc/systemd/system). The units require all layers.
      - V(fstab) writes a line for O(path), and one for each image, to C(/etc/fstab). The paths of layers must not contain spaces, commas,
        backslashes or apostrophes.
      - V(none) removes the unit or the line of this module for O(path). So does O(state) with V(unmounted) or V(absent).
      - An image that is mounted when the render node starts is visible, at its path without C(.erofs). The module creates that directory,
        and removes it with the unit or the line. The image is unmounted when no overlay needs it.
      - With O(strategy=redirect) there are two units or lines, since mount(8) cannot show only a part of an overlay. The first mounts the
        whole overlay next to the layer, at its path followed by C(.whole-) and some digits. The second binds the directory C(view) of it to
        O(path). The module removes the first like that of an image.
      - The module fails if a path contains control characters or quotation marks, or if the layers are too long for mount(8). Before
        util-linux 2.39 about 65 data images fit.
    type: str
    choices: [none, systemd, fstab]
    default: none
notes:
  - The module never changes a mount of another type at O(path), or a unit or line of C(/etc/fstab) that it has not written. It recognises
    its units by their first line, and its lines by the option C(x-renderfarm.overlay).
  - Only one module at a time changes a mountpoint. Another one waits for up to O(timeout) seconds, and then fails.
  - If nothing has to be changed, the module examines no layer on a file server, so the server need not answer.
seealso:
  - module: renderfarm.overlay.metadata_layer
  - module: renderfarm.overlay.overlay_info
"""

EXAMPLES = r"""
- name: Mount a view
  renderfarm.overlay.overlay_mount:
    path: /software
    lower:
      - /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer
    data:
      - /net/software
    options:
      nodev: true

- name: Mount a view from an image, now and when the render node starts
  renderfarm.overlay.overlay_mount:
    path: /software
    lower:
      - /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer.erofs
    data:
      - /net/software
    persist: systemd

- name: Mount a view that reads some files from a data image on this host
  renderfarm.overlay.overlay_mount:
    path: /software
    lower:
      - /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer.erofs
    data:
      - /var/lib/renderfarm-overlay/data/9c1f0b2e77a4d385.erofs
      - /net/software

- name: Mount a view with scratch space
  renderfarm.overlay.overlay_mount:
    path: /software
    lower:
      - /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer
    data:
      - /net/software
    scratch: 2G

- name: Mount an overlay over a file server that keeps what is written
  renderfarm.overlay.overlay_mount:
    path: /tools
    lower:
      - /net/tools
    upper: /var/lib/tools-overlay/upper
    work: /var/lib/tools-overlay/work
    persist: systemd

- name: Unmount a view, unless it is in use
  renderfarm.overlay.overlay_mount:
    path: /software
    state: unmounted
"""

RETURN = r"""
actions:
  description: The actions that were carried out, or would be in check mode.
  type: list
  elements: str
  returned: success
  sample: [create directory /software, mount overlay at /software]
mount:
  description: The mount at O(path) when the module ends, as the kernel reports it; none if no overlay is mounted there.
  type: dict
  returned: success
  contains:
    path:
      description: The mountpoint.
      type: str
      sample: /software
    root:
      description: The directory of the overlay that the mountpoint shows. It is V(/view) with O(strategy=redirect), and V(/) otherwise.
      type: str
      sample: /
    lower:
      description: The lower layers, top first. With O(strategy=redirect) they include the data layers.
      type: list
      elements: str
      sample: [/var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer]
    data:
      description: The data-only layers, in their order. An image is named without C(.erofs).
      type: list
      elements: str
      sample: [/net/software]
    upper:
      description: The upper layer; none if there is none.
      type: str
      sample: null
    work:
      description: The work directory; none if there is none.
      type: str
      sample: null
    options:
      description: The options of the overlay that differ from the defaults of the render node.
      type: dict
      sample: {"metacopy": "on", "redirect_dir": "on"}
    flags:
      description: The options of the mount.
      type: list
      elements: str
      sample: [ro, nodev, relatime]
    propagation:
      description: The mount propagation; empty if it is private.
      type: list
      elements: str
      sample: ["shared:1"]
    parts:
      description:
        - The mounted parts of a view over several software roots that may have equal paths, as M(renderfarm.overlay.view) mounts it.
          Empty for all other overlays.
        - C(path) is the mountpoint of a part, and C(data) are the data layers that its files are read from.
      type: list
      elements: dict
      sample: [{"path": /software/maya, "data": [/net/maya]}]
switched:
  description: Whether a mounted overlay was switched, or would be in check mode.
  type: bool
  returned: success
  sample: false
method:
  description: How the overlay was switched, or would be in check mode. V(beneath), V(over) or V(replace); none if it was not.
  type: str
  returned: success
  sample: beneath
carried:
  description: The mounts that were carried over from the old overlay, or would be in check mode.
  type: list
  elements: str
  returned: success
  sample: [/software/site-plugins]
users:
  description:
    - The processes that use the old overlay, in all mount namespaces. They keep their open files and working directories.
    - The old overlay stays in memory, and needs its layers, until these processes close its files and leave its directories.
  type: list
  elements: dict
  returned: success
  contains:
    pid:
      description: The process ID.
      type: int
      sample: 4711
    name:
      description: The name of the process.
      type: str
      sample: houdini-bin
elsewhere:
  description:
    - The places at which the old overlay is still mounted, since unmounting did not propagate there. Examples are a container with private
      mounts, and a directory that the view is bound to.
    - The module leaves them as they are, with a warning for each.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The mountpoint, as its mount namespace shows it.
      type: str
      sample: /software
    pid:
      description: The ID of a process in that mount namespace; none if it is the namespace of the module.
      type: int
      sample: 4711
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    namespaces,
    still_paths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import mounting


def main() -> None:
    runner.run(
        {
            "path": {"type": "path", "required": True},
            "lower": {"type": "list", "elements": "path", "default": []},
            "data": {"type": "list", "elements": "path", "default": []},
            "strategy": {"type": "str", "choices": ["data_only", "redirect"], "default": "data_only"},
            "options": {"type": "dict", "default": {}},
            "upper": {"type": "path"},
            "work": {"type": "path"},
            "scratch": {"type": "bytes"},
            "read_only": {"type": "bool"},
            "state": {"type": "str", "choices": ["mounted", "unmounted", "absent"], "default": "mounted"},
            "persist": {"type": "str", "choices": ["none", "systemd", "fstab"], "default": "none"},
            "switch": {"type": "str", "choices": ["auto", "beneath", "over", "replace", "never"], "default": "auto"},
            "inner_mounts": {"type": "str", "choices": ["carry", "drop"], "default": "carry"},
        },
        work,
        required_together=[("upper", "work")],
        mutually_exclusive=[("upper", "scratch")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    runner.check_absolute(params["path"], "path")
    for option in ("lower", "data", "upper", "work") if params["state"] == "mounted" else ():
        for layer in [params[option]] if isinstance(params[option], str) else params[option] or []:
            runner.check_absolute(layer, option)
    path = still_paths.mountpoint(os.fsencode(params["path"]), namespaces.own_mounts())
    task, report = mounting.bring(
        path, params, context.check_mode, context.timeout, context.progress, context.carry_out
    )
    return runner.Outcome(report.values, task.plan, report.before, report.after, report.warnings)


if __name__ == "__main__":
    main()
