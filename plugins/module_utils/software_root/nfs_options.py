# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The declaration of a software root that is mounted over NFS, and how a live mount differs from it.

The kernel prints the options of an NFS mount in nfs_show_mount_options (fs/nfs/super.c, Linux 6.12): it omits defaults, prints
``actimeo`` as its four parts, and prints the values that client and server have negotiated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, unescape

#: Each option for a flag of the mount, the flag that the kernel prints, and whether it must be present.
_FLAGS = {
    "ro": ("ro", True),
    "rw": ("ro", False),
    "nodev": ("nodev", True),
    "dev": ("nodev", False),
    "nosuid": ("nosuid", True),
    "suid": ("nosuid", False),
    "noexec": ("noexec", True),
    "exec": ("noexec", False),
    "noatime": ("noatime", True),
    "atime": ("noatime", False),
    "nodiratime": ("nodiratime", True),
    "diratime": ("nodiratime", False),
}

#: Options of which the kernel prints only the negation.
_PRINTED_WHEN_OFF = ("cto", "ac", "lock", "acl", "rdirplus", "resvport", "sharecache")

#: Options that the kernel omits when they have these values.
_DEFAULTS = {
    "acregmin": "3",
    "acregmax": "60",
    "acdirmin": "30",
    "acdirmax": "60",
    "lookupcache": "all",
    "nconnect": "1",
    "local_lock": "none",
}

#: Other spellings that the kernel or mount.nfs accepts (nfs(5)).
_SPELLINGS = {
    "tcp": "proto=tcp",
    "udp": "proto=udp",
    "rdma": "proto=rdma",
    "fg": "",
    "bg": "",
    "defaults": "",
    "lookupcache=positive": "lookupcache=pos",
}

#: Options for mount(8), mount.nfs(8) and systemd, which the kernel does not print.
_NOT_PRINTED = re.compile(
    r"_netdev|nofail|noauto|auto|no?user|users|group|owner|relatime|strictatime|lazytime|retry=.*|comment=.*|x-.*"
    r"|mount(proto|port|vers|host|addr)=.*|minorversion=.*|sloppy|intr|nointr"
)

#: Sizes that a server may lower, so a smaller value than requested is accepted.
_NEGOTIATED = ("rsize", "wsize")

_SURROGATES = re.compile("[\ud800-\udfff]")

#: A number in ASCII digits, short enough for int().
_NUMBER = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True)
class SoftwareRootSpec:
    """The declaration of a mounted software root."""

    path: bytes
    source: str
    fstype: str
    options: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration for the diff."""
        return {
            "path": show(self.path),
            "source": self.source,
            "options": {name: value for option in self.options for name, value in _expected(option)},
        }


def software_root_spec(path: bytes, source: str, fstype: str, options: Sequence[str]) -> SoftwareRootSpec:
    """Return the declaration of a software root. Raises OverlayError for values that mount(8) or fstab(5) cannot take."""
    for text in (source, *options):
        if _SURROGATES.search(text):
            raise OverlayError(f"{text!r} is not UTF-8: give the source and the options in UTF-8")
    if not re.match(r"[^\s:/-][^\s/]*:/", source) and not re.match(r"\[[0-9A-Fa-f:.%\w]+\]:/", source):
        raise OverlayError(
            f"source {source!r} is not an NFS export; give server and directory, as in filer:/export/software"
        )
    for option in options:
        if not option or re.search(r"[\s,#]", option):
            raise OverlayError(
                f"option {option!r} may not be empty or contain commas, spaces or '#'; give a list of options"
            )
    return SoftwareRootSpec(path, source, fstype, tuple(options))


def _expected(option: str) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each property of a live mount that an option sets; none if the kernel does not show it."""
    option = _SPELLINGS.get(option, option)
    version = re.fullmatch(r"(?:nfsvers=|vers=|v)([0-9][0-9.]*)", option)
    if version:
        yield "vers", version.group(1)
        return
    if not option or _NOT_PRINTED.fullmatch(option):
        return
    name, separator, value = option.partition("=")
    if option in _FLAGS:
        yield _FLAGS[option]
    elif option in ("hard", "soft", "softerr"):
        yield "on_timeout", option
    elif name == "actimeo":
        for part in ("acregmin", "acregmax", "acdirmin", "acdirmax"):
            yield part, value
    elif separator:
        yield name, value
    elif option.startswith("no") and option[2:] in (*_PRINTED_WHEN_OFF, "fsc"):
        yield option[2:], False
    else:
        yield option, True


def _observed(live: Mount, name: str) -> Any:
    """Return the value of a property of a live mount."""
    if (name, True) in _FLAGS.values():
        return name.encode() in live.flags
    words = {}
    for option in live.super_options:
        key, separator, value = unescape(option).decode("utf-8", "replace").partition("=")
        words[key] = value if separator else True
    if name == "on_timeout":
        return next((word for word in ("soft", "softerr") if word in words), "hard")
    if name in _PRINTED_WHEN_OFF:
        return f"no{name}" not in words
    return words.get(name, _DEFAULTS.get(name, False))


def nfs_differences(spec: SoftwareRootSpec, live: Mount) -> dict[str, tuple[Any, Any]]:
    """Map each property in which a live mount differs from its declaration to the observed and the declared value.

    Only declared options are compared. The source is not, since a mount of another source is never replaced.
    """
    found = {}
    for option in spec.options:
        for name, wanted in _expected(option):
            actual = _observed(live, name)
            if not _same(name, wanted, actual):
                found[name] = (actual, wanted)
    return found


def _same(name: str, wanted: Any, actual: Any) -> bool:
    if wanted == actual:
        return True
    if not (isinstance(wanted, str) and isinstance(actual, str)):
        return False
    if name == "vers":
        return "." not in wanted and actual.startswith(f"{wanted}.")
    if not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(actual)):
        return False
    return int(actual) <= int(wanted) if name in _NEGOTIATED else int(wanted) == int(actual)


def declared_by(live: Mount | None, spec: SoftwareRootSpec | None) -> dict[str, Any]:
    """Return the declared properties of a live mount for the diff; empty if there is no mount."""
    if live is None:
        return {}
    found: dict[str, Any] = {"path": show(live.path), "source": show(live.source)}
    if spec:
        changes = nfs_differences(spec, live)
        # A value that differs and is accepted, such as a smaller rsize, is shown as declared, so that the diff is empty.
        found["options"] = {
            name: _observed(live, name) if name in changes else wanted
            for option in spec.options
            for name, wanted in _expected(option)
        }
    return found


def nfs_mount_values(live: Mount) -> dict[str, Any]:
    """Return a live mount as the module returns it."""
    return {
        "path": show(live.path),
        "source": show(live.source),
        "type": live.fstype.decode("ascii", "replace"),
        "flags": [show(flag) for flag in live.flags],
        "options": [show(unescape(option)) for option in live.super_options],
    }
