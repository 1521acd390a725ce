# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the strategy and the format of a layer, from what is asked for and what this host can do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.format_support import SUPPORT
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import LayerBuilder
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import (
    FORMATS,
    LayerFormat,
    published_format,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import probe, strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.probe import Feature
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ViewState
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec


def choose_strategy(wanted: str, xattr_namespace: str, seconds: float) -> str:
    """Return the strategy for a layer. Raises OverlayError if the strategy ``wanted`` is impossible.

    ``auto`` is ``redirect`` only if this kernel can do that and lacks data-only layers. Both are tried, for up to ``seconds`` each.
    """
    if wanted == strategies.REDIRECT and xattr_namespace != strategies.TRUSTED:
        raise OverlayError(
            "strategy redirect needs the xattr_namespace trusted: with userxattr the kernel follows redirects into data-only layers only"
        )
    if wanted != "auto":
        return wanted
    if xattr_namespace == strategies.TRUSTED and _lacks_data_only(seconds):
        return strategies.REDIRECT
    return strategies.DATA_ONLY


def _lacks_data_only(seconds: float) -> str | None:
    """Return why this kernel has no data-only layers. None if it has them, if it cannot do without them, or if nothing can be tried."""

    def tried(feature: str) -> Feature:
        return deadline.run(lambda _progress: probe.probe((feature,))[feature], seconds)

    try:
        data_only = tried("data_only")
        return None if data_only.supported or not tried("redirect").supported else data_only.detail
    except deadline.TimeLimitError:
        raise
    except OverlayError:  # A user who may not mount may still build.
        return None


@dataclass(frozen=True)
class FormatChoice:
    """The format that a layer will have, and why."""

    #: The name of the format.
    format: str
    #: None if nothing has to be built.
    builder: LayerBuilder | None
    reason: str


def choose_format(wanted: str, spec: LayerSpec, state: ViewState) -> FormatChoice:
    """Return the format for a layer. Raises OverlayError if the format ``wanted`` is impossible.

    ``auto`` is the format in which the generation exists. A new generation has the first format of ``FORMATS`` that this host can build
    and mount.
    """
    if wanted != "auto":
        exists = in_format(spec, FORMATS[wanted]).directory in state.generations
        # A generation that exists needs no program to build it.
        return FormatChoice(wanted, None if exists else SUPPORT[wanted].find_builder(), "asked for")
    forms = {replace(spec, format=name).directory: name for name in FORMATS}
    existing = [directory for directory in forms if directory in state.generations]
    if existing:
        kept = state.current if state.current in existing else existing[0]
        return FormatChoice(forms[kept], None, "the generation is there in this format")
    obstacles: list[str] = []
    for one in FORMATS.values():
        try:
            obstacle = one.obstacle(spec.strategy, spec.xattr_namespace) or SUPPORT[one.name].mount_obstacle()
            if obstacle is None:
                builder = SUPPORT[one.name].find_builder()
                return FormatChoice(one.name, builder, _reason(builder, obstacles))
        except OverlayError as error:
            obstacle = str(error)
        obstacles.append(obstacle)
    raise OverlayError(f"view {spec.name} cannot be built on this host in any format: {'; '.join(obstacles)}")


def _reason(builder: LayerBuilder, obstacles: list[str]) -> str:
    if builder.path:
        return f"this host can mount images, and {builder.path} makes them"
    return f"no image, since {'; '.join(obstacles)}"


def in_format(spec: LayerSpec, layer_format: LayerFormat) -> LayerSpec:
    """Return the declaration of the same layer in another format. Raises OverlayError if the format cannot hold it."""
    if obstacle := layer_format.obstacle(spec.strategy, spec.xattr_namespace):
        form = "an image" if layer_format.is_image else f"of the format {layer_format.name}"
        raise OverlayError(f"view {spec.name} cannot be {form}: {obstacle}")
    return replace(spec, format=layer_format.name)


def as_image(spec: LayerSpec) -> LayerSpec:
    """Return the declaration of the same layer as an image for an image store. Raises OverlayError if images cannot hold it."""
    return in_format(spec, published_format())


def check_mountable(view: str, layer_format: str, strategy: str, seconds: float) -> None:
    """Check that this host can mount an image of a format with a strategy. Raises OverlayError if it cannot.

    What the kernel can do is tried for up to ``seconds``.
    """
    # The strategy of an image is that of the host that built it; here ``auto`` is what the image has.
    image_format = FORMATS[layer_format]
    given = image_format.strategies[0] if strategy == "auto" else strategy
    obstacle = image_format.obstacle(given, image_format.xattr_namespaces[0]) or SUPPORT[layer_format].mount_obstacle()
    if obstacle is None and strategy == "auto" and (lacking := _lacks_data_only(seconds)):
        obstacle = f"images need data-only layers, which its kernel lacks ({lacking})"
    if obstacle:
        raise OverlayError(
            f"view {view} cannot be an image on this host: {obstacle}; let this host build the layer itself: run the playbook deploy"
            " for it with overlay_build: local, the role view with view_build: local, or metadata_layer with 'releases'"
        )
