# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays that are mounted at boot: mount units of systemd (systemd.mount(5)) and lines of fstab(5), and plans for them.

At boot an image is mounted where it can be seen, at its name, the empty directory beside it, and the overlay over it. The kernel then
reports the same layers as it does when the module has mounted the overlay. An overlay of which one directory is shown is mounted as a
whole beside its layer, and the directory is bound to the mountpoint.

What is ours is known by itself: units by their first line, lines of fstab by an option that everybody else passes over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, CreateMountpoint, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    join_lowerdir,
    overlay_layers,
    top_mount,
    unescape,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

#: The first line of each unit of ours; the next ones name the view, its images, and where the whole is of which a part is shown.
MARKER = b"# Written by renderfarm.overlay, which writes over what is changed here."
_VIEW = b"# view "
_IMAGE = b"# image "
_WHOLE = b"# whole "

#: The option in each line of ours; its value is ``view``, ``image`` or ``whole``.
_FSTAB_MARKER = b"x-renderfarm.overlay="
_REQUIRES = b"x-systemd.requires-mounts-for="

#: The target that wants the units of views: after the network, as data layers are on file servers.
WANTED_BY = "remote-fs.target"

#: Bytes of one option that fsconfig(2) takes, of all options that mount(2) takes, and of the name of a file.
_LONGEST_VALUE = 255
_LONGEST_OPTIONS = 4095
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Unit:
    """A file in the folder of units."""

    name: str
    text: bytes
    #: Whether it is started at boot by itself.
    wanted: bool


@dataclass(frozen=True)
class Stored:
    """What is there of mounts at boot: all mount units of the administrator's folder, ours and others, and the text of fstab."""

    units: tuple[Unit, ...]
    fstab: bytes


@dataclass(frozen=True)
class WriteUnit(Action):
    unit: Unit

    def __str__(self) -> str:
        return f"write unit {self.unit.name}"


@dataclass(frozen=True)
class RemoveUnit(Action):
    name: str

    def __str__(self) -> str:
        return f"remove unit {self.name}"


@dataclass(frozen=True)
class WriteFstab(Action):
    """Bring the lines of a view in fstab to what they should be."""

    path: bytes
    lines: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"write the overlay at {show(self.path)} into /etc/fstab"


@dataclass(frozen=True)
class RemoveFstab(Action):
    path: bytes

    def __str__(self) -> str:
        return f"remove the overlay at {show(self.path)} from /etc/fstab"


@dataclass(frozen=True)
class ReloadSystemd(Action):
    def __str__(self) -> str:
        return "have systemd read its units again"


@dataclass(frozen=True)
class RemovePart(Action):
    """Unmount what was mounted at boot for a view, an image or the whole overlay, and remove the directory that it was mounted on."""

    name: bytes

    def __str__(self) -> str:
        return f"unmount what a view needed at {show(self.name)}"


def whole_of(spec: MountSpec) -> bytes | None:
    """Return where an overlay is mounted at boot of which only a directory is shown: beside its layer; None where all of it is.

    Raises OverlayError for one with images.
    """
    if spec.root == b"/":
        return None
    if spec.images:
        raise OverlayError(
            f"the overlay at {show(spec.path)} has strategy {spec.strategy} and images: such a one cannot be mounted at boot"
        )
    # The same layer may be seen at several mountpoints, with different options.
    return b"%s.whole-%s" % (spec.lower[0], hashlib.sha256(spec.path).hexdigest()[:8].encode())


# What is written


