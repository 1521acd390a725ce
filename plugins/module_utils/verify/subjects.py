# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what to verify: a generation of a view, and the overlay that shows it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import FORMATS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces, still_paths
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import (
    image_path,
    without_suffix,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import MOUNT_FLAGS, MountSpec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    GenerationName,
    ViewPaths,
    generation_of,
    layer_path,
)


@dataclass(frozen=True)
class Subject:
    """A generation of a view, and the overlay that shows it."""

    paths: ViewPaths
    #: The name of the generation's directory.
    directory: str
    #: The overlays that show it, those at the mountpoint of the view first.
    mounts: tuple[Mount, ...] = ()
    #: The data layers, in the order in which the kernel searches them: directories, and layer names of images.
    data: tuple[bytes, ...] = ()
    #: The paths of the image files among the data layers.
    data_images: tuple[bytes, ...] = ()

    @property
    def name(self) -> GenerationName:
        """What the name of the directory says. Raises ValueError if it is not that of a generation."""
        found = GenerationName.parse(self.directory)
        if found is None:
            raise ValueError(self.directory)
        return found

    @property
    def state_dir(self) -> str:
        """The path of the state directory."""
        return os.path.dirname(os.path.dirname(self.paths.root))

    @property
    def stored(self) -> bytes:
        """The path of the layer: a directory, or an image file."""
        return os.fsencode(layer_path(self.paths.generation(self.directory), self.name.format))

    @property
    def is_image(self) -> bool:
        return FORMATS[self.name.format].is_image

    @property
    def layer(self) -> bytes:
        """The path of the directory of the layer, or the layer name of its image."""
        return without_suffix(self.stored) if self.is_image else self.stored

    @property
    def images(self) -> tuple[bytes, ...]:
        """The paths of the image files among the layer and the data layers."""
        return (*((self.stored,) if self.is_image else ()), *self.data_images)

    def spec(self, mount: Mount) -> MountSpec:
        """Return the declaration that a live overlay of this generation fulfils."""
        layers = mountinfo.overlay_layers(mount)
        settings = tuple(pair for pair in layers.settings if pair[0] not in (b"ro", b"rw"))
        flags = frozenset(show(flag) for flag in mount.flags) & {"ro", *MOUNT_FLAGS}
        texts = tuple((name, value) for name, value in settings)
        return MountSpec(
            mount.path,
            (self.layer,),
            self.data,
            texts,
            flags,
            self.images,
            source=mount.source,
            strategy=self.name.strategy,
        )


def of_view(state_dir: str, name: str, generation: str | None, data: Sequence[str] | None) -> Subject:
    """Return the generation of a view: that with the ID ``generation``, or the current one.

    ``data`` are the data layers; None for those of the overlay that shows the generation. Raises OverlayError if there is no such
    generation.
    """
    paths = ViewPaths.of(os.path.realpath(state_dir), name)
    current = _current(paths)
    known = sorted(one for one in _names_in(paths.generations) if GenerationName.parse(one))
    if generation is None:
        if current not in known:
            raise OverlayError(
                f"view {name} has no current generation below {state_dir}: deploy it, or give its 'state_dir'"
            )
        return _subject(paths, state_dir, current, data)
    fitting = [one for one in known if generation_of(one) == generation]
    if not fitting:
        raise OverlayError(f"view {name} has no generation {generation} on this host: it has {_listed(known)}")
    return _subject(paths, state_dir, current if current in fitting else fitting[0], data)


def _current(paths: ViewPaths) -> str:
    """Return the directory of the current generation; empty if there is none."""
    try:
        return os.path.basename(os.readlink(paths.link(CURRENT)))
    except OSError:
        return ""


def _names_in(place: str) -> list[str]:
    try:
        return os.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _listed(directories: Sequence[str]) -> str:
    return ", ".join(generation_of(one) for one in directories) or "none"


def at_mountpoint(path: bytes) -> Mount:
    """Return the overlay that is mounted at a path. Raises OverlayError if none is."""
    live = namespaces.own_mounts()
    mount = mountinfo.top_mount(live, still_paths.mountpoint(path, live))
    if mount is None or mount.fstype != b"overlay":
        raise OverlayError(
            f"no overlay is mounted at {show(path)}: give the mountpoint of a view or of a writable overlay"
        )
    return mount


def of_mount(mount: Mount, state_dir: str, data: Sequence[str] | None) -> Subject | None:
    """Return the generation that an overlay shows; None if it shows no view of the state directory."""
    lower = mountinfo.overlay_layers(mount).lower
    views = os.fsencode(os.path.join(os.path.realpath(state_dir), "views")) + b"/"
    if not lower or not lower[0].startswith(views):
        return None
    parts = os.fsdecode(lower[0][len(views) :]).split("/")
    if len(parts) != 4 or parts[1] != "generations" or GenerationName.parse(parts[2]) is None:
        return None
    return _subject(ViewPaths.of(os.path.realpath(state_dir), parts[0]), state_dir, parts[2], data)


def with_data_layer(subject: Subject, image: str) -> Iterator[tuple[Subject, Mount]]:
    """Yield the overlays that have a data image as a layer, each with the generation that it shows, given the path of the image.

    The overlays of ``subject`` are among them, and those of other views of its state directory.
    """
    layer = without_suffix(os.fsencode(image))
    live = namespaces.own_mounts()
    for mount in live:
        if mount.fstype != b"overlay" or mountinfo.top_mount(live, mount.path) != mount:
            continue
        if layer in mountinfo.overlay_layers(mount).lower or layer in mountinfo.overlay_layers(mount).data:
            other = of_mount(mount, subject.state_dir, None)
            if other is not None:
                yield other, mount


def _subject(paths: ViewPaths, state_dir: str, directory: str, data: Sequence[str] | None) -> Subject:
    bare = Subject(paths, directory)
    live = namespaces.own_mounts()
    mounts = [
        mount
        for mount in live
        if mount.fstype == b"overlay"
        and mountinfo.overlay_layers(mount).lower[:1] == (bare.layer,)
        and mountinfo.top_mount(live, mount.path) == mount
    ]
    if data is not None:
        layers: tuple[bytes, ...] = tuple(os.path.realpath(os.fsencode(one)) for one in data)
    elif mounts:
        found = mountinfo.overlay_layers(mounts[0])
        layers = found.lower[1:] if bare.name.strategy == strategies.REDIRECT else found.data
    else:
        layers = ()
    installed = os.fsencode(installing.data_directory(os.path.realpath(state_dir))) + b"/"
    images = tuple(image_path(layer) for layer in layers if layer.startswith(installed))
    return Subject(paths, directory, tuple(mounts), layers, images)


def generation(subject: Subject) -> Generation:
    """Return the generation of a subject. Raises OverlayError or OSError if its record cannot be used."""
    return view_state.read_generation(subject.paths, subject.directory)
