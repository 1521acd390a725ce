# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find where the generation of a view comes from: its releases, an image that another host built, or the generations on this host."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import inode_space
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import LayerBuilder
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import FORMATS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import Rights
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import (
    generations,
    image_store,
    layer_choice,
    layer_parameters,
    view_state,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    Generation,
    content_for_diff,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import (
    BuildGeneration,
    InstallGeneration,
    MakeCurrent,
    PublishImage,
    ViewState,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import (
    LayerSpec,
    links_of,
    releases_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    PREVIOUS,
    ViewPaths,
    generation_of,
    layer_path,
)

Provide = Callable[[ViewPaths, Progress], "list[str]"]


@dataclass(frozen=True)
class Source:
    """A generation, and how this host gets it."""

    #: The name of the generation's directory.
    directory: str
    format: str
    #: Why the layer has this format.
    format_reason: str
    strategy: str
    releases: Sequence[Mapping[str, Any]]
    links: Sequence[Mapping[str, str]]
    #: The action that makes the generation; None if it is on this host.
    action: Action | None
    #: Make the generation, and return warnings. The caller has to hold the lock of the view.
    provide: Provide
    #: Compose what is to be built; None if nothing is built.
    compose: Callable[[], Composition] | None = None
    #: The path of its image in an image store; None if it does not come from there.
    image: str | None = None

    @property
    def generation(self) -> str:
        """The ID of the generation."""
        return generation_of(self.directory)

    def content(self) -> dict[str, Any]:
        """Return what the generation shows, for the diff."""
        return content_for_diff(self.generation, self.releases, self.links)

    def composed_for(self, plan: Plan) -> Composition | None:
        """Return the composition if the plan builds it; else None. Raises OverlayError if a conflict has no rule."""
        builds = any(isinstance(action, (BuildGeneration, PublishImage)) for action in plan)
        return self.compose() if self.compose and builds else None

    def handlers(self, paths: ViewPaths, progress: Progress, warnings: list[str]) -> Handlers:
        """Return what carries out a plan that makes the generation and makes it current. Warnings are appended to ``warnings``."""

        def provide(_action: Action) -> None:
            warnings.extend(self.provide(paths, progress))

        def make_current(action: MakeCurrent) -> None:
            view_state.make_current(paths, action.directory, action.previous)

        return {BuildGeneration: provide, InstallGeneration: provide, MakeCurrent: make_current}

    def values(self, composition: Composition | None, generation: Generation | None) -> dict[str, Any]:
        """Return the return values that describe the layer, with those of its ``composition`` and of the finished ``generation``."""
        values: dict[str, Any] = {
            "generation": self.generation,
            "format": self.format,
            "format_reason": self.format_reason,
            "strategy": self.strategy,
            "releases": list(self.releases),
            "image_digest": generation.image.digest if generation and generation.image else None,
        }
        if composition:
            values.update(
                conflicts=[conflict.as_dict() for conflict in composition.conflicts],
                conflict_count=composition.conflict_count,
            )
        if generation:
            values.update(
                entries=generation.entries.as_dict(),
                bytes=generation.bytes,
                bytes_on_disk=generation.bytes_on_disk,
                conflicts=list(generation.conflicts),
                conflict_count=generation.conflict_count,
                **generation.rights.as_dict(),
            )
        return values

    def values_on_host(self, paths: ViewPaths, state: ViewState, composition: Composition | None) -> dict[str, Any]:
        """Return the return values that describe the layer on this host, given the state of the view after the run."""
        there = self.directory in state.generations
        previous = state.previous if state.current == self.directory else state.current
        return {
            **self.values(composition, view_state.read_generation(paths, self.directory) if there else None),
            "layer": layer_path(paths.generation(self.directory), self.format),
            "previous": generation_of(previous) if previous else None,
            **({"image": self.image} if self.image else {}),
        }


def from_parameters(
    params: Mapping[str, Any], paths: ViewPaths, state: ViewState, seconds: float, progress: Progress
) -> Source:
    """Return the source that the parameters of metadata_layer declare. What the kernel can do is tried for up to ``seconds``.

    Raises OverlayError if a parameter or this host does not allow it.
    """
    if params["image"] is not None:
        layer_format = image_store.format_of(params["image"])
        layer_choice.check_mountable(params["name"], layer_format.name, params["strategy"], seconds)
        there = installed(paths, state, params["image"], params["image_digest"])
        if there:
            return _checked_verity(there, paths, params["require_verity"])
        found = image_store.read(params["image"], params["image_digest"])
        return from_image(params["image"], found, params["require_verity"])
    strategy = layer_choice.choose_strategy(params["strategy"], params["xattr_namespace"], seconds)
    if params["generation"] is not None:
        return _checked_verity(existing(paths, state, params["generation"], strategy), paths, params["require_verity"])
    if params["require_verity"]:
        raise OverlayError(
            f"view {paths.name}: require_verity is for layers that are installed from an image: give 'image', or leave it out"
        )
    spec = replace(layer_parameters.layer_spec(params), strategy=strategy)
    choice = layer_choice.choose_format(params["format"], spec, state)
    return from_releases(replace(spec, format=choice.format), choice.builder, choice.reason, progress)


def from_releases(spec: LayerSpec, builder: LayerBuilder | None, reason: str, progress: Progress) -> Source:
    """Return the source of a layer that is built from its releases. ``reason`` is why it has its format."""
    compose = functools.lru_cache(maxsize=None)(lambda: generations.composed(spec, progress))

    def provide(paths: ViewPaths, progress: Progress) -> list[str]:
        generation, report = generations.build(paths, spec, builder, progress, compose())
        spilled = inode_space.spill_warning(paths.root, report.tally.files, report.spilled, report.bytes_on_disk)
        return [*spilled, *rights_warnings(generation.rights)]

    return Source(
        spec.directory,
        spec.format,
        reason,
        spec.strategy,
        releases_of(spec.placements),
        links_of(spec.links),
        BuildGeneration(spec.generation, spec.format),
        provide,
        compose,
    )


def rights_warnings(rights: Rights) -> list[str]:
    """Return a warning for each kind of rights that files have in their release but not in the layer."""
    warnings = []
    if rights.stripped.count:
        warnings.append(
            f"{rights.stripped.count} files lose their set-ID bits or capabilities, because their owner or group is another one in the"
            f" view; keep_setid keeps them: {rights.stripped.listed()}"
        )
    if rights.narrowed.count:
        warnings.append(
            f"the ACLs of {rights.narrowed.count} files and directories cannot be kept on the file system of the layer; nobody may do more"
            f" with them, and some users may do less: {rights.narrowed.listed()}"
        )
    return warnings


def _checked_verity(source: Source, paths: ViewPaths, required: bool) -> Source:
    """Return a source that is on this host. Raises OverlayError if fs-verity is required and its layer has none."""
    layer = layer_path(paths.generation(source.directory), source.format)
    if required and not (FORMATS[source.format].is_image and files.has_verity(layer)):
        raise OverlayError(
            f"generation {source.generation} of view {paths.name} was installed without fs-verity, which require_verity asks for: show"
            " another generation, remove this one with overlay_prune, and install it again"
        )
    return source


def from_image(image: str, generation: Generation, require_verity: bool = False) -> Source:
    """Return the source of a generation that is installed from ``image``, a path in an image store."""

    def provide(paths: ViewPaths, progress: Progress) -> list[str]:
        image_store.install(paths, image, generation, progress, require_verity)
        return []

    source = _source_of(generation, InstallGeneration(generation.id, image), "the image was built elsewhere", provide)
    return replace(source, image=image)


def _source_of(
    generation: Generation,
    action: Action | None,
    reason: str,
    provide: Provide = lambda _paths, _progress: [],
) -> Source:
    return Source(
        generation.directory,
        generation.format,
        reason,
        generation.strategy,
        generation.releases,
        generation.links,
        action,
        provide,
    )


def installed(paths: ViewPaths, state: ViewState, image: str, digest: str) -> Source | None:
    """Return the generation whose image has this digest; None if it is not on this host. ``image`` is not read."""
    for directory in sorted(state.generations):
        generation = view_state.read_generation(paths, directory)
        if generation.image and generation.image.digest == digest:
            return replace(_source_of(generation, None, "the image was built elsewhere"), image=image)
    return None


def existing(paths: ViewPaths, state: ViewState, wanted: str, strategy: str) -> Source:
    """Return the generation ``wanted``: an ID, the name of a directory, ``current`` or ``previous``.

    If a generation exists in several forms, the current one is returned, else one of ``strategy``. Raises OverlayError that lists the
    generations on this host if it has no such generation, or if the record of the generation is damaged.
    """
    if wanted in (CURRENT, PREVIOUS):
        directory = state.current if wanted == CURRENT else state.previous
        problem = f"has no {wanted} generation"
    else:
        directory = _form_of(paths, state, wanted, strategy)
        problem = f"has no generation {wanted!r}"
    if directory is not None:
        state.check_undamaged(directory)
    if directory is None or directory not in state.generations:
        there = ", ".join(sorted({generation_of(one) for one in state.generations})) or "none"
        raise OverlayError(f"view {paths.name} {problem} on this host; there are: {there}")
    return _source_of(view_state.read_generation(paths, directory), None, "the generation is there in this format")


def _form_of(paths: ViewPaths, state: ViewState, wanted: str, strategy: str) -> str | None:
    """Return the directory of the generation ``wanted``, in the form that is current or that fits ``strategy`` if there are several."""
    named = sorted(one for one in (*state.generations, *state.damaged) if wanted in (one, generation_of(one)))
    if state.current in named:
        return state.current
    whole = [one for one in named if one in state.generations]
    fitting = [one for one in whole if view_state.read_generation(paths, one).strategy == strategy]
    return next(iter((*fitting, *whole, *named)), None)
