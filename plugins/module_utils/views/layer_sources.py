# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a view's generation comes from: its releases, an image that was built elsewhere, or the generations that are there."""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import dataclass, replace
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import erofs_layer, layer_formats
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import probe, strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.probe import Feature
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import Rights
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, image_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import (
    Generation,
    LayerSpec,
    ViewPaths,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import (
    BuildGeneration,
    InstallGeneration,
    ViewState,
)

Provide = Callable[[ViewPaths, Progress], "list[str]"]


@dataclass(frozen=True)
class Source:
    """A generation, and how it comes to be on this host."""

    folder: str
    format: str
    strategy: str
    releases: tuple[dict[str, Any], ...]
    links: tuple[dict[str, str], ...]
    #: None where it is there.
    action: Action | None
    #: Makes the generation and returns warnings. The view's lock has to be held.
    provide: Provide
    #: Finds the conflicts of what is to be built; None where nothing is.
    compose: Callable[[], Composition] | None = None

    def shown(self) -> dict[str, Any]:
        return names.shown(names.id_of(self.folder), self.releases, self.links)


def from_releases(spec: LayerSpec, builder: Builder | None, progress: Progress) -> Source:
    """``builder`` makes the image; None for a directory."""
    compose = functools.lru_cache(maxsize=None)(lambda: generations.composed(spec, progress))

    def provide(paths: ViewPaths, progress: Progress) -> list[str]:
        generation, report = generations.build(paths, spec, builder, progress, compose())
        return [*generations.spill_warning(paths, report), *rights_warnings(generation.rights)]

    releases, links = names.releases_of(spec.placements), names.links_of(spec.links)
    action = BuildGeneration(names.id_of(spec.folder), spec.format)
    return Source(spec.folder, spec.format, spec.strategy, releases, links, action, provide, compose)


def rights_warnings(rights: Rights) -> list[str]:
    """Return warnings about rights that a new layer does not give as its releases do."""
    warnings = []
    if rights.stripped.count:
        warnings.append(
            f"{rights.stripped.count} files lose their set-ID bits or capabilities, since their owner or group is another one in the view"
            f" (keep_setid keeps them): {rights.stripped.listed()}"
        )
    if rights.narrowed.count:
        warnings.append(
            f"the ACLs of {rights.narrowed.count} files and directories cannot be kept on the file system of the layer; nobody may do more"
            f" with them, and some may do less: {rights.narrowed.listed()}"
        )
    return warnings


def from_image(image: str, generation: Generation) -> Source:
    """``image`` is its path in an image store."""

    def provide(paths: ViewPaths, progress: Progress) -> list[str]:
        image_store.install(paths, image, generation, progress)
        return []

    return _of(generation, InstallGeneration(generation.id, image), provide)


def on_disk(generation: Generation) -> Source:
    return _of(generation, None, lambda _paths, _progress: [])


def _of(generation: Generation, action: Action | None, provide: Provide) -> Source:
    return Source(
        generation.folder,
        generation.format,
        generation.strategy,
        generation.releases,
        generation.links,
        action,
        provide,
    )


def choose_strategy(wanted: str, xattr_namespace: str, seconds: float) -> str:
    """Return the strategy for a layer. Raises OverlayError when one is asked for that cannot be.

    ``auto`` is ``redirect`` only where this kernel, which is tried, can do that and has no data-only layers. ``seconds`` is the time
    limit for trying.
    """
    if wanted == strategies.REDIRECT and xattr_namespace != strategies.TRUSTED:
        raise OverlayError(
            "strategy redirect needs the xattr_namespace trusted: with userxattr the kernel follows redirects into data-only layers alone"
        )
    if wanted != "auto":
        return wanted
    if xattr_namespace == strategies.TRUSTED and _without_data_only(seconds):
        return strategies.REDIRECT
    return strategies.DATA_ONLY


def _without_data_only(seconds: float) -> str | None:
    """Return why this kernel, which can do without, has no data-only layers; None when it has, or when nothing can be tried."""

    def tried(feature: str) -> Feature:
        return deadline.run(lambda _progress: probe.probe((feature,))[feature], seconds)

    try:
        data_only = tried("data_only")
        return None if data_only.supported or not tried("redirect").supported else data_only.detail
    except deadline.TimeLimitError:
        raise
    except OverlayError:  # whoever may not mount may build
        return None


@dataclass(frozen=True)
class Choice:
    """The format that a layer will have, and why."""

    format: str
    builder: Builder | None
    reason: str


def choose_format(wanted: str, spec: LayerSpec, state: ViewState) -> Choice:
    """Return the format for a layer. Raises OverlayError when one is asked for that cannot be.

    ``auto`` keeps the form that a generation is there in; else it is an image where this host can build and mount one.
    """
    if wanted == layer_formats.DIRECTORY:
        return Choice(layer_formats.DIRECTORY, None, "asked for")
    if wanted == layer_formats.EROFS:
        folder = as_image(spec).folder
        # What is there already needs no program to build it.
        return Choice(
            layer_formats.EROFS, None if folder in state.generations else erofs_layer.find_builder(), "asked for"
        )
    forms = {replace(spec, format=one).folder: one for one in (layer_formats.EROFS, layer_formats.DIRECTORY)}
    there = [folder for folder in forms if folder in state.generations]
    if there:
        kept = state.current if state.current in there else there[0]
        return Choice(forms[kept], None, "the generation is there in this format")
    if obstacle := _unfit(spec) or _cannot_mount():
        return Choice(layer_formats.DIRECTORY, None, f"no image, since {obstacle}")
    try:
        builder = erofs_layer.find_builder()
    except OverlayError as error:
        return Choice(layer_formats.DIRECTORY, None, f"no image, since {error}")
    return Choice(layer_formats.EROFS, builder, f"this host can mount images, and {builder.path} makes them")


def as_image(spec: LayerSpec) -> LayerSpec:
    """Return the declaration of the same layer as an image. Raises OverlayError when it cannot be one."""
    if obstacle := _unfit(spec):
        raise OverlayError(f"view {spec.name} cannot be an image: {obstacle}")
    return replace(spec, format=layer_formats.EROFS)


def _unfit(spec: LayerSpec) -> str | None:
    """Return why a layer of this declaration cannot be an image."""
    if spec.strategy == strategies.REDIRECT:
        return "strategy redirect needs opaque directories, which mkcomposefs cannot make; use the format directory or auto"
    if spec.xattr_namespace != strategies.TRUSTED:
        return "images carry the overlay attributes of the namespace trusted only"
    return None


def check_mountable(view: str, strategy: str, seconds: float) -> None:
    """Raises OverlayError where this host cannot mount images, or not as a strategy asks for it.

    ``seconds`` is the time limit for trying.
    """
    if strategy == strategies.REDIRECT:
        obstacle: str | None = "strategy redirect needs opaque directories, which images do not have"
    else:
        obstacle = _cannot_mount()
        if obstacle is None and strategy == "auto" and (lacking := _without_data_only(seconds)):
            obstacle = f"images need data-only layers, which its kernel lacks ({lacking})"
    if obstacle:
        raise OverlayError(
            f"view {view} cannot be an image on this host: {obstacle}; build it on this host as a directory instead"
            " (metadata_layer with 'releases'; of the role view, view_build: local)"
        )


def _cannot_mount() -> str | None:
    """Return why this host cannot mount EROFS images; the kernel loads what it needs when it is asked."""
    try:
        context = syscalls.fsopen(b"erofs")
    except OSError as error:
        if error.errno == errno.ENODEV:
            return "the kernel has no EROFS"
        return f"mounting EROFS is refused ({error.strerror})"
    try:
        # Without them it would take a mode that only sums up an ACL for all there is. It passes over the option then, and says so.
        syscalls.fsconfig_flag(context, b"acl")
        said = syscalls.context_messages(context)
    except OSError as error:
        said = f"{error.strerror}"
    finally:
        os.close(context)
    return f"the kernel's EROFS has no POSIX ACLs ({said})" if said else None


def installed(paths: ViewPaths, state: ViewState, digest: str) -> Source | None:
    """Return the generation whose image has the digest; None when it is not on this host."""
    for folder in sorted(state.generations):
        generation = generations.read_generation(paths, folder)
        if generation.image and generation.image.digest == digest and generation.folder == folder:
            return on_disk(generation)
    return None


def existing(paths: ViewPaths, state: ViewState, wanted: str, strategy: str) -> Source:
    """Return the generation called ``wanted``, a name or ``previous``. Raises OverlayError, which lists what there is, without one.

    Of several forms of it the one is taken that is current, else one of ``strategy``.
    """
    folder = state.previous if wanted == names.PREVIOUS else None
    if wanted != names.PREVIOUS:
        named = sorted(there for there in state.generations if wanted in (there, names.id_of(there)))
        fitting = [there for there in named if generations.read_generation(paths, there).strategy == strategy]
        folder = state.current if state.current in named else next(iter((*fitting, *named)), None)
    if folder is None or folder not in state.generations:
        there = ", ".join(sorted({names.id_of(one) for one in state.generations})) or "none"
        what = "has no previous generation" if wanted == names.PREVIOUS else f"has no generation {wanted!r}"
        raise OverlayError(f"view {os.path.basename(paths.root)} {what} on this host; there are: {there}")
    return on_disk(generations.read_generation(paths, folder))
