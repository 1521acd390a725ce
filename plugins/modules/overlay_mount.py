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
  - Makes sure that an overlay of the given layers is mounted, by comparing the declaration with what the kernel says is mounted.
  - An overlay that has other layers or options than declared is switched. The new one is mounted beneath it before it is detached, so
    software that runs never finds the mountpoint empty, and keeps the files that it has open.
  - Paths may have any bytes in them, including commas, colons, spaces and backslashes, and layers may be many.
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
  lower:
    description:
      - The lower layers, top first; for a view that is the layer of M(renderfarm.overlay.metadata_layer).
      - Each is a directory, or an EROFS image file with a name that ends in C(.erofs). An image is mounted where only the overlay sees
        it, and goes with the overlay. The kernel reports it by its path without C(.erofs).
      - Required with O(state=mounted).
    type: list
    elements: path
    default: []
  data:
    description:
      - The data layers, first one first. Their names are not seen; files of O(lower) find their content in them.
      - A layer is one file system. The kernel follows no redirect into an export that is mounted inside of another one.
      - The kernel looks a file up in one data layer after the other, and takes the first that has its path. So several data layers have to
        be copies of one software root, whole or in part, such as a local copy of some releases before the root itself. Releases of
        another root need a view and a mountpoint of their own.
      - This is checked when an overlay is mounted or switched. Refused are layers of different software roots; data layers that have
        different files of a release of the layer, as a sample of its files tells by size and time; and one that is not empty and has none
        of the releases. Where no record says which releases a layer has, data layers may not have different files at one path, as
        far as their first 10000 names tell.
    type: list
    elements: path
    default: []
  strategy:
    description:
      - How the layers of O(data) are used; what M(renderfarm.overlay.metadata_layer) returns for its layer.
      - V(data_only) takes them as data-only layers.
      - V(redirect) takes them as ordinary lower layers, for kernels before Linux 6.5, and shows the folder C(view) of the overlay. The
        first of O(lower) has to be a layer made for that, since its opaque directories are what keeps names from being looked up in
        O(data). The kernel reports all layers as lower ones.
    type: str
    choices: [data_only, redirect]
    default: data_only
  options:
    description:
      - Options of the overlay, C(metacopy), C(redirect_dir), C(index), C(nfs_export), C(xino), C(verity), C(userxattr) and C(volatile),
        and of the mount, C(nosuid), C(nodev), C(noexec), C(noatime) and C(nodiratime).
      - Those without a value are given as V(true). What the kernel would refuse, ignore, or lose content with is refused with the reason.
      - With O(data), C(metacopy=on) and C(redirect_dir=on) are set unless C(userxattr) is.
      - With an upper layer, C(metacopy=on), C(redirect_dir=on), C(index=on) and C(nfs_export=off) are set where these
        options do not say otherwise; with C(nfs_export=on), C(metacopy=off). With C(userxattr), the kernel decides about the first two.
      - C(xino=off) is set with an upper layer and no O(data), and with O(strategy=redirect), since with C(xino) the kernel looks up each
        name in ordinary lower layers when it lists a directory. With an upper layer over O(data), and with C(nfs_export=on), it is
        C(xino=auto).
      - With C(metacopy=on) a change of owner or mode copies no content, with C(redirect_dir=on) directories can be renamed, and
        with C(index=on) hard links stay hard links. The kernel can have no index when a layer is, for example, another overlay. The
        module fails then, and C(index=off) has to be given.
      - With C(volatile) nothing is synced to the disk of the upper layer. After it was unmounted, or the host has gone down, the kernel
        does not mount it again.
    type: dict
    default: {}
  upper:
    description:
      - The directory that takes what is written. The top of the overlay has its owner and mode. It and O(work) are created, for root, where
        they do not exist.
      - It is refused when its file system cannot hold one (such as NFS), when it was used over other lower layers, when another overlay
        uses it, or when others than root can write to it or to a folder above it. Below a folder that only root can enter it may be
        writable. A layer that has gained entries is the same layer; a new generation of a view is another one, which takes an empty
        directory.
      - The lower layers are noted in its attribute C(trusted.renderfarm-overlay.lower).
    type: path
  work:
    description: The directory in which the kernel prepares what goes into O(upper). It has to be on the same mount, and separate from it.
    type: path
  scratch:
    description:
      - Give the overlay a file system in memory of this size, such as V(2G), as its upper layer, for what need not outlive it. Nobody but
        the overlay sees it, and it goes with the overlay.
      - The kernel reports it as O(upper) in a folder of C(/run/renderfarm-overlay) that has the size in its name.
      - Not with O(upper) or O(persist).
    type: bytes
  read_only:
    description:
      - Mount read-only. An overlay without O(upper) and O(scratch) cannot be written to in any case.
      - By default V(true), and V(false) with O(upper) or O(scratch).
    type: bool
  state:
    description:
      - V(mounted) makes sure that the declared overlay is what is seen at O(path).
      - V(unmounted) makes sure that no overlay is mounted at O(path). It fails, naming the processes, when it is in use, here or where
        the mount has spread to, and when something is mounted inside of it, naming that.
      - V(absent) is the same, and removes the empty directory.
    type: str
    choices: [mounted, unmounted, absent]
    default: mounted
  switch:
    description:
      - What to do when an overlay is mounted that differs from the declared one.
      - V(beneath) mounts the new one beneath the old one and then detaches that (Linux 6.5), and fails where the kernel cannot.
      - V(over) mounts the new one on top of the old one, which stays mounted below it, unseen, until both are unmounted. When the one
        below is declared again, the one on top is detached.
      - V(auto) is V(beneath) where the kernel can, and else V(over), after which the old one is detached where the kernel can do that
        (Linux 5.15). With either, software finds one or the other at every moment.
      - V(replace) unmounts the old one first. It fails when that is in use, or something is mounted inside of it, and between the two
        software finds nothing.
      - An overlay with an upper layer is only switched with V(replace), since two overlays cannot write to one upper layer. What was
        written to O(scratch) is lost then.
      - V(never) fails, and says what differs.
      - What a switch that was killed has left, or an earlier one with V(over), is taken away by the next run with V(auto) or V(beneath),
        when the declared overlay is seen (Linux 5.15). Overlays that the declared one covers are never seen meanwhile.
    type: str
    choices: [auto, beneath, over, replace, never]
    default: auto
  inner_mounts:
    description:
      - What becomes of what is mounted inside of an overlay that is switched, such as a bind mount of plug-ins. It is carried over, with
        all that is mounted inside of it, and is there when the new overlay is seen. Each mount keeps its options, and goes on following
        what it was bound from.
      - With V(carry) the module fails and changes nothing when a mount has no place in the new overlay, since there is nothing of that
        name, a file in place of a directory, or a symbolic link on the way, and when it is unbindable. The message names each.
      - With V(drop) those are left behind, with a warning for each.
    type: str
    choices: [carry, drop]
    default: carry
  persist:
    description:
      - What mounts the overlay when the host starts.
      - V(systemd) writes a mount unit for O(path), and one for each image, to C(/etc/systemd/system), with all layers as what they need.
      - V(fstab) writes a line for O(path), and one for each image, to C(/etc/fstab). Paths of layers may not have spaces, commas,
        backslashes or apostrophes in them then.
      - With V(none), and when O(state) is V(unmounted) or V(absent), there is no unit and no line of this module for O(path).
      - An image that is mounted when the host starts is seen, at its path without C(.erofs). The directory for that is made now, and
        removed with the unit or the line; the mount goes when no overlay needs it any more.
      - With O(strategy=redirect) there are two units or lines, since mount(8) cannot show a part of an overlay alone. The whole is mounted
        beside the layer, at its path with C(.whole-) and some digits behind it, and its folder is bound to O(path). It is removed like the
        mount of an image.
      - Control characters and quotation marks in paths are refused, as are layers that are too long for mount(8).
    type: str
    choices: [none, systemd, fstab]
    default: none