def desired_units(spec: MountSpec, append: bool) -> tuple[Unit, ...]:
    """Return the units of an overlay, those of its images first. ``append`` tells whether the kernel takes layers one at a time.

    Raises OverlayError for what a unit cannot express.
    """
    _check_outlives_boot(spec)
    for path in (spec.path, *spec.lower, *spec.data, *spec.images, *spec.kept):
        _check_for_unit(path)
    found = []
    for image in spec.images:
        text = _unit(_IMAGE + image, image, without_suffix(image), b"erofs", b"ro,_netdev", [image])
        found.append(Unit(unit_name(without_suffix(image)), text, False))
    notes = b"\n".join((_VIEW + spec.path, *(_IMAGE + image for image in spec.images)))
    options = mount_options(spec, append, [b"_netdev"])
    requires = [*spec.lower, *spec.data, *spec.kept]
    whole = whole_of(spec)
    if whole is None:
        text = _unit(notes, b"overlay", spec.path, b"overlay", options, requires, wanted=True)
    else:
        found.append(
            Unit(unit_name(whole), _unit(_WHOLE + whole, b"overlay", whole, b"overlay", options, requires), False)
        )
        notes += b"\n" + _WHOLE + whole
        bind = b",".join((b"bind", *_flags(spec), b"_netdev"))
        text = _unit(notes, whole + spec.root, spec.path, b"none", bind, [whole], wanted=True)
    return (*found, Unit(unit_name(spec.path), text, True))


def _unit(
    notes: bytes,
    what: bytes,
    where: bytes,
    fstype: bytes,
    options: bytes,
    requires: Sequence[bytes],
    wanted: bool = False,
) -> bytes:
    # Lists are split at spaces, where quotes and backslashes count; other values are taken as they are. Everywhere a percent sign starts
    # a specifier (systemd.syntax(7), systemd.unit(5)).
    listed = b" ".join(b'"' + path.replace(b"\\", b"\\\\") + b'"' for path in requires)
    lines = [
        MARKER,
        notes,
        b"[Unit]",
        (b"Description=Overlay at " if wanted else b"Description=Layer ") + _percent(where),
        b"RequiresMountsFor=" + _percent(listed),
        b"",
        b"[Mount]",
        b"What=" + _percent(what),
        b"Where=" + _percent(where),
        b"Type=" + fstype,
        b"Options=" + _percent(options),
        b"",
    ]
    if wanted:
        lines += [b"[Install]", b"WantedBy=" + WANTED_BY.encode(), b""]
    return b"\n".join(lines)


def _percent(value: bytes) -> bytes:
    return value.replace(b"%", b"%%")


def unit_name(path: bytes) -> str:
    """Return the name of the unit for a mountpoint, as systemd-escape(1) with ``--path --suffix=mount`` makes it."""
    inner = path.strip(b"/")
    escaped = "".join(
        "-" if byte == b"/"
        else byte.decode() if re.match(rb"[A-Za-z0-9:_.]", byte) and (position or byte != b".")
        else f"\\x{byte[0]:02x}"
        for position, byte in enumerate(inner[index : index + 1] for index in range(len(inner)))
    )  # fmt: skip
    name = f"{escaped or '-'}.mount"
    if len(name) > _LONGEST_NAME:
        raise OverlayError(f"{show(path)} is too long for the name of a unit: use 'persist: fstab' or a shorter path")
    return name


def desired_lines(spec: MountSpec, append: bool) -> tuple[bytes, ...]:
    """Return the lines of an overlay in fstab, those of its images first. Raises OverlayError for what cannot be there."""
    _check_outlives_boot(spec)
    for path in (*spec.lower, *spec.data, *spec.images, *spec.kept):
        _check_for_fstab(path)
    _check_characters(spec.path)
    found = []
    for image in spec.images:
        options = b",".join((b"ro,_netdev,nofail", _REQUIRES + image, _FSTAB_MARKER + b"image"))
        found.append(_line(image, without_suffix(image), b"erofs", options))
    # A line with nofail is not waited for. With the order, what starts after the target finds the view, as it does with a unit.
    order = [b"_netdev", b"nofail", b"x-systemd.before=" + WANTED_BY.encode()]
    requires = [_REQUIRES + path for path in (*spec.lower, *spec.data, *spec.kept)]
    view = _FSTAB_MARKER + b"view"
    whole = whole_of(spec)
    if whole is None:
        found.append(_line(b"overlay", spec.path, b"overlay", mount_options(spec, append, [*order, *requires, view])))
    else:
        extra = [b"_netdev", b"nofail", *requires, _FSTAB_MARKER + b"whole"]
        found.append(_line(b"overlay", whole, b"overlay", mount_options(spec, append, extra)))
        bind = b",".join((b"bind", *_flags(spec), *order, _REQUIRES + whole, view))
        found.append(_line(whole + spec.root, spec.path, b"none", bind))
    return tuple(found)


