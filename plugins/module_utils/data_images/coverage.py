# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check, file by file, that data images have the content of everything that a layer shows, before a view loses its software root."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix

#: Problems that are kept; the others are counted.
_MOST_PROBLEMS = 5


@dataclass(frozen=True)
class Coverage:
    """How far data images have the content of a layer."""

    #: Files with content in the layer.
    files: int
    #: How many of them have no content, or other content, in the images, and a sentence for each of the first ones.
    missing: int
    problems: tuple[str, ...]

    def listed(self) -> str:
        """Return the problems for a message."""
        more = self.missing - len(self.problems)
        return "; ".join(self.problems) + (f"; and {more} more" if more else "")


def check(layer: bytes, data: Mapping[bytes, bytes], namespace: str, seconds: float, progress: Progress) -> Coverage:
    """Return how far data images have the content of ``layer``, the path of a directory or of an EROFS image.

    ``data`` maps the path of each release below the software root to the path of its data image. ``namespace`` is that of the overlay
    xattrs. The images are mounted where no other process sees them. Gives up after ``seconds`` without progress. Raises OverlayError if an
    image cannot be mounted.
    """

    def work(tick: Progress) -> Coverage:
        among = images.among([layer, *data.values()])
        images.mount_unseen(among, [without_suffix(one) if one in among else one for one in (layer, *data.values())])
        places = {source: without_suffix(image) for source, image in data.items()}
        top = without_suffix(layer) if layer in among else layer
        return _coverage(top, places, f"{namespace}.overlay.redirect", tick)

    return deadline.run(work, seconds, progress)


def _coverage(top: bytes, places: Mapping[bytes, bytes], redirect: str, progress: Progress) -> Coverage:
    files = missing = 0
    problems: list[str] = []
    for path, size in _files_with_content(top, progress):
        files += 1
        problem = _problem(path, size, places, redirect)
        if problem:
            missing += 1
            if len(problems) < _MOST_PROBLEMS:
                problems.append(f"{show(path[len(top) + 1 :])} {problem}")
    return Coverage(files, missing, tuple(problems))


def _files_with_content(top: bytes, progress: Progress) -> Iterator[tuple[bytes, int]]:
    """Yield the path and size of each regular file below ``top`` that is not empty, in the order of names."""
    directories = [top]
    while directories:
        with os.scandir(directories.pop()) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        progress()
        for entry in listed:
            if entry.is_file(follow_symlinks=False):
                size = entry.stat(follow_symlinks=False).st_size
                if size:
                    yield entry.path, size
        directories += [entry.path for entry in reversed(listed) if entry.is_dir(follow_symlinks=False)]


def _problem(path: bytes, size: int, places: Mapping[bytes, bytes], redirect: str) -> str:
    """Return why the images do not have the content of a file of the layer; an empty text if they have it."""
    try:
        target = os.getxattr(path, redirect, follow_symlinks=False).lstrip(b"/")
    except OSError as error:
        if error.errno == errno.ENODATA:
            return "has no redirect"
        raise
    image = _image_of(target, places)
    if image is None:
        return f"is at {show(target)} in the software root, and no data image has that release"
    try:
        found = os.lstat(os.path.join(image, target))
    except (FileNotFoundError, NotADirectoryError):
        return f"is not in the data image of its release, where it would be {show(target)}"
    if not stat.S_ISREG(found.st_mode):
        return "is no regular file in the data image of its release"
    return "" if found.st_size == size else f"has {size} bytes, and {found.st_size} in the data image of its release"


def _image_of(target: bytes, places: Mapping[bytes, bytes]) -> bytes | None:
    """Return where the image of the release is mounted that a path below the software root is in; None if no image has it."""
    source = os.path.dirname(target)
    while source:
        if source in places:
            return places[source]
        source = os.path.dirname(source)
    return None
