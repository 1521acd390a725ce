# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting a software root over NFS with mount(8), and keeping it in fstab."""

from __future__ import annotations

import contextlib
import os

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import commands, fstab, mountpoints
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import (
    MountSoftwareRoot,
    SetReadAhead,
    SoftwareRootSpec,
    UnmountSoftwareRoot,
    WriteFstab,
    edited_fstab,
)

#: Seconds for the rules of udev that follow a mount.
_SETTLE_SECONDS = 10.0


def handlers(seconds: float) -> Handlers:
    """Return what carries out the actions of a plan for a software root; a mount that takes longer than ``seconds`` is given up."""
    return {
        **mountpoints.HANDLERS,
        MountSoftwareRoot: lambda action: mount(action.spec, seconds),
        UnmountSoftwareRoot: lambda action: mountpoints.unmount(action.path),
        WriteFstab: lambda action: fstab.edit(lambda text: edited_fstab(text, action.path, action.line)),
        SetReadAhead: lambda action: _set_read_ahead(action.path, action.kibibytes),
    }


def mount(spec: SoftwareRootSpec, seconds: float) -> None:
    """Mount a software root. mount(8) is used because finding the server and the protocol is the work of its helper mount.nfs(8).

    Raises OverlayError with what it says when it fails, or when it takes longer than ``seconds``.
    """
    options = list(spec.options)
    if not any(option.startswith("retry=") for option in options):
        # By default mount.nfs tries for two minutes: as long as the module may take, which then could not tell the reason.
        options.append("retry=0")
    argv = ["mount", "-t", spec.fstype, "-o", ",".join(options), spec.source, os.fsdecode(spec.path)]
    what = f"mounting {spec.source} at {show(spec.path)}"
    try:
        status, output = commands.run(argv, seconds)
    except FileNotFoundError:
        raise OverlayError(f"{what}: there is no mount(8) on this host") from None
    except TimeoutError:
        raise OverlayError(f"{what}: the server has not answered for {seconds:g} seconds") from None
    if status:
        said = "; ".join(show(line.strip()) for line in output.split(b"\n") if line.strip())
        raise OverlayError(f"{what} failed (status {status}): {said}{_hint(said)}")


def read_ahead(mount: Mount) -> int | None:
    """Return how much the kernel reads ahead at a mount, in KiB; None where it does not say."""
    try:
        with open(_read_ahead_file(mount), "rb") as stream:
            return int(stream.read())
    except FileNotFoundError:
        return None


def _read_ahead_file(mount: Mount) -> str:
    return "/sys/class/bdi/{}:{}/read_ahead_kb".format(*mount.device)


def _set_read_ahead(path: bytes, kibibytes: int) -> None:
    mount = mountpoints.observe(path).mount
    if mount is None or read_ahead(mount) is None:
        raise OverlayError(f"{show(path)}: the kernel does not say how much it reads ahead there, so it cannot be set")
    # A rule of udev, which runs nfsrahead(5), sets it as well, a moment after the mount.
    with contextlib.suppress(FileNotFoundError, TimeoutError):
        commands.run(["udevadm", "settle"], _SETTLE_SECONDS)
    with open(_read_ahead_file(mount), "wb") as stream:
        stream.write(b"%d" % kibibytes)


def _hint(said: str) -> str:
    if "helper program" in said or "unknown filesystem type" in said:
        return "; the NFS client is missing: nfs-common on Debian and Ubuntu, nfs-utils on Rocky"
    return ""


def has_content(path: bytes) -> bool:
    """Tell whether there is something in a software root. Raises OverlayError where there is no directory."""
    empty = mountpoints.directory_state(path)
    if empty is None:
        raise OverlayError(f"software root {show(path)} does not exist: is it mounted?")
    return not empty
