#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_info
short_description: Report which overlays a render node supports and has mounted
version_added: 0.1.0
description:
  - Tries the overlayfs features that views need, and lists the mounted overlays.
  - The trials run in a private mount namespace on a tmpfs, so they change nothing on the render node.
  - The kernel version is not used, since distributions backport features and disable them.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes.info
  - renderfarm.overlay.options
options:
  probe:
    description:
      - Try the features. This takes about a tenth of a second.
      - Without root the module tries them in a user namespace, and reports what works there.
    type: bool
    default: true
  state_dir:
    description:
      - The O(renderfarm.overlay.metadata_layer#module:state_dir) of M(renderfarm.overlay.metadata_layer).
      - If given, the module reports whether the file system of this directory suits layers.
    type: path
seealso:
  - module: renderfarm.overlay.metadata_layer
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Try the features of a render node
  renderfarm.overlay.overlay_info:
    state_dir: /var/lib/renderfarm-overlay
  register: overlay

- name: Stop if the render node cannot mount views
  ansible.builtin.assert:
    that: overlay.strategies.data_only.supported
    fail_msg: "{{ overlay.strategies.data_only.detail }}"
"""

RETURN = r"""
kernel:
  description: The running kernel.
  type: dict
  returned: success
  contains:
    release:
      description: Its release, as C(uname -r) prints it.
      type: str
      sample: 6.12.48+deb13-amd64
    machine:
      description: Its architecture.
      type: str
      sample: x86_64
    overlay_defaults:
      description: The defaults of overlay options on this render node, from the parameters of the kernel module.
      type: dict
      sample: {"metacopy": "N", "redirect_dir": "N"}
features:
  description:
    - The result for each feature, by name.
    - C(supported) is none if O(probe=false). C(detail) says what was tried, or why it failed.
    - C(data_images) says whether data layers may be images.
    - C(kernel_seal) says whether the kernel seals a directory of a writable overlay when it is read and all of its entries are copied up,
      so that M(renderfarm.overlay.overlay_finalize) need not unmount the overlay. No released kernel does.
  type: dict
  returned: success
  sample:
    data_only: {"supported": true, "source": "probe", "detail": "one lower and one data-only layer, with metacopy=on"}
    mount_beneath: {"supported": true, "source": "probe", "detail": "a new overlay is mounted beneath the mounted one"}
strategies:
  description: The strategies for views, each with C(supported) and C(detail).
  type: dict
  returned: success
  sample:
    data_only: {"supported": true, "detail": "one lower and one data-only layer, with metacopy=on"}
    redirect: {"supported": true, "detail": "absolute redirects from opaque directories into an ordinary lower layer"}
    copy_up: {"supported": true, "detail": "a change of times copies up only metadata"}
recommended_strategy:
  description: The best supported strategy; none if no strategy is supported, or if O(probe=false).
  type: str
  returned: success
  sample: data_only
mounts:
  description:
    - The mounted overlays, as M(renderfarm.overlay.overlay_mount) returns them, with C(roots), C(data_layers) and C(data_images).
    - C(roots) are the software roots of the releases that an overlay shows. It is none if a layer has no record on this render node.
    - C(data_layers) is V(none) without a data layer, and V(one) with one. With several, it says how they relate.
    - V(copies) means that all releases are of one software root. M(renderfarm.overlay.overlay_mount) has checked that the data layers are
      copies of it.
    - V(separate) means that the view is made for several software roots, and that each release was in one data layer only when the view
      was mounted.
    - V(ambiguous) means that the releases are of several software roots. A file may have the content of another root at the same path.
    - V(unknown) means that there is no record.
    - C(data_images) are the data layers that are images with a record, in their order. For each, C(path) is the path of the image file,
      C(release) the release whose files it has, C(kind) how these were selected, and C(complete) whether all files of the release are in
      it.
    - The module reads records only from local file systems. It asks no file server.
  type: list
  elements: dict
  returned: success
  sample:
    - path: /software
      root: /
      lower: [/var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer]
      data: [/var/lib/renderfarm-overlay/data/9c1f0b2e77a4d385, /net/software]
      upper: null
      work: null
      options: {"metacopy": "on", "redirect_dir": "on"}
      flags: [ro, relatime]
      propagation: ["shared:1"]
      parts: []
      roots: [/net/software]
      data_layers: copies
      data_images:
        - path: /var/lib/renderfarm-overlay/data/9c1f0b2e77a4d385.erofs
          release: houdini/20.5.410
          kind: trace
          complete: false
layer_filesystem:
  description: The file system that O(state_dir) is or will be on.
  type: dict
  returned: when O(state_dir) is given
  contains:
    path:
      description: Its mountpoint.
      type: str
      sample: /
    type:
      description: Its type.
      type: str
      sample: ext4
    attributes_fit:
      description:
        - Whether the overlay xattrs of a file fit into its inode. If they do not, each file of a layer takes an extra block.
        - None if this could not be tried.
      type: bool
      sample: true
    advice:
      description: What to do if the xattrs do not fit; none if they do.
      type: str
      sample: null
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import inode_space
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, described, inside
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, probe
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import data_layers

#: The feature that each strategy needs, best strategy first.
STRATEGIES = {"data_only": "data_only", "redirect": "redirect", "copy_up": "metadata_copy_up"}


def main() -> None:
    runner.run({"probe": {"type": "bool", "default": True}, "state_dir": {"type": "path"}}, work)


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    # In a child process, since the trials enter another mount namespace.
    features = deadline.run(lambda _progress: probe.probe(), context.timeout) if params["probe"] else probe.not_tried()
    strategies = {name: features[feature] for name, feature in STRATEGIES.items()}
    system = os.uname()
    live = namespaces.own_mounts()
    values: dict[str, Any] = {
        "kernel": {
            "release": system.release,
            "machine": system.machine,
            "overlay_defaults": {name.decode(): value.decode() for name, value in creating.overlay_defaults().items()},
        },
        "features": {name: feature.as_dict() for name, feature in features.items()},
        "strategies": {
            name: {"supported": feature.supported, "detail": feature.detail} for name, feature in strategies.items()
        },
        "recommended_strategy": next((name for name, feature in strategies.items() if feature.supported), None),
        "mounts": [
            {**described(mount), "parts": _parts(mount, live), **data_layers.answers(mount, live)}
            for mount in live
            if mount.fstype == b"overlay"
        ],
    }
    if params["state_dir"] is not None:
        values["layer_filesystem"] = _filesystem(params["state_dir"])
    return runner.Outcome(values)


def _parts(mount: Mount, live: list[Mount]) -> list[dict[str, Any]]:
    return tree_parts.described(tree_parts.split(mount, inside(live, mount))[0])


def _filesystem(state_dir: str) -> dict[str, Any]:
    mount = inode_space.filesystem_of(state_dir, namespaces.own_mounts())
    fits: bool | None = inode_space.attributes_fit(inode_space.existing_parent(state_dir), "trusted")
    return {
        "path": os.fsdecode(mount.path) if mount else None,
        "type": show(mount.fstype) if mount else None,
        "attributes_fit": fits,
        "advice": inode_space.SPILL_ADVICE if fits is False else None,
    }


if __name__ == "__main__":
    main()
