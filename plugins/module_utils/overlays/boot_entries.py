# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount overlays at boot: mount units of systemd (systemd.mount(5)), lines of fstab(5), and plans for them.

At boot an image is mounted visibly, on the empty directory beside it that has its name without the suffix, and the overlay above it. The
kernel then reports the same layers as for an overlay that the module has mounted. An overlay that shows one directory is mounted as a whole
beside its layer, and the directory is bound to the mountpoint.

A tree of overlays (trees/tree_parts.py) is put together beside its layer, where nobody else looks, and the whole tree is bound to the
mountpoint. The places beside the layer have a digest of the declaration in their names. So the unit of the mountpoint is the only one that
two declarations have in common. It is written last, and a run that is killed leaves all mounts of the old declaration or all of the new.

Our units are recognised by their first line, our lines of fstab by an option that all other programs ignore.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import fstab_lines
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, CreateMountpoint, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.fstab_lines import FstabFields
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    TRIGGER,
    Mount,
    inside,
    join_lowerdir,
    overlay_layers,
    top_mount,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts

#: The first line of each of our units. The next lines name the view, its images, and the mountpoints of whole overlays and of a tree.
MARKER = b"# Written by renderfarm.overlay, which writes over what is changed here."
_VIEW = b"# view "
_IMAGE = b"# image "
_WHOLE = b"# whole "
_TREE = b"# tree "

#: The option in each of our lines. Its value is ``view``, ``image``, ``whole`` or ``tree``.
_FSTAB_MARKER = b"x-renderfarm.overlay="
_REQUIRES = b"x-systemd.requires-mounts-for="
_AFTER = b"x-systemd.after="

#: The target that wants the units of views. It comes after the network, since data layers are on file servers.
WANTED_BY = "remote-fs.target"

#: The layer name of a data image that was installed on the host.
_INSTALLED = re.compile(rb"/data/[0-9a-f]{16}\Z")

#: The dependencies of a unit that needs no network. Those by default would order it after the network, or before all local file systems,
#: which the disk with its layers may not be one of.
_ALONE = (b"DefaultDependencies=no", b"Conflicts=umount.target", b"Before=umount.target")

#: The source of the automounts of systemd. Those of all other sources are of automount(8), whose service starts after remote-fs.target.
_SYSTEMD = b"systemd-1"
_AUTOMOUNTER = b"autofs.service"
#: What starts after the views over the automounts of automount(8).
_AFTER_AUTOMOUNTER = b"multi-user.target"

#: The most bytes of an option of fsconfig(2), of all options of mount(2), and of a file name. mount(8) uses fsconfig(2) from util-linux
#: 2.39 on.
_LONGEST_VALUE = 255
_LONGEST_OPTIONS = 4095
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Unit:
    """A unit file."""

    name: str
    text: bytes
    #: Whether a target starts it at boot.
    wanted: bool


@dataclass(frozen=True)
class Stored:
    """The mounts at boot: all mount units in the administrator's directory, ours and others, and the text of fstab."""

    units: tuple[Unit, ...]
    fstab: bytes
    #: Whether a run has changed a unit, and has ended before systemd read its units again.
    reload_due: bool = False


@dataclass(frozen=True)
class WriteUnit(Action):
    """Write a unit, and its link in the target that wants it."""

    unit: Unit

    def __str__(self) -> str:
        return f"write unit {self.unit.name}"


@dataclass(frozen=True)
class RemoveUnit(Action):
    """Remove a unit and its link."""

    name: str

    def __str__(self) -> str:
        return f"remove unit {self.name}"


@dataclass(frozen=True)
class WriteViewLines(Action):
    """Write the lines of a view to fstab."""

    path: bytes
    lines: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"write the overlay at {show(self.path)} into /etc/fstab"


@dataclass(frozen=True)
class RemoveViewLines(Action):
    """Remove the lines of a view from fstab."""

    path: bytes

    def __str__(self) -> str:
        return f"remove the overlay at {show(self.path)} from /etc/fstab"


