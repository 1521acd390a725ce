# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A software root that is mounted over NFS: its declaration, how a live mount differs from it, its line in fstab, and plans.

What the kernel prints of an NFS mount is in fs/nfs/super.c (nfs_show_mount_options): defaults are left out, ``actimeo`` comes as its
four parts, and what server and client have agreed upon comes as it was agreed upon.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Action,
    CreateMountpoint,
    Plan,
    RemoveMountpoint,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    Mountpoint,
    overlay_layers,
    unescape,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes

#: Type of a live mount: the kernel says nfs of version 3 and nfs4 of version 4, whatever was asked for.
NFS_TYPES = (b"nfs", b"nfs4")

#: Flags of a mount: each word, the flag that the kernel prints, and whether that has to be there.
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

#: Words of which the kernel prints only the negation.
_PRINTED_WHEN_OFF = ("cto", "ac", "lock", "acl", "rdirplus", "resvport", "sharecache")

#: Options that the kernel leaves out when they have these values.
_DEFAULTS = {
    "acregmin": "3",
    "acregmax": "60",
    "acdirmin": "30",
    "acdirmax": "60",
    "lookupcache": "all",
    "nconnect": "1",
    "local_lock": "none",
}

#: Other spellings that the kernel or mount.nfs takes (nfs(5)).
_SPELLINGS = {
    "tcp": "proto=tcp",
    "udp": "proto=udp",
    "rdma": "proto=rdma",
    "fg": "",
    "bg": "",
    "defaults": "",
    "lookupcache=positive": "lookupcache=pos",
}

#: What mount(8), mount.nfs(8) and systemd read, and the kernel never sees or prints.
_NOT_PRINTED = re.compile(
    r"_netdev|nofail|noauto|auto|no?user|users|group|owner|relatime|strictatime|lazytime|retry=.*|comment=.*|x-.*"
    r"|mount(proto|port|vers|host|addr)=.*|minorversion=.*|sloppy|intr|nointr"
)

#: The kernel keeps read-ahead in pages, which have up to 64 KiB.
READ_AHEAD_UNIT = 64

#: Sizes that a server may lower, so less than was asked for is as good as it gets.
_NEGOTIATED = ("rsize", "wsize")

_SURROGATES = re.compile("[\ud800-\udfff]")

#: A number that Python makes one of: not of other scripts, and not of thousands of digits.
_NUMBER = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True)
class SoftwareRootSpec:
    """The declaration of a software root that is mounted."""

    path: bytes
    source: str
    fstype: str
    options: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration as the diff shows it."""
        return {
            "path": show(self.path),
            "source": self.source,
            "options": {name: value for option in self.options for name, value in _expected(option)},
        }


def software_root_spec(path: bytes, source: str, fstype: str, options: Sequence[str]) -> SoftwareRootSpec:
    """Raises OverlayError for what could not be given to mount(8), or written to fstab, as it is."""
    for text in (source, *options):
        if _SURROGATES.search(text):
            raise OverlayError(f"{text!r} is no text: give the source and the options in UTF-8")
    if not re.match(r"[^\s:/-][^\s/]*:/", source) and not re.match(r"\[[0-9A-Fa-f:.%\w]+\]:/", source):
        raise OverlayError(
            f"source {source!r} is not an NFS export; give server and folder, as in filer:/export/software"
        )
    for option in options:
        if not option or re.search(r"[\s,#]", option):
            raise OverlayError(
                f"option {option!r} may not be empty or contain commas, spaces or '#'; give a list of options"
            )
    return SoftwareRootSpec(path, source, fstype, tuple(options))


def _expected(option: str) -> Iterator[tuple[str, Any]]:
    """Yield the properties of a mount that an option stands for, each as its name and its value; none where nothing is to be seen."""
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
    """Return a property of a live mount."""
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


def differences(spec: SoftwareRootSpec, live: Mount) -> dict[str, tuple[Any, Any]]:
    """Return in what a live mount differs from its declaration: for each property what is there and what should be.

    Only what is declared is compared. The source is not part of it: a mount of another one is never exchanged.
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
    """Return of a live mount what the declaration speaks of; empty where there is none."""
    if live is None:
        return {}
    shown: dict[str, Any] = {"path": show(live.path), "source": show(live.source)}
    if spec:
        shown["options"] = {
            name: _observed(live, name) for option in spec.options for name, _value in _expected(option)
        }
        # Where a value is as good as the wanted one, the diff has nothing to tell.
        changes = differences(spec, live)
        shown["options"].update(
            (name, value) for option in spec.options for name, value in _expected(option) if name not in changes
        )
    return shown


def described(live: Mount) -> dict[str, Any]:
    """Return a mount as the module returns it."""
    return {
        "path": show(live.path),
        "source": show(live.source),
        "type": live.fstype.decode("ascii", "replace"),
        "flags": [show(flag) for flag in live.flags],
        "options": [show(unescape(option)) for option in live.super_options],
    }


# fstab


def fstab_line(spec: SoftwareRootSpec) -> bytes:
    """Return the software root's line of fstab(5)."""
    options = ",".join(spec.options) or "defaults"
    fields = [to_bytes(spec.source), spec.path, spec.fstype.encode(), options.encode()]
    return b" ".join(map(_escaped, fields)) + b" 0 0\n"


