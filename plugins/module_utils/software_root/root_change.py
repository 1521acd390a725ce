# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring software roots to their declared state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mount_lock, mountpoints
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount, root_plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import software_root_spec
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.root_plan import (
    DeclaredRoot,
    ObservedRoot,
)


@dataclass(frozen=True)
class RootChange:
    """What was done, or in check mode would be done, for a software root."""

    plan: Plan = ()
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    #: The mount at the end.
    live: Mount | None = None
    warnings: tuple[str, ...] = ()
    #: Whether it has to be mounted, and this host has no NFS client.
    client_missing: bool = False
    #: Why nothing was done; empty if it was.
    failure: str = ""


@dataclass(frozen=True)
class Carrying:
    """How a plan is carried out: in check mode not at all."""

    check_mode: bool
    carry_out: Callable[[Plan, Handlers], None]
    progress: Progress
    #: Seconds that another run may hold the lock of the mountpoint, and those after which a mount is given up.
    lock_seconds: float
    mount_seconds: float


def declared_root(path: bytes, params: Mapping[str, Any]) -> DeclaredRoot:
    """Return what the parameters of the module software_root declare for a mountpoint. Raises OverlayError if one cannot be."""
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


def present(path: bytes) -> RootChange:
    """Check that there is a software root that something else mounts. Raises OverlayError if its path is missing or empty."""
    mountpoints.check_has_content(path)
    return RootChange(live=mountpoints.observe(path).mount)


def change(declared: DeclaredRoot, carrying: Carrying) -> RootChange:
    """Bring a software root to its declared state. Raises OverlayError if something is in the way, or mounting fails."""
    observed = nfs_mount.observe(declared)
    plan = root_plan.plan_root(declared, observed)
    if nfs_mount.lacks_client(declared, plan) and not carrying.check_mode and declared.spec:
        what = f"mounting {declared.spec.source} at {declared.spec.as_dict()['path']}"
        return RootChange(client_missing=True, failure=f"{what}: {nfs_mount.CLIENT_MISSING}")
    if carrying.check_mode or not plan:
        return _done(declared, observed, plan, observed.mountpoint.mount)
    with mount_lock.held(declared.path, carrying.lock_seconds, carrying.progress):
        # Another run may have changed the mount while this one waited for the lock.
        observed = nfs_mount.observe(declared)
        plan = root_plan.plan_root(declared, observed)
        with mountpoints.undone_on_failure():
            carrying.carry_out(plan, nfs_mount.handlers(carrying.mount_seconds))
        return _done(declared, observed, plan, mountpoints.observe(declared.path).mount, carried_out=True)


#: The most software roots that are changed at the same time.
_AT_ONCE = 64


def change_each(
    paths: Sequence[bytes], change_one: Callable[[int], RootChange], progress: Progress
) -> list[RootChange | OverlayError | OSError]:
    """Call ``change_one`` with the position of each mountpoint, and return what it returns or raises, in the order of ``paths``.

    ``progress`` is called after each. Mounts wait at the same time for servers that do not answer, so several dead servers take no longer
    than one.
    """
    groups = root_plan.grouped(paths)
    found: dict[int, RootChange | OverlayError | OSError] = {}

    def change_group(group: Sequence[int]) -> None:
        for position in group:
            try:
                found[position] = change_one(position)
            except (OverlayError, OSError) as error:
                found[position] = error
            progress()

    with futures.ThreadPoolExecutor(min(len(groups), _AT_ONCE) or 1) as pool:
        for done in [pool.submit(change_group, group) for group in groups]:
            done.result()
    return [found[position] for position in range(len(paths))]


def _done(
    declared: DeclaredRoot, observed: ObservedRoot, plan: Plan, live: Mount | None, carried_out: bool = False
) -> RootChange:
    before, after = root_plan.diff_of(declared, observed, plan)
    is_new = carried_out and root_plan.changes_mount(plan)
    warnings = root_plan.ignored_options(declared.spec, live) if is_new else []
    return RootChange(plan, before, after, live, tuple(warnings), nfs_mount.lacks_client(declared, plan))
