# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the data images of the releases of a view on the host that scans, and build those that are not published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import building, published, trace_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.building import ImageRequest
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import TRACE, LockedImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, mentions
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage

_COMPRESSION = "lz4hc"
_UNTRACED = "there is no trace of them; record one with access_trace"
#: Releases that a warning names.
_MOST_NAMED = 5


@dataclass
class ViewImages:
    """The data images of the releases of a view."""

    images: list[LockedImage] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    #: The releases whose images are left to the next call.
    unbuilt: list[str] = field(default_factory=list)


def find_or_build(
    view: Mapping[str, Any],
    digests: Mapping[str, str],
    note: Callable[[str], None],
    progress: Progress,
    carry_out: Callable[[Plan, Handlers], None],
    explain: Callable[[OverlayError | OSError], str],
) -> ViewImages:
    """Return the data images of each kind that ``data_images`` of a view lists, for each of its releases.

    ``digests`` maps the releases to the digests of their manifests. An image that is not published for this manifest is built; in check
    mode it would be. At most ``data_builds`` images are built, and ``unbuilt`` has the other releases. A release without a trace has no
    image of the kind ``trace``. A release whose image cannot be built has none either. Raises OverlayError naming the release if such an
    image is of everything and ``data_required`` says that hosts cannot do without it.
    """
    found = ViewImages()
    built = 0
    #: The releases without an image, by reason.
    without: dict[str, dict[str, None]] = {}
    for kind in view["data_images"]:
        for release, digest in digests.items():
            note(f"view {view['name']}, data image of {release}")
            progress()
            try:
                image = published.find(view["data_image_store"], release, kind)
                if image is None or image.manifest_digest != digest:
                    if kind == TRACE and trace_files.find(view["store"], release) is None:
                        without.setdefault(_UNTRACED, {})[release] = None
                        continue
                    if view["data_builds"] is not None and built >= view["data_builds"]:
                        found.unbuilt.append(release)
                        continue
                    image = _built(_request(view, release, kind), found, progress, carry_out)
                    # In check mode there is none.
                    built += image is not None
            except (OverlayError, OSError) as error:
                reason = explain(error)
                if view["data_required"] and kind != TRACE:
                    named = mentions(reason, f"release {release}")
                    what = "a data image is missing" if named else f"release {release} has no data image"
                    raise OverlayError(f"{what}: {reason}") from error
                without.setdefault(reason, {})[release] = None
                continue
            if image is not None:
                found.images.append(
                    LockedImage(release, kind, image.digest, image.bytes_on_disk, image.opens, image.complete)
                )
    found.warnings += [
        f"view {view['name']}: {len(releases)} of its {len(digests)} releases have no data image, and are read from the software root:"
        f" {_listed(releases)}: {reason}"
        for reason, releases in without.items()
    ]
    return found


def _built(
    request: ImageRequest, found: ViewImages, progress: Progress, carry_out: Callable[[Plan, Handlers], None]
) -> DataImage | None:
    """Build and publish a data image; return None if there is none, in check mode and if no file is selected."""
    state = building.observe(request, progress)
    carry_out(state.plan, building.handlers(state, progress))
    found.actions += state.plan
    found.warnings += state.warnings()
    return state.after


def _request(view: Mapping[str, Any], release: str, kind: str) -> ImageRequest:
    return ImageRequest(
        root=view["root"],
        store=view["store"],
        image_store=view["data_image_store"],
        release=release,
        kind=kind,
        chosen=(),
        compression=_COMPRESSION,
        staging=view["data_staging"],
    )


def _listed(releases: Iterable[str]) -> str:
    named = sorted(releases)
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more
