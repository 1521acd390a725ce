# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The declaration of an overlay mount and its options, and how a live mount differs from it.

Distributions set different defaults for overlay options (module parameters), so options that change what users see are set explicitly.
overlays/option_rules.py has the rules about which options exclude each other.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    OverlayLayers,
    overlay_layers,
    shown_settings,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import option_rules
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    is_image_path,
    without_suffix,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.strategies import (
    DATA_ONLY,
    REDIRECT,
    SHOWN_DIRECTORY,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees.tree_parts import TreePart

Settings = tuple[tuple[bytes, Optional[bytes]], ...]
OptionValue = Union[str, bool, int, None]

#: Flags of the mount. Each takes true or false.
MOUNT_FLAGS = ("nosuid", "nodev", "noexec", "noatime", "nodiratime")

#: Settings of the overlay, each with its values. None stands for a setting without a value, which takes true or false.
SETTINGS: dict[str, tuple[str, ...] | None] = {
    "metacopy": ("on", "off"),
    "redirect_dir": ("on", "follow", "nofollow", "off"),
    "index": ("on", "off"),
    "nfs_export": ("on", "off"),
    "xino": ("on", "off", "auto"),
    "verity": ("on", "off", "require"),
    "userxattr": None,
    "volatile": None,
}

#: The start of the mountpoints of scratch space. The size follows, so that the kernel's report of the overlay shows it. Each scratch space
#: is mounted in a private mount namespace, so several of one size have the same mountpoint.
SCRATCH_PLACE = b"/run/renderfarm-overlay/scratch"

#: The most lower and data layers of one overlay (OVL_MAX_STACK in fs/overlayfs/params.h).
MOST_LAYERS = 500


@dataclass(frozen=True)
class Writable:
    """The upper layer and work directory of an overlay."""

    upper: bytes
    work: bytes
    #: The size in bytes of the tmpfs that both are on, which is mounted at ``place``; None if both are directories of the host.
    scratch: int | None = None
    #: Whether a new upper layer gets the uid, gid and mode of the topmost lower layer. That of scratch space always does.
    like_lower: bool = False

    @property
    def place(self) -> bytes:
        """The directory that holds both, which is the mountpoint of scratch space."""
        return posixpath.dirname(self.upper)


def scratch_space(size: int) -> Writable:
    """Return the upper layer and work directory on a tmpfs of ``size`` bytes, which goes with the overlay."""
    place = b"%s-%d" % (SCRATCH_PLACE, size)
    return Writable(place + b"/upper", place + b"/work", size)


@dataclass(frozen=True)
class MountSpec:
    """The declaration of an overlay mount. Its paths are absolute and without symbolic links."""

    path: bytes
    #: The lower layers, top first, and the data layers, in the order in which the kernel searches them. Each is the path of a directory, or
    #: the layer name of an image.
    lower: tuple[bytes, ...]
    data: tuple[bytes, ...]
    settings: Settings
    flags: frozenset[str]
    #: The paths of the image files among the lower and data layers.
    images: tuple[bytes, ...] = ()
    #: None for an overlay without an upper layer.
    writable: Writable | None = None
    #: The source that the kernel reports for the mount. It has no other meaning.
    source: bytes = b"overlay"
    #: How the kernel uses the data layers: ``data_only`` or ``redirect``.
    strategy: str = DATA_ONLY
    #: The other overlays of a tree, in the order of their places (trees/tree_parts.py). None contains another one.
    parts: tuple[TreePart, ...] = ()
    #: The directory of the overlay that is shown, relative to its root, for a part of a tree.
    place: bytes = b""

    @property
    def overlays(self) -> tuple[MountSpec, ...]:
        """The declarations of all overlays of a tree: this one, and that of each part."""
        alone = replace(self, parts=())
        return alone, *(
            replace(alone, path=self.path + b"/" + part.place, data=part.data, place=part.place) for part in self.parts
        )

    @property
    def all_data(self) -> tuple[bytes, ...]:
        """The data layers of all overlays of a tree."""
        return tuple(
            dict.fromkeys(layer for data in (self.data, *(part.data for part in self.parts)) for layer in data)
        )

    @property
    def layers(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """The ordinary lower layers and the data-only layers, as the kernel takes them."""
        return ((*self.lower, *self.data), ()) if self.strategy == REDIRECT else (self.lower, self.data)

    @property
    def root(self) -> bytes:
        """The directory of the overlay that is shown at the mountpoint."""
        return b"/" + (SHOWN_DIRECTORY.encode() if self.strategy == REDIRECT else self.place)

    @property
    def upper(self) -> bytes | None:
        return self.writable.upper if self.writable else None

    @property
    def work(self) -> bytes | None:
        return self.writable.work if self.writable else None

    @property
    def kept(self) -> tuple[bytes, ...]:
        """The upper layer and its work directory, if they are directories of the host."""
        return (self.writable.upper, self.writable.work) if self.writable and self.writable.scratch is None else ()

    @property
    def directories(self) -> tuple[bytes, ...]:
        """The lower and data layers that are directories, without the empty data layer of a tree."""
        names = {without_suffix(image) for image in self.images}
        return tuple(
            layer for layer in (*self.lower, *self.all_data) if layer not in names and layer != tree_parts.NO_DATA
        )

    @property
    def places(self) -> tuple[bytes, ...]:
        """The directories that mounting the overlay looks up: its layers, and those that hold its images."""
        return (*self.directories, *self.kept, *dict.fromkeys(map(posixpath.dirname, self.images)))

    @property
    def data_images(self) -> tuple[bytes, ...]:
        """The paths of the image files among the data layers."""
        return tuple(image for image in self.images if without_suffix(image) in self.data)

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration for the diff."""
        found = _for_diff(self.path, self.root, *self.layers, (self.upper, self.work), self.settings, self.flags)
        return {**found, "parts": _parts_for_diff(self.parts)} if self.parts else found


def declared_by(live: Mount | None, parts: Sequence[Mount] = ()) -> dict[str, Any]:
    """Return the declaration that a live overlay fulfils, for the diff; empty if there is no overlay. ``parts`` are those of its tree."""
    if live is None or live.fstype != b"overlay":
        return {}
    layers = overlay_layers(live)
    flags = frozenset(show(flag) for flag in live.flags) & {"ro", *MOUNT_FLAGS}
    found = _for_diff(
        live.path, live.root, layers.lower, layers.data, (layers.upper, layers.work), layers.settings, flags
    )
    return {**found, "parts": _parts_for_diff(tree_parts.as_declared(live, parts))} if parts else found


def _parts_for_diff(parts: Sequence[TreePart]) -> dict[str, list[str]]:
    return {show(part.place): [show(layer) for layer in part.data] for part in parts}


def _for_diff(
    path: bytes,
    root: bytes,
    lower: Sequence[bytes],
    data: Sequence[bytes],
    upper_and_work: Sequence[bytes | None],
    settings: Settings,
    flags: frozenset[str],
) -> dict[str, Any]:
    upper, work = (None if one is None else show(one) for one in upper_and_work)
    return {
        "path": show(path),
        "root": show(root),
        "lower": [show(layer) for layer in lower],
        "data": [show(layer) for layer in data],
        "upper": upper,
        "work": work,
        "options": shown_settings(settings),
        "flags": sorted(flags),
    }


def mount_spec(
    path: bytes,
    lower: Sequence[bytes],
    data: Sequence[bytes],
    options: Mapping[str, OptionValue],
    read_only: bool,
    images: Collection[bytes] = (),
    writable: Writable | None = None,
    strategy: str = DATA_ONLY,
) -> MountSpec:
    """Return a declaration with the options set explicitly that change what users see.

    ``images`` are those of ``lower`` and ``data`` that are image files. Raises OverlayError if there is no lower layer or if there are too
    many layers, if an image cannot be a layer, or if an option is unknown, has an invalid value or excludes another one.
    """
    if not lower:
        raise OverlayError(
            f"overlay at {show(path)}: 'lower' needs at least one layer, since data layers alone show no files"
        )
    if len(lower) + len(data) > MOST_LAYERS:
        raise OverlayError(
            f"overlay at {show(path)} has {len(lower)} lower and {len(data)} data layers, and overlayfs takes {MOST_LAYERS} layers in all:"
            " leave some of them out"
        )
    _check_images(path, data, images, strategy)
    given, flags = _sorted_options(options)
    settings = option_rules.pinned(given, writable is not None, bool(data), strategy == REDIRECT)
    reason = option_rules.refusal(settings, writable is not None, bool(data))
    if strategy == REDIRECT and "userxattr" in settings:
        reason = (
            "options userxattr and strategy=redirect exclude each other, since with userxattr the kernel follows redirects only into"
            " data-only layers: leave userxattr out"
        )
    if reason:
        raise OverlayError(f"overlay at {show(path)}: {reason}")
    if read_only and writable and writable.scratch is not None:
        raise OverlayError(
            f"overlay at {show(path)}: 'scratch' and 'read_only' exclude each other, since scratch space is for writing: give one of them"
        )
    if read_only:
        flags.append("ro")
    pairs = tuple(
        (name.encode(), None if value is None else value.encode()) for name, value in sorted(settings.items())
    )
    found = frozenset(images)
    names, data_names = (
        tuple(without_suffix(layer) if layer in found else layer for layer in layers) for layers in (lower, data)
    )
    files = tuple(layer for layer in (*lower, *data) if layer in found)
    return MountSpec(path, names, data_names, pairs, frozenset(flags), files, writable, strategy=strategy)


def _check_images(path: bytes, data: Sequence[bytes], images: Collection[bytes], strategy: str) -> None:
    """Check that image files can be layers. Raises OverlayError naming one that has no name of an image, or cannot be a data layer."""
    for image in images:
        if not is_image_path(image):
            raise OverlayError(
                f"layer {show(image)} is a file and has no name of an image: give a directory, or an EROFS image whose name ends in .erofs"
            )
    if strategy == REDIRECT and not set(images).isdisjoint(data):
        first = next(layer for layer in data if layer in images)
        raise OverlayError(
            f"overlay at {show(path)}: image {show(first)} cannot be a data layer with strategy redirect, since the kernel would merge the"
            " names in it with those of the view: data images need data-only layers (Linux 6.5), so leave the image out"
        )


def check_options(options: Mapping[str, OptionValue]) -> None:
    """Raise OverlayError if an option is unknown or has an invalid value. Whether options exclude each other depends on the layers."""
    _sorted_options(options)


def _sorted_options(options: Mapping[str, OptionValue]) -> tuple[dict[str, str | None], list[str]]:
    settings: dict[str, str | None] = {}
    flags = []
    for name, given in options.items():
        value = _word(given)
        if name in MOUNT_FLAGS:
            if _truth(name, value):
                flags.append(name)
        elif name not in SETTINGS:
            known = ", ".join((*MOUNT_FLAGS, *SETTINGS))
            raise OverlayError(f"overlay option {name!r} is not known: use one of {known}")
        else:
            choices = SETTINGS[name]
            if choices is None:
                if _truth(name, value):
                    settings[name] = None
            elif value not in choices:
                raise OverlayError(f"overlay option {name} has the value {value!r}: use one of {', '.join(choices)}")
            else:
                settings[name] = value
    return settings, flags


def _word(value: OptionValue) -> str:
    """Return the value of an option as the kernel writes it. YAML reads a bare ``on`` as true."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "on" if value is None else str(value).lower()


def _truth(name: str, value: str) -> bool:
    truths = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if value not in truths:
        raise OverlayError(f"overlay option {name} has the value {value!r}: use true or false")
    return truths[value]


def mount_differences(
    spec: MountSpec, live: Mount, defaults: Mapping[bytes, bytes], parts: Sequence[Mount] | None = None
) -> dict[str, tuple[object, object]]:
    """Return how a live mount differs from its declaration: the live and the declared value by name.

    ``parts`` are the mounted parts of its tree. If they are None, parts are not compared.

    ``defaults`` are the host's defaults of overlay options by name, each ``Y``, ``N`` or a word. The kernel prints an option only if it
    differs from its default.
    """
    if live.fstype != b"overlay":
        return {"type": (live.fstype.decode("ascii", "replace"), "overlay")}
    found = _own_differences(spec, live, defaults)
    if parts is not None and not found:
        found.update(_part_differences(spec, live, defaults, parts))
    return found


def _own_differences(spec: MountSpec, live: Mount, defaults: Mapping[bytes, bytes]) -> dict[str, tuple[object, object]]:
    layers = overlay_layers(live)
    found: dict[str, tuple[object, object]] = {}
    for kind, live_layers, declared_layers in zip(("lower", "data"), (layers.lower, layers.data), spec.layers):
        if live_layers != declared_layers:
            found[kind] = ([show(layer) for layer in live_layers], [show(layer) for layer in declared_layers])
    for role, actual_path, declared in (
        ("root", live.root, spec.root),
        ("upper", layers.upper, spec.upper),
        ("work", layers.work, spec.work),
    ):
        if actual_path != declared:
            found[role] = (actual_path and show(actual_path), declared and show(declared))
    for name, value in spec.settings:
        wanted = value or b"on"
        actual = live_setting(layers, name, defaults)
        if (name, wanted) == (b"redirect_dir", b"off"):
            # 'off' creates no redirects. A parameter of the host decides whether the kernel follows those that exist.
            wanted = b"follow" if defaults.get(b"redirect_always_follow") == b"Y" else b"nofollow"
        if name == b"xino" and all(option != name for option, _value in layers.settings):
            # The kernel omits xino if all layers are on one file system, whatever value it was given.
            continue
        if not _same_setting(name, wanted, actual, spec.writable is not None):
            found[show(name)] = (show(actual), show(wanted))
    for flag in ("ro", *MOUNT_FLAGS):
        actual_flag = flag.encode() in live.flags
        if actual_flag != (flag in spec.flags):
            found[flag] = (actual_flag, flag in spec.flags)
    return found


def _part_differences(
    spec: MountSpec, live: Mount, defaults: Mapping[bytes, bytes], parts: Sequence[Mount]
) -> dict[str, tuple[object, object]]:
    """Return how the mounted parts of a tree differ from their declaration. The overlay at the mountpoint does not differ."""
    mounted, declared = (
        {part.place: [show(layer) for layer in part.data] for part in found}
        for found in (tree_parts.as_declared(live, parts), spec.parts)
    )
    different = [place for place in sorted({*mounted, *declared}) if mounted.get(place) != declared.get(place)]
    if different:
        return {f"part {show(place)}": (mounted.get(place), declared.get(place)) for place in different}
    at_path = {one.path: one for one in parts}
    for overlay in spec.overlays[1:]:
        changes = mount_differences(overlay, at_path[overlay.path], defaults)
        if changes:
            return {f"{name} of part {show(overlay.place)}": change for name, change in changes.items()}
    return {}


def explained_differences(changes: Mapping[str, tuple[object, object]]) -> str:
    """Return, for a message, how a new mount differs from its declaration, with the reason if it is known.

    ``changes`` is what ``mount_differences`` returned.
    """
    words = []
    for name, (now, wanted) in changes.items():
        reason = option_rules.FALLBACKS.get((name, str(now)))
        hint = f" ({reason}; give {name}={now} to accept that)" if reason else ""
        words.append(f"{name} is {now}, not {wanted}{hint}")
    return ", ".join(words)


def live_setting(layers: OverlayLayers, name: bytes, defaults: Mapping[bytes, bytes]) -> bytes:
    """Return the value of a setting of a live overlay. ``defaults`` are those of ``mount_differences``."""
    for option, value in layers.settings:
        if option == name:
            return b"on" if value is None else value
        # Linux 6.18 prints volatile so.
        if (name, option, value) == (b"volatile", b"fsync", b"volatile"):
            return b"on"
    by_default = defaults.get(name) == b"Y"
    if name == b"redirect_dir" and not by_default:
        return b"follow" if defaults.get(b"redirect_always_follow") == b"Y" else b"nofollow"
    return b"on" if by_default else b"off"


def _same_setting(name: bytes, wanted: bytes, actual: bytes, upper: bool) -> bool:
    if name == b"redirect_dir" and not upper:
        # Without an upper layer no redirect is created, so 'on' and 'follow' mean the same.
        return wanted == actual or {wanted, actual} <= {b"on", b"follow"}
    # For 'auto' the kernel chooses the value.
    return wanted in (actual, b"auto")
