# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Removing what is below a view's directory, unless it is in use.

A generation is renamed away first, so that nobody can begin to use it, and looked at once more; if it is in use it gets its name back.
What in use means, views/usage.py decides. The view's lock has to be held.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import usage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import CURRENT, PREVIOUS, ViewPaths
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import check_unused


def remove_generation(paths: ViewPaths, folder: str, progress: Progress = no_progress) -> str | None:
    """Remove a generation, unless somebody has come to need it meanwhile; then return who, in words."""
    aside = os.path.join(paths.removing, folder)
    if os.path.lexists(aside):
        uses = usage.of_generations(paths, forget=False).get(folder)
        if uses:
            return "; ".join(uses)
        files.remove(aside, progress)
    _put_aside(paths, [folder])
    uses = usage.of_generations(paths, forget=False).get(folder)
    if uses:
        _put_back(paths, [folder])
        return "; ".join(uses)
    files.remove(aside, progress)
    _remove_empty(paths.removing)
    return None


def remove_view(paths: ViewPaths, progress: Progress = no_progress) -> None:
    """Remove all of a view. Raises OverlayError, naming the users, when something of it is in use; all is as it was then.

    A run that is killed may leave links that lead nowhere, but no part of a generation under its name.
    """
    name = os.path.basename(paths.root)
    check_unused(name, usage.lasting(paths, progress))
    # What killed runs have left here is not in use either, and may have the name of a generation.
    files.remove_tree(paths.removing, progress)
    folders = _names_in(paths.generations)
    _put_aside(paths, folders)
    try:
        check_unused(name, usage.lasting(paths, progress))
    except OverlayError:
        _put_back(paths, folders)
        raise
    for link in (CURRENT, PREVIOUS):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(paths.link(link))
    files.remove_tree(paths.root, progress)


def restore_used(paths: ViewPaths, uses: Mapping[str, Sequence[str]]) -> bool:
    """Give generations that are in use their names back, which a killed run had put aside; return whether there were any."""
    free = [
        name for name in _names_in(paths.removing) if uses.get(name) and not os.path.lexists(paths.generation(name))
    ]
    if free:
        _put_back(paths, free)
    return bool(free)


def clear(paths: ViewPaths, place: str, progress: Progress = no_progress, keep: Collection[str] = ()) -> None:
    """Empty and remove a directory of the view, such as ``staging``, but for the names in ``keep``.

    Raises OverlayError when something in it is in use.
    """
    found = [name for name in _names_in(place) if name not in keep]
    if found:
        uses = usage.lasting(paths, progress)
        check_unused(os.path.basename(paths.root), {name: uses[name] for name in found if name in uses})
    for name in found:
        files.remove(os.path.join(place, name), progress)
    _remove_empty(place)


def _put_aside(paths: ViewPaths, folders: Sequence[str]) -> None:
    """Rename generations so that nothing leads to them any more."""
    if not folders:
        return
    files.make_directories(paths.removing, 0o755)
    for folder in folders:
        os.rename(paths.generation(folder), os.path.join(paths.removing, folder))
    files.sync_directory(paths.generations)


def _put_back(paths: ViewPaths, folders: Sequence[str]) -> None:
    for folder in folders:
        os.rename(os.path.join(paths.removing, folder), paths.generation(folder))
    _remove_empty(paths.removing)
    if folders:
        files.sync_directory(paths.generations)


def _names_in(place: str) -> list[str]:
    try:
        return sorted(os.listdir(place))
    except FileNotFoundError:
        return []


def _remove_empty(place: str) -> None:
    """Remove a directory unless there is something in it, or there is none."""
    with contextlib.suppress(OSError):
        os.rmdir(place)
