# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounting a software root over NFS with mount(8), and keeping it in fstab."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.nfs import (
    MountSoftwareRoot,
    SoftwareRootSpec,
    UnmountSoftwareRoot,
    WriteFstab,
    edited_fstab,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.plan import Action
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, mounts

FSTAB = "/etc/fstab"


def read_fstab() -> bytes:
    try:
        with open(FSTAB, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return b""


def apply(action: Action, seconds: float) -> None:
    """Carry out one action of a plan for a software root; mounting is given up after ``seconds``."""
    if isinstance(action, MountSoftwareRoot):
        mount(action.spec, seconds)
    elif isinstance(action, UnmountSoftwareRoot):
        mounts.unmount(action.path)
    elif isinstance(action, WriteFstab):
        _write_fstab(edited_fstab(read_fstab(), action.path, action.line))
    else:
        mounts.apply(action)


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
        # A session of its own, so that the helper can be ended as well. The run_command of AnsibleModule has no time limit.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            argv,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise OverlayError(f"{what}: there is no mount(8) on this host") from None
    with process:
        try:
            output, _none = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise OverlayError(f"{what}: the server has not answered for {seconds:g} seconds") from None
    if process.returncode:
        said = "; ".join(show(line.strip()) for line in output.split(b"\n") if line.strip())
        raise OverlayError(f"{what} failed (status {process.returncode}): {said}{_hint(said)}")


def _hint(said: str) -> str:
    if "helper program" in said or "unknown filesystem type" in said:
        return "; the NFS client is missing: nfs-common on Debian and Ubuntu, nfs-utils on Rocky"
    return ""


def has_content(path: bytes) -> bool:
    """Tell whether there is something in a software root. Raises OverlayError where there is no directory."""
    empty = mounts.directory_state(path)
    if empty is None:
        raise OverlayError(f"software root {show(path)} does not exist: is it mounted?")
    return not empty


def _write_fstab(text: bytes) -> None:
    # The file may be a link into a folder of settings.
    path = os.path.realpath(FSTAB)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mode = 0o644
    with files.written_aside(path, mode) as stream:
        stream.write(text)