def _line(what: bytes, where: bytes, fstype: bytes, options: bytes) -> bytes:
    return b" ".join((_mangle(what), _mangle(where), fstype, _mangle(options), b"0 0\n"))


def _mangle(field: bytes) -> bytes:
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % ord(match.group()), field)


def mount_options(spec: MountSpec, append: bool, extra: Sequence[bytes] = ()) -> bytes:
    """Return the options of an overlay for mount(8); the layers come last. Raises OverlayError where they are too long for it."""
    words = _flags(spec)
    words += [name if value is None else name + b"=" + value for name, value in spec.settings]
    words += _upper_options(spec)
    layers = [b"lowerdir=" + join_lowerdir(*spec.layers)]
    if len(layers[0]) - len(b"lowerdir=") > _LONGEST_VALUE:
        layers = list(_one_by_one(spec, append))
    options = b",".join((*words, *extra, *layers))
    if len(options) > _LONGEST_OPTIONS:
        raise OverlayError(
            f"the options of the overlay at {show(spec.path)} have {len(options)} bytes, and mount(8) takes {_LONGEST_OPTIONS}:"
            " use fewer layers or shorter paths"
        )
    return options


def _flags(spec: MountSpec) -> list[bytes]:
    return [flag.encode() for flag in sorted(spec.flags, key=lambda flag: (flag != "ro", flag))]


def _upper_options(spec: MountSpec) -> Iterator[bytes]:
    for option, path in zip((b"upperdir", b"workdir"), spec.kept):
        if b"," in path or b"\\" in path:
            raise OverlayError(
                f"{show(path)} has a comma or a backslash in its path, which mount(8) cannot name as {option.decode()}"
            )
        if len(path) > _LONGEST_VALUE:
            raise OverlayError(f"{show(path)} has {len(path)} bytes, and mount(8) takes {_LONGEST_VALUE}")
        yield option + b"=" + path


def _check_outlives_boot(spec: MountSpec) -> None:
    """Raises OverlayError for an upper layer that cannot be mounted again when the host starts."""
    if spec.writable and spec.writable.scratch is not None:
        raise OverlayError(
            f"the overlay at {show(spec.path)} has scratch space, which goes with it: 'persist' has to be none, so mount it by the playbook"
        )
    if (b"volatile", None) in spec.settings:
        raise OverlayError(
            f"the overlay at {show(spec.path)} is volatile: the kernel does not mount its upper layer a second time, so 'persist' has to be"
            " none"
        )


def _one_by_one(spec: MountSpec, append: bool) -> Iterator[bytes]:
    if not append:
        raise OverlayError(
            f"the layers of the overlay at {show(spec.path)} have more than {_LONGEST_VALUE} bytes together, which mount(8) can"
            " give only to Linux 6.8 and later: use fewer layers or shorter paths"
        )
    for option, paths in zip((b"lowerdir+", b"datadir+"), spec.layers):
        for path in paths:
            if b"," in path or b"\\" in path:
                raise OverlayError(
                    f"layer {show(path)} has a comma or a backslash in its path: among layers of more than {_LONGEST_VALUE} bytes"
                    " together, mount(8) cannot name it"
                )
            if len(path) > _LONGEST_VALUE:
                raise OverlayError(
                    f"the path of layer {show(path)} has {len(path)} bytes, and mount(8) takes {_LONGEST_VALUE}"
                )
            yield option + b"=" + path


def _check_characters(path: bytes) -> None:
    if re.search(rb'[\x00-\x1f\x7f"]', path):
        raise OverlayError(
            f"{show(path)} has a control character or a quotation mark in its name: what is mounted at boot cannot have these"
        )
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        raise OverlayError(f"{show(path)} is not UTF-8, and systemd takes nothing else") from None


