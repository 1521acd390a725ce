# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finalizing a mounted overlay: copying up metadata, and reading directories.

Names are those of the overlay. What is in its upper layer already is read from that layer itself, which is never written to here:
all changes are made through the overlay, which may be in use.

Users may exchange names in both at any moment, so each directory is opened once, beneath the root of the overlay or of the upper layer,
and all work in it is done by its descriptor. The two descriptors of a directory need not lead to the same one: what is changed is
checked by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import marks, parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import (
    Attributes,
    Counts,
    Marks,
    Pending,
    copied_from,
    lower_path,
    needed_redirect,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, OverlayLayers
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import SCRATCH_PLACE, live_setting
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import CAPABILITY_XATTR

#: What ends the work: the next entry would fail as well. Anything else is about one entry.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT)

_CAPABILITY = os.fsdecode(CAPABILITY_XATTR)
_JUST_COPIED = Marks(copied=True)
_READABLE = 0o555
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_EXCHANGED = "it is not what the lower layers have: it was exchanged, or changed on the file server, just now"


class Roots:
    """Descriptors of the roots of an overlay and of its upper layer, which are the only paths that are resolved from the top."""

    def __init__(self, mount: Mount, upper: bytes) -> None:
        #: Of the upper layer.
        self.upper = beneath.open_layer(upper)
        self._shown = -1
        try:
            self.open(mount)
        except BaseException:
            os.close(self.upper)
            raise

    @property
    def shown(self) -> int:
        """The descriptor of the overlay's root. Raises ValueError while it is unmounted."""
        if self._shown < 0:
            raise ValueError("the overlay is unmounted")
        return self._shown

    def open(self, mount: Mount) -> None:
        """Open the root of the overlay. Raises OverlayError where another mount is there now."""
        self._shown = beneath.open_root(mount.path)
        if beneath.mount_of(self._shown) != mount.id:
            self.let_go()
            raise OverlayError(f"another mount came to be at {show(mount.path)} just now: run this again")

    def let_go(self) -> None:
        """Close the root of the overlay, which could not be unmounted otherwise."""
        if self._shown >= 0:
            os.close(self._shown)
            self._shown = -1

    def close(self) -> None:
        self.let_go()
        os.close(self.upper)


@dataclass(frozen=True)
class Overlay:
    """A live overlay with an upper layer."""

    mount: Mount
    layers: OverlayLayers
    upper: bytes
    roots: Roots
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

    def open(self, path: bytes) -> int:
        """Return a descriptor of a directory as the overlay shows it."""
        return beneath.open_at(self.roots.shown, path, same_mount=True)

    def open_stored(self, path: bytes) -> int:
        """Return a descriptor of a directory as the upper layer has it. Raises FileNotFoundError where it has none."""
        return beneath.open_at(self.roots.upper, path, same_mount=True)

    def attribute(self, path: bytes, name: bytes) -> bytes | None:
        """Return one of the kernel's attributes of a directory in the upper layer."""
        fd = self.open_stored(path)
        try:
            return beneath.attribute(fd, self.prefix + name)
        finally:
            os.close(fd)

    def marks(self, stored: int) -> Marks:
        """Return what the attributes of an open directory of the upper layer say."""
        present = set(beneath.attribute_names(stored))

        def read(name: bytes) -> bytes | None:
            return beneath.attribute(stored, name) if os.fsdecode(name) in present else None

        return Marks(
            opaque=read(self.prefix + b"opaque"),
            redirect=read(self.prefix + b"redirect"),
            copied=os.fsdecode(self.prefix + b"origin") in present,
            sealed_from=read(marks.SEALED),
            restoring=os.fsdecode(marks.RESTORING) in present,
        )

    def marks_in(self, stored: int, name: bytes) -> Marks:
        """Return the same of the directory ``name`` in an open one. Raises FileNotFoundError, NotADirectoryError."""
        fd = beneath.open_at(stored, name, same_mount=True)
        try:
            return self.marks(fd)
        finally:
            os.close(fd)


def find(path: bytes) -> Overlay | None:
    """Return the overlay that is mounted at ``path``; None where nothing is. Raises OverlayError for one that cannot be finalized."""
    mount = mounts.observe(path).mount
    if mount is None:
        return None
    layers = _layers_of(mount)
    upper = layers.upper or b""
    mountinfo.check_absolute(f"the overlay at {show(path)}", [upper], "its upper layer")
    try:
        roots = Roots(mount, upper)
    except (FileNotFoundError, NotADirectoryError):
        raise OverlayError(
            f"{show(upper)}, the upper layer of the overlay at {show(path)}, is not to be found"
        ) from None
    defaults = mounts.overlay_defaults()
    live = namespaces.own_mounts()
    return Overlay(
        mount=mount,
        layers=layers,
        upper=upper,
        roots=roots,
        prefix=b"user.overlay." if (b"userxattr", None) in layers.settings else b"trusted.overlay.",
        keeps_links=b"on" in (live_setting(layers, name, defaults) for name in (b"index", b"nfs_export")),
        metacopy=live_setting(layers, b"metacopy", defaults) == b"on",
        covered=_covered(path, live),
        usual_workers=marks.usual_workers((*layers.lower, *layers.data), live),
    )


def _layers_of(mount: Mount) -> OverlayLayers:
    """Return the layers of an overlay that can be finalized. Raises OverlayError for any other mount."""
    path = mount.path
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
    return layers


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
    #: Whether set-ID bits and capabilities survive a change of owner or group, which chown(2) takes away.
    keep_setid: bool
    #: Whether content may be copied where the overlay cannot copy metadata alone.
    copy_content: bool
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
    #: Files in it that lost set-ID bits or capabilities with their owner.
    stripped: list[bytes] = field(default_factory=list)


@dataclass
class _Here:
    """A directory that is being looked into, by its descriptors."""

    visit: Visit
    #: As the overlay shows it.
    shown: int
    #: As the upper layer has it, and as the lower layers have it; -1 where they have none, or where it is not needed.
    stored: int
    lower: int
    progress: Progress
    further: list[Place] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return self.visit.place


def start(overlay: Overlay, path: bytes) -> Place:
    """Return the directory that a walk begins with. Raises OverlayError for what is no directory of the overlay."""
    if path:
        _check_is_shown(overlay, path)
    with contextlib.ExitStack() as stack:
        return trace(overlay, path, stack)[0]


def _check_is_shown(overlay: Overlay, path: bytes) -> None:
    try:
        os.close(overlay.open(path))
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise OverlayError(
                f"subtree {show(path)} is not a directory of the overlay at {show(overlay.mount.path)}"
            ) from None
        raise


def trace(overlay: Overlay, path: bytes, stack: contextlib.ExitStack) -> tuple[Place, int]:
    """Return a directory as the upper layer has it now, and a descriptor of it there, which ``stack`` closes; -1 where it has none.

    Each directory on the way is opened in the one before, so that they belong together whatever is renamed meanwhile.
    """
    stored = overlay.roots.upper
    place = Place(b"", b"/", overlay.marks(stored))
    for name in path.split(b"/") if path else ():
        inner = place.inside(name)
        if stored >= 0:
            stored = _open_if_there(stored, name)
            if stored >= 0:
                stack.callback(os.close, stored)
        if place.marks and place.marks.sealed:
            # All below is sealed as well, whatever its own marks.
            place = Place(inner, None, place.marks)
            continue
        marks = overlay.marks(stored) if stored >= 0 else None
        place = Place(inner, lower_path(place.lower, name, marks or Marks()), marks)
    return place, stored


def _open_if_there(stored: int, name: bytes) -> int:
    try:
        return beneath.open_at(stored, name, same_mount=True)
    except (FileNotFoundError, NotADirectoryError):
        return -1


def is_gone(overlay: Overlay, lowers: Lowers, lower: bytes | None, stored: int, name: bytes) -> bool:
    """Tell whether a file or directory of the upper layer is a copy, made by the kernel, of what the lower layers do not have.

    ``stored`` is the open directory of the upper layer that it is in, and ``lower`` where that is looked for in the lower layers. It may
    have been renamed since. A file whose content was copied as well is somebody's, and so is all that has no mark. Of what is neither a
    file nor a directory cannot be told whether it was renamed, so it is not gone.
    """
    try:
        fd = beneath.hold(stored, name)
    except FileNotFoundError:
        return False
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            marks = overlay.marks_in(stored, name)
            source = copied_from(lower, name, marks)
            return marks.copied and source is not None and not lowers.has(source)
        if not stat.S_ISREG(mode) or beneath.held_attribute(fd, overlay.prefix + b"metacopy") is None:
            return False
        redirect = beneath.held_attribute(fd, overlay.prefix + b"redirect")
    finally:
        os.close(fd)
    source = needed_redirect(lower, name, redirect) or redirect
    return source is not None and not lowers.has(source)


class CopyUp:
    """One walk over all that is not sealed below some directories, in which entries are copied up or counted."""

    def __init__(
        self,
        overlay: Overlay,
        wanted: Wanted,
        workers: int,
        lowers: Lowers | None = None,
        looks_for_gone: bool = True,
        progress: Progress = no_progress,
    ) -> None:
        """``lowers`` is where to compare with the lower layers, and to find out what is gone from them; None where it cannot be."""
        self._overlay = overlay
        self._wanted = wanted
        self._workers = workers
        self._lowers = lowers
        self._looks_for_gone = looks_for_gone
        self._progress = progress
        #: Names of one file must not have their owner changed at the same time.
        self._special = parallel.Lock()
        self._upper_is_right = wanted.check_mode
        self._changes_owners = not wanted.check_mode and (wanted.owner is not None or wanted.group is not None)
        #: Without metadata copies, content is copied with the metadata, which may not be wanted.
        self._copies_content = not overlay.metacopy
        self._leaves_content = not (overlay.metacopy or wanted.copy_content or wanted.check_mode)

    def run(self, starts: Sequence[Place]) -> list[Visit]:
        """Return what came of each directory, in no order."""
        first = [place for place in starts if not (place.marks and place.marks.sealed)]
        with beneath.working_directory_kept():
            return parallel.walk(first, self._visit, self._workers, self._progress)

    def _visit(self, place: Place, progress: Progress) -> tuple[Visit, list[Place]]:
        here = _Here(Visit(place), -1, -1, -1, progress)
        progress()
        try:
            here.shown = self._overlay.open(place.path)
            if place.marks:
                here.stored = self._overlay.open_stored(place.path)
            if self._changes_owners and self._lowers and place.lower is not None:
                here.lower = self._lowers.open(place.lower)
            beneath.enter(here.shown)
            self._look_into(here)
        except OSError as error:
            self._note_failure(here.visit, place.path, error)
        finally:
            for fd in (here.shown, here.stored, here.lower):
                if fd >= 0:
                    os.close(fd)
        return here.visit, here.further

    def _look_into(self, here: _Here) -> None:
        place, visit = here.place, here.visit
        # Before the listing: what is not in the upper layer now and comes there later is found to differ from the lower layers.
        stored = beneath.names(here.stored) if here.stored >= 0 else set()
        if place.marks and place.marks.restoring:
            stored -= self._finish(here, stored)
        entries = beneath.entries(here.shown)
        covered = {os.path.basename(path) for path in self._overlay.covered if os.path.dirname(path) == place.path}
        gone = self._gone(here, [entry for entry in entries if entry.name in stored])
        visit.gone = [place.inside(name) for name in gone]
        visit.pending += [Pending(place.inside(name), "something else is mounted there") for name in covered]
        for entry in entries:
            here.progress()
            if entry.name in gone or entry.name in covered:
                continue
            try:
                self._entry(here, entry, entry.name in stored)
            except OSError as error:
                self._note_failure(visit, place.inside(entry.name), error)
        if visit.flagged and not visit.unfinished and not self._wanted.check_mode:
            beneath.remove_attribute(here.shown, marks.RESTORING)

    def _entry(self, here: _Here, entry: os.DirEntry[bytes], stored: bool) -> None:
        """Copy up what is not ``stored`` in the upper layer, and note what is to be looked into."""
        place, visit = here.place, here.visit
        is_directory = entry.is_dir(follow_symlinks=False)
        marks: Marks | None = None
        if stored:
            visit.counts.already += 1
            marks = self._overlay.marks_in(here.stored, entry.name) if is_directory else None
        elif place.lower is None:
            # It appeared in the upper layer just now.
            return
        elif not self._wanted.copy_up:
            visit.pending.append(Pending(place.inside(entry.name), "not copied up"))
        elif not self._copied(here, entry.name):
            return
        elif not self._wanted.check_mode:
            marks = _JUST_COPIED
        if not is_directory:
            return
        if marks and marks.sealed:
            visit.sealed.append(Place(place.inside(entry.name), None, marks))
        else:
            here.further.append(
                Place(place.inside(entry.name), lower_path(place.lower, entry.name, marks or Marks()), marks)
            )

    def _gone(self, here: _Here, entries: Sequence[os.DirEntry[bytes]]) -> set[bytes]:
        """Return the names of those entries in the upper layer that are copies of what the lower layers do not have any more."""
        lowers, lower = self._lowers, here.place.lower
        if lowers is None or lower is None or not entries or not self._looks_for_gone:
            return set()
        names = lowers.names(lower)
        missing = [entry for entry in entries if names is None or entry.name not in names]
        return {entry.name for entry in missing if is_gone(self._overlay, lowers, lower, here.stored, entry.name)}

    def _copied(self, here: _Here, name: bytes) -> bool:
        """Copy one entry up, or in check mode count it; tell whether that is possible."""
        visit = here.visit
        if self._changes_owners:
            held = beneath.hold(here.shown, name)
            try:
                status = os.fstat(held)
                reason = self._leaves(status) or self._changed(here, name, held, status)
            finally:
                os.close(held)
        else:
            status = beneath.status(here.shown, name)
            reason = self._leaves(status)
            if not (reason or self._wanted.check_mode):
                # Whatever has the name now: this changes nothing of it.
                beneath.keep_times(here.shown, name, status.st_atime_ns)
        if reason:
            visit.pending.append(Pending(visit.place.inside(name), reason))
            return False
        if not self._wanted.check_mode:
            visit.changed = True
            if not self._upper_is_right:
                self._check_upper(visit.place.inside(name))
        visit.counts.copied_up += 1
        if self._copies_content and stat.S_ISREG(status.st_mode) and status.st_size:
            visit.counts.content_files += 1
            visit.counts.content_bytes += status.st_size
        return True

    def _leaves(self, status: os.stat_result) -> str:
        """Return why an entry is not copied up; empty where it is."""
        if status.st_nlink > 1 and not self._overlay.keeps_links and not stat.S_ISDIR(status.st_mode):
            return "it has other names, which would become files of their own: mount the overlay with index=on"
        if self._leaves_content and stat.S_ISREG(status.st_mode) and status.st_size:
            return "its content would be copied, which 'copy_content' allows"
        return ""

    def _changed(self, here: _Here, name: bytes, held: int, status: os.stat_result) -> str:
        """Copy an entry up with the wanted owner; return why that could not be, empty where it could.

        What is changed is what ``held`` stands for. Whoever may write to the directory may have put another file in the place of the one
        that the lower layers have, for example one of root's that is in the upper layer and that he may not read. It is not changed.
        """
        uid = status.st_uid if self._wanted.owner is None else self._wanted.owner
        gid = status.st_gid if self._wanted.group is None else self._wanted.group
        if (uid, gid) == (status.st_uid, status.st_gid):
            # What chown(2) takes away, this leaves.
            beneath.keep_times(here.shown, name, status.st_atime_ns)
            return ""
        if not _is_lower(here.lower, name, status):
            return _EXCHANGED
        if stat.S_ISREG(status.st_mode) and self._loses_attributes(name, status):
            if self._wanted.keep_setid:
                self._change_special(here, name, held, uid, gid)
                return ""
            here.visit.counts.setid_stripped += 1
            here.visit.stripped.append(here.place.inside(name))
        beneath.change_owner(held, uid, gid)
        return ""

    def _loses_attributes(self, name: bytes, status: os.stat_result) -> bool:
        """Tell whether chown(2) takes set-ID bits or a capability away from a file of the directory that was entered."""
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID):
            return True
        # Few have a capability, which does nothing but for programs, and a list is faster than an error.
        return bool(self._wanted.keep_setid or status.st_mode & _EXECUTABLE) and beneath.has_attribute_here(
            name, _CAPABILITY
        )

    def _change_special(self, here: _Here, name: bytes, held: int, uid: int, gid: int) -> None:
        """Change the owner of a file that loses attributes by that, with a note in it that a later run would act upon."""
        visit = here.visit
        with self._special.held():
            if not visit.flagged:
                beneath.set_attribute(here.shown, marks.RESTORING, b"y")
                visit.flagged = True
            status = os.fstat(held)
            if (status.st_uid, status.st_gid) == (uid, gid):
                # Done just now, under another of its names.
                beneath.keep_times(here.shown, name, status.st_atime_ns)
                return
            visit.unfinished += 1
            capability = beneath.held_attribute(held, CAPABILITY_XATTR)
            wanted = Attributes(stat.S_IMODE(status.st_mode), uid, gid, capability)
            # Its inode number may change when it is copied up, so that comes first.
            beneath.keep_held_times(held, status.st_atime_ns)
            beneath.set_held_attribute(held, marks.RESTORE, wanted.to_note(os.fstat(held).st_ino))
            _restore(held, wanted)
            visit.unfinished -= 1

    def _finish(self, here: _Here, stored: set[bytes]) -> set[bytes]:
        """Finish what a run has begun in a directory that has our note; return the names of files that it has not got to."""
        visit = here.visit
        if not self._wanted.copy_up:
            reason = "a run that changed owners in it was killed: pass copy_up finishes that"
            visit.pending.append(Pending(visit.place.path, reason))
            return set()
        visit.flagged = True
        untouched = set()
        for name in stored:
            try:
                held = beneath.hold(here.shown, name)
            except FileNotFoundError:  # a whiteout
                continue
            try:
                if not self._finish_file(visit, held) and self._is_untouched(here, name, held):
                    untouched.add(name)
            finally:
                os.close(held)
        return untouched

    def _is_untouched(self, here: _Here, name: bytes, held: int) -> bool:
        """Tell whether a file was copied up just before its note was to be written, and is as the lower layers have it."""
        status = os.fstat(held)
        loses = stat.S_ISREG(status.st_mode) and self._loses_attributes(name, status)
        return self._changes_owners and loses and _is_lower(here.lower, name, status)

    def _finish_file(self, visit: Visit, held: int) -> bool:
        """Act upon the note of a file; tell whether it has one."""
        status = os.fstat(held)
        if not stat.S_ISREG(status.st_mode):
            return False
        note = beneath.held_attribute(held, marks.RESTORE)
        wanted = None if note is None else Attributes.from_note(note, status.st_ino)
        if wanted is None:
            return False
        visit.counts.restored += 1
        if not self._wanted.check_mode:
            with self._special.held():
                _restore(held, wanted)
        return True

    def _check_upper(self, path: bytes) -> None:
        """Raises OverlayError when what was copied up is not where the kernel says the upper layer is."""
        folder = self._overlay.open_stored(os.path.dirname(path))
        try:
            is_there = beneath.has(folder, os.path.basename(path))
        finally:
            os.close(folder)
        if not is_there:
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


