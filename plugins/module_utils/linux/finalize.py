# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finalizing a mounted overlay: copying up metadata, and reading directories.

Names are those of the overlay. What is in its upper layer already is read from that layer itself, which is never written to here:
all changes are made through the overlay, which may be in use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.core import finalize, mountinfo
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.finalize import (
    Attributes,
    Counts,
    Marks,
    Pending,
    copied_from,
    lower_path,
    needed_redirect,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import CAPABILITY_XATTR
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.mountinfo import Mount, OverlayLayers
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.options import SCRATCH_PLACE, live_setting
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mounts, parallel, syscalls, xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.lowers import Lowers

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: What ends the work: the next entry would fail as well. Anything else is about one entry.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)


@dataclass(frozen=True)
class Overlay:
    """A live overlay with an upper layer."""

    mount: Mount
    layers: OverlayLayers
    upper: bytes
    #: What the names of the kernel's attributes begin with.
    prefix: bytes
    #: Whether names of one file stay names of one file when they are copied up.
    keeps_links: bool
    #: Whether metadata is copied up without the content.
    metacopy: bool
    #: Paths in it at which something else is mounted.
    covered: frozenset[bytes]
    #: How many processes work on it where nobody says it.
    usual_workers: int

    def shown(self, path: bytes) -> bytes:
        """Return the path at which something in the overlay is seen."""
        return os.path.join(self.mount.path, path) if path else self.mount.path

    def stored(self, path: bytes) -> bytes:
        """Return where the upper layer has it."""
        return os.path.join(self.upper, path) if path else self.upper

    def attribute(self, path: bytes, name: bytes) -> bytes | None:
        """Return one of the kernel's attributes of something in the upper layer."""
        return xattrs.read(self.stored(path), self.prefix + name)

    def marks(self, path: bytes) -> Marks:
        """Return what the attributes of a directory in the upper layer say. Raises FileNotFoundError where there is none."""
        stored = self.stored(path)
        return Marks(
            opaque=xattrs.read(stored, self.prefix + b"opaque"),
            redirect=xattrs.read(stored, self.prefix + b"redirect"),
            copied=xattrs.read(stored, self.prefix + b"origin") is not None,
            sealed_from=xattrs.read(stored, finalize.SEALED),
            restoring=xattrs.read(stored, finalize.RESTORING) is not None,
        )


def find(path: bytes) -> Overlay | None:
    """Return the overlay that is mounted at ``path``; None where nothing is. Raises OverlayError for one that cannot be finalized."""
    mount = mounts.observe(path).mount
    if mount is None:
        return None
    if mount.fstype != b"overlay":
        kind = mount.fstype.decode("ascii", "replace")
        raise OverlayError(f"{show(path)} has a mount of type {kind} and no overlay: give the mountpoint of an overlay")
    if mount.root != b"/":
        raise OverlayError(
            f"{show(path)} shows a part of an overlay, {show(mount.root)}: give the mountpoint of the overlay itself; a view of strategy"
            " redirect asks the file server for no names as it is"
        )
    layers = mountinfo.overlay_layers(mount)
    if layers.upper is None:
        raise OverlayError(
            f"the overlay at {show(path)} has no upper layer, so there is nothing to copy up to; a view over a metadata layer asks the"
            " file server for no names as it is"
        )
    if b"ro" in mount.flags or b"ro" in mount.super_options:
        raise OverlayError(f"the overlay at {show(path)} is mounted read-only: mount it writable to finalize it")
    if layers.upper.startswith(SCRATCH_PLACE):
        raise OverlayError(
            f"the overlay at {show(path)} has scratch space as its upper layer, which nobody sees and which is gone with it: there is"
            " nothing to finalize"
        )
    mountinfo.check_absolute(f"the overlay at {show(path)}", [layers.upper], "its upper layer")
    if not os.path.isdir(layers.upper):
        raise OverlayError(f"{show(layers.upper)}, the upper layer of the overlay at {show(path)}, is not to be found")
    defaults = mounts.overlay_defaults()
    live = mounts.read_mounts()
    return Overlay(
        mount=mount,
        layers=layers,
        upper=layers.upper,
        prefix=b"user.overlay." if (b"userxattr", None) in layers.settings else b"trusted.overlay.",
        keeps_links=b"on" in (live_setting(layers, name, defaults) for name in (b"index", b"nfs_export")),
        metacopy=live_setting(layers, b"metacopy", defaults) == b"on",
        covered=_covered(path, live),
        usual_workers=finalize.usual_workers((*layers.lower, *layers.data), live),
    )


