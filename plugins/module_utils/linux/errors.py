# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong for reasons that a user can mend, and how paths are shown in messages."""

from __future__ import annotations


class OverlayError(Exception):
    """A refusal or a failure with a message for the user: it names the path or name, the reason, and what to do."""


class ManifestError(OverlayError):
    """A manifest is not what it should be: malformed, truncated or altered."""


def show(path: bytes) -> str:
    """Return a path for a message: UTF-8 as it is, control characters and other bytes as backslash escapes."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


#: Types of file systems whose files are on a server, which decides itself what root may do.
_OF_SERVERS = frozenset(
    (b"nfs", b"nfs4", b"cifs", b"smb3", b"ceph", b"9p", b"afs", b"lustre", b"fuse.glusterfs", b"fuse.sshfs")
)


def refusal_hint(as_root: bool, no_access: bool, fstype: bytes | None) -> str:
    """Return what to do where a permission is denied, to go behind the error; empty where nothing is known.

    ``no_access`` is that the error is EACCES; ``fstype`` is the type of the file system that the path is on.
    """
    if not as_root:
        return ": run the task as root (become: true)"
    if not no_access:
        return ""
    if fstype in _OF_SERVERS:
        return (
            ": the file server does not let root of this host in, as an export with root_squash does; let everybody read what"
            " is to be read (chmod o+rX), or run the task on a host whose root the server accepts"
        )
    why = "as happens in a user namespace or a container without CAP_DAC_OVERRIDE"
    return f": root itself is refused, {why}; run the task as root of the host"
