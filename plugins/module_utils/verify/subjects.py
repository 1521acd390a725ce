# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what to verify: a generation of a view, and the overlay that shows it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import status_file
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
from ansible_collections.renderfarm.overlay.plugins.module_utils.trees import tree_parts
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlaces
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
    #: The parts of those that are trees of overlays, by the mount ID of the overlay at the mountpoint.
    parts: Mapping[int, tuple[Mount, ...]] = field(default_factory=dict)
    #: The data layers of the first of them, or those that the task gives, in the order in which the kernel searches them: directories, and
    #: layer names of images.
    data: tuple[bytes, ...] = ()
    #: Whether the task gives the data layers.
    is_data_given: bool = False
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
        """Return the declaration that a live overlay of this generation fulfils, with the parts of its tree."""
        layers = mountinfo.overlay_layers(mount)
        data = _data_of(mount, self.name)
        settings = tuple(pair for pair in layers.settings if pair[0] not in (b"ro", b"rw"))
        flags = frozenset(show(flag) for flag in mount.flags) & {"ro", *MOUNT_FLAGS}
        texts = tuple((name, value) for name, value in settings)
        return MountSpec(
            mount.path,
            (self.layer,),
            data,
            texts,
            flags,
            (*((self.stored,) if self.is_image else ()), *_images_among(data, self.state_dir)),
            source=mount.source,
            strategy=self.name.strategy,
            parts=tree_parts.as_declared(mount, self.parts.get(mount.id, ())),
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


def of_mount(
    mount: Mount, state_dir: str, data: Sequence[str] | None, live: Sequence[Mount] | None = None
) -> Subject | None:
    """Return the generation that an overlay shows; None if it shows no view of the state directory.

    ``live`` are the mounts of this host, by default as they are now.
    """
    lower = mountinfo.overlay_layers(mount).lower
    views = os.fsencode(os.path.join(os.path.realpath(state_dir), "views")) + b"/"
    if not lower or not lower[0].startswith(views):
        return None
    parts = os.fsdecode(lower[0][len(views) :]).split("/")
    if len(parts) != 4 or parts[1] != "generations" or GenerationName.parse(parts[2]) is None:
        return None
    return _subject(ViewPaths.of(os.path.realpath(state_dir), parts[0]), state_dir, parts[2], data, live)


def with_data_layers(subject: Subject, images: Collection[str]) -> Iterator[tuple[Subject, Mount]]:
    """Yield the overlays that have one of these data images as a layer, each with the generation that it shows.

    ``images`` are paths of image files. The overlays of ``subject`` are among the overlays, and those of other views of its state
    directory.
    """
    layers = {without_suffix(os.fsencode(image)) for image in images}
    live = namespaces.own_mounts()
    for mount in live:
        if mount.fstype != b"overlay" or mountinfo.top_mount(live, mount.path) != mount:
            continue
        found = mountinfo.overlay_layers(mount)
        if not layers.isdisjoint((*found.lower, *found.data)):
            other = of_mount(mount, subject.state_dir, None, live)
            if other is not None:
                yield other, mount


def _subject(
    paths: ViewPaths, state_dir: str, directory: str, data: Sequence[str] | None, live: Sequence[Mount] | None = None
) -> Subject:
    bare = Subject(paths, directory)
    live = namespaces.own_mounts() if live is None else live
    showing = [
        mount
        for mount in live
        if mount.fstype == b"overlay"
        and mountinfo.overlay_layers(mount).lower[:1] == (bare.layer,)
        and mountinfo.top_mount(live, mount.path) == mount
    ]
    parts = {mount.id: tuple(tree_parts.split(mount, mountinfo.inside(live, mount))[0]) for mount in showing}
    part_ids = {part.id for found in parts.values() for part in found}
    mounts = tuple(mount for mount in showing if mount.id not in part_ids)
    if data is not None:
        layers = tuple(still_paths.resolved(os.fsencode(one), live) for one in data)
    else:
        layers = _data_of(mounts[0], bare.name) if mounts else ()
    images = _images_among(layers, state_dir)
    return Subject(paths, directory, mounts, parts, layers, data is not None, images)


def _data_of(mount: Mount, name: GenerationName) -> tuple[bytes, ...]:
    """Return the data layers of an overlay that shows the generation with a name."""
    found = mountinfo.overlay_layers(mount)
    return found.lower[1:] if name.strategy == strategies.REDIRECT else found.data


def _images_among(layers: Sequence[bytes], state_dir: str) -> tuple[bytes, ...]:
    """Return the paths of the image files among data layers."""
    installed = os.fsencode(installing.data_directory(os.path.realpath(state_dir))) + b"/"
    return tuple(image_path(layer) for layer in layers if layer.startswith(installed))


def generation(subject: Subject) -> Generation:
    """Return the generation of a subject. Raises OverlayError or OSError if its record cannot be used."""
    return view_state.read_generation(subject.paths, subject.directory)


def data_places(subject: Subject, found: Generation) -> DataPlaces:
    """Return the data layers in which the kernel looks up the files of a generation.

    Those of a view over several software roots are at the paths that the last run of the module ``view`` has recorded. Raises OverlayError
    if these are not known, or if one overlay cannot read all releases.
    """
    is_of_several = len(found.roots) > 1
    if subject.is_data_given and is_of_several:
        raise OverlayError(
            f"view {subject.paths.name} shows releases of several software roots ({', '.join(found.roots)}), and 'data' does not say which"
            " data layer has which of them: leave 'data' out, and deploy the view with 'roots' if this host does not know their paths"
        )
    status = None if subject.is_data_given else status_file.find(subject.paths)
    roots = (status.mount or {}).get("roots", ()) if status else ()
    if is_of_several or {root["name"] for root in roots}.issuperset(found.roots or ("",)):
        if not roots:
            raise OverlayError(
                f"view {subject.paths.name} shows releases of several software roots ({', '.join(found.roots)}), and this host has no"
                " record of their paths: deploy the view with 'roots'"
            )
        return DataPlaces.of_roots(roots, found.releases)
    if not subject.data:
        raise OverlayError(
            f"view {subject.paths.name} is not mounted, so its data layers are not known: give them as 'data', or verify the level metadata"
        )
    return DataPlaces.of_one_overlay(subject.data)
