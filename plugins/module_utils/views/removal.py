# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove what is below a view's directory, unless it is in use.

A generation is renamed aside first, so that nothing can begin to use it, and checked once more; if it is in use then, it gets its name
back. views/usage.py decides what is in use. The caller has to hold the lock of the view.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import usage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import check_unused
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import CURRENT, PREVIOUS, ViewPaths


def remove_generation(paths: ViewPaths, directory: str, progress: Progress = no_progress) -> str | None:
    """Remove a generation, given its directory's name. If it has come into use meanwhile, keep it and return the reasons."""
    aside = os.path.join(paths.removing, directory)
    if os.path.lexists(aside):
        uses = usage.of_generations(paths, forget=False).get(directory)
        if uses:
            return "; ".join(uses)
        files.remove(aside, progress)
    _put_aside(paths, [directory])
    uses = usage.of_generations(paths, forget=False).get(directory)
    if uses:
        _put_back(paths, [directory])
        return "; ".join(uses)
    files.remove(aside, progress)
    _remove_empty(paths.removing)
    return None


def remove_view(paths: ViewPaths, progress: Progress = no_progress) -> None:
    """Remove a view with everything in it. Raises OverlayError with the reasons, and removes nothing, if a part of it is in use.

    A killed run may leave links without a target, but never a partial generation under its name.
    """
    check_unused(paths.name, usage.lasting(paths, progress))
    # What killed runs have left here is not in use, but it may have the name of a generation.
    files.remove_tree(paths.removing, progress)
    directories = _names_in(paths.generations)
    _put_aside(paths, directories)
    try:
        check_unused(paths.name, usage.lasting(paths, progress))
    except OverlayError:
        _put_back(paths, directories)
        raise
    for link in (CURRENT, PREVIOUS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(paths.link(link))
    files.remove_tree(paths.root, progress)


def restore_used(paths: ViewPaths, uses: Mapping[str, Sequence[str]]) -> bool:
    """Give generations that are in use, and that a killed run had moved aside, their names back. Return whether there were any."""
    directories = [
        name for name in _names_in(paths.removing) if uses.get(name) and not os.path.lexists(paths.generation(name))
    ]
    if directories:
        _put_back(paths, directories)
    return bool(directories)


def clear(paths: ViewPaths, place: str, progress: Progress = no_progress, keep: Collection[str] = ()) -> None:
    """Remove a directory of the view, such as ``staging``, with everything in it except for the names in ``keep``.

    Raises OverlayError if something in it is in use.
    """
    found = [name for name in _names_in(place) if name not in keep]
    if found:
        uses = usage.lasting(paths, progress)
        check_unused(paths.name, {name: uses[name] for name in found if name in uses})
    for name in found:
        files.remove(os.path.join(place, name), progress)
    _remove_empty(place)


def _put_aside(paths: ViewPaths, directories: Sequence[str]) -> None:
    """Rename generations aside, so that nothing refers to them any more."""
    if not directories:
        return
    files.make_directories(paths.removing, 0o755)
    for name in directories:
        os.rename(paths.generation(name), os.path.join(paths.removing, name))
    files.sync_directory(paths.generations)


def _put_back(paths: ViewPaths, directories: Sequence[str]) -> None:
    for name in directories:
        os.rename(os.path.join(paths.removing, name), paths.generation(name))
    _remove_empty(paths.removing)
    if directories:
        files.sync_directory(paths.generations)


def _names_in(place: str) -> list[str]:
    try:
        return sorted(os.listdir(place))
    except FileNotFoundError:
        return []


def _remove_empty(place: str) -> None:
    """Remove a directory if it exists and is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(place)