@dataclass(frozen=True)
class ReloadSystemd(Action):
    """Reload the units of systemd."""

    def __str__(self) -> str:
        return "have systemd read its units again"


@dataclass(frozen=True)
class RemovePart(Action):
    """Unmount what was mounted at boot for a view besides the view itself, and remove its mountpoint."""

    name: bytes

    def __str__(self) -> str:
        return f"unmount what a view needed at {show(self.name)}"


def whole_of(spec: MountSpec) -> bytes | None:
    """Return the mountpoint of the whole overlay, beside its layer, if only one directory of it is shown; else None.

    ``spec`` may be a part of a tree. Parts with the same data layers have the same whole overlay. Raises OverlayError if an overlay of
    strategy redirect has images.
    """
    if spec.place:
        return _whole_of_part(spec)
    if spec.root == b"/":
        return None
    if spec.images:
        raise OverlayError(
            f"the overlay at {show(spec.path)} has strategy {spec.strategy} and images, so it cannot be mounted at boot: use layers that"
            " are directories, or 'persist: none'"
        )
    # Several mountpoints may show the same layer, with different options.
    return b"%s.whole-%s" % (spec.lower[0], hashlib.sha256(spec.path).hexdigest()[:8].encode())


def _whole_of_part(part: MountSpec) -> bytes:
    view = part.path[: -len(part.place) - 1]
    return b"%s.whole-%s" % (part.lower[0], _digest(view, part.data, part.settings, sorted(part.flags)))


def tree_of(spec: MountSpec) -> bytes:
    """Return where a tree of overlays is put together at boot, beside its layer."""
    return b"%s.tree-%s" % (spec.lower[0], _digest(spec.path, spec.parts, spec.settings, sorted(spec.flags)))


def _digest(*values: object) -> bytes:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8].encode()


def automounts_of(spec: MountSpec, live: Sequence[Mount]) -> dict[bytes, tuple[bytes, ...]]:
    """Map each directory among the layers that is in an automount to the units that the overlay wants, and comes after.

    The overlay must not require the mount of such a layer, because systemd would stop the overlay when the automount expires.
    """
    found = {}
    for layer in spec.directories:
        places = [one for one in live if one.fstype == b"autofs" and (layer + b"/").startswith(one.path + b"/")]
        if places:
            deepest = max(places, key=lambda one: len(one.path))
            # systemd mounts nothing on demand for its own mount units, so these want the mount itself.
            kinds = ("automount", "mount") if deepest.source == _SYSTEMD else ()
            found[layer] = tuple(unit_name(deepest.path, kind).encode() for kind in kinds) or (_AUTOMOUNTER,)
    return found


def _wanted(automounts: Mapping[bytes, Sequence[bytes]]) -> list[bytes]:
    """Return the units of automounts, each once."""
    return sorted({unit for units in automounts.values() for unit in units})


# Units


def desired_units(
    spec: MountSpec, append: bool, any_length: bool = False, live: Sequence[Mount] = ()
) -> tuple[Unit, ...]:
    """Return the units of an overlay, those of its images first.

    ``append`` is whether the kernel takes layers one at a time, and ``any_length`` whether mount(8) takes options of any length. ``live``
    are the mounts, with the automounts among them. Raises OverlayError if a unit cannot express the overlay.
    """
    _check_outlives_boot(spec)
    for path in (
        spec.path,
        *spec.lower,
        *spec.all_data,
        *spec.images,
        *spec.kept,
        *(part.place for part in spec.parts),
    ):
        _check_for_unit(path)
    alone = _stands_alone(spec)
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
    options = mount_options(_looked_up(spec, automounts), append, netdev, any_length)
    requires = [path for path in (*spec.lower, *spec.data, *spec.kept) if path not in automounts]
    after = _wanted(automounts)
    whole = whole_of(spec)
    if whole is None:
        text = _unit(notes, b"overlay", spec.path, b"overlay", options, requires, after, wanted=True, alone=alone)
    else:
        text = _unit(_WHOLE + whole, b"overlay", whole, b"overlay", options, requires, after)
        found.append(Unit(unit_name(whole), text, False))
        notes += b"\n" + _WHOLE + whole
        bind = b",".join((b"bind", *_flags(spec), b"_netdev"))
        text = _unit(notes, whole + spec.root, spec.path, b"none", bind, [whole], after, wanted=True)
    return (*found, Unit(unit_name(spec.path), text, True))


