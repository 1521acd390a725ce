# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of an overlay mount: what may be asked for, what goes together, and what a live mount really has.

The rules are those of Documentation/filesystems/overlayfs.rst; which defaults apply is the host's business (module parameters,
which distributions set differently), so every option that matters is given explicitly.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.generation import (
    DATA_ONLY,
    REDIRECT,
    SHOWN_FOLDER,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.mountinfo import (
    Mount,
    OverlayLayers,
    overlay_layers,
    shown_settings,
)

Settings = tuple[tuple[bytes, Optional[bytes]], ...]
OptionValue = Union[str, bool, int, None]

#: How the name of an image file ends. A layer that is an image is known by the rest of its path: that is where its content is
#: mounted when the kernel is given the layers, so it is also what the kernel reports.
IMAGE_SUFFIX = b".erofs"

#: Flags of the mount itself. They are given as true or false.
MOUNT_FLAGS = ("nosuid", "nodev", "noexec", "noatime", "nodiratime")

#: Settings of the overlay with the values that each takes; None stands for a bare word that is given as true or false.
SETTINGS: dict[str, tuple[str, ...] | None] = {
    "metacopy": ("on", "off"),
    "redirect_dir": ("on", "follow", "nofollow", "off"),
    "index": ("on", "off"),
    "nfs_export": ("on", "off"),
    "xino": ("on", "off", "auto"),
    "verity": ("on", "off", "require"),
    "userxattr": None,
}

#: What an overlay with data-only layers cannot have, and why.
_NOT_WITH_DATA = (
    ("nfs_export", "on", "files opened by their NFS file handle would read zeros"),
    ("redirect_dir", "nofollow", "the content of files is found through redirects"),
    ("redirect_dir", "off", "the content of files is found through redirects, which 'off' may leave unfollowed"),
    ("metacopy", "off", "the files of the layer are metadata copies"),
)


@dataclass(frozen=True)
class MountSpec:
    """The declaration of an overlay mount; paths are absolute and without symbolic links."""

    path: bytes
    #: Names of the lower layers: a directory's path, or an image's path without its suffix.
    lower: tuple[bytes, ...]
    data: tuple[bytes, ...]
    settings: Settings
    flags: frozenset[str]
    #: The files of those lower layers that are images.
    images: tuple[bytes, ...] = ()
    #: How the layers of ``data`` are used, ``data_only`` or ``redirect``.
    strategy: str = DATA_ONLY

    @property
    def layers(self) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """The ordinary lower layers and the data-only ones, as the kernel is given them."""
        return ((*self.lower, *self.data), ()) if self.strategy == REDIRECT else (self.lower, self.data)

    @property
    def root(self) -> bytes:
        """The directory of the overlay that is seen at the mountpoint."""
        return b"/" + SHOWN_FOLDER.encode() if self.strategy == REDIRECT else b"/"

    @property
    def directories(self) -> tuple[bytes, ...]:
        """The layers that are directories."""
        names = {image[: -len(IMAGE_SUFFIX)] for image in self.images}
        return tuple(layer for layer in self.lower if layer not in names) + self.data

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration as the diff shows it."""
        return _shown_state(self.path, *self.layers, self.settings, self.flags, self.root)


def declared_by(live: Mount | None) -> dict[str, Any]:
    """Return of a live overlay what a declaration would say; empty where there is none."""
    if live is None or live.fstype != b"overlay":
        return {}
    layers = overlay_layers(live)
    flags = frozenset(flag.decode() for flag in live.flags) & {"ro", *MOUNT_FLAGS}
    return _shown_state(live.path, layers.lower, layers.data, layers.settings, flags, live.root)


def _shown_state(
    path: bytes, lower: Sequence[bytes], data: Sequence[bytes], settings: Settings, flags: frozenset[str], root: bytes
) -> dict[str, Any]:
    return {
        "path": show(path),
        "root": show(root),
        "lower": shown(lower),
        "data": shown(data),
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
    strategy: str = DATA_ONLY,
) -> MountSpec:
    """Return the declaration with every option that matters made explicit. Raises OverlayError for what cannot be.

    ``images`` are those of ``lower`` that are image files, not directories.
    """
    if not lower:
        raise OverlayError(
            f"overlay at {show(path)}: 'lower' needs at least one layer; data-only layers alone show nothing"
        )
    for image in images:
        if not re.search(rb"[^/]\.erofs$", image):
            raise OverlayError(
                f"lower layer {show(image)} is a file: an EROFS image has to have a name that ends in .erofs"
            )
    settings, flags = _sorted_options(options)
    _check_strategy(path, strategy, settings)
    if data:
        for name, value, reason in _NOT_WITH_DATA:
            if settings.get(name) == value:
                raise OverlayError(
                    f"overlay at {show(path)}: option {name}={value} cannot go with data layers: {reason}"
                )
        # userxattr and metacopy=on exclude each other; with it, kernels that can (Linux 6.16) need no metacopy=on.
        if "userxattr" not in settings:
            settings.setdefault("metacopy", "on")
            settings.setdefault("redirect_dir", "on")
    if settings.get("index") == "on":
        raise OverlayError(f"overlay at {show(path)}: option index=on is for overlays with an upper layer")
    if settings.get("nfs_export") == "on" and settings.get("redirect_dir") != "nofollow":
        raise OverlayError(
            f"overlay at {show(path)}: option nfs_export=on needs redirect_dir=nofollow where there is no upper layer"
        )
    if "userxattr" in settings and settings.get("metacopy") == "on":
        raise OverlayError(f"overlay at {show(path)}: options userxattr and metacopy=on exclude each other")
    if read_only:
        flags.append("ro")
    pairs = tuple(
        (name.encode(), None if value is None else value.encode()) for name, value in sorted(settings.items())
    )
    names = tuple(layer[: -len(IMAGE_SUFFIX)] if layer in images else layer for layer in lower)
    files = tuple(layer for layer in lower if layer in images)
    return MountSpec(path, names, tuple(data), pairs, frozenset(flags), files, strategy)


def _check_strategy(path: bytes, strategy: str, settings: Mapping[str, str | None]) -> None:
    if strategy == REDIRECT and "userxattr" in settings:
        raise OverlayError(
            f"overlay at {show(path)}: option userxattr cannot go with strategy redirect: with it, the kernel follows redirects into"
            " data-only layers alone"
        )


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
            raise OverlayError(f"overlay option {name!r} is not known; known are {known}")
        else:
            choices = SETTINGS[name]
            if choices is None:
                if _truth(name, value):
                    settings[name] = None
            elif value not in choices:
                raise OverlayError(f"overlay option {name} takes one of {', '.join(choices)}, not {value!r}")
            else:
                settings[name] = value
    return settings, flags


def _word(value: OptionValue) -> str:
    """Return an option's value as the kernel writes it: YAML makes true of a bare ``on``."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "on" if value is None else str(value).lower()


def _truth(name: str, value: str) -> bool:
    truths = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    if value not in truths:
        raise OverlayError(f"overlay option {name} is given as true or false, not {value!r}")
    return truths[value]


def differences(spec: MountSpec, live: Mount, defaults: Mapping[bytes, bytes]) -> dict[str, tuple[object, object]]:
    """Return in what a live mount differs from its declaration: for each name what is there and what should be.

    ``defaults`` are the host's defaults of overlay options (by name, ``Y``, ``N`` or a word): the kernel prints an option
    only when it differs from them.
    """
    if live.fstype != b"overlay":
        return {"type": (live.fstype.decode("ascii", "replace"), "overlay")}
    layers = overlay_layers(live)
    lower, data = spec.layers
    found: dict[str, tuple[object, object]] = {}
    if layers.lower != lower:
        found["lower"] = (shown(layers.lower), shown(lower))
    if layers.data != data:
        found["data"] = (shown(layers.data), shown(data))
    if live.root != spec.root:
        found["root"] = (show(live.root), show(spec.root))
    if layers.upper is not None:
        found["upper"] = (show(layers.upper), None)
    for name, value in spec.settings:
        wanted = value or b"on"
        actual = _live_setting(layers, name, defaults)
        if (name, wanted) == (b"redirect_dir", b"off"):
            # 'off' is not to make any; whether those that are there are followed is the host's setting.
            wanted = b"follow" if defaults.get(b"redirect_always_follow") == b"Y" else b"nofollow"
        if name == b"xino" and all(option != name for option, _value in layers.settings):
            # The kernel leaves it out where all layers are on one file system, whatever it was given.
            continue
        if not _same_setting(name, wanted, actual):
            found[name.decode()] = (actual.decode(), wanted.decode())
    for flag in ("ro", *MOUNT_FLAGS):
        actual_flag = flag.encode() in live.flags
        if actual_flag != (flag in spec.flags):
            found[flag] = (actual_flag, flag in spec.flags)
    return found


def _live_setting(layers: OverlayLayers, name: bytes, defaults: Mapping[bytes, bytes]) -> bytes:
    for option, value in layers.settings:
        if option == name:
            return b"on" if value is None else value
    by_default = defaults.get(name) == b"Y"
    if name == b"redirect_dir" and not by_default:
        return b"follow" if defaults.get(b"redirect_always_follow") == b"Y" else b"nofollow"
    return b"on" if by_default else b"off"


def _same_setting(name: bytes, wanted: bytes, actual: bytes) -> bool:
    if name == b"redirect_dir":
        # Without an upper layer nothing is renamed, so that redirects are followed is all that 'on' can mean.
        return wanted == actual or {wanted, actual} <= {b"on", b"follow"}
    # What becomes of 'auto' is the kernel's choice.
    return wanted in (actual, b"auto")


def shown(paths: Sequence[bytes]) -> list[str]:
    return [show(path) for path in paths]
