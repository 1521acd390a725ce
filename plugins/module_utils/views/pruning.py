# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removing generations that nobody needs, and what killed runs have left."""

from __future__ import annotations

import os
import time

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation as names
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, removal
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import ViewPaths
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ViewState
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.retention import Candidate, Verdict, judge

#: For the folder of each generation that is needed, by whom (``usage.of_generations``).
Uses = dict[str, list[str]]


def view_names(state_dir: str) -> list[str]:
    """Return the names of the views on this host. Raises OverlayError when others than root can write to the state directory."""
    trust.check_state_dir(state_dir)
    try:
        found = os.listdir(os.path.join(state_dir, "views"))
    except FileNotFoundError:
        return []
    return sorted(name for name in found if names.is_view_name(name))


def verdicts(paths: ViewPaths, state: ViewState, uses: Uses, keep: int, min_age: float) -> list[Verdict]:
    """Return what becomes of the generations of a view."""
    found = []
    for folder in state.generations:
        built_at = os.stat(names.record_path(paths.generation(folder))).st_mtime
        size = generations.read_generation(paths, folder).bytes_on_disk
        found.append(Candidate(folder, built_at, size, tuple(uses.get(folder, ()))))
    return judge(found, state.current, state.previous, keep, min_age, time.time())


def remains(paths: ViewPaths, state: ViewState, uses: Uses, min_age: float) -> list[str]:
    """Return what killed runs have left of a view that counts for nobody. The view's lock tells whether a run is at work.

    A copy of an image that was interrupted goes on when the image is installed again, so a young one stays.
    """
    found = [
        path
        for path in (paths.staging, paths.removing)
        if os.path.lexists(path) and not (os.path.isdir(path) and uses.keys() & set(os.listdir(path)))
    ]
    if os.path.isdir(paths.incoming) and time.time() - os.stat(paths.incoming).st_mtime >= min_age:
        found.append(paths.incoming)
    for folder in (paths.root, paths.generations):
        if os.path.isdir(folder):
            aside = (name for name in os.listdir(folder) if name.startswith(files.ASIDE_PREFIX))
            found += [os.path.join(folder, name) for name in aside]
    if os.path.isdir(paths.generations):
        for name in os.listdir(paths.generations):
            # Without its record it is no generation; but somebody may have mounted it when it was one.
            if name not in state.generations and name not in uses and not name.startswith(files.ASIDE_PREFIX):
                found.append(paths.generation(name))
    return sorted(found)


def remove_remains(paths: ViewPaths, path: str, progress: Progress = no_progress) -> bool:
    """Remove what a killed run has left; return whether it was, since somebody may have come to need it meanwhile."""
    folder, name = os.path.split(path)
    if folder == paths.generations and not name.startswith(files.ASIDE_PREFIX):
        return removal.remove_generation(paths, name, progress) is None
    if path in (paths.staging, paths.incoming, paths.removing):
        try:
            removal.clear(paths, path, progress)
        except OverlayError:
            return False
    else:
        files.remove(path, progress)
    return True
