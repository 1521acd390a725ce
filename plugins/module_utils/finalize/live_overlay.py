# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the writable overlay that is mounted at a path, and open its directories.

Users may rename directories in the overlay at any moment. Each directory is opened once, beneath the root of the overlay or of the upper
layer, and all work in it goes through its descriptors. The two descriptors of a directory may lead to different directories, so what is
changed is checked by itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.finalize_request import default_workers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    KERNEL_SEALED,
    RESTORING,
    SEALED,
    Marks,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, OverlayLayers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import creating, mounts, probe
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import SCRATCH_PLACE, live_setting

#: The name of the feature of kernels that seal directories.
KERNEL_SEAL = "kernel_seal"


class Roots:
    """Descriptors of the root of an overlay and of its upper layer. No other path is resolved from the top."""

    def __init__(self, mount: Mount, upper: bytes) -> None:
        #: The root of the upper layer.
        self.upper = beneath.open_layer(upper)
        self._shown = -1
        try:
            self.open(mount)
        except BaseException:
            os.close(self.upper)
            raise

    @property
    def shown(self) -> int:
        """The descriptor of the overlay's root. Raises ValueError while it is closed."""
        if self._shown < 0:
            raise ValueError("the overlay is unmounted")
        return self._shown

    def open(self, mount: Mount) -> None:
        """Open the root of the overlay. Raises OverlayError if another mount is there."""
        self._shown = beneath.open_root(mount.path)
        if beneath.mount_of(self._shown) != mount.id:
            self.let_go()
            raise OverlayError(f"another mount appeared at {show(mount.path)} just now: run this again")

    def let_go(self) -> None:
        """Close the root of the overlay, so that it can be unmounted."""
        if self._shown >= 0:
            os.close(self._shown)
            self._shown = -1

    def close(self) -> None:
        self.let_go()
        os.close(self.upper)


@dataclass(frozen=True)
class Overlay:
    """A mounted overlay with an upper layer."""

    mount: Mount
    layers: OverlayLayers
    upper: bytes
    roots: Roots
    #: Prefix of the kernel's xattrs.
    prefix: bytes
    #: Whether hard links stay hard links when they are copied up.
    keeps_links: bool
    #: Whether metadata is copied up without the content.
    metacopy: bool
    #: Whether the kernel seals directories when they are read. If it does not, it ignores the marks of one that does.
    kernel_seals: bool
    #: Paths of mounts inside the overlay, relative to its root.
    covered: frozenset[bytes]
    #: Default number of processes that work on it.
    default_workers: int

    def open(self, path: bytes) -> int:
        """Open a directory as the overlay shows it; return the descriptor."""
        return beneath.open_at(self.roots.shown, path, same_mount=True)

    @contextlib.contextmanager
    def opened(self, path: bytes) -> Iterator[int]:
        """Give the descriptor that ``open`` returns while the block runs."""
        with beneath.opened(self.roots.shown, path, same_mount=True) as fd:
            yield fd

    def open_stored(self, path: bytes) -> int:
        """Open a directory as the upper layer has it; return the descriptor. Raises FileNotFoundError if it has none."""
        return beneath.open_at(self.roots.upper, path, same_mount=True)

    def attribute(self, path: bytes, name: bytes) -> bytes | None:
        """Return an overlayfs xattr of a directory in the upper layer, or None if it is not set. ``name`` has no prefix."""
        with beneath.opened(self.roots.upper, path, same_mount=True) as fd:
            return beneath.attribute(fd, self.prefix + name)

    def marks(self, stored: int) -> Marks:
        """Read the marks of an open directory of the upper layer."""
        present = set(beneath.attribute_names(stored))

        def read(name: bytes) -> bytes | None:
            return beneath.attribute(stored, name) if os.fsdecode(name) in present else None

        opaque = read(self.prefix + b"opaque")
        return Marks(
            opaque=None if opaque == KERNEL_SEALED and not self.kernel_seals else opaque,
            redirect=read(self.prefix + b"redirect"),
            copied=os.fsdecode(self.prefix + b"origin") in present,
            sealed_from=read(SEALED),
            restoring=os.fsdecode(RESTORING) in present,
        )

    def marks_in(self, stored: int, name: bytes) -> Marks:
        """Read the marks of the directory ``name`` in an open one. Raises FileNotFoundError, or NotADirectoryError if it is none."""
        fd = beneath.open_at(stored, name, same_mount=True)
        try:
            return self.marks(fd)
        finally:
            os.close(fd)


def find(path: bytes) -> Overlay | None:
    """Return the overlay that is mounted at ``path``, or None if nothing is. Raises OverlayError if it cannot be finalized."""
    mount = mounts.observe(path).mount
    if mount is None:
        return None
    layers = _layers_of(mount)
    upper = layers.upper or b""
    mountinfo.check_absolute(f"the overlay at {show(path)}", [upper], "its upper layer")
    try:
        roots = Roots(mount, upper)
    except (FileNotFoundError, NotADirectoryError):
        raise OverlayError(f"{show(upper)}, the upper layer of the overlay at {show(path)}, does not exist") from None
    defaults = creating.overlay_defaults()
    live = namespaces.own_mounts()
    metacopy = live_setting(layers, b"metacopy", defaults) == b"on"
    return Overlay(
        mount=mount,
        layers=layers,
        upper=upper,
        roots=roots,
        prefix=b"user.overlay." if (b"userxattr", None) in layers.settings else b"trusted.overlay.",
        keeps_links=b"on" in (live_setting(layers, name, defaults) for name in (b"index", b"nfs_export")),
        metacopy=metacopy,
        kernel_seals=metacopy and _kernel_seals(),
        covered=_covered(path, live),
        default_workers=default_workers((*layers.lower, *layers.data), live),
    )


def _kernel_seals() -> bool:
    """Try whether the kernel seals directories, in a child process."""
    feature = deadline.run(lambda _progress: probe.probe((KERNEL_SEAL,)), creating.CHILD_SECONDS)[KERNEL_SEAL]
    return bool(feature.supported)


def _layers_of(mount: Mount) -> OverlayLayers:
    """Return the layers of an overlay. Raises OverlayError if the mount is no overlay that can be finalized."""
    path = mount.path
    if mount.fstype != b"overlay":
        kind = mount.fstype.decode("ascii", "replace")
        raise OverlayError(f"{show(path)} is a mount of type {kind} and no overlay: give the mountpoint of an overlay")
    if mount.root != b"/":
        raise OverlayError(
            f"{show(path)} shows a part of an overlay, {show(mount.root)}: give the mountpoint of the whole overlay. A view of strategy"
            " redirect needs no finalizing"
        )
    layers = mountinfo.overlay_layers(mount)
    if layers.upper is None:
        raise OverlayError(
            f"the overlay at {show(path)} has no upper layer to copy up to: give an overlay with an upper layer. A view over a metadata"
            " layer needs no finalizing"
        )
    if b"ro" in mount.flags or b"ro" in mount.super_options:
        raise OverlayError(f"the overlay at {show(path)} is mounted read-only: mount it writable to finalize it")
    if layers.upper.startswith(SCRATCH_PLACE):
        raise OverlayError(
            f"the upper layer of the overlay at {show(path)} is scratch space, which is lost when the overlay is unmounted: give an overlay"
            " whose upper layer is on a disk"
        )
    return layers


def _covered(path: bytes, live: Sequence[Mount]) -> frozenset[bytes]:
    top = path.rstrip(b"/") + b"/"
    return frozenset(mount.path[len(top) :] for mount in live if mount.path.startswith(top))
