# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove generations that are not needed any more, and what killed runs have left."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Handlers,
    Plan,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import removal, usage, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import (
    RemoveGeneration,
    RemoveRemains,
    ViewState,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.retention import (
    Candidate,
    Retention,
    RetentionRules,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    GenerationName,
    ViewPaths,
    is_view_name,
    record_path,
)

#: Maps the directory of each generation that is in use to the reasons (``usage.of_generations``).
Uses = dict[str, list[str]]


def view_names(state_dir: str) -> list[str]:
    """Return the names of the views on this host. Raises OverlayError if users other than root can write to the state directory."""
    trust.check_state_dir(state_dir)
    try:
        names = os.listdir(os.path.join(state_dir, "views"))
    except FileNotFoundError:
        return []
    return sorted(name for name in names if is_view_name(name))


@dataclass
class ViewPruning:
    """What is to be removed from one view. It is corrected while it is carried out: a generation may come into use meanwhile."""

    paths: ViewPaths
    #: Generations to remove, by the names of their directories.
    removed: dict[str, Candidate]
    kept: list[Retention]
    #: Paths to remove that killed runs have left.
    remains: list[str]
    #: What is wrong with generations that are kept because their record is damaged.
    damaged: list[str]

    @property
    def plan(self) -> Plan:
        """The actions, without those that turned out to be impossible."""
        view = self.paths.name
        return (
            # Remains of an earlier removal are where generations are moved to before they are removed, so they go first.
            *(RemoveRemains(view, path) for path in self.remains),
            *(RemoveGeneration(view, directory) for directory in self.removed),
        )

    def handlers(self, progress: Progress) -> Handlers:
        """Return what carries out the plan, and corrects it for everything that cannot be removed."""

        def remove_generation(action: RemoveGeneration) -> None:
            reason = removal.remove_generation(self.paths, action.directory, progress)
            if reason is not None:
                self.kept.append(Retention(self.removed.pop(action.directory), reason))

        def remove(action: RemoveRemains) -> None:
            if not remove_remains(self.paths, action.path, progress):
                self.remains.remove(action.path)

        return {RemoveGeneration: remove_generation, RemoveRemains: remove}

    def removed_values(self) -> list[dict[str, Any]]:
        """Return the return values that describe the removed generations."""
        return [{**self._values(one), "bytes": one.bytes} for one in self.removed.values()]

    def kept_values(self) -> list[dict[str, Any]]:
        """Return the return values that describe the generations that are kept."""
        return [{**self._values(one.candidate), "reason": one.reason} for one in self.kept]

    def _values(self, candidate: Candidate) -> dict[str, Any]:
        name = GenerationName.parse(candidate.directory)
        if name is None:
            raise ValueError(f"{candidate.directory} is not the name of a generation")
        return {"view": self.paths.name, "generation": name.id, "format": name.format}


def find_removable(paths: ViewPaths, keep: int, min_age: float, check_mode: bool) -> ViewPruning:
    """Return what can be removed from a view. The caller has to hold the lock of the view unless it is in check mode.

    Outside of check mode, generations in use that a killed run had moved aside get their names back, and notes of detached overlays that
    are not in use any more are removed.
    """
    state = view_state.observe(paths)
    uses = usage.of_generations(paths, forget=not check_mode)
    if not check_mode and removal.restore_used(paths, uses):
        state = view_state.observe(paths)
    rules = RetentionRules(state.current, state.previous, keep, min_age)
    decided = rules.decide([_candidate(paths, directory, uses) for directory in state.generations], time.time())
    return ViewPruning(
        paths,
        removed={one.candidate.directory: one.candidate for one in decided if one.reason is None},
        kept=[one for one in decided if one.reason is not None],
        remains=_remains(paths, state, uses, min_age),
        damaged=sorted(state.damaged.values()),
    )


def _candidate(paths: ViewPaths, directory: str, uses: Uses) -> Candidate:
    built_at = os.stat(record_path(paths.generation(directory))).st_mtime
    size = view_state.read_generation(paths, directory).bytes_on_disk
    return Candidate(directory, built_at, size, tuple(uses.get(directory, ())))


def _remains(paths: ViewPaths, state: ViewState, uses: Uses, min_age: float) -> list[str]:
    """Return the paths that killed runs have left. The lock of the view tells that no run is active.

    An interrupted copy of an image continues when the image is installed again, so it is kept for ``min_age`` seconds.
    """
    found = [
        path
        for path in (paths.staging, paths.removing)
        if os.path.lexists(path) and not (os.path.isdir(path) and uses.keys() & set(os.listdir(path)))
    ]
    if os.path.isdir(paths.incoming) and time.time() - os.stat(paths.incoming).st_mtime >= min_age:
        found.append(paths.incoming)
    for directory in (paths.root, paths.generations):
        if os.path.isdir(directory):
            aside = (name for name in os.listdir(directory) if name.startswith(files.ASIDE_PREFIX))
            found += [os.path.join(directory, name) for name in aside]
    if os.path.isdir(paths.generations):
        known = {*state.generations, *state.damaged, *uses}
        for name in os.listdir(paths.generations):
            # A directory without its record is not a generation, but it may have been mounted when it was one.
            if name not in known and not name.startswith(files.ASIDE_PREFIX):
                found.append(paths.generation(name))
    return sorted(found)


def remove_remains(paths: ViewPaths, path: str, progress: Progress = no_progress) -> bool:
    """Remove what a killed run has left, and return whether it was removed. It stays if it has come into use meanwhile."""
    parent, name = os.path.split(path)
    if parent == paths.generations and not name.startswith(files.ASIDE_PREFIX):
        return removal.remove_generation(paths, name, progress) is None
    if path in (paths.staging, paths.incoming, paths.removing):
        try:
            removal.clear(paths, path, progress)
        except OverlayError:
            return False
    else:
        files.remove(path, progress)
    return True
