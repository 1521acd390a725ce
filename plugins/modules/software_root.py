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
    description: The mountpoint. It is created if it does not exist. If nothing is mounted there, it has to be empty.
    type: path
    required: true
  source:
    description: Server and exported directory, for example V(filer:/export/software). Required with O(state=mounted).
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
  description: The mount at O(path) when the module ends, as the kernel reports it; null if nothing is mounted there.
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
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    mount_lock,
    mountpoints,
    namespaces,
    still_paths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount, root_plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import software_root_spec
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.root_plan import (
    DeclaredRoot,
    ObservedRoot,
)

OPTIONS = ["ro", "vers=4.2", "hard", "nocto", "actimeo=3600", "nodev"]

#: Share of the module's time limit after which a mount is given up, so that there is time left to report it.
_MOUNT_SHARE = 0.9


def main() -> None:
    runner.run(
        {
            "path": {"type": "path", "required": True},
            "source": {"type": "str"},
            "fstype": {"type": "str", "choices": ["nfs", "nfs4"], "default": "nfs"},
            "options": {"type": "list", "elements": "str", "default": OPTIONS},
            "read_ahead": {"type": "int"},
            "persist": {"type": "str", "choices": ["none", "fstab"], "default": "none"},
            "replace": {"type": "bool", "default": False},
            "state": {
                "type": "str",
                "choices": ["mounted", "unmounted", "absent", "present"],
                "default": "mounted",
            },
        },
        work,
        required_if=[("state", "mounted", ("source",))],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    runner.check_absolute(params["path"], "path")
    path = still_paths.mountpoint(os.fsencode(params["path"]), namespaces.own_mounts())
    if params["state"] == "present":
        mountpoints.check_has_content(path)
        live = mountpoints.observe(path).mount
        return runner.Outcome({"mount": nfs_mount.values_of(live), "client_missing": False}, ())
    declared = _declared(path, params)
    observed = nfs_mount.observe(declared)
    plan = root_plan.plan_root(declared, observed)
    if nfs_mount.lacks_client(declared, plan) and not context.check_mode:
        what = f"mounting {params['source']} at {params['path']}"
        return runner.Outcome(
            {"mount": None, "client_missing": True}, (), failure=f"{what}: {nfs_mount.CLIENT_MISSING}"
        )
    if context.check_mode or not plan:
        return _outcome(declared, observed, plan, observed.mountpoint.mount)
    with mount_lock.held(path, context.timeout, context.progress):
        # Another run may have changed the mount while this one waited for the lock.
        observed = nfs_mount.observe(declared)
        plan = root_plan.plan_root(declared, observed)
        with mountpoints.undone_on_failure():
            context.carry_out(plan, nfs_mount.handlers(context.timeout * _MOUNT_SHARE))
        live = mountpoints.observe(path).mount
        outcome = _outcome(declared, observed, plan, live)
        if root_plan.changes_mount(plan):
            outcome.warnings += root_plan.ignored_options(declared.spec, live)
        return outcome


def _declared(path: bytes, params: dict[str, Any]) -> DeclaredRoot:
    spec = None
    if params["state"] == "mounted":
        spec = software_root_spec(path, params["source"], params["fstype"], params["options"])
    return DeclaredRoot(
        path,
        spec,
        absent=params["state"] == "absent",
        replace=params["replace"],
        read_ahead=params["read_ahead"],
        in_fstab=params["persist"] == "fstab",
    )


def _outcome(declared: DeclaredRoot, observed: ObservedRoot, plan: Plan, live: Mount | None) -> runner.Outcome:
    before, after = root_plan.diff_of(declared, observed, plan)
    values = {"mount": nfs_mount.values_of(live), "client_missing": nfs_mount.lacks_client(declared, plan)}
    return runner.Outcome(values, plan, before, after)


if __name__ == "__main__":
    main()