def _covered(path: bytes, live: Sequence[Mount]) -> frozenset[bytes]:
    top = path.rstrip(b"/") + b"/"
    return frozenset(mount.path[len(top) :] for mount in live if mount.path.startswith(top))


@dataclass(frozen=True)
class Wanted:
    """What the passes over a mounted overlay are to do."""

    #: None where it stays as it is.
    owner: int | None
    group: int | None
    copy_up: bool
    #: Count, and change nothing.
    check_mode: bool


@dataclass(frozen=True)
class Place:
    """A directory of the overlay."""

    #: Relative to the overlay's root; empty for the root itself.
    path: bytes
    #: Where in the lower layers it is looked for; None where it is in the upper layer alone.
    lower: bytes | None
    #: None where it is not in the upper layer.
    marks: Marks | None

    def inside(self, name: bytes) -> bytes:
        return os.path.join(self.path, name) if self.path else name


@dataclass
class Visit:
    """What came of one directory."""

    place: Place
    counts: Counts = field(default_factory=Counts)
    pending: list[Pending] = field(default_factory=list)
    #: Whether its listing is not what it was when it was read: entries were copied up.
    changed: bool = False
    #: The directories in it that are sealed, and were not looked into.
    sealed: list[Place] = field(default_factory=list)
    #: What in it was copied up from what is gone from the lower layers; it was not looked into either.
    gone: list[bytes] = field(default_factory=list)
    #: Whether it has our note that files in it are having their owner changed.
    flagged: bool = False
    #: How many of them could not be finished.
    unfinished: int = 0


