# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mount units of systemd (systemd.mount(5)) that mount an overlay at boot. Our units are recognised by their first line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_mounts import (
    AFTER_AUTOMOUNTER,
    AUTOMOUNTER,
    WANTED_BY,
    automounts_of,
    check_outlives_boot,
    looked_up,
    stands_alone,
    tree_of,
    tree_steps,
    wanted_units,
    whole_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_paths import check_for_unit, unit_name
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_options import (
    flag_options,
    mount_options,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

#: The first line of each of our units. The next lines name the view, its images, and the mountpoints of whole overlays and of a tree.
MARKER = b"# Written by renderfarm.overlay, which writes over what is changed here."
_VIEW = b"# view "
_IMAGE = b"# image "
_WHOLE = b"# whole "
_TREE = b"# tree "
#: The dependencies of a unit that needs no network. Those by default would order it after the network, or before all local file systems,
#: which the disk with its layers may not be one of.
_ALONE = (b"DefaultDependencies=no", b"Conflicts=umount.target", b"Before=umount.target")


@dataclass(frozen=True)
class Unit:
    """A unit file."""

    name: str
    text: bytes
    #: Whether a target starts it at boot.
    wanted: bool


def desired_units(
    spec: MountSpec, append: bool, any_length: bool = False, live: Sequence[Mount] = ()
) -> tuple[Unit, ...]:
    """Return the units of an overlay, those of its images first.

    ``append`` is whether the kernel takes layers one at a time, and ``any_length`` whether mount(8) takes options of any length. ``live``
    are the mounts, with the automounts among them. Raises OverlayError if a unit cannot express the overlay.
    """
    check_outlives_boot(spec)
    for path in (
        spec.path,
        *spec.lower,
        *spec.all_data,
        *spec.images,
        *spec.kept,
        *(part.place for part in spec.parts),
    ):
        check_for_unit(path)
    alone = stands_alone(spec)
    netdev = [] if alone else [b"_netdev"]
    found = []
    for image in spec.images:
        text = _unit(
            _IMAGE + image, image, without_suffix(image), b"erofs", b",".join((b"ro", *netdev)), [image], alone=alone
        )
        found.append(Unit(unit_name(without_suffix(image)), text, False))
    notes = b"\n".join((_VIEW + spec.path, *(_IMAGE + image for image in spec.images)))
    if spec.parts:
        return (*found, *_tree_units(spec, notes, append, any_length, live))
    automounts = automounts_of(spec, live)
    options = mount_options(looked_up(spec, automounts), append, netdev, any_length)
    requires = [path for path in (*spec.lower, *spec.data, *spec.kept) if path not in automounts]
    after = wanted_units(automounts)
    whole = whole_of(spec)
    if whole is None:
        text = _unit(notes, b"overlay", spec.path, b"overlay", options, requires, after, wanted=True, alone=alone)
    else:
        text = _unit(_WHOLE + whole, b"overlay", whole, b"overlay", options, requires, after)
        found.append(Unit(unit_name(whole), text, False))
        notes += b"\n" + _WHOLE + whole
        bind = b",".join((b"bind", *flag_options(spec), b"_netdev"))
        text = _unit(notes, whole + spec.root, spec.path, b"none", bind, [whole], after, wanted=True)
    return (*found, Unit(unit_name(spec.path), text, True))


def _tree_units(spec: MountSpec, notes: bytes, append: bool, any_length: bool, live: Sequence[Mount]) -> Iterator[Unit]:
    """Yield the units of a tree besides those of its images, that of the view last. ``notes`` are the comments of the view so far."""
    parts = []
    for step in tree_steps(spec, live):
        name, note = unit_name(step.where), (_WHOLE if step.is_whole else _TREE) + step.where
        options = step.options(append, [b"_netdev"] if step.is_network else [], any_length)
        text = _unit(note, step.what, step.where, step.fstype, options, step.requires, step.after)
        yield Unit(name, text, False)
        notes += b"\n" + note
        parts += [name.encode(), *step.after] if step.is_part else []
    place = tree_of(spec)
    # If a part cannot be mounted, the view is mounted without it, so the unit wants the parts and does not require them.
    after = sorted(set(parts))
    text = _unit(notes, place, spec.path, b"none", b"rbind,_netdev", [place], after, wanted=True)
    yield Unit(unit_name(spec.path), text, True)


def _unit(
    notes: bytes,
    what: bytes,
    where: bytes,
    fstype: bytes,
    options: bytes,
    requires: Sequence[bytes],
    after: Sequence[bytes] = (),
    wanted: bool = False,
    alone: bool = False,
) -> bytes:
    """Return the text of a unit. ``requires`` are paths whose mounts it requires, and ``after`` the units of automounts."""
    # The automounter starts after remote-fs.target, so its views cannot be ordered before that.
    late = AUTOMOUNTER in after
    # systemd splits lists at spaces, and interprets quotes and backslashes in them. It takes other values as they are. In all values a
    # percent sign starts a specifier (systemd.syntax(7), systemd.unit(5)).
    listed = b" ".join(b'"' + path.replace(b"\\", b"\\\\") + b'"' for path in requires)
    lines = [
        MARKER,
        notes,
        b"[Unit]",
        (b"Description=Overlay at " if wanted else b"Description=Layer ") + _percent(where),
        *((b"RequiresMountsFor=" + _percent(listed),) if listed else ()),
        *(name + b"=" + b" ".join(map(_percent, after)) for name in (b"Wants", b"After") if after),
        *(_ALONE if alone or late else ()),
        *((b"Before=" + AFTER_AUTOMOUNTER,) if late and wanted else ()),
        *((b"Before=" + WANTED_BY.encode(),) if alone and wanted else ()),
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


def _notes(unit: Unit, kind: bytes) -> list[bytes]:
    """Return what the comments of one of our units name; nothing for another unit."""
    lines = unit.text.split(b"\n")
    if lines[0] != MARKER:
        return []
    return [line[len(kind) :] for line in lines if line.startswith(kind)]


def _parts(unit: Unit) -> set[bytes]:
    """Return the mountpoints of the images, whole overlays and trees that a unit mounts or needs."""
    return {*map(without_suffix, _notes(unit, _IMAGE)), *_notes(unit, _WHOLE), *_notes(unit, _TREE)}


def needed_units(path: bytes, units: Sequence[Unit]) -> set[bytes]:
    """Return the mountpoints that the units of views at other paths need."""
    found: set[bytes] = set()
    for unit in units:
        views = _notes(unit, _VIEW)
        if views and path not in views:
            found.update(_parts(unit))
    return found


def removable_units(path: bytes, units: Sequence[Unit], desired: Sequence[Unit]) -> Iterator[tuple[Unit, set[bytes]]]:
    """Yield removable units with their mountpoints: those of the view, without mountpoints, and those of parts that are not needed."""
    names = {unit.name for unit in desired}
    needed = needed_units(path, units)
    for unit in units:
        views, parts = _notes(unit, _VIEW), _parts(unit)
        if unit.name in names:
            continue
        if path in views:
            yield unit, set()
        elif parts and not views and not parts & needed:
            yield unit, parts
