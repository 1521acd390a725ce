# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look up the generations of a view on this host, lock the view, and make one of them the current one."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import FORMATS
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, trust
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.files import ASIDE_PREFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.trust import check_own, check_state_dir, linked
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generation_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation_record import (
    Generation,
    content_for_diff,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import ViewState
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import (
    CURRENT,
    PREVIOUS,
    RECORD,
    ViewPaths,
    generation_of,
    layer_path,
    record_path,
)


def observe(paths: ViewPaths) -> ViewState:
    """Return the state of a view. Raises OverlayError if users other than root can write to it, even if nothing is to be done.

    A damaged record is part of the state, so that it fails only what needs its generation.
    """
    check_view(paths)
    try:
        names = os.listdir(paths.generations)
    except FileNotFoundError:
        names = []
    whole = set()
    damaged = {}
    for name in names:
        try:
            if _is_whole(paths, name):
                whole.add(name)
        except OverlayError as error:
            damaged[name] = str(error)
    return ViewState(
        exists=os.path.lexists(paths.root),
        generations=frozenset(whole),
        current=_linked(paths, CURRENT),
        previous=_linked(paths, PREVIOUS),
        damaged=damaged,
    )


def _is_whole(paths: ViewPaths, directory: str) -> bool:
    """Return whether a directory holds the generation that its name says: with its record, and an image of the recorded length.

    A generation of an older version of the collection is not whole: its record does not say everything that it is made of. Raises
    OverlayError if the record is damaged.
    """
    generation = generation_files.find(record_path(paths.generation(directory)))
    if generation is None or generation.directory != directory:
        return False
    if generation.image is None:
        return True
    try:
        return os.stat(layer_path(paths.generation(directory), generation.format)).st_size == generation.image.bytes
    except FileNotFoundError:
        return False


def _linked(paths: ViewPaths, name: str) -> str | None:
    try:
        return os.path.basename(os.readlink(paths.link(name)))
    except FileNotFoundError:
        return None


def read_generation(paths: ViewPaths, directory: str) -> Generation:
    """Return the generation in a directory, given its name. Raises OverlayError or OSError if its record cannot be used."""
    return generation_files.read(record_path(paths.generation(directory)))


def content_of_current(paths: ViewPaths, state: ViewState) -> dict[str, object]:
    """Return what the current generation shows, for the diff; empty if there is none."""
    if state.current is None or state.current not in state.generations:
        return {}
    generation = read_generation(paths, state.current)
    return content_for_diff(generation.id, generation.releases, generation.links)


def make_state_dir(state_dir: str) -> None:
    """Make a state directory if it is missing. Raises OverlayError if somebody else than root could change what is in it."""
    trust.check_state_dir(state_dir)
    files.make_directories(os.path.dirname(state_dir), 0o755)
    files.make_directories(state_dir, 0o700)


@contextlib.contextmanager
def locked(paths: ViewPaths, seconds: float, progress: Progress = no_progress) -> Iterator[None]:
    """Hold the lock of a view, waiting up to ``seconds``, so that runs change it one after the other. Creates the view's directory.

    Raises OverlayError naming the view on timeout.
    """
    make_state_dir(os.path.dirname(os.path.dirname(paths.root)))
    while True:
        check_view(paths)
        files.make_directories(paths.root, 0o755)
        # Truncating the file would change its mtime although nothing has changed.
        with open(files.open_or_make(paths.lock, 0o600), "ab") as stream:
            files.wait_for_lock(stream.fileno(), show(os.fsencode(paths.root)), seconds, progress)
            # A run that removes the view removes the lock file as well. The lock of a removed file keeps no other run out.
            if _is_at(stream.fileno(), paths.lock):
                yield
                return


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def make_current(paths: ViewPaths, directory: str, previous: str | None) -> None:
    """Make a generation the current one, and ``previous`` the previous one unless it is the same generation in another form."""
    if previous is not None and generation_of(previous) != generation_of(directory):
        files.replace_link(paths.link(PREVIOUS), os.path.join("generations", previous))
    files.replace_link(paths.link(CURRENT), os.path.join("generations", directory))


def check_view(paths: ViewPaths) -> bool:
    """Return whether a view exists.

    Raises OverlayError if users other than root can write to it, or if one of its directories is a symbolic link.
    """
    views_dir = os.path.dirname(paths.root)
    if not check_state_dir(os.path.dirname(views_dir)):
        return False
    directories = [views_dir, paths.root, paths.generations, paths.staging, paths.incoming, paths.removing]
    there = {path for path in directories if check_own(path, stat.S_IFDIR)}
    for name in (CURRENT, PREVIOUS):
        check_own(paths.link(name), stat.S_IFLNK)
    check_own(paths.lock, stat.S_IFREG)
    if paths.generations in there:
        # Another run may be removing the view.
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(paths.generations):
                _check_generation(paths.generation(name))
    return paths.root in there


def _check_generation(place: str) -> None:
    # A killed run may have left a file or a symbolic link. Neither is a generation, and pruning removes them.
    aside = os.path.basename(place).startswith(ASIDE_PREFIX)
    if not check_own(place, stat.S_IFDIR, stat.S_IFREG, *((stat.S_IFLNK,) if aside else ())):
        return
    if not os.path.isdir(place):
        return
    check_own(os.path.join(place, RECORD), stat.S_IFREG)
    for one in FORMATS.values():
        layer = layer_path(place, one.name)
        if one.is_image:
            check_own(layer, stat.S_IFREG)
        elif os.path.islink(layer):
            # The owner and mode of a layer that is a directory are those that the view shows, so they are not checked.
            raise linked(os.fsencode(layer))
