# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an overlay or a tree of overlays consists of at boot: its mounts, and the mounts and automounts that it needs.

An image is mounted visibly, on the empty directory beside it that has its name without the suffix, and the overlay above it. So the kernel
reports the same layers as for an overlay that the module has mounted. An overlay that shows one directory is mounted as a whole beside its
layer, and the directory is bound to the mountpoint.

A tree of overlays (trees/tree_parts.py) is put together beside its layer, where nobody else looks. The whole tree is then bound to the
mountpoint. The places beside the layer have a digest of the declaration in their names. So two declarations have only what mounts the
mountpoint in common.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.boot_paths import unit_name
from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot.mount_options import mount_options
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import TRIGGER, Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts

#: The target that wants the units of views. It comes after the network, since data layers are on file servers.
WANTED_BY = "remote-fs.target"
#: The source of the automounts of systemd. Those of all other sources are of automount(8), whose service starts after remote-fs.target.
_SYSTEMD = b"systemd-1"
AUTOMOUNTER = b"autofs.service"
#: What starts after the views over the automounts of automount(8).
AFTER_AUTOMOUNTER = b"multi-user.target"


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


def places(spec: MountSpec) -> list[bytes]:
    """Return the mountpoints beside the layer of an overlay at boot: its images, the whole overlays and the tree."""
    wholes = dict.fromkeys(whole for whole in map(whole_of, spec.overlays) if whole)
    return [*map(without_suffix, spec.images), *wholes, *([tree_of(spec)] if spec.parts else [])]


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
            found[layer] = tuple(unit_name(deepest.path, kind).encode() for kind in kinds) or (AUTOMOUNTER,)
    return found


def wanted_units(automounts: Mapping[bytes, Sequence[bytes]]) -> list[bytes]:
    """Return the units of automounts, each once."""
    return sorted({unit for units in automounts.values() for unit in units})


def looked_up(spec: MountSpec, automounts: Mapping[bytes, Sequence[bytes]]) -> MountSpec:
    """Return the declaration with layers that automount(8) mounts when the kernel looks them up."""
    on_demand = {path for path, units in automounts.items() if AUTOMOUNTER in units}
    lower, data = (
        tuple(path + TRIGGER if path in on_demand else path for path in paths) for paths in (spec.lower, spec.data)
    )
    return dataclasses.replace(spec, lower=lower, data=data)


def stands_alone(spec: MountSpec) -> bool:
    """Return whether an overlay has the content of all its files in images, so that it needs no software root and no network."""
    return bool(spec.data) and len(spec.data_images) == len(spec.data)


def check_outlives_boot(spec: MountSpec) -> None:
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


@dataclass(frozen=True)
class TreeStep:
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
    def is_network(self) -> bool:
        """Whether it needs the network, as data layers do."""
        return self.fstype != b"tmpfs"

    def options(self, append: bool, extra: Sequence[bytes], any_length: bool) -> bytes:
        """Return the options for mount(8). The parameters are those of ``mount_options``."""
        if self.overlay:
            return mount_options(self.overlay, append, (*self.words, *extra), any_length)
        return b",".join((*self.words, *extra))


def tree_steps(spec: MountSpec, live: Sequence[Mount]) -> Iterator[TreeStep]:
    """Yield the mounts that a tree of overlays consists of at boot, in their order. ``live`` has the automounts among the mounts."""
    empty = (b"ro", b"nosuid", b"nodev", b"noexec", b"mode=0755")
    # The directory is below /run, so it is made at each boot.
    yield TreeStep(b"tmpfs", tree_parts.NO_DATA, b"tmpfs", None, empty, ())
    # Mounts of the view and of its tree are not to propagate to each other, so the tree is private. The kernel makes its copy shared again
    # if the mountpoint is.
    private = (b"private",)
    first, *parts = spec.overlays
    place = tree_of(spec)
    yield TreeStep(b"overlay", place, b"overlay", first, private, (*first.lower, *first.data))
    mounted = set()
    for part in parts:
        whole = _whole_of_part(part)
        automounts = automounts_of(part, live)
        after = tuple(wanted_units(automounts))
        if whole not in mounted:
            mounted.add(whole)
            requires = tuple(path for path in (*part.lower, *part.data) if path not in automounts)
            on_demand = looked_up(part, automounts)
            yield TreeStep(b"overlay", whole, b"overlay", on_demand, private, requires, after)
        where = place + b"/" + part.place
        yield TreeStep(whole + part.root, where, b"none", None, (b"bind",), (whole,), after, is_part=True)