notes:
  - A mount of another type at O(path) is never touched, nor are units and lines of C(/etc/fstab) that this module has not written.
  - Runs on the same mountpoint, of whichever module, come one after the other. A run waits for up to O(timeout) seconds, and then fails.
  - When nothing has to be done, no layer on a file server is looked at, so it need not answer.
  - Which unit or line is its own the module knows by a comment, or by the option C(x-renderfarm.overlay).
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

- name: Mount a view from an image, now and when the host starts
  renderfarm.overlay.overlay_mount:
    path: /software
    lower:
      - /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer.erofs
    data:
      - /net/software
    persist: systemd

- name: Mount a view that can be written to, until it is unmounted
  renderfarm.overlay.overlay_mount:
    path: /software
    lower:
      - /var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer
    data:
      - /net/software
    scratch: 2G

- name: Mount an overlay that keeps what is written, over a file server
  renderfarm.overlay.overlay_mount:
    path: /tools
    lower:
      - /net/tools
    upper: /var/lib/tools-overlay/upper
    work: /var/lib/tools-overlay/work
    persist: systemd

- name: Unmount it, unless it is in use
  renderfarm.overlay.overlay_mount:
    path: /software
    state: unmounted
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [create directory /software, mount overlay at /software]
mount:
  description: What the kernel reports at the mountpoint when the module ends; none when no overlay is mounted there.
  type: dict
  returned: success
  contains:
    path:
      description: The mountpoint.
      type: str
      sample: /software
    root:
      description: The directory of the overlay that is seen there; V(/view) with O(strategy=redirect), else V(/).
      type: str
      sample: /
    lower:
      description: The lower layers, top first; with O(strategy=redirect) the data layers are among them.
      type: list
      elements: str
      sample: [/var/lib/renderfarm-overlay/views/software/generations/4ff24b6d8e0c11a7/layer]
    data:
      description: The data-only layers, first one first.
      type: list
      elements: str
      sample: [/net/software]
    upper:
      description: The upper layer; none when there is none.
      type: str
      sample: null
    work:
      description: The work directory; none when there is none.
      type: str
      sample: null
    options:
      description: The options of the overlay that differ from this host's defaults.
      type: dict
      sample: {"metacopy": "on", "redirect_dir": "on"}
    flags:
      description: The options of the mount.
      type: list
      elements: str
      sample: [ro, nodev, relatime]
    propagation:
      description: How mounts inside of it spread; empty when private.
      type: list
      elements: str
      sample: ["shared:1"]