def _escaped(field: bytes) -> bytes:
    return re.sub(rb"[ \t\n\\#]", lambda match: b"\\%03o" % match.group()[0], field)


def edited_fstab(text: bytes, path: bytes, line: bytes | None) -> bytes:
    """Return the content of fstab with ``line`` as the one line for the mountpoint ``path``, or with none."""
    kept: list[bytes] = []
    for present in text.splitlines(keepends=True):
        fields = present.split()
        if len(fields) < 2 or fields[0].startswith(b"#") or unescape(fields[1]).rstrip(b"/") != path.rstrip(b"/"):
            kept.append(present)
        elif line is not None:
            kept.append(line)
            line = None
    if line is not None:
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        kept.append(line)
    return b"".join(kept)


# Plans


@dataclass(frozen=True)
class SetReadAhead(Action):
    path: bytes
    kibibytes: int

    def __str__(self) -> str:
        return f"read {self.kibibytes} KiB ahead at {show(self.path)}"


@dataclass(frozen=True)
class MountSoftwareRoot(Action):
    spec: SoftwareRootSpec

    def __str__(self) -> str:
        return f"mount {self.spec.source} at {show(self.spec.path)}"


@dataclass(frozen=True)
class UnmountSoftwareRoot(Action):
    path: bytes

    def __str__(self) -> str:
        return f"unmount {show(self.path)}"


@dataclass(frozen=True)
class WriteFstab(Action):
    path: bytes
    #: None to have no line for the path.
    line: bytes | None

    def __str__(self) -> str:
        return f"{'remove' if self.line is None else 'write'} the line for {show(self.path)} in /etc/fstab"


def plan_mounted(spec: SoftwareRootSpec, state: Mountpoint, live: Sequence[Mount], replace: bool) -> Plan:
    """Raises OverlayError where something else is in the way, or the live mount differs and may not be replaced."""
    mount = state.mount
    if mount is None:
        if state.empty is None:
            return CreateMountpoint(spec.path), MountSoftwareRoot(spec)
        if not state.empty:
            raise OverlayError(f"mountpoint {show(spec.path)} is not empty: a mount there would hide what is in it")
        return (MountSoftwareRoot(spec),)
    check_is_nfs(mount)
    if _without_slash(mount.source) != _without_slash(to_bytes(spec.source)):
        raise OverlayError(
            f"{show(spec.path)} has a mount of {show(mount.source)}, not of {spec.source}: it is left alone; unmount it first"
        )
    changes = differences(spec, mount)
    if not changes:
        return ()
    if not replace:
        listed = ", ".join(f"{name}: {now} -> {wanted}" for name, (now, wanted) in changes.items())
        raise OverlayError(
            f"the software root at {show(spec.path)} is mounted with other options than declared ({listed}); with 'replace: true' it"
            " is unmounted and mounted anew, which fails while it is in use"
        )
    check_not_a_layer(mount, live)
    return UnmountSoftwareRoot(spec.path), MountSoftwareRoot(spec)


def plan_read_ahead(path: bytes, wanted: int | None, observed: int | None, mounting: bool) -> Plan:
    """``observed`` is that of the live mount, in KiB; None where none is mounted. Raises OverlayError for what the kernel cannot keep."""
    if wanted is None:
        return ()
    if wanted <= 0 or wanted % READ_AHEAD_UNIT:
        raise OverlayError(
            f"read_ahead is {wanted}: it has to be a positive multiple of {READ_AHEAD_UNIT} KiB, such as 1024"
        )
    return () if wanted == observed and not mounting else (SetReadAhead(path, wanted),)


def plan_unmounted(path: bytes, state: Mountpoint, live: Sequence[Mount], absent: bool) -> Plan:
    """Raises OverlayError for what is not an NFS mount, and while an overlay reads from it."""
    actions: tuple[Action, ...] = ()
    if state.mount is not None:
        check_is_nfs(state.mount)
        check_not_a_layer(state.mount, live)
        actions += (UnmountSoftwareRoot(path),)
    elif absent and state.empty is False:
        raise OverlayError(f"directory {show(path)} is not empty: it is not removed")
    if absent and (state.mount or state.empty):
        actions += (RemoveMountpoint(path),)
    return actions


def _without_slash(source: bytes) -> bytes:
    return source.rstrip(b"/") if not source.endswith(b":/") else source


def check_is_nfs(mount: Mount) -> None:
    if mount.fstype not in NFS_TYPES:
        kind = mount.fstype.decode("ascii", "replace")
        raise OverlayError(
            f"{show(mount.path)} has a mount of type {kind} from {show(mount.source)}, not of NFS: it is left alone"
        )


def check_not_a_layer(mount: Mount, live: Sequence[Mount]) -> None:
    """An overlay holds its layers by itself: unmounting one would succeed, and views would go on reading the old mount unseen."""
    inside = mount.path.rstrip(b"/") + b"/"
    for other in live:
        if other.fstype != b"overlay":
            continue
        layers = overlay_layers(other)
        if any((path + b"/").startswith(inside) for path in (*layers.lower, *layers.data)):
            raise OverlayError(
                f"{show(mount.path)} is a layer of the overlay at {show(other.path)}: unmount that first; nothing was unmounted"
            )
