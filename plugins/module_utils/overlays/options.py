# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of an overlay mount: what may be asked for, what goes together, and what a live mount really has.

Which defaults apply is the host's business (module parameters, which distributions set differently), so every option that matters
is given explicitly. What goes together, overlays/option_rules.py says.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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
    SHOWN_FOLDER,
)

Settings = tuple[tuple[bytes, Optional[bytes]], ...]
OptionValue = Union[str, bool, int, None]

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
    "volatile": None,
}

#: Where the file systems in memory are that overlays have as their scratch space. Each is mounted where only its overlay sees it, so all
#: of one size have the same name; the size is in the name since that is what the kernel reports.
SCRATCH_PLACE = b"/run/renderfarm-overlay/scratch"


@dataclass(frozen=True)
class Writable:
    """The part of an overlay that is written to."""

    upper: bytes
    work: bytes
    #: Bytes of the file system in memory that both are on, mounted at ``place``; None where they are directories of the host.
    scratch: int | None = None

    @property
    def place(self) -> bytes:
        """The folder that both are in, where they are on a file system of their own."""
        return posixpath.dirname(self.upper)


def scratch_space(size: int) -> Writable:
    """Return the writable part of an overlay that forgets what was written; ``size`` in bytes."""
    place = b"%s-%d" % (SCRATCH_PLACE, size)
    return Writable(place + b"/upper", place + b"/work", size)


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
    #: None for an overlay without an upper layer.
    writable: Writable | None = None
    #: What the kernel is to call the file system; it has no other meaning.
    source: bytes = b"overlay"
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
    def upper(self) -> bytes | None:
        return self.writable.upper if self.writable else None

    @property
    def work(self) -> bytes | None:
        return self.writable.work if self.writable else None

    @property
    def kept(self) -> tuple[bytes, ...]:
        """The upper layer and its work directory, where they are directories of the host."""
        return (self.writable.upper, self.writable.work) if self.writable and self.writable.scratch is None else ()

    @property
    def directories(self) -> tuple[bytes, ...]:
        """The layers that are directories."""
        names = {without_suffix(image) for image in self.images}
        return tuple(layer for layer in self.lower if layer not in names) + self.data

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration as the diff shows it."""
        return _shown_state(self.path, self.root, *self.layers, (self.upper, self.work), self.settings, self.flags)


def declared_by(live: Mount | None) -> dict[str, Any]:
    """Return of a live overlay what a declaration would say; empty where there is none."""
    if live is None or live.fstype != b"overlay":
        return {}
    layers = overlay_layers(live)
    flags = frozenset(show(flag) for flag in live.flags) & {"ro", *MOUNT_FLAGS}
    return _shown_state(
        live.path, live.root, layers.lower, layers.data, (layers.upper, layers.work), layers.settings, flags
    )


def _shown_state(
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
        "lower": shown(lower),
        "data": shown(data),
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
    """Return the declaration with every option that matters made explicit. Raises OverlayError for what cannot be.

    ``images`` are those of ``lower`` that are image files, not directories.
    """
    if not lower:
        raise OverlayError(
            f"overlay at {show(path)}: 'lower' needs at least one layer; data-only layers alone show nothing"
        )
    for image in images:
        if not is_image_path(image):
            raise OverlayError(
                f"lower layer {show(image)} is a file: an EROFS image has to have a name that ends in .erofs"
            )
    given, flags = _sorted_options(options)
    settings = option_rules.pinned(given, writable is not None, bool(data), strategy == REDIRECT)
    reason = option_rules.refusal(settings, writable is not None, bool(data))
    if strategy == REDIRECT and "userxattr" in settings:
        reason = "option userxattr cannot go with strategy redirect: the kernel then follows redirects into data-only layers alone"
    if reason:
        raise OverlayError(f"overlay at {show(path)}: {reason}")
    if read_only and writable and writable.scratch is not None:
        raise OverlayError(f"overlay at {show(path)}: 'scratch' is for writing, so it cannot go with 'read_only'")
    if read_only:
        flags.append("ro")
    pairs = tuple(
        (name.encode(), None if value is None else value.encode()) for name, value in sorted(settings.items())
    )
    names = tuple(without_suffix(layer) if layer in images else layer for layer in lower)
    files = tuple(layer for layer in lower if layer in images)
    return MountSpec(path, names, tuple(data), pairs, frozenset(flags), files, writable, strategy=strategy)


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
    found: dict[str, tuple[object, object]] = {}
    for kind, live_layers, declared_layers in zip(("lower", "data"), (layers.lower, layers.data), spec.layers):
        if live_layers != declared_layers:
            found[kind] = (shown(live_layers), shown(declared_layers))
    for role, there, declared in (
        ("root", live.root, spec.root),
        ("upper", layers.upper, spec.upper),
        ("work", layers.work, spec.work),
    ):
        if there != declared:
            found[role] = (there and show(there), declared and show(declared))
    for name, value in spec.settings:
        wanted = value or b"on"
        actual = live_setting(layers, name, defaults)
        if (name, wanted) == (b"redirect_dir", b"off"):
            # 'off' is not to make any; whether those that are there are followed is the host's setting.
            wanted = b"follow" if defaults.get(b"redirect_always_follow") == b"Y" else b"nofollow"
        if name == b"xino" and all(option != name for option, _value in layers.settings):
            # The kernel leaves it out where all layers are on one file system, whatever it was given.
            continue
        if not _same_setting(name, wanted, actual, spec.writable is not None):
            found[show(name)] = (show(actual), show(wanted))
    for flag in ("ro", *MOUNT_FLAGS):
        actual_flag = flag.encode() in live.flags
        if actual_flag != (flag in spec.flags):
            found[flag] = (actual_flag, flag in spec.flags)
    return found


def explained(changes: Mapping[str, tuple[object, object]]) -> str:
    """Return in what a mount that was just made differs from its declaration, with the reason where it is known."""
    words = []
    for name, (now, wanted) in changes.items():
        reason = option_rules.FALLBACKS.get((name, str(now)))
        hint = f" ({reason}; give {name}={now} if that will do)" if reason else ""
        words.append(f"{name} is {now}, not {wanted}{hint}")
    return ", ".join(words)


def live_setting(layers: OverlayLayers, name: bytes, defaults: Mapping[bytes, bytes]) -> bytes:
    """Return the value that a setting of a live overlay has; ``defaults`` are those of ``differences``."""
    for option, value in layers.settings:
        if option == name:
            return b"on" if value is None else value
        # As newer kernels print it (Linux 6.18).
        if (name, option, value) == (b"volatile", b"fsync", b"volatile"):
            return b"on"
    by_default = defaults.get(name) == b"Y"
    if name == b"redirect_dir" and not by_default:
        return b"follow" if defaults.get(b"redirect_always_follow") == b"Y" else b"nofollow"
    return b"on" if by_default else b"off"


def _same_setting(name: bytes, wanted: bytes, actual: bytes, upper: bool) -> bool:
    if name == b"redirect_dir" and not upper:
        # Without an upper layer nothing is renamed, so that redirects are followed is all that 'on' can mean.
        return wanted == actual or {wanted, actual} <= {b"on", b"follow"}
    # What becomes of 'auto' is the kernel's choice.
    return wanted in (actual, b"auto")


def shown(paths: Sequence[bytes]) -> list[str]:
    return [show(path) for path in paths]