def _tree_units(spec: MountSpec, notes: bytes, append: bool, any_length: bool, live: Sequence[Mount]) -> Iterator[Unit]:
    """Yield the units of a tree besides those of its images, that of the view last. ``notes`` are the comments of the view so far."""
    parts = []
    for step in _tree_steps(spec, live):
        name = unit_name(step.where)
        options = step.options(append, [b"_netdev"] if step.is_network else [], any_length)
        text = _unit(step.note, step.what, step.where, step.fstype, options, step.requires, step.after)
        yield Unit(name, text, False)
        notes += b"\n" + step.note
        parts += [name.encode(), *step.after] if step.is_part else []
    place = tree_of(spec)
    # If a part cannot be mounted, the view is mounted without it, so the unit wants the parts and does not require them.
    after = sorted(set(parts))
    text = _unit(notes, place, spec.path, b"none", b"rbind,_netdev", [place], after, wanted=True)
    yield Unit(unit_name(spec.path), text, True)


@dataclass(frozen=True)
class _TreeStep:
    """A mount that a tree of overlays consists of at boot."""

    what: bytes
    where: bytes
    fstype: bytes
    #: The overlay that is mounted; None for a bind mount and for the empty data layer.
    overlay: MountSpec | None
    #: The other options.
    words: tuple[bytes, ...]
    #: The paths whose mounts it requires, and the units of the automounts that it wants.
    requires: tuple[bytes, ...]
    after: tuple[bytes, ...] = ()
    #: Whether it is a part of the tree.
    is_part: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole overlay of parts, which is not mounted in the tree."""
        return self.overlay is not None and self.overlay.root != b"/"

    @property
    def note(self) -> bytes:
        """The comment that names it in units."""
        return (_WHOLE if self.is_whole else _TREE) + self.where

    @property
    def marker(self) -> bytes:
        """The option that marks its line in fstab."""
        return _FSTAB_MARKER + (b"whole" if self.is_whole else b"tree")

    @property
    def is_network(self) -> bool:
        """Whether it needs the network, as data layers do."""
        return self.fstype != b"tmpfs"

    def options(self, append: bool, extra: Sequence[bytes], any_length: bool) -> bytes:
        """Return the options for mount(8). The parameters are those of ``mount_options``."""
        if self.overlay:
            return mount_options(self.overlay, append, (*self.words, *extra), any_length)
        return b",".join((*self.words, *extra))


def _tree_steps(spec: MountSpec, live: Sequence[Mount]) -> Iterator[_TreeStep]:
    """Yield the mounts that a tree of overlays consists of at boot, in their order. ``live`` is that of ``desired_units``."""
    empty = (b"ro", b"nosuid", b"nodev", b"noexec", b"mode=0755")
    # The directory is below /run, so it is made at each boot.
    yield _TreeStep(b"tmpfs", tree_parts.NO_DATA, b"tmpfs", None, empty, ())
    # Mounts of the view and of its tree are not to propagate to each other, so the tree is private. The kernel makes its copy shared again
    # if the mountpoint is.
    private = (b"private",)
    first, *parts = spec.overlays
    place = tree_of(spec)
    yield _TreeStep(b"overlay", place, b"overlay", first, private, (*first.lower, *first.data))
    mounted = set()
    for part in parts:
        whole = _whole_of_part(part)
        automounts = automounts_of(part, live)
        after = tuple(_wanted(automounts))
        if whole not in mounted:
            mounted.add(whole)
            requires = tuple(path for path in (*part.lower, *part.data) if path not in automounts)
            looked_up = _looked_up(part, automounts)
            yield _TreeStep(b"overlay", whole, b"overlay", looked_up, private, requires, after)
        where = place + b"/" + part.place
        yield _TreeStep(whole + part.root, where, b"none", None, (b"bind",), (whole,), after, is_part=True)


def _looked_up(spec: MountSpec, automounts: Mapping[bytes, Sequence[bytes]]) -> MountSpec:
    """Return the declaration with layers that automount(8) mounts when the kernel looks them up."""
    on_demand = {path for path, units in automounts.items() if _AUTOMOUNTER in units}
    lower, data = (
        tuple(path + TRIGGER if path in on_demand else path for path in paths) for paths in (spec.lower, spec.data)
    )
    return dataclasses.replace(spec, lower=lower, data=data)


def _stands_alone(spec: MountSpec) -> bool:
    """Return whether an overlay has the content of all its files in images, so that it needs no software root and no network."""
    return bool(spec.data) and len(spec.data_images) == len(spec.data)


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
    late = _AUTOMOUNTER in after
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
        *((b"Before=" + _AFTER_AUTOMOUNTER,) if late and wanted else ()),
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


def unit_name(path: bytes, kind: str = "mount") -> str:
    """Return the name of the unit of a kind for a mountpoint, as ``systemd-escape --path --suffix=KIND`` prints it.

    Raises OverlayError if it is too long for a file name.
    """
    inner = path.strip(b"/")
    escaped = "".join(
        "-" if byte == b"/"
        else byte.decode() if re.match(rb"[A-Za-z0-9:_.]", byte) and (position or byte != b".")
        else f"\\x{byte[0]:02x}"
        for position, byte in enumerate(inner[index : index + 1] for index in range(len(inner)))
    )  # fmt: skip
    name = f"{escaped or '-'}.{kind}"
    if len(name) > _LONGEST_NAME:
        raise OverlayError(f"{show(path)} is too long for the name of a unit: use 'persist: fstab' or a shorter path")
    return name


# Lines of fstab


def desired_lines(
    spec: MountSpec, append: bool, any_length: bool = False, live: Sequence[Mount] = ()
) -> tuple[bytes, ...]:
    """Return the lines of fstab of an overlay, those of its images first; the parameters are those of ``desired_units``.

    Raises OverlayError if fstab cannot express the overlay.
    """
    _check_outlives_boot(spec)
    for path in (*spec.lower, *spec.all_data, *spec.images, *spec.kept):
        _check_for_fstab(path)
    for path in (spec.path, *(part.place for part in spec.parts)):
        _check_characters(path)
    found = []
    # systemd orders a mount with _netdev after the network. Without it, nofail keeps the mount from being ordered before all local file
    # systems, which the disk with its layers may not be one of.
    boot = [b"nofail"] if _stands_alone(spec) else [b"_netdev", b"nofail"]
    for image in spec.images:
        options = b",".join((b"ro", *boot, _REQUIRES + image, _FSTAB_MARKER + b"image"))
        found.append(fstab_lines.make_line(image, without_suffix(image), b"erofs", options))
    # systemd does not wait for a mount with nofail. This order makes services that start after the target find the view, as with a unit.
    automounts = {layer: units for one in spec.overlays for layer, units in automounts_of(one, live).items()}
    after = _wanted(automounts)
    late = _AUTOMOUNTER in after
    if set(after) - {_AUTOMOUNTER}:
        raise OverlayError(
            f"the overlay at {show(spec.path)} has layer {show(next(iter(automounts)))} in an automount of systemd, which a line of fstab"
            " cannot want without requiring it: use 'persist: systemd'"
        )
    order = [*boot, b"x-systemd.before=" + (_AFTER_AUTOMOUNTER if late else WANTED_BY.encode())]
    if spec.parts:
        return (*found, *_tree_lines(spec, order, append, any_length, live))
    requires = [_REQUIRES + path for path in (*spec.lower, *spec.data, *spec.kept) if path not in automounts]
    requires += [_AFTER + unit for unit in after]
    view = _FSTAB_MARKER + b"view"
    whole = whole_of(spec)
    if whole is None:
        options = mount_options(_looked_up(spec, automounts), append, [*order, *requires, view], any_length)
        found.append(fstab_lines.make_line(b"overlay", spec.path, b"overlay", options))
    else:
        words = [*boot, *requires, _FSTAB_MARKER + b"whole"]
        options = mount_options(_looked_up(spec, automounts), append, words, any_length)
        found.append(fstab_lines.make_line(b"overlay", whole, b"overlay", options))
        bind = b",".join((b"bind", *_flags(spec), *order, _REQUIRES + whole, view))
        found.append(fstab_lines.make_line(whole + spec.root, spec.path, b"none", bind))
    return tuple(found)


def _tree_lines(
    spec: MountSpec, order: Sequence[bytes], append: bool, any_length: bool, live: Sequence[Mount]
) -> Iterator[bytes]:
    """Yield the lines of a tree besides those of its images, that of the view last. ``order`` are its options that systemd reads."""
    # Each line is mounted without being required. So if a part cannot be mounted, the view is mounted without it.
    before = b"x-systemd.before=" + unit_name(spec.path).encode()
    for step in _tree_steps(spec, live):
        words = [*([b"_netdev"] if step.is_network else []), b"nofail", *([before] if step.is_part else [])]
        words += [_REQUIRES + path for path in step.requires]
        words += [_AFTER + unit for unit in step.after]
        options = step.options(append, [*words, step.marker], any_length)
        yield fstab_lines.make_line(step.what, step.where, step.fstype, options)
    place = tree_of(spec)
    options = b",".join((b"rbind", *order, _REQUIRES + place, _FSTAB_MARKER + b"view"))
    yield fstab_lines.make_line(place, spec.path, b"none", options)


# Options of mount(8)


def mount_options(spec: MountSpec, append: bool, extra: Sequence[bytes] = (), any_length: bool = False) -> bytes:
    """Return the options of an overlay for mount(8), the layers last; ``append`` and ``any_length`` are those of ``desired_units``.

    Raises OverlayError if they are too long for mount(8).
    """
    words = _flags(spec)
    words += [name if value is None else name + b"=" + value for name, value in spec.settings]
    words += _upper_options(spec)
    layers = [b"lowerdir=" + join_lowerdir(*spec.layers)]
    if len(layers[0]) - len(b"lowerdir=") > _LONGEST_VALUE:
        layers = list(_one_by_one(spec, append))
    options = b",".join((*words, *extra, *layers))
    if len(options) > _LONGEST_OPTIONS and not any_length:
        raise OverlayError(
            f"the options of the overlay at {show(spec.path)} have {len(options)} bytes, and mount(8) takes {_LONGEST_OPTIONS} (util-linux"
            " 2.39 takes more): use fewer layers or shorter paths"
        )
    return options


def _flags(spec: MountSpec) -> list[bytes]:
    return [flag.encode() for flag in sorted(spec.flags, key=lambda flag: (flag != "ro", flag))]


def _upper_options(spec: MountSpec) -> Iterator[bytes]:
    """Yield the options for the upper and work directory. Raises OverlayError if mount(8) cannot take a path."""
    for option, path in zip((b"upperdir", b"workdir"), spec.kept):
        if b"," in path or b"\\" in path:
            raise OverlayError(
                f"{show(path)} has a comma or a backslash in its path, which mount(8) cannot take as {option.decode()}: use another path"
            )
        if len(path) > _LONGEST_VALUE:
            raise OverlayError(
                f"{show(path)} has {len(path)} bytes, and mount(8) takes {_LONGEST_VALUE}: use a shorter path"
            )
        yield option + b"=" + path


def _check_outlives_boot(spec: MountSpec) -> None:
    """Check that an overlay can be mounted again after a reboot. Raises OverlayError if its upper layer cannot."""
    if spec.writable and spec.writable.scratch is not None:
        raise OverlayError(
            f"the overlay at {show(spec.path)} has scratch space, which is lost when it is unmounted: 'persist' has to be none; mount it"
            " from a playbook after each boot"
        )
    if (b"volatile", None) in spec.settings:
        raise OverlayError(
            f"the overlay at {show(spec.path)} is volatile: the kernel does not mount its upper layer a second time, so 'persist' has to be"
            " none"
        )


def _one_by_one(spec: MountSpec, append: bool) -> Iterator[bytes]:
    """Yield the options that name one layer each. Raises OverlayError if the kernel does not take them, or mount(8) cannot."""
    if not append:
        raise OverlayError(
            f"the layers of the overlay at {show(spec.path)} have more than {_LONGEST_VALUE} bytes together, which mount(8) can"
            " pass only to Linux 6.8 and later: use fewer layers or shorter paths"
        )
    for option, paths in zip((b"lowerdir+", b"datadir+"), spec.layers):
        for path in paths:
            if b"," in path or b"\\" in path:
                raise OverlayError(
                    f"layer {show(path)} has a comma or a backslash in its path, which mount(8) cannot take if the layers have more than"
                    f" {_LONGEST_VALUE} bytes together: use another path"
                )
            if len(path) > _LONGEST_VALUE:
                raise OverlayError(
                    f"the path of layer {show(path)} has {len(path)} bytes, and mount(8) takes {_LONGEST_VALUE}: use a shorter path"
                )
            yield option + b"=" + path


# Paths that cannot be mounted at boot


def _check_characters(path: bytes) -> None:
    """Check the characters of a path. Raises OverlayError if systemd does not take one of them."""
    if re.search(rb'[\x00-\x1f\x7f"]', path):
        raise OverlayError(
            f"{show(path)} has a control character or a quotation mark in its name, so systemd cannot mount it at boot: use another path,"
            " or 'persist: none'"
        )
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        raise OverlayError(
            f"{show(path)} is not UTF-8, so systemd cannot mount it at boot: use another path, or 'persist: none'"
        ) from None


def _check_for_unit(path: bytes) -> None:
    """Check a path for a unit. Raises OverlayError if a unit cannot name it."""
    _check_characters(path)
    if path.endswith((b" ", b"\\")):
        raise OverlayError(
            f"{show(path)} ends in a space or a backslash, which a unit of systemd cannot express: use another path"
        )


def _check_for_fstab(path: bytes) -> None:
    """Check the path of a layer for fstab. Raises OverlayError if an option cannot name it."""
    _check_characters(path)
    if re.search(rb"[ ,\\']", path):
        raise OverlayError(
            f"layer {show(path)} has a space, a comma, a backslash or an apostrophe in its path, so fstab cannot tell systemd that the"
            " overlay needs it: use 'persist: systemd' or another path"
        )


# Existing units and lines


def _notes(unit: Unit, kind: bytes) -> list[bytes]:
    """Return what the comments of one of our units name; nothing for another unit."""
    lines = unit.text.split(b"\n")
    if lines[0] != MARKER:
        return []
    return [line[len(kind) :] for line in lines if line.startswith(kind)]


def _own_line(line: bytes, *kinds: bytes) -> FstabFields | None:
    """Return the fields of one of our lines of these kinds; None for another line."""
    fields = fstab_lines.read_line(line)
    return fields if fields and any(_FSTAB_MARKER + kind in fields.options for kind in kinds) else None


def _part(line: bytes) -> bytes | None:
    """Return the mountpoint in one of our lines that is not that of a view; None for another line."""
    fields = _own_line(line, b"image", b"whole", b"tree")
    return fields.path if fields else None


def _parts(unit: Unit) -> set[bytes]:
    """Return the mountpoints of the images, whole overlays and trees that a unit mounts or needs."""
    return {*map(without_suffix, _notes(unit, _IMAGE)), *_notes(unit, _WHOLE), *_notes(unit, _TREE)}


def _needed_units(path: bytes, units: Sequence[Unit]) -> set[bytes]:
    """Return the mountpoints that the units of views at other paths need."""
    found: set[bytes] = set()
    for unit in units:
        views = _notes(unit, _VIEW)
        if views and path not in views:
            found.update(_parts(unit))
    return found


def _needed_lines(path: bytes, fstab: bytes) -> set[bytes]:
    """Return the paths that the lines of views at other paths need: their layers, and so also images, whole overlays and trees."""
    lines = fstab_lines.split(fstab)
    waiting = [view for view in (_own_line(line, b"view") for line in lines) if view and view.path != path]
    others = [part for part in (_own_line(line, b"image", b"whole", b"tree") for line in lines) if part]
    found: set[bytes] = set()
    while waiting:
        needed = waiting.pop()
        new = {needed.path, *(word[len(_REQUIRES) :] for word in needed.options if word.startswith(_REQUIRES))} - found
        found |= new
        # The parts of a tree are inside of it.
        waiting += [one for one in others if any(is_inside(one.path, place) for place in new)]
        others = [one for one in others if not any(is_inside(one.path, place) for place in new)]
    return found


def _removable_units(path: bytes, units: Sequence[Unit], desired: Sequence[Unit]) -> Iterator[tuple[Unit, set[bytes]]]:
    """Yield removable units with their mountpoints: those of the view, without mountpoints, and those of parts that are not needed."""
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


def has_view_lines(text: bytes, path: bytes) -> bool:
    """Return whether fstab has a line of ours for the view at ``path``."""
    lines = (_own_line(line, b"view") for line in fstab_lines.split(text))
    return any(line and line.path == path for line in lines)


def fstab_with_view(text: bytes, path: bytes, lines: Sequence[bytes]) -> bytes:
    """Return the text of fstab with these lines for a view, and without lines for parts that are not needed. Other lines are kept.

    The lines of parts come before the line of the view, since ``mount --all`` mounts from the first line to the last.
    """
    needed = _needed_lines(path, text)
    missing = list(lines)
    found = []
    for line in fstab_lines.split(text):
        view, part = _own_line(line, b"view"), _part(line)
        if line in missing:
            missing.remove(line)
        elif (view and view.path == path) or (part and part not in needed):
            continue
        found.append(line)
    if missing and lines[-1] in found:
        found.remove(lines[-1])
        missing.append(lines[-1])
    return fstab_lines.join(found, missing)


def _removed_parts(before: bytes, after: bytes) -> set[bytes]:
    """Return the mountpoints of parts that one text of fstab has and another one lacks."""
    found = [{part for part in map(_part, fstab_lines.split(text)) if part} for text in (before, after)]
    return found[0] - found[1]


# Plans


def plan_places(spec: MountSpec | None, persist: str, missing: Collection[bytes]) -> Plan:
    """Return the actions that create the mountpoints of the parts of a view. ``missing`` are those that do not exist."""
    if spec is None or persist == "none":
        return ()
    return tuple(CreateMountpoint(place) for place in places(spec) if place in missing)


def places(spec: MountSpec) -> list[bytes]:
    """Return the mountpoints beside the layer of an overlay at boot: its images, the whole overlays and the tree."""
    wholes = dict.fromkeys(whole for whole in map(whole_of, spec.overlays) if whole)
    return [*map(without_suffix, spec.images), *wholes, *([tree_of(spec)] if spec.parts else [])]


def plan_persistence(
    path: bytes,
    spec: MountSpec | None,
    persist: str,
    stored: Stored,
    live: Sequence[Mount],
    append: bool,
    any_length: bool = False,
) -> Plan:
    """Return the actions that make the mounts at boot agree with the declaration of a view; ``spec`` is None for an unmounted view.

    ``persist`` is ``none``, ``systemd`` or ``fstab``. ``live`` are the mounts before the view was mounted or unmounted. ``append`` and
    ``any_length`` are those of ``desired_units``. Raises OverlayError if the overlay cannot be mounted at boot, or if a unit or line of
    somebody else is in the way.
    """
    units = desired_units(spec, append, any_length, live) if spec and persist == "systemd" else ()
    lines = desired_lines(spec, append, any_length, live) if spec and persist == "fstab" else ()
    _check_nobody_else(path, units, lines, stored)
    removable = list(_removable_units(path, stored.units, units))
    fstab = fstab_with_view(stored.fstab, path, lines)
    unneeded = _removed_parts(stored.fstab, fstab).union(*(names for _unit_, names in removable))
    kept = _needed_units(path, stored.units) | _needed_lines(path, stored.fstab)

    actions: list[Action] = [WriteUnit(unit) for unit in units if not _is_there(unit, stored)]
    if actions:
        actions.append(ReloadSystemd())
    # Parts are removed before their units and lines, by which the run after a killed one finds them.
    actions += [RemovePart(name) for name in _to_unmount(path, spec, live, unneeded, kept)]
    if fstab != stored.fstab:
        actions.append(WriteViewLines(path, lines) if lines else RemoveViewLines(path))
    actions += [RemoveUnit(unit.name) for unit, _names in removable]
    if removable or (stored.reload_due and ReloadSystemd() not in actions):
        actions.append(ReloadSystemd())
    return tuple(actions)


def _to_unmount(
    path: bytes, spec: MountSpec | None, live: Sequence[Mount], unneeded: Collection[bytes], kept: Collection[bytes]
) -> list[bytes]:
    """Return what was mounted at boot for the view, and is used by no other overlay, and needed by no unit or line."""
    here: set[bytes] = set()
    elsewhere = set((*spec.lower, *spec.all_data) if spec else ())
    of_view = {
        one.id for top in live if top.path == path for one in (top, *tree_parts.split(top, inside(live, top))[0])
    }
    for mount in live:
        # Overlays that are to be unmounted use nothing afterwards.
        if mount.fstype == b"overlay" and mount.path not in unneeded:
            layers = overlay_layers(mount)
            if mount.id in of_view:
                # A data layer may be an image that somebody else has mounted.
                here.update((*layers.lower, *filter(_INSTALLED.search, layers.data)))
            else:
                elsewhere.update((*layers.lower, *layers.data))
    visible = {name for name in here if _is_image(top_mount(live, name))}
    # New trees need the directory of the empty data layer, so it stays mounted.
    return sorted((visible | set(unneeded)) - elsewhere - set(kept) - {tree_parts.NO_DATA})


def _is_image(mount: Mount | None) -> bool:
    return mount is not None and mount.fstype == b"erofs"


def _is_there(unit: Unit, stored: Stored) -> bool:
    """Return whether a unit is stored as desired. One that a target wants without need is left so."""
    return any(
        (other.name, other.text) == (unit.name, unit.text) and other.wanted >= unit.wanted for other in stored.units
    )


def _check_nobody_else(path: bytes, units: Sequence[Unit], lines: Sequence[bytes], stored: Stored) -> None:
    """Check that units and lines for the mountpoint are ours. Raises OverlayError naming one that is not."""
    there = {unit.name: unit for unit in stored.units}
    for unit in units:
        other = there.get(unit.name)
        if other and other.text.split(b"\n")[0] != MARKER:
            raise OverlayError(
                f"unit {unit.name} is there already and is not of this collection: it is left alone; remove it to use 'persist: systemd'"
            )
    for line in fstab_lines.split(stored.fstab) if lines else ():
        if fstab_lines.is_of(line, path) and _own_line(line, b"view") is None:
            raise OverlayError(
                f"/etc/fstab has a line for {show(path)} that is not of this collection: it is left alone; remove it to use"
                " 'persist: fstab'"
            )