def _check_for_unit(path: bytes) -> None:
    _check_characters(path)
    if path.endswith((b" ", b"\\")):
        raise OverlayError(f"{show(path)} ends in a space or a backslash, which systemd takes for something else")


def _check_for_fstab(path: bytes) -> None:
    _check_characters(path)
    if re.search(rb"[ ,\\']", path):
        raise OverlayError(
            f"layer {show(path)} has a space, a comma, a backslash or an apostrophe in its path, so fstab cannot tell systemd that the"
            " overlay needs it: use 'persist: systemd' or another path"
        )


# What is there


def _notes(unit: Unit, kind: bytes) -> list[bytes]:
    """Return what a unit of ours says about itself; nothing for one that is not."""
    lines = unit.text.split(b"\n")
    if lines[0] != MARKER:
        return []
    return [line[len(kind) :] for line in lines if line.startswith(kind)]


def _fields(line: bytes, kind: bytes) -> tuple[bytes, list[bytes]] | None:
    """Return mountpoint and options of a line of ours, of a view or of a part of one; None for another one."""
    fields = line.split()
    if len(fields) < 4 or fields[0].startswith(b"#"):
        return None
    options = unescape(fields[3]).split(b",")
    return (unescape(fields[1]), options) if _FSTAB_MARKER + kind in options else None


def _part(line: bytes) -> bytes | None:
    """Return where a line of ours mounts an image or the whole of a view; None for another line."""
    fields = _fields(line, b"image") or _fields(line, b"whole")
    return fields[0] if fields else None


def _parts(unit: Unit) -> set[bytes]:
    """Return where the images and the whole of a view are that a unit mounts, or needs."""
    return {*map(without_suffix, _notes(unit, _IMAGE)), *_notes(unit, _WHOLE)}


def _needed_units(path: bytes, units: Sequence[Unit]) -> set[bytes]:
    """Return what units of views at other paths need."""
    found: set[bytes] = set()
    for unit in units:
        views = _notes(unit, _VIEW)
        if views and path not in views:
            found.update(_parts(unit))
    return found


def _needed_lines(path: bytes, fstab: bytes) -> set[bytes]:
    """Return what lines of views at other paths need: images and wholes among it."""
    found: set[bytes] = set()
    for line in fstab.splitlines():
        view = _fields(line, b"view")
        if view and view[0] != path:
            found.update(option[len(_REQUIRES) :] for option in view[1] if option.startswith(_REQUIRES))
    return found


def _removable_units(path: bytes, units: Sequence[Unit], desired: Sequence[Unit]) -> Iterator[tuple[Unit, set[bytes]]]:
    """Yield the units of a view, and of parts that nobody needs any more, each with where those are that it mounts."""
    names = {unit.name for unit in desired}
    needed = _needed_units(path, units)
    for unit in units:
        views, parts = _notes(unit, _VIEW), _parts(unit)
        if unit.name in names:
            continue
        if path in views:
            yield unit, set()
        elif parts and not views and not parts & needed:
            yield unit, parts


def edited_fstab(text: bytes, path: bytes, lines: Sequence[bytes]) -> bytes:
    """Return fstab with these lines for a view, and none for parts that nobody needs; other lines are left as they are.

    The lines of parts come before that of the view, since mount(8) goes from the first to the last.
    """
    needed = _needed_lines(path, text)
    missing = list(lines)
    found = []
    for line in text.splitlines(keepends=True):
        view, part = _fields(line, b"view"), _part(line)
        if line in missing:
            missing.remove(line)
        elif (view and view[0] == path) or (part and part not in needed):
            continue
        found.append(line)
    if missing and found and not found[-1].endswith(b"\n"):
        found[-1] += b"\n"
    if missing and lines[-1] in found:
        found.remove(lines[-1])
        missing.append(lines[-1])
    return b"".join((*found, *missing))