def start(overlay: Overlay, path: bytes) -> Place:
    """Return the directory that a walk begins with. Raises OverlayError for what is no directory of the overlay."""
    place = Place(b"", b"/", overlay.marks(b""))
    for name in path.split(b"/") if path else ():
        inner = place.inside(name)
        status = os.stat(overlay.shown(inner), follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or inner in overlay.covered:
            raise OverlayError(f"subtree {show(inner)} is not a directory of the overlay at {show(overlay.mount.path)}")
        if place.marks and place.marks.sealed:
            # All below is sealed as well, whatever its own marks.
            place = Place(inner, None, place.marks)
            continue
        marks = _marks_if_stored(overlay, inner)
        place = Place(inner, lower_path(place.lower, name, marks or Marks()), marks)
    return place


def _marks_if_stored(overlay: Overlay, path: bytes) -> Marks | None:
    try:
        return overlay.marks(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def listing(fd: int) -> list[os.DirEntry[bytes]]:
    """Return what is in an open directory."""
    # By its descriptor, so that no path is walked, and with names as bytes.
    with os.scandir(b"/proc/self/fd/%d" % fd) as found:
        return list(found)


def names_in_upper(overlay: Overlay, path: bytes) -> set[bytes]:
    """Return the names that a directory of the upper layer has, those of whiteouts among them."""
    return set(os.listdir(overlay.stored(path)))


def is_gone(overlay: Overlay, lowers: Lowers, place: Place, name: bytes) -> bool:
    """Tell whether a file or directory of the upper layer is a copy, made by the kernel, of what the lower layers do not have.

    It may have been renamed since. A file whose content was copied as well is somebody's, and so is all that has no mark. Of what
    is neither a file nor a directory cannot be told whether it was renamed, so it is not gone.
    """
    path = place.inside(name)
    try:
        mode = os.stat(overlay.stored(path), follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        marks = overlay.marks(path)
        source = copied_from(place.lower, name, marks)
        return marks.copied and source is not None and not lowers.has(source)
    if not stat.S_ISREG(mode) or overlay.attribute(path, b"metacopy") is None:
        return False
    redirect = overlay.attribute(path, b"redirect")
    source = needed_redirect(place.lower, name, redirect) or redirect
    return source is not None and not lowers.has(source)


class CopyUp:
    """One walk over all that is not sealed below some directories, in which entries are copied up or counted."""

    def __init__(
        self,
        overlay: Overlay,
        wanted: Wanted,
        workers: int,
        lowers: Lowers | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """``lowers`` is where to find out what is gone from the lower layers; None not to."""
        self._overlay = overlay
        self._wanted = wanted
        self._workers = workers
        self._lowers = lowers
        self._progress = progress
        #: Names of one file must not have their owner changed at the same time.
        self._special = parallel.Lock()
        self._upper_is_right = wanted.check_mode

    def run(self, starts: Sequence[Place]) -> list[Visit]:
        """Return what came of each directory, in no order."""
        first = [place for place in starts if not (place.marks and place.marks.sealed)]
        with working_directory_kept():
            return parallel.walk(first, self._visit, self._workers, self._progress)

    def _visit(self, place: Place, progress: Progress) -> tuple[Visit, list[Place]]:
        visit = Visit(place)
        further: list[Place] = []
        progress()
        try:
            with _opened(self._overlay.shown(place.path)) as fd:
                # Entries are named by their names alone from here on, which saves the kernel walking their paths.
                os.fchdir(fd)
                self._look_into(visit, fd, further, progress)
        except OSError as error:
            self._note_failure(visit, place.path, error)
        return visit, further

    def _look_into(self, visit: Visit, fd: int, further: list[Place], progress: Progress) -> None:
        place = visit.place
        stored = names_in_upper(self._overlay, place.path) if place.marks else set()
        if place.marks and place.marks.restoring:
            self._finish(visit, stored)
        entries = listing(fd)
        covered = {os.path.basename(path) for path in self._overlay.covered if os.path.dirname(path) == place.path}
        gone = self._gone(place, [entry for entry in entries if entry.name in stored])
        visit.gone = [place.inside(name) for name in gone]
        visit.pending += [Pending(place.inside(name), "something else is mounted there") for name in covered]
        for entry in entries:
            progress()
            if entry.name in gone or entry.name in covered:
                continue
            try:
                self._entry(visit, entry, entry.name in stored, further)
            except OSError as error:
                self._note_failure(visit, place.inside(entry.name), error)
        if visit.flagged and not visit.unfinished and not self._wanted.check_mode:
            xattrs.remove(b".", finalize.RESTORING)

    def _entry(self, visit: Visit, entry: os.DirEntry[bytes], stored: bool, further: list[Place]) -> None:
        """Copy up what is not ``stored`` in the upper layer, and note what is to be looked into."""
        place = visit.place
        is_directory = entry.is_dir(follow_symlinks=False)
        marks: Marks | None = None
        if stored:
            visit.counts.already += 1
            marks = self._overlay.marks(place.inside(entry.name)) if is_directory else None
        elif place.lower is None:
            # It appeared in the upper layer just now.
            return
        elif not self._wanted.copy_up:
            visit.pending.append(Pending(place.inside(entry.name), "not copied up"))
        elif not self._copied(visit, entry.name):
            return
        elif not self._wanted.check_mode:
            marks = Marks(copied=True)
        if marks and marks.sealed:
            visit.sealed.append(Place(place.inside(entry.name), None, marks))
        elif is_directory:
            further.append(
                Place(place.inside(entry.name), lower_path(place.lower, entry.name, marks or Marks()), marks)
            )

    def _gone(self, place: Place, entries: Sequence[os.DirEntry[bytes]]) -> set[bytes]:
        """Return the names of those entries in the upper layer that are copies of what the lower layers do not have any more."""
        if self._lowers is None or place.lower is None or not entries:
            return set()
        names = self._lowers.names(place.lower)
        missing = [entry for entry in entries if names is None or entry.name not in names]
        return {entry.name for entry in missing if is_gone(self._overlay, self._lowers, place, entry.name)}

    def _copied(self, visit: Visit, name: bytes) -> bool:
        """Copy one entry up, or in check mode count it; tell whether that is possible."""
        status = os.lstat(name)
        if status.st_nlink > 1 and not self._overlay.keeps_links and not stat.S_ISDIR(status.st_mode):
            reason = "it has other names, which would become files of their own: mount the overlay with index=on"
            visit.pending.append(Pending(visit.place.inside(name), reason))
            return False
        if not self._wanted.check_mode:
            self._change(visit, name, status)
            visit.changed = True
            if not self._upper_is_right:
                self._check_upper(visit.place.inside(name))
        visit.counts.copied_up += 1
        return True

    def _change(self, visit: Visit, name: bytes, status: os.stat_result) -> None:
        """Copy an entry up with the wanted owner and all else as it is."""
        uid = status.st_uid if self._wanted.owner is None else self._wanted.owner
        gid = status.st_gid if self._wanted.group is None else self._wanted.group
        if (uid, gid) == (status.st_uid, status.st_gid):
            # What chown(2) takes away, this leaves.
            syscalls.keep_times(name, status.st_atime_ns)
            return
        if stat.S_ISREG(status.st_mode):
            # Few have one, and a list is faster than an error. Copying up asks the file server for it anyway.
            capability = xattrs.read(name, CAPABILITY_XATTR) if xattrs.has(name, CAPABILITY_XATTR) else None
            if capability is not None or status.st_mode & (stat.S_ISUID | stat.S_ISGID):
                self._change_special(visit, name, Attributes(stat.S_IMODE(status.st_mode), uid, gid, capability))
                return
        os.lchown(name, uid, gid)

    def _change_special(self, visit: Visit, name: bytes, wanted: Attributes) -> None:
        """Change the owner of a file that loses attributes by that, with a note in it that a later run would act upon."""
        with self._special.held():
            if not visit.flagged:
                xattrs.write(b".", finalize.RESTORING, b"y")
                visit.flagged = True
            status = os.stat(name, follow_symlinks=False)
            if (status.st_uid, status.st_gid) == (wanted.uid, wanted.gid):
                # Done just now, under another of its names.
                syscalls.keep_times(name, status.st_atime_ns)
                return
            visit.unfinished += 1
            xattrs.write(name, finalize.RESTORE, wanted.to_note())
            _restore(name, wanted)
            visit.unfinished -= 1

    def _finish(self, visit: Visit, stored: set[bytes]) -> None:
        """Finish what a run has begun in a directory that has our note."""
        if not self._wanted.copy_up:
            reason = "a run that changed owners in it was killed: pass copy_up finishes that"
            visit.pending.append(Pending(visit.place.path, reason))
            return
        visit.flagged = True
        for name in stored:
            try:
                if not stat.S_ISREG(os.stat(name, follow_symlinks=False).st_mode):
                    continue
            except FileNotFoundError:  # a whiteout
                continue
            note = xattrs.read(name, finalize.RESTORE)
            if note is not None:
                visit.counts.restored += 1
                if not self._wanted.check_mode:
                    with self._special.held():
                        _restore(name, Attributes.from_note(note))

    def _check_upper(self, path: bytes) -> None:
        """Raises OverlayError when what was copied up is not where the kernel says the upper layer is."""
        if not os.path.lexists(self._overlay.stored(path)):
            raise OverlayError(
                f"{show(self._overlay.upper)} is not the upper layer of the overlay at {show(self._overlay.mount.path)}: another directory"
                " is in its place"
            )
        self._upper_is_right = True

    @staticmethod
    def _note_failure(visit: Visit, path: bytes, error: OSError) -> None:
        if error.errno == errno.ENOENT:
            # Removed while it was looked at.
            return
        if error.errno in _FATAL:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
        visit.pending.append(Pending(path, f"{error.strerror}"))


def _restore(name: bytes, wanted: Attributes) -> None:
    os.chown(name, wanted.uid, wanted.gid, follow_symlinks=False)
    os.chmod(name, wanted.mode)
    if wanted.capability is not None:
        xattrs.write(name, CAPABILITY_XATTR, wanted.capability)
    xattrs.remove(name, finalize.RESTORE)


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    fd = os.open(path, DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def read_directories(
    overlay: Overlay, places: Sequence[Place], workers: int, progress: Progress = no_progress
) -> list[Pending]:
    """Read directories of the overlay, deepest first; return those that could not be."""

    def read(place: Place, progress: Progress) -> tuple[list[Pending], list[Place]]:
        progress()
        try:
            os.listdir(overlay.shown(place.path))
        except OSError as error:
            if error.errno in _FATAL:
                raise
            return [Pending(place.path, f"{error.strerror}")], []
        return [], []

    levels: dict[int, list[Place]] = {}
    for place in places:
        levels.setdefault(finalize.depth(place.path), []).append(place)
    failed: list[Pending] = []
    for level in sorted(levels, reverse=True):
        for found in parallel.walk(levels[level], read, workers, progress):
            failed += found
    return failed


def read_below(overlay: Overlay, places: Sequence[Place], workers: int, progress: Progress = no_progress) -> int:
    """Read directories and all that are below them; return how many."""

    def read(place: Place, progress: Progress) -> tuple[int, list[Place]]:
        progress()
        with _opened(overlay.shown(place.path)) as fd:
            inner = [entry.name for entry in listing(fd) if entry.is_dir(follow_symlinks=False)]
        return 1, [Place(place.inside(name), None, place.marks) for name in inner]

    return sum(parallel.walk(places, read, workers, progress))


@contextlib.contextmanager
def working_directory_kept() -> Iterator[None]:
    """Return to the working directory afterwards: an overlay that a process stands in cannot be unmounted."""
    fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.fchdir(fd)
        os.close(fd)
