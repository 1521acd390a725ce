# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe a software root that is mounted over NFS, and carry out the actions of its plan."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    boot_files,
    fstab_lines,
    mountpoints,
    namespaces,
    processes,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import (
    SoftwareRootSpec,
    nfs_mount_values,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.root_plan import (
    DeclaredRoot,
    MountSoftwareRoot,
    ObservedRoot,
    SetReadAhead,
    UnmountSoftwareRoot,
    WriteRootLine,
)

#: Seconds to wait for the udev rules that a mount triggers.
_SETTLE_SECONDS = 10.0


def observe(declared: DeclaredRoot) -> ObservedRoot:
    """Return the state that a declaration is compared with. Raises OverlayError if the path is not a directory."""
    mountpoint = mountpoints.observe(declared.path)
    return ObservedRoot(
        mountpoint,
        namespaces.own_mounts(),
        read_ahead(mountpoint.mount) if mountpoint.mount else None,
        boot_files.fstab() if declared.in_fstab else b"",
    )


def values_of(live: Mount | None) -> dict[str, Any] | None:
    """Return a live mount, with its read-ahead, as the module returns it; None if nothing is mounted."""
    return {**nfs_mount_values(live), "read_ahead": read_ahead(live)} if live else None


def handlers(seconds: float) -> Handlers:
    """Return the handlers of the actions for a software root. A mount that takes longer than ``seconds`` is given up."""
    return {
        **mountpoints.HANDLERS,
        MountSoftwareRoot: lambda action: mount(action.spec, seconds),
        UnmountSoftwareRoot: lambda action: mountpoints.unmount(action.path),
        WriteRootLine: lambda action: boot_files.edit_fstab(
            lambda text: fstab_lines.replaced(text, action.path, action.line)
        ),
        SetReadAhead: lambda action: _set_read_ahead(action.path, action.kibibytes),
    }


#: Where mount(8) looks for its helpers, besides the path.
_HELPERS = "/sbin:/usr/sbin"

CLIENT_MISSING = "the NFS client is missing: install nfs-common on Debian and Ubuntu, nfs-utils on Rocky"


def lacks_client(declared: DeclaredRoot, plan: Plan) -> bool:
    """Return whether a plan mounts a software root, and this host has no helper of mount(8) for its type of file system."""
    if declared.spec is None or not any(isinstance(action, MountSoftwareRoot) for action in plan):
        return False
    return shutil.which(f"mount.{declared.spec.fstype}", path=f"{_HELPERS}:{os.environ.get('PATH', '')}") is None


def mount(spec: SoftwareRootSpec, seconds: float) -> None:
    """Mount a software root with mount(8), whose helper mount.nfs(8) negotiates the address and the protocol with the server.

    Raises OverlayError with the output of mount(8) if it fails, and after ``seconds``.
    """
    options = list(spec.options)
    if not any(option.startswith("retry=") for option in options):
        # By default mount.nfs retries for two minutes, the default time limit of the module, so that no reason would be reported.
        options.append("retry=0")
    argv = ["mount", "-t", spec.fstype, "-o", ",".join(options), spec.source, os.fsdecode(spec.path)]
    what = f"mounting {spec.source} at {show(spec.path)}"
    try:
        status, output = processes.run(argv, seconds)
    except FileNotFoundError:
        raise OverlayError(f"{what}: this host has no mount(8); install util-linux") from None
    except TimeoutError:
        raise OverlayError(
            f"{what}: the server has not answered for {seconds:g} seconds; check the server, or raise 'timeout'"
        ) from None
    if status:
        said = "; ".join(show(line.strip()) for line in output.split(b"\n") if line.strip())
        raise OverlayError(f"{what} failed (status {status}): {said}{_hint(said)}")


def read_ahead(mount: Mount) -> int | None:
    """Return the read-ahead of a mount in KiB; None if the kernel does not report it."""
    try:
        with open(_read_ahead_file(mount), "rb") as stream:
            return int(stream.read())
    except FileNotFoundError:
        return None


def _read_ahead_file(mount: Mount) -> str:
    return "/sys/class/bdi/{}:{}/read_ahead_kb".format(*mount.device)


def _set_read_ahead(path: bytes, kibibytes: int) -> None:
    """Set the read-ahead of the mount at ``path``. Raises OverlayError if the kernel does not report it."""
    mount = mountpoints.observe(path).mount
    if mount is None or read_ahead(mount) is None:
        raise OverlayError(
            f"{show(path)}: the kernel does not report the read-ahead of this mount, so it cannot be set; omit 'read_ahead'"
        )
    # A udev rule that runs nfsrahead(5) sets it as well, a moment after the mount.
    with contextlib.suppress(FileNotFoundError, TimeoutError):
        processes.run(["udevadm", "settle"], _SETTLE_SECONDS)
    with open(_read_ahead_file(mount), "wb") as stream:
        stream.write(b"%d" % kibibytes)


def _hint(said: str) -> str:
    """Return what to do about a failure of mount(8); empty if nothing is known."""
    if "helper program" in said or "unknown filesystem type" in said:
        return f"; {CLIENT_MISSING}"
    return ""