def _removed_parts(before: bytes, after: bytes) -> set[bytes]:
    found = [{part for part in map(_part, text.splitlines()) if part} for text in (before, after)]
    return found[0] - found[1]


# Plans


def plan_places(spec: MountSpec | None, persist: str, missing: Collection[bytes]) -> Plan:
    """Plan the directories that parts of a view are mounted on at boot; ``missing`` are those that are not there."""
    if spec is None or persist == "none":
        return ()
    return tuple(CreateMountpoint(place) for place in places(spec) if place in missing)


def places(spec: MountSpec) -> list[bytes]:
    """Return the directories, besides the mountpoint, that an overlay needs to be mounted at boot."""
    whole = whole_of(spec)
    return [*map(without_suffix, spec.images), *([whole] if whole else [])]


def plan_persistence(
    path: bytes,
    spec: MountSpec | None,
    persist: str,
    stored: Stored,
    live: Sequence[Mount],
    append: bool,
) -> Plan:
    """Plan what a view is mounted with at boot, after it was mounted as declared, or unmounted where ``spec`` is None.

    ``persist`` is ``none``, ``systemd`` or ``fstab``; ``live`` are the mounts before. Raises OverlayError for what cannot be expressed,
    and where somebody else's unit or line is in the way.
    """
    units = desired_units(spec, append) if spec and persist == "systemd" else ()
    lines = desired_lines(spec, append) if spec and persist == "fstab" else ()
    _check_nobody_else(path, units, lines, stored)
    removable = list(_removable_units(path, stored.units, units))
    fstab = edited_fstab(stored.fstab, path, lines)
    unneeded = _removed_parts(stored.fstab, fstab).union(*(names for _unit_, names in removable))
    kept = _needed_units(path, stored.units) | _needed_lines(path, stored.fstab)

    actions: list[Action] = [WriteUnit(unit) for unit in units if not _is_there(unit, stored)]
    if actions:
        actions.append(ReloadSystemd())
    # Before their units and lines go: a run that is killed finds them again by those.
    actions += [RemovePart(name) for name in _to_unmount(path, spec, live, unneeded, kept)]
    if fstab != stored.fstab:
        actions.append(WriteFstab(path, lines) if lines else RemoveFstab(path))
    actions += [RemoveUnit(unit.name) for unit, _names in removable]
    if removable:
        actions.append(ReloadSystemd())
    return tuple(actions)


def _to_unmount(
    path: bytes, spec: MountSpec | None, live: Sequence[Mount], unneeded: Collection[bytes], kept: Collection[bytes]
) -> list[bytes]:
    """Return where images and wholes were mounted at boot that no overlay and no boot needs any more."""
    here: set[bytes] = set()
    elsewhere = set(spec.lower if spec else ())
    for mount in live:
        if mount.fstype == b"overlay":
            (here if mount.path == path else elsewhere).update(overlay_layers(mount).lower)
    visible = {name for name in here if _is_image(top_mount(live, name))}
    return sorted((visible | set(unneeded)) - elsewhere - set(kept))


def _is_image(mount: Mount | None) -> bool:
    return mount is not None and mount.fstype == b"erofs"


def _is_there(unit: Unit, stored: Stored) -> bool:
    return any(
        (other.name, other.text) == (unit.name, unit.text) and other.wanted >= unit.wanted for other in stored.units
    )


def _check_nobody_else(path: bytes, units: Sequence[Unit], lines: Sequence[bytes], stored: Stored) -> None:
    there = {unit.name: unit for unit in stored.units}
    for unit in units:
        other = there.get(unit.name)
        if other and other.text.split(b"\n")[0] != MARKER:
            raise OverlayError(f"unit {unit.name} is there already and is not of this collection: it is left alone")
    for line in stored.fstab.splitlines() if lines else ():
        fields = line.split()
        same = len(fields) > 1 and not fields[0].startswith(b"#") and unescape(fields[1]).rstrip(b"/") == path
        if same and _fields(line, b"view") is None:
            raise OverlayError(
                f"/etc/fstab has a line for {show(path)} that is not of this collection: it is left alone"
            )
