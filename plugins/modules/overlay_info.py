#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_info
short_description: Find out what overlays a host can have and has
version_added: 0.1.0
description:
  - Tries the features of overlayfs that views need on the running kernel, and lists the overlays that are mounted.
  - The trials are made in a mount namespace of their own, on a file system in memory, so nothing of them is seen on the host.
  - Versions of kernels are not looked at, since distributions carry features back and switch them off.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes.info
  - renderfarm.overlay.options
options:
  probe:
    description:
      - Try the features. That takes about a tenth of a second.
      - Without root they are tried in a user namespace, and the result tells what can be done there.
    type: bool
    default: true
  state_dir:
    description: A folder for layers, as M(renderfarm.overlay.metadata_layer) has it, to tell whether its file system is fit for them.
    type: path
seealso:
  - module: renderfarm.overlay.metadata_layer
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Find out what this host can do
  renderfarm.overlay.overlay_info:
    state_dir: /var/lib/renderfarm-overlay
  register: overlay

- name: Stop where views cannot be mounted
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
      description: This host's defaults of overlay options, from the module's parameters.
      type: dict
      sample: {"metacopy": "N", "redirect_dir": "N"}
features:
  description: Each feature that was tried, by name.
  type: dict
  returned: success
  sample:
    data_only: {"supported": true, "source": "probe", "detail": "one lower and one data-only layer, with metacopy=on"}
    mount_beneath: {"supported": true, "source": "probe", "detail": "a new overlay is put beneath the mounted one"}
strategies:
  description: How views can be realised on this host, each with C(supported) and C(detail).
  type: dict
  returned: success
  sample:
    data_only: {"supported": true, "detail": "one lower and one data-only layer, with metacopy=on"}
    redirect: {"supported": true, "detail": "absolute redirects into an ordinary lower layer"}
    copy_up: {"supported": true, "detail": "a change of times copies up the metadata alone"}
recommended_strategy:
  description: The best of the supported strategies; none when none is, or nothing was tried.
  type: str
  returned: success
  sample: data_only
mounts:
  description:
    - The overlays that are mounted, as M(renderfarm.overlay.overlay_mount) returns them, and what is recorded beside their layers.
    - C(roots) are the software roots of the releases that an overlay shows; none where a layer has no record on this host.
    - C(data_layers) tells whether data layers can answer for each other. V(none) and V(one) are how many there are. Of several, V(copies)
      means that all releases are of one software root, of which M(renderfarm.overlay.overlay_mount) has found them to be copies;
      V(ambiguous) that releases of several roots are shown, so that a file may read as the one of another root at the same path; V(unknown)
      that there is no record.
    - Records are read only from file systems of this host. No file server is asked for anything.
  type: list
  elements: dict
  returned: success
  sample:
    - path: /software
      root: /
      lower: [/var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer]
      data: [/net/software]
      upper: null
      work: null
      options: {"metacopy": "on", "redirect_dir": "on"}
      flags: [ro, relatime]
      propagation: ["shared:1"]
      roots: [/net/software]
      data_layers: one
layer_filesystem:
  description: The file system that O(state_dir) is or will be on.
  type: dict
  returned: when O(state_dir) is given
  contains:
    path:
      description: Where it is mounted.
      type: str
      sample: /
    type:
      description: Its type.
      type: str
      sample: ext4
    attributes_fit:
      description:
        - Whether a file's overlay attributes fit into its inode. Where they do not, each file of a layer takes a block of its own.
        - None where that could not be tried.
      type: bool
      sample: true
    advice:
      description: What to do when they do not fit; none when nothing has to be done.
      type: str
      sample: null
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import described
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts, probe
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import data_layers, generations

#: Each strategy with the feature that it stands on, best one first.
STRATEGIES = {"data_only": "data_only", "redirect": "redirect", "copy_up": "metadata_copy_up"}


def main() -> None:
    runner.run({"probe": {"type": "bool", "default": True}, "state_dir": {"type": "path"}}, work)


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    # In a process of its own, since the trials leave their process in another mount namespace.
    features = deadline.run(lambda _progress: probe.probe(), context.timeout) if params["probe"] else probe.not_tried()
    strategies = {name: features[feature] for name, feature in STRATEGIES.items()}
    system = os.uname()
    live = namespaces.own_mounts()
    values: dict[str, Any] = {
        "kernel": {
            "release": system.release,
            "machine": system.machine,
            "overlay_defaults": {name.decode(): value.decode() for name, value in mounts.overlay_defaults().items()},
        },
        "features": {name: feature.as_dict() for name, feature in features.items()},
        "strategies": {
            name: {"supported": feature.supported, "detail": feature.detail} for name, feature in strategies.items()
        },
        "recommended_strategy": next((name for name, feature in strategies.items() if feature.supported), None),
        "mounts": [
            {**described(mount), **data_layers.answers(mount, live)} for mount in live if mount.fstype == b"overlay"
        ],
    }
    if params["state_dir"] is not None:
        values["layer_filesystem"] = _filesystem(params["state_dir"])
    return runner.Outcome(values)


def _filesystem(state_dir: str) -> dict[str, Any]:
    mount = generations.filesystem_of(state_dir, namespaces.own_mounts())
    fits: bool | None = generations.attributes_fit(generations.existing_parent(state_dir), "trusted")
    return {
        "path": os.fsdecode(mount.path) if mount else None,
        "type": show(mount.fstype) if mount else None,
        "attributes_fit": fits,
        "advice": generations.SPILL_ADVICE if fits is False else None,
    }


if __name__ == "__main__":
    main()
