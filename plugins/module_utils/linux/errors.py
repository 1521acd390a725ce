# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that a user can act on, and paths in messages."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable


class OverlayError(Exception):
    """A failure with a message for the user: it names the path or object, what is wrong, and what to do."""


class ManifestError(OverlayError):
    """A manifest is malformed, truncated or altered."""


class HostError(OverlayError):
    """A failure for a reason of this host or its mounts. Another host may be able to do the same."""


#: Errors that depend on the host: its access to a file system, how it has mounted it, and its connection to the server.
_OF_HOST = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    )
)


def is_of_host(error: Exception) -> bool:
    """Return whether another host may be able to do what failed."""
    return isinstance(error, HostError) or (isinstance(error, OSError) and error.errno in _OF_HOST)


def show(path: bytes) -> str:
    """Return a path for a message: UTF-8 as it is, control characters and other bytes as backslash escapes."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def show_text(text: str) -> str:
    """Return a text for a message as ``show`` returns its bytes. Lone surrogates that stand for no byte become escapes."""
    try:
        return show(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return show(text.encode("utf-8", "backslashreplace"))


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown name: the known name that is most like it; empty if none is.

    ``prefix`` is what all names begin with. It is not compared, since it makes all of them alike.
    """
    without = [one[len(prefix) :] for one in known]
    near = difflib.get_close_matches(name[len(prefix) :], without, 1)
    return f": did you mean {show_text(prefix + near[0])}?" if near else ""


def mentions(message: str, name: str) -> bool:
    """Return whether a message has a name in it that is no part of a longer one, so that it need not be put before the message."""
    return re.search(rf"(?<![\w.@+~-]){re.escape(name)}(?![\w@+~-]|\.\w)", message) is not None


#: Types of network file systems, whose server decides what root may do.
_OF_SERVERS = frozenset(
    (b"nfs", b"nfs4", b"cifs", b"smb3", b"ceph", b"9p", b"afs", b"lustre", b"fuse.glusterfs", b"fuse.sshfs")
)


def refusal_hint(as_root: bool, no_access: bool, fstype: bytes | None) -> str:
    """Return the end of a message about a denied permission: what to do about it; empty if nothing is known.

    ``no_access`` tells whether the error is EACCES. ``fstype`` is the type of the file system that the path is on.
    """
    if not as_root:
        return ": run the task as root (become: true)"
    if not no_access:
        return ""
    if fstype in _OF_SERVERS:
        return (
            ": the file server denies access to root of this host, as an export with root_squash does; make the files readable for all"
            " (chmod o+rX), or run the task on a host whose root the server accepts"
        )
    why = "as happens in a user namespace or a container without CAP_DAC_OVERRIDE"
    return f": root itself is refused, {why}; run the task as root of the host"