switched:
  description: Whether a mounted overlay was exchanged for another one, or in check mode would be.
  type: bool
  returned: success
  sample: false
method:
  description: How that was or would be done, V(beneath), V(over) or V(replace); none when it was not.
  type: str
  returned: success
  sample: beneath
carried:
  description:
    - What was mounted inside of the overlay that was switched away and is mounted inside of the new one, or in check mode would be.
  type: list
  elements: str
  returned: success
  sample: [/software/site-plugins]
users:
  description:
    - The processes that use the overlay that was switched away, or in check mode would be, wherever it is mounted. They keep what they
      have open, and their working directory, and it stays in memory and needs its layers until they let go.
  type: list
  elements: dict
  returned: success
  contains:
    pid:
      description: Number of the process.
      type: int
      sample: 4711
    name:
      description: Its name.
      type: str
      sample: houdini-bin
elsewhere:
  description:
    - Where the overlay that was switched away or unmounted is still seen, since mounts do not spread there, such as in a container that has
      its own copy, or at a place that the view was bound to. There is a warning for each; they are left alone.
  type: list
  elements: dict
  returned: success
  contains:
    path:
      description: The mountpoint, as it is called there.
      type: str
      sample: /software
    pid:
      description: Number of a process in the mount namespace in question; none when it is that of the module.
      type: int
      sample: 4711
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    mount_lock,
    mountpoints,
    namespaces,
    processes,
    still_paths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, described, in_namespace
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import (
    boot,
    detached,
    images,
    layer_trust,
    mounts,
    uppers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.boot_entries import (
    RemoveUnit,
    Stored,
    WriteUnit,
    plan_persistence,
    plan_places,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    is_image_path,
    without_suffix,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.mount_plan import (
    DetachOverlay,
    DropCovered,
    MountpointState,
    SwitchOverlay,
    plan_mounted,
    plan_unmounted,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import (
    MountSpec,
    Writable,
    declared_by,
    differences,
    explained,
    mount_spec,
    scratch_space,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import data_layers


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
    path = still_paths.mountpoint(_absolute(params["path"], "path"), namespaces.own_mounts())
    try:
        found = _observed(path, params, context.check_mode)
        if context.check_mode or not found.plan:
            return _reported(found, found.state, context)
    except OverlayError:
        # What is in the way may be what another run is at, which has the lock.
        if context.check_mode:
            raise
    with mount_lock.held(path, context.timeout, context.progress):
        # Another run may have been at work here until now.
        found = _observed(path, params, context.check_mode)
        with mountpoints.undone_on_failure():
            context.carry_out(found.plan, boot.HANDLERS)
            live = mounts.observe(path) if found.mounting else found.state
            if found.mounting and found.spec:
                _check_result(found.spec, live.mount, found.state.mount is None)
        outcome = _reported(found, live, context)
        if found.mounting:
            # Notes of earlier switches that nobody needs any more.
            detached.in_use()
        return outcome


@dataclass(frozen=True)
class _Found:
    """What is there, what is declared, and what is to be done about it."""

    path: bytes
    state: MountpointState
    #: None where no overlay is to be mounted.
    spec: MountSpec | None
    #: The part of the plan that is about the mount.
    mounting: Plan
    plan: Plan
    stored: Stored
    warnings: list[str]
    #: The overlay that is seen and is to go, if any, and its mount IDs.
    old: Mount | None
    old_mounts: set[int]
    #: Mounts inside of it that have no place in the new one, as sentences; only filled in check mode.
    problems: list[str]


def _observed(path: bytes, params: dict[str, Any], check_mode: bool) -> _Found:
    state = mounts.observe(path)
    spec: MountSpec | None = None
    warnings: list[str] = []
    if params["state"] == "mounted":
        spec, mounting = _plan_declared(path, params, state)
        layer_trust.check_layers(spec, namespaces.own_mounts())
        warnings = _check_layers(spec, bool(mounting), check_mode)
        data_layers.check(spec, mounting)
    else:
        mounting = plan_unmounted(path, state, params["state"] == "absent")
    stored = boot.read()
    plan = _with_persistence(mounting, path, spec, params["persist"], stored)
    # To take away what the declared one covers changes nothing that is seen.
    old = state.mount if any(not isinstance(action, DropCovered) for action in mounting) else None
    old_mounts = namespaces.mounts_like(old) if old else set()
    problems: list[str] = []
    if check_mode and spec and not warnings:
        problems = mounts.not_carried(mounting, state)
    return _Found(path, state, spec, mounting, plan, stored, warnings, old, old_mounts, problems)


def _plan_declared(path: bytes, params: dict[str, Any], state: MountpointState) -> tuple[MountSpec, Plan]:
    """Return the declaration and the plan for it. What is as declared is found so without a look at layers on file servers."""

    def planned(spec: MountSpec) -> Plan:
        return plan_mounted(
            spec,
            state,
            mounts.overlay_defaults(),
            params["switch"],
            mounts.can_mount_beneath(),
            uppers.observe(spec),
            params["inner_mounts"],
        )

    if state.mount is not None:
        live = namespaces.own_mounts()
        as_written = _spec(
            path,
            params,
            lambda layer: still_paths.resolved(layer, live),
            lambda layers: list(filter(is_image_path, layers)),
        )
        if not differences(as_written, state.mount, mounts.overlay_defaults()):
            return as_written, planned(as_written)
    spec = _spec(path, params, os.path.realpath, images.among)
    return spec, planned(spec)


def _reported(found: _Found, after: MountpointState, context: runner.Context) -> runner.Outcome:
    old = found.old
    outcome = _outcome(found.mounting, found.state.mount, after.mount, found.spec)
    _add_persistence(outcome, found.plan, found.mounting, found.stored)
    elsewhere = mounts.shown_elsewhere(old) if old and not context.check_mode else []
    outcome.values["users"] = [process.as_dict() for process in processes.of_mounts(found.old_mounts)] if old else []
    outcome.values["elsewhere"] = [{"path": show(place), "pid": pid} for place, pid in elsewhere]
    switched = any(isinstance(action, SwitchOverlay) for action in found.mounting)
    before = [show(mount.path) for mount in found.state.inner] if switched else []
    there = {show(mount.path) for mount in after.inner}
    outcome.values["carried"] = [path for path in before if path in there]
    lost = (
        found.problems
        if context.check_mode
        else [f"{path} has no place in the new overlay" for path in before if path not in there]
    )
    outcome.warnings = [*found.warnings, *_what_stays(found.path, outcome, elsewhere, bool(after.below)), *lost]
    return outcome


def _with_persistence(mounting: Plan, path: bytes, spec: MountSpec | None, persist: str, stored: Stored) -> Plan:
    """Return the plan with what is needed for mounting at boot: directories before, and all else when it is mounted."""
    missing = boot.missing_places(spec) if spec and persist != "none" else set()
    append = persist != "none" and mounts.takes_layers_one_by_one()
    return (
        *plan_places(spec, persist, missing),
        *mounting,
        *plan_persistence(path, spec, persist, stored, namespaces.own_mounts(), append),
    )


def _add_persistence(outcome: runner.Outcome, plan: Plan, mounting: Plan, stored: Stored) -> None:
    """Have the outcome, which is about the mount, say also what changes of mounting at boot."""
    outcome.plan = plan
    others = [str(action) for action in plan if action not in mounting]
    if others:
        was = {unit.name: unit.text.decode("utf-8", "replace") for unit in stored.units}
        writes = [action.unit for action in plan if isinstance(action, WriteUnit)]
        removed = [action.name for action in plan if isinstance(action, RemoveUnit)]
        before = {name: was[name] for name in (*(unit.name for unit in writes), *removed) if name in was}
        after = {unit.name: unit.text.decode("utf-8", "replace") for unit in writes}
        outcome.before = {**outcome.before, "at boot": {"units": before, "to do": []}}
        outcome.after = {**outcome.after, "at boot": {"units": after, "to do": others}}


def _what_stays(
    path: bytes, outcome: runner.Outcome, elsewhere: Sequence[tuple[bytes, int | None]], covers: bool
) -> list[str]:
    """Return a warning for each place at which the overlay that was there before stays; ``covers``: the new one covers others."""
    found = []
    if outcome.values["method"] == "over" and covers:
        found.append(f"the overlay that was at {show(path)} stays mounted below the new one until both are unmounted")
    for place, pid in elsewhere:
        found.append(f"the overlay that was at {show(path)} is still mounted at {show(place)}{in_namespace(pid)}")
    return found


def _spec(
    path: bytes,
    params: dict[str, Any],
    resolved: Callable[[bytes], bytes],
    images_among: Callable[[Sequence[bytes]], list[bytes]],
) -> MountSpec:
    """Return the declaration, with paths of layers as ``resolved`` gives them, and as images those that ``images_among`` takes for such."""
    lower, data = ([resolved(_absolute(layer, option)) for layer in params[option]] for option in ("lower", "data"))
    writable = None
    if params["scratch"] is not None:
        if params["scratch"] <= 0:
            raise OverlayError(f"'scratch' is a size such as 2G, and not {params['scratch']}")
        writable = scratch_space(params["scratch"])
    elif params["upper"] is not None:
        upper, work = (os.path.realpath(_absolute(params[option], option)) for option in ("upper", "work"))
        writable = Writable(upper, work)
    read_only = writable is None if params["read_only"] is None else params["read_only"]
    found = images_among(lower)
    return mount_spec(path, lower, data, params["options"], read_only, found, writable, params["strategy"])


def _check_layers(spec: MountSpec, mounting: bool, check_mode: bool) -> list[str]:
    """Return a warning about a layer that is not there, or raise OverlayError where it is needed.

    A live overlay holds on to its layers. In check mode the task that would make a layer has not made it.
    """
    live = namespaces.own_mounts()

    def can_look(layer: bytes) -> bool:
        # A file server that is gone need not keep anybody from finding that nothing has to be done.
        return mounting or still_paths.is_local(layer, live)

    for image in spec.images:
        name = without_suffix(image)
        if can_look(name) and mounts.is_other_content(name):
            raise OverlayError(
                f"there are both an image {show(image)} and a directory {show(name)} with something in it: the kernel's report cannot tell"
                " them apart, so rename one of them"
            )
    missing = [layer for layer in spec.directories if can_look(layer) and not os.path.isdir(layer)]
    missing += [image for image in spec.images if can_look(image) and not os.path.isfile(image)]
    if not missing:
        return []
    kind = "file" if missing[0] in spec.images else "directory"
    sentence = f"layer {show(missing[0])} of the overlay at {show(spec.path)} does not exist or is not a {kind}"
    if mounting and not check_mode:
        raise OverlayError(sentence)
    return [sentence]


def _absolute(path: str, option: str) -> bytes:
    runner.check_absolute(path, option)
    return os.fsencode(path)


def _check_result(spec: MountSpec, live: Mount | None, new: bool) -> None:
    """Raises OverlayError when the kernel has mounted something else. Where nothing was mounted before, nothing is left then."""
    changes = differences(spec, live, mounts.overlay_defaults()) if live else {"mount": (None, "overlay")}
    if changes:
        if new and live:
            mounts.detach(spec.path)
        undone = "; it was unmounted again" if new and live else ""
        raise OverlayError(
            f"the kernel mounted the overlay at {show(spec.path)} otherwise than declared: {explained(changes)}{undone}"
        )


def _method(plan: Plan) -> str | None:
    """Return how the overlay is switched; None where it is not. To detach what covers the declared one ends a switch beneath."""
    for action in reversed(plan):
        if isinstance(action, SwitchOverlay):
            return action.method
        if isinstance(action, DetachOverlay):
            return "beneath"
    return None


def _outcome(plan: Plan, before: Mount | None, live: Mount | None, spec: MountSpec | None) -> runner.Outcome:
    method = _method(plan)
    values = {
        "mount": described(live) if live and live.fstype == b"overlay" else None,
        "switched": method is not None,
        "method": method,
    }
    was = declared_by(before)
    will_be = (spec.as_dict() if spec else {}) if plan else was
    return runner.Outcome(values, plan, was, will_be)


if __name__ == "__main__":
    main()
