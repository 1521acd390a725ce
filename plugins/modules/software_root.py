#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: software_root
short_description: Mount the software root over NFS
version_added: 0.1.0
description:
  - Mounts the software root with options suited to releases that never change. The declaration is compared with the live mount as the
    kernel reports it.
  - Only declared options are compared, in the form in which the kernel prints them. C(actimeo=3600) equals its four parts, and C(vers=4)
    matches C(vers=4.2). A smaller C(rsize) or C(wsize) than declared is accepted, since the server may lower it.
  - A mount that is in use is never replaced or unmounted.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  path:
    description:
      - The mountpoint. It is created if it does not exist. If nothing is mounted there, it has to be empty.
      - Give this option or O(roots).
    type: path
  source:
    description:
      - Server and exported directory, for example V(filer:/export/software). O(state=mounted) requires it, or O(roots).
    type: str
  fstype:
    description: File system type given to mount(8). With both types, the option C(vers) selects the version of NFS.
    type: str
    choices: [nfs, nfs4]
    default: nfs
  options:
    description:
      - Mount options; see nfs(5).
      - With C(nocto) and a long C(actimeo), the client does not ask the server again when a file is opened or its status is read.
    type: list
    elements: str
    default: [ro, vers=4.2, hard, nocto, actimeo=3600, nodev]
  read_ahead:
    description:
      - Read-ahead of the mount in KiB, a multiple of 64. Without this option it is left unchanged.
      - The kernel's default is 128. If client and server have negotiated READs of 1 MiB, V(1024) lets the client send fewer of them.
      - The value takes effect at once, also for a mount that is in use. Mounts of the same export may share it.
      - The value is lost when the software root is unmounted, and C(/etc/fstab) cannot hold it. After a reboot, the next run sets it.
    type: int
  roots:
    description:
      - Several software roots. One of them that fails does not keep the others from being mounted.
      - They are mounted at the same time, so several servers that do not answer take no longer than one. A mountpoint inside of another one
        is mounted after it, in the order of the list.
    type: list
    elements: dict
    suboptions:
      path:
        description: The mountpoint.
        type: path
        required: true
      source:
        description: Server and exported directory.
        type: str
        required: true
      fstype:
        description: File system type, if it is not O(fstype).
        type: str
        choices: [nfs, nfs4]
      options:
        description: Mount options, if they are not O(options).
        type: list
        elements: str
      read_ahead:
        description: Read-ahead in KiB, if it is not O(read_ahead).
        type: int
  persist:
    description:
      - V(fstab) writes a line for O(path) to C(/etc/fstab), or removes it if O(state) is V(unmounted) or V(absent).
      - V(none) leaves that file unchanged.
    type: str
    choices: [none, fstab]
    default: none
  replace:
    description:
      - Whether to unmount the software root and mount it again if its options differ from the declared ones. This fails if it is in use,
        also as a layer of an overlay. Until it is mounted again, O(path) is empty.
      - By default the module fails and names the differences.
    type: bool
    default: false
  state:
    description:
      - V(mounted) mounts O(source) at O(path).
      - V(unmounted) unmounts it. This fails if it is in use; the message names the processes or the overlay.
      - V(absent) unmounts it and removes the empty mountpoint.
      - V(present) changes nothing. It fails if O(path) is missing or empty. It is for software roots that something else mounts, such as an
        automounter.
    type: str
    choices: [mounted, unmounted, absent, present]
    default: mounted
notes:
  - Requires mount(8) and its helper mount.nfs(8), which is in the package nfs-common or nfs-utils.
  - A mount of another type or from another source at O(path) is never changed.
  - Unless O(options) has C(retry), C(retry=0) is passed to mount.nfs(8), so that an unreachable server is reported at once.
seealso:
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Mount the software root
  renderfarm.overlay.software_root:
    path: /net/software
    source: filer:/export/software
    read_ahead: 1024
    persist: fstab

- name: Mount several software roots
  renderfarm.overlay.software_root:
    roots:
      - {path: /net/houdini, source: 'filer:/vol/houdini'}
      - {path: /net/maya, source: 'filer:/vol/maya'}

- name: Check that the automounter has mounted the software root
  renderfarm.overlay.software_root:
    path: /net/software
    state: present

- name: Unmount the software root, unless it is in use
  renderfarm.overlay.software_root:
    path: /net/software
    state: unmounted
"""

RETURN = r"""
client_missing:
  description: Whether the software root has to be mounted, and this host has no NFS client for it. The module then fails.
  type: bool
  returned: always
  sample: false
actions:
  description: The actions that were carried out, or that check mode would have carried out.
  type: list
  elements: str
  returned: success
  sample: [create directory /net/software, "mount filer:/export/software at /net/software"]
