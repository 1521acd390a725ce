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
  - Makes sure that the software root is mounted with options that are fit for releases that never change, by comparing the declaration
    with what the kernel says is mounted.
  - Only the options that are declared are compared, as the kernel prints them. So C(actimeo=3600) is the same as its four parts,
    C(vers=4) is met by C(vers=4.2), and a smaller C(rsize) than asked for is what the server allows.
  - A mount is never exchanged or unmounted behind the back of those who use it.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  path:
    description: The mountpoint. It is created when it does not exist, and has to be empty when nothing is mounted there.
    type: path
    required: true
  source:
    description: Server and exported folder, for example V(filer:/export/software). Required with O(state=mounted).
    type: str
  fstype:
    description: Type of the mount. With either of them the version is chosen by the option C(vers).
    type: str
    choices: [nfs, nfs4]
    default: nfs
  options:
    description:
      - Options of the mount; see nfs(5).
      - C(nocto) and a long C(actimeo) keep opens and stats of files that have been opened from asking the server again.
    type: list
    elements: str
    default: [ro, vers=4.2, hard, nocto, actimeo=3600, nodev]
  read_ahead:
    description:
      - How much the kernel reads ahead of a file that is read from front to back, in KiB, a multiple of 64. Without it, that is left alone.
      - The kernel's default is 128. Where server and client agree on READs of 1 MiB, V(1024) needs fewer of them.
      - It is set at once, also for a mount that is in use. Mounts of the same export may share it. The kernel forgets it with the mount,
        and C(/etc/fstab) has no word for it, so after a restart of the host it is set by the next run.
    type: int
  persist:
    description:
      - With V(fstab), C(/etc/fstab) has a line for O(path), or has none when O(state) is V(unmounted) or V(absent).
      - V(none) leaves that file alone.
    type: str
    choices: [none, fstab]
    default: none
  replace:
    description:
      - When the software root is mounted with other options than declared, unmount it and mount it anew. That fails when it is in use, also
        as a layer of an overlay. In between, software finds nothing there.
      - Without it the module fails and says what differs.
    type: bool
    default: false
  state:
    description:
      - V(mounted) makes sure that O(source) is mounted at O(path).
      - V(unmounted) makes sure that nothing is mounted there. It fails, naming the processes or the overlay, when it is in use.
      - V(absent) is the same, and removes the empty directory.
      - V(present) changes nothing, and fails when O(path) is not a directory with something in it. It is for software roots that something
        else mounts.
    type: str
    choices: [mounted, unmounted, absent, present]
    default: mounted
notes:
  - It needs mount(8) and, for NFS, its helper mount.nfs(8), which is in the package nfs-common or nfs-utils.
  - A mount of another type, or from another source, at O(path) is never touched.
  - C(retry=0) is given to mount.nfs(8), unless O(options) has C(retry), so that a server that does not answer is reported at once.
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

- name: Make sure that the automounter has something there
  renderfarm.overlay.software_root:
    path: /net/software
    state: present

- name: Unmount it, unless it is in use
  renderfarm.overlay.software_root:
    path: /net/software
    state: unmounted
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [create directory /net/software, "mount filer:/export/software at /net/software"]
mount:
  description: What the kernel reports at the mountpoint when the module ends; none when nothing is mounted there.
  type: dict
  returned: success
  contains:
    path:
      description: The mountpoint.
      type: str
      sample: /net/software
    source:
      description: What is mounted.
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
      description: How much the kernel reads ahead, in KiB; none when it does not say.
      type: int
      sample: 1024
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    fstab,
    mount_lock,
    mountpoints,
    namespaces,
    still_paths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, Mountpoint
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount, nfs_options
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import (
    SetReadAhead,
    SoftwareRootSpec,
    WriteFstab,
)

