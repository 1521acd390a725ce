# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the generations of a view.

A generation is built below ``staging``, synced, and then renamed to its name below ``generations``. An interrupted run therefore never
leaves a partial generation visible.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.format_support import SUPPORT
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import (
    BuildReport,
    LayerBuilder,
    LayerContent,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.rights import Rights
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_files, removal
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    Generation,
    composition_digest,
    generation_id,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec, composition_of
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    ViewPaths,
    generation_of,
    layer_path,
    record_path,
)


def composed(spec: LayerSpec, progress: Progress = no_progress) -> Composition:
    """Return the tree that ``spec`` declares, with its conflicts. Raises OverlayError if a conflict has no rule."""
    # The manifest of each release that is merged is open at the same time.
    files.allow_deep_trees()
    return Composition(spec.placements, manifest_store.entries, spec.rules, progress)


def build(
    paths: ViewPaths,
    spec: LayerSpec,
    builder: LayerBuilder | None = None,
    progress: Progress = no_progress,
    composition: Composition | None = None,
) -> tuple[Generation, BuildReport]:
    """Build the generation that ``spec`` declares. The caller has to hold the lock of the view.

    ``builder`` and ``composition`` are found if they are None.
    """
    composition = composition or composed(spec, progress)
    with staged(paths, spec.directory, progress) as directory:
        generation, report = build_layer(directory, spec, builder, composition, progress)
        generation_files.write(record_path(directory), generation)
    return generation, report


def build_layer(
    directory: str,
    spec: LayerSpec,
    builder: LayerBuilder | None,
    composition: Composition,
    progress: Progress = no_progress,
) -> tuple[Generation, BuildReport]:
    """Build a layer in ``directory`` without syncing it, and return its generation, which is not recorded yet."""
    builder = builder or SUPPORT[spec.format].find_builder()
    content = LayerContent(composition, spec.strategy, spec.xattr_namespace, spec.alters_entries)
    report = builder.build_layer(layer_path(directory, spec.format), content, progress)
    recorded = composition_of(spec)
    digest = composition_digest(recorded)
    generation = Generation(
        id=generation_id(digest),
        digest=digest,
        format=spec.format,
        strategy=spec.strategy,
        xattr_namespace=spec.xattr_namespace,
        entries=report.tally.counts(),
        bytes=report.tally.bytes,
        bytes_on_disk=report.bytes_on_disk,
        composition=recorded,
        conflicts=tuple(conflict.as_dict() for conflict in composition.conflicts),
        conflict_count=composition.conflict_count,
        image=report.image,
        rights=Rights(report.tally.privileged, composition.stripped, report.narrowed),
    )
    return generation, report


@contextlib.contextmanager
def staged(paths: ViewPaths, name: str, progress: Progress = no_progress) -> Iterator[str]:
    """Yield an empty directory to make a generation in, and give it its name when the block ends without an exception.

    An exception removes the directory, so that a full disk gets its space back.
    """
    removal.clear(paths, paths.staging, progress)
    directory = os.path.join(paths.staging, name)
    try:
        files.make_directories(directory, 0o755)
        yield directory
        _settle(directory, paths, name)
    except BaseException:
        # The first error is the one to report. If the directory cannot be removed now, the next build removes it.
        with contextlib.suppress(OSError):
            files.remove_tree(paths.staging, progress)
        raise
    os.rmdir(paths.staging)


def _settle(directory: str, paths: ViewPaths, name: str) -> None:
    """Sync a staged generation, then give it its name."""
    files.make_directories(paths.generations, 0o755)
    files.sync_file_system(os.fsencode(directory))
    final = paths.generation(name)
    if os.path.lexists(final):
        # Only a generation that is not whole any more can be in the way. It may have been mounted when it was.
        uses = removal.remove_generation(paths, name)
        if uses:
            raise OverlayError(
                f"generation {generation_of(name)} at {final} has lost its record or a part of its image, but it is in use, so it is not"
                f" replaced ({uses}): unmount it and end these processes, then run the task again"
            )
    os.rename(directory, final)
    files.sync_directory(paths.generations)