mount:
  description:
    - The mount at O(path) when the module ends, as the kernel reports it; null if nothing is mounted there.
    - With O(roots), it is null.
  type: dict
  returned: success
  contains:
    path:
      description: The mountpoint.
      type: str
      sample: /net/software
    source:
      description: Server and exported directory.
      type: str
      sample: "filer:/export/software"
    type:
      description: Type of the file system.
      type: str
      sample: nfs4
    flags:
      description: Options of the mount itself.
      type: list
      elements: str
      sample: [ro, nodev, relatime]
    options:
      description: Options of the file system.
      type: list
      elements: str
      sample: [ro, vers=4.2, rsize=1048576, acregmin=3600, acregmax=3600, acdirmin=3600, acdirmax=3600, hard, nocto]
    read_ahead:
      description: Read-ahead in KiB; null if the kernel does not report it.
      type: int
      sample: 1024
mounts:
  description: The mounts of O(roots), each as RV(mount).
  type: list
  elements: dict
  returned: success and O(roots) is given
  sample: [{"path": "/net/maya", "source": "filer:/vol/maya", "type": "nfs4", "flags": ["ro"], "options": ["vers=4.2"], "read_ahead": 1024}]
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import namespaces, still_paths
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount, root_change
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.root_change import Carrying, RootChange

OPTIONS = ["ro", "vers=4.2", "hard", "nocto", "actimeo=3600", "nodev"]

#: Share of the module's time limit after which a mount is given up, so that there is time left to report it.
_MOUNT_SHARE = 0.9


def main() -> None:
    fstype = {"type": "str", "choices": ["nfs", "nfs4"]}
    runner.run(
        {
            "path": {"type": "path"},
            "source": {"type": "str"},
            "fstype": {**fstype, "default": "nfs"},
            "options": {"type": "list", "elements": "str", "default": OPTIONS},
            "read_ahead": {"type": "int"},
            "roots": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "path": {"type": "path", "required": True},
                    "source": {"type": "str", "required": True},
                    "fstype": fstype,
                    "options": {"type": "list", "elements": "str"},
                    "read_ahead": {"type": "int"},
                },
            },
            "persist": {"type": "str", "choices": ["none", "fstab"], "default": "none"},
            "replace": {"type": "bool", "default": False},
            "state": {
                "type": "str",
                "choices": ["mounted", "unmounted", "absent", "present"],
                "default": "mounted",
            },
        },
        work,
        mutually_exclusive=[("path", "roots"), ("source", "roots")],
        required_one_of=[("path", "roots")],
        required_if=[("state", "mounted", ("source", "roots"), True)],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Bring each software root to its declared state."""
    if params["roots"] is None:
        done = _changed(params, context)
        values = {"mount": nfs_mount.values_of(done.live), "client_missing": done.client_missing}
        return runner.Outcome(values, done.plan, done.before, done.after, list(done.warnings), done.failure)
    roots = [
        {**params, **{name: value for name, value in root.items() if value is not None}} for root in params["roots"]
    ]
    context.note.write(f"the software roots {', '.join(root['path'] for root in roots)}")
    found = root_change.change_each(
        [os.fsencode(root["path"]) for root in roots],
        lambda position: _changed(roots[position], context),
        context.progress,
    )
    done_of = {root["path"]: one for root, one in zip(roots, found) if isinstance(one, RootChange)}
    # One server that does not answer does not keep the others from being mounted.
    failures = [one.failure if isinstance(one, RootChange) else runner.explain(one) for one in found]
    changed = {path: one for path, one in done_of.items() if one.plan}
    return runner.Outcome(
        {
            "mount": None,
            "mounts": [nfs_mount.values_of(one.live) for one in done_of.values()],
            "client_missing": any(one.client_missing for one in done_of.values()),
        },
        tuple(step for one in changed.values() for step in one.plan),
        {path: one.before for path, one in changed.items()},
        {path: one.after for path, one in changed.items()},
        [warning for one in done_of.values() for warning in one.warnings],
        "; ".join(filter(None, failures)),
    )


def _changed(params: dict[str, Any], context: runner.Context) -> RootChange:
    runner.check_absolute(params["path"], "path")
    path = still_paths.mountpoint(os.fsencode(params["path"]), namespaces.own_mounts())
    if params["state"] == "present":
        return root_change.present(path)
    seconds = context.timeout * _MOUNT_SHARE
    carrying = Carrying(context.check_mode, context.carry_out, context.progress, context.timeout, seconds)
    return root_change.change(root_change.declared_root(path, params), carrying)


if __name__ == "__main__":
    main()