def _is_lower(lower: int, name: bytes, status: os.stat_result) -> bool:
    """Tell whether an entry with this status is as the open directory of the lower layers has it."""
    if lower < 0:
        return False
    try:
        there = beneath.status(lower, name)
    except FileNotFoundError:
        return False
    return (
        there.st_mode == status.st_mode
        and there.st_mtime_ns == status.st_mtime_ns
        and there.st_uid == status.st_uid
        and there.st_gid == status.st_gid
        and (there.st_size == status.st_size or stat.S_ISDIR(status.st_mode))
    )


def _restore(held: int, wanted: Attributes) -> None:
    # Nobody but its new owner is to write to it before it has its bits and its capability: they would go with what was written.
    beneath.change_mode(held, wanted.mode & _READABLE)
    beneath.change_owner(held, wanted.uid, wanted.gid)
    if wanted.capability is not None:
        beneath.set_held_attribute(held, CAPABILITY_XATTR, wanted.capability)
    beneath.change_mode(held, wanted.mode)
    beneath.remove_held_attribute(held, marks.RESTORE)


def read_directories(
    overlay: Overlay, places: Sequence[Place], workers: int, progress: Progress = no_progress
) -> list[Pending]:
    """Read directories of the overlay, deepest first; return those that could not be."""

    def read(place: Place, progress: Progress) -> tuple[list[Pending], list[Place]]:
        progress()
        try:
            with _opened(overlay, place.path) as fd:
                beneath.names(fd)
        except OSError as error:
            if error.errno in _FATAL:
                raise
            return [Pending(place.path, f"{error.strerror}")], []
        return [], []

    levels: dict[int, list[Place]] = {}
    for place in places:
        levels.setdefault(marks.depth(place.path), []).append(place)
    failed: list[Pending] = []
    for level in sorted(levels, reverse=True):
        for found in parallel.walk(levels[level], read, workers, progress):
            failed += found
    return failed


def read_below(overlay: Overlay, places: Sequence[Place], workers: int, progress: Progress = no_progress) -> int:
    """Read directories and all that are below them; return how many."""

    def read(place: Place, progress: Progress) -> tuple[int, list[Place]]:
        progress()
        with _opened(overlay, place.path) as fd:
            inner = [entry.name for entry in beneath.entries(fd) if entry.is_dir(follow_symlinks=False)]
        return 1, [Place(place.inside(name), None, place.marks) for name in inner]

    return sum(parallel.walk(places, read, workers, progress))


@contextlib.contextmanager
def _opened(overlay: Overlay, path: bytes) -> Iterator[int]:
    fd = overlay.open(path)
    try:
        yield fd
    finally:
        os.close(fd)