OPTIONS = ["ro", "vers=4.2", "hard", "nocto", "actimeo=3600", "nodev"]


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
        return _present(path)
    found = _observed(path, params)
    if context.check_mode or not found.plan:
        return _reported(found, found.state.mount)
    with mount_lock.held(path, context.timeout, context.progress):
        # Another run may have been at work here until now.
        found = _observed(path, params)
        with mountpoints.undone_on_failure():
            context.carry_out(found.plan, nfs_mount.handlers(context.timeout * 0.9))
        after = mountpoints.observe(path).mount if found.mounting else found.state.mount
        return _reported(found, after, _differing(found.spec, after) if found.mounting else [])


@dataclass(frozen=True)
class _Found:
    """What is there, what is declared, and what is to be done about it."""

    state: Mountpoint
    #: None where nothing is to be mounted.
    spec: SoftwareRootSpec | None
    #: The part of the plan that is about the mount.
    mounting: Plan
    plan: Plan
    was_ahead: int | None


def _observed(path: bytes, params: dict[str, Any]) -> _Found:
    state = mountpoints.observe(path)
    live = namespaces.own_mounts()
    spec: SoftwareRootSpec | None = None
    if params["state"] == "mounted":
        spec = nfs_options.software_root_spec(path, params["source"], params["fstype"], params["options"])
        mounting = nfs_options.plan_mounted(spec, state, live, params["replace"])
    else:
        mounting = nfs_options.plan_unmounted(path, state, live, params["state"] == "absent")
    plan = mounting
    was_ahead = nfs_mount.read_ahead(state.mount) if state.mount else None
    if spec:
        plan += nfs_options.plan_read_ahead(path, params["read_ahead"], was_ahead, bool(mounting))
    if params["persist"] == "fstab":
        plan += _plan_fstab(path, spec)
    return _Found(state, spec, mounting, plan, was_ahead)


def _reported(found: _Found, after: Mount | None, warnings: Sequence[str] = ()) -> runner.Outcome:
    outcome = _outcome(found.mounting, found.state.mount, after, found.spec, list(warnings))
    outcome.plan = found.plan
    _add_other_actions(outcome, found.plan, found.was_ahead)
    return outcome


def _present(path: bytes) -> runner.Outcome:
    if not nfs_mount.has_content(path):
        raise OverlayError(f"software root {show(path)} is empty: is it mounted?")
    live = mountpoints.observe(path).mount
    return runner.Outcome({"mount": _described(live)}, ())


def _described(live: Mount | None) -> dict[str, Any] | None:
    return {**nfs_options.described(live), "read_ahead": nfs_mount.read_ahead(live)} if live else None


def _plan_fstab(path: bytes, spec: SoftwareRootSpec | None) -> Plan:
    line = nfs_options.fstab_line(spec) if spec else None
    text = fstab.read()
    return () if nfs_options.edited_fstab(text, path, line) == text else (WriteFstab(path, line),)


def _differing(spec: SoftwareRootSpec | None, live: Mount | None) -> list[str]:
    """Return a warning where the kernel has not taken an option, so that the next run would find a difference again."""
    changes = nfs_options.differences(spec, live) if spec and live else {}
    if not changes:
        return []
    listed = ", ".join(f"{name} is {now}, not {wanted}" for name, (now, wanted) in changes.items())
    return [f"the server or the kernel has not taken all options: {listed}; declare what it takes"]


def _outcome(
    mount_plan: Plan, before: Mount | None, after: Mount | None, spec: SoftwareRootSpec | None, warnings: list[str]
) -> runner.Outcome:
    was = nfs_options.declared_by(before, spec)
    will_be = (spec.as_dict() if spec else {}) if mount_plan else was
    return runner.Outcome({"mount": _described(after)}, mount_plan, was, will_be, warnings)


def _add_other_actions(outcome: runner.Outcome, plan: Plan, was_ahead: int | None) -> None:
    """Have the outcome, which is about the mount, say also what is read ahead and written to fstab."""
    for action in plan:
        if isinstance(action, SetReadAhead):
            outcome.before = {**outcome.before, "read_ahead": was_ahead}
            outcome.after = {**outcome.after, "read_ahead": action.kibibytes}
        elif isinstance(action, WriteFstab):
            outcome.before = {**outcome.before, "fstab": "as it is"}
            outcome.after = {**outcome.after, "fstab": str(action)}


if __name__ == "__main__":
    main()
