# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Derive how to mount an overlay again from what the kernel reports of it, and convert that to a note and back."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import records
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import (
    Mount,
    check_absolute,
    overlay_layers,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import RecordKind
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MountSpec, Writable

#: Flags of a mount that a new one can be given. Without the last two, the kernel updates every atime (strictatime).
_FLAGS = frozenset(("ro", "nosuid", "nodev", "noexec", "nodiratime", "nosymfollow", "noatime", "relatime"))
#: Options that the kernel reports but does not accept for a new overlay.
_NO_SETTINGS = frozenset((b"ro", b"rw", b"seclabel"))

#: Bytes of the longest note that is read.
LARGEST_NOTE = 1 << 26


@dataclass(frozen=True)
class RemountSpec:
    """How to mount an overlay again."""

    spec: MountSpec
    #: Whether its propagation is shared.
    shared: bool

    @property
    def volatile(self) -> bool:
        # Newer kernels report the second form.
        return not {(b"volatile", None), (b"fsync", b"volatile")}.isdisjoint(self.spec.settings)


def remount_spec(mount: Mount, images: tuple[bytes, ...]) -> RemountSpec:
    """Return how to mount a writable overlay again. ``images`` are the image files among its layers.

    Raises OverlayError if the new mount would differ.
    """
    layers = overlay_layers(mount)
    everything = (*layers.lower, *layers.data, layers.upper or b"", layers.work or b"")
    check_absolute(f"the overlay at {show(mount.path)}", everything)
    if mount.root != b"/":
        raise OverlayError(
            f"{show(mount.path)} is a bind mount of a part of an overlay: give the mountpoint of the whole overlay"
        )
    flags = {show(flag) for flag in mount.flags} - {"rw"}
    propagation = {show(word.partition(b":")[0]) for word in mount.propagation}
    unknown = sorted((flags - _FLAGS) | (propagation - {"shared"}))
    if unknown:
        raise OverlayError(
            f"the overlay at {show(mount.path)} is mounted with {', '.join(unknown)}, with which it could not be mounted again: mount it"
            " without that first"
        )
    if not flags & {"noatime", "relatime"}:
        flags.add("strictatime")
    settings = tuple(pair for pair in layers.settings if pair[0] not in _NO_SETTINGS)
    writable = Writable(layers.upper or b"", layers.work or b"")
    spec = MountSpec(
        mount.path, layers.lower, layers.data, settings, frozenset(flags - {"relatime"}), images, writable, mount.source
    )
    return RemountSpec(spec, "shared" in propagation)


def to_json(entry: RemountSpec) -> bytes:
    """Return the note of an unmounted overlay, as JSON."""
    spec = entry.spec
    values = {
        "path": to_text(spec.path),
        "lower": [to_text(layer) for layer in spec.lower],
        "data": [to_text(layer) for layer in spec.data],
        "settings": [[to_text(name), None if value is None else to_text(value)] for name, value in spec.settings],
        "flags": sorted(spec.flags),
        "images": [to_text(image) for image in spec.images],
        "upper": to_text(spec.upper or b""),
        "work": to_text(spec.work or b""),
        "source": to_text(spec.source),
        "shared": entry.shared,
    }
    return _NOTE.dump(values)


_LAYER = records.text()
_LAYERS = records.list_of(_LAYER, 1 << 12)
_SETTING = records.text(1 << 12, shortest=0)
_NOTE = RecordKind(
    records.fields(
        {
            "path": records.absolute,
            "lower": _LAYERS,
            "data": _LAYERS,
            "images": _LAYERS,
            "upper": records.text(shortest=0),
            "work": records.text(shortest=0),
            "source": records.text(1 << 12, shortest=0),
            "settings": records.list_of(records.list_of(records.nullable(_SETTING), 2, 2), 1 << 10),
            "flags": records.list_of(records.word(*sorted({*_FLAGS, "strictatime"} - {"relatime"})), len(_FLAGS)),
            "shared": records.boolean,
        }
    ),
    LARGEST_NOTE,
)


def from_json(text: bytes) -> RemountSpec:
    """Parse a note. Raises RecordError if it is malformed."""
    values = _NOTE.load(text)
    if any(name is None for name, _value in values["settings"]):
        raise records.RecordError("it has a setting without a name")
    spec = MountSpec(
        path=to_bytes(values["path"]),
        lower=tuple(to_bytes(layer) for layer in values["lower"]),
        data=tuple(to_bytes(layer) for layer in values["data"]),
        settings=tuple(
            (to_bytes(name), None if value is None else to_bytes(value)) for name, value in values["settings"]
        ),
        flags=frozenset(values["flags"]),
        images=tuple(to_bytes(image) for image in values["images"]),
        writable=Writable(to_bytes(values["upper"]), to_bytes(values["work"])),
        source=to_bytes(values["source"]),
    )
    return RemountSpec(spec, values["shared"])
