# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the generations on this host: in state directories, and in use by any mount or detached overlay."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import still_paths
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.strategies import REDIRECT, SHOWN_DIRECTORY
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_places import (
    PlacedRelease,
    placed_releases,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_files, pruning, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import Generation
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    PREVIOUS,
    GenerationName,
    ViewPaths,
    generation_of,
    is_view_name,
    layer_path,
    record_path,
)

#: The layer of a generation as the kernel reports it: the state directory, the view, and the generation or a link to one.
_LAYER = re.compile(rb"(/.*?)/views/([^/]+)/(?:generations/([^/]+)|current|previous)/layer", re.DOTALL)

OTHER = "other"


@dataclass(eq=False)
class HostGeneration:
    """A generation of a view on this host."""

    view: str
    #: The name of its directory.
    directory: str
    placed: tuple[PlacedRelease, ...]
    #: ``current``, ``previous`` or ``other``.
    state: str = OTHER
    #: The path of its layer if that is a directory; None for an image.
    layer: bytes | None = None
    #: Where it is mounted in the mount namespace of this process.
    mountpoints: list[bytes] = field(default_factory=list)
    #: Whether an overlay in any mount namespace shows it, or a part of it.
    mounted: bool = False

    @property
    def id(self) -> str:
        """The ID of the generation."""
        return generation_of(self.directory)

    @property
    def top(self) -> bytes:
        """The directory of the layer that the view shows."""
        name = GenerationName.parse(self.directory)
        return b"/" + os.fsencode(SHOWN_DIRECTORY) if name and name.strategy == REDIRECT else b"/"

    def as_dict(self) -> dict[str, Any]:
        """Return the generation as the module release_usage_info returns it."""
        return {"view": self.view, "generation": self.id, "state": self.state, "mounted": self.mounted}

    def place_in_layer(self, path: bytes) -> bytes | None:
        """Return the path in the layer of a path in the view; None if the layer is an image."""
        return None if self.layer is None else os.path.join(self.layer + self.top.rstrip(b"/"), path)

    def source_of(self, path: bytes) -> bytes | None:
        """Return the path in the data layer of the file at a path in the view; None if the layer does not say it."""
        name = GenerationName.parse(self.directory)
        place = self.place_in_layer(path)
        if name is None or place is None:
            return None
        try:
            redirect = os.getxattr(place, f"{name.xattr_namespace}.overlay.redirect", follow_symlinks=False)
        except OSError:
            return None
        return redirect.lstrip(b"/")


class HostGenerations:
    """The generations of all views on this host."""

    def __init__(self) -> None:
        self.all: list[HostGeneration] = []
        #: Sentences about generations of which it is unknown what they show.
        self.unknown: list[str] = []

    def read(self, state_dirs: Iterable[str]) -> None:
        """Read the generations in state directories. Raises OverlayError if users other than root can write to one of them."""
        for state_dir in dict.fromkeys(os.path.realpath(one) for one in state_dirs):
            for name in pruning.view_names(state_dir):
                self._read_view(ViewPaths.of(state_dir, name))

    def _read_view(self, paths: ViewPaths) -> None:
        state = view_state.observe(paths)
        self.unknown += [f"view {paths.name}: {problem}" for problem in state.damaged.values()]
        for directory in sorted(state.generations):
            found = _shown(paths.name, directory, view_state.read_generation(paths, directory), paths)
            if directory == state.current:
                found.state = CURRENT
            elif directory == state.previous:
                found.state = PREVIOUS
            self.all.append(found)

    def of_layers(self, lower: Sequence[bytes], mounts: Sequence[Mount], pid: int | None) -> list[HostGeneration]:
        """Return the generations that an overlay with these lower layers may show; none if it shows no view.

        ``mounts`` are those of the mount namespace in which the layers have these paths, and ``pid`` is a process in it, or None for the
        namespace of this process. A generation that is in no known state directory is read from beside its layer.
        """
        match = _LAYER.fullmatch(lower[0]) if lower else None
        if not match:
            return []
        view = os.fsdecode(match[2])
        if match[3] is None:
            # The target of the link may have been another one when it was mounted.
            return self._or_unknown([one for one in self.all if one.view == view], lower[0])
        directory = os.fsdecode(match[3])
        if not is_view_name(view) or GenerationName.parse(directory) is None:
            return []
        # The ID is a digest of what the generation shows, so it is the same in every state directory.
        found = [one for one in self.all if (one.view, one.directory) == (view, directory)]
        return found or self._or_unknown(self._beside(view, directory, lower[0], mounts, pid), lower[0])

    def _or_unknown(self, found: list[HostGeneration], layer: bytes) -> list[HostGeneration]:
        problem = f"layer {show(layer)} is in use, and it is unknown which releases it shows"
        if not found and problem not in self.unknown:
            self.unknown.append(problem)
        return found

    def _beside(
        self, view: str, directory: str, layer: bytes, mounts: Sequence[Mount], pid: int | None
    ) -> list[HostGeneration]:
        place = os.path.dirname(layer)
        if not still_paths.is_local(place, mounts):
            return []
        reached = place if pid is None else b"/proc/%d/root%s" % (pid, place)
        try:
            generation = generation_files.find(record_path(os.fsdecode(reached)))
        except (OverlayError, OSError):
            return []
        if generation is None or generation.directory != directory:
            return []
        found = _shown(view, directory, generation, None)
        self.all.append(found)
        return [found]


def _shown(view: str, directory: str, generation: Generation, paths: ViewPaths | None) -> HostGeneration:
    layer = None
    if paths and generation.image is None:
        layer = os.fsencode(layer_path(paths.generation(directory), generation.format))
    return HostGeneration(view, directory, placed_releases(generation.releases), layer=layer)


def state_directory(lower: Sequence[bytes]) -> str | None:
    """Return the state directory of the view that an overlay with these lower layers shows; None if it shows none."""
    match = _LAYER.fullmatch(lower[0]) if lower else None
    return os.fsdecode(match[1]) if match else None
