# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of an overlay for mount(8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import join_lowerdir
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec

#: The most bytes of an option of fsconfig(2), and of all options of mount(2). mount(8) uses fsconfig(2) from util-linux 2.39 on.
_LONGEST_VALUE = 255
_LONGEST_OPTIONS = 4095


def mount_options(spec: MountSpec, append: bool, extra: Sequence[bytes] = (), any_length: bool = False) -> bytes:
    """Return the options of an overlay for mount(8), the layers last.

    ``append`` is whether the kernel takes layers one at a time, and ``any_length`` whether mount(8) takes options of any length. Raises
    OverlayError if they are too long for mount(8).
    """
    words = flag_options(spec)
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


def flag_options(spec: MountSpec) -> list[bytes]:
    """Return the options that are flags of the mount, ``ro`` first."""
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
