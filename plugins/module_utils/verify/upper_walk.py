# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verify the upper layer of an overlay: what fsck.overlay checks, and what makes a finalized overlay show wrong content.

Checked are redirects, marks of metadata copies, opaque marks, whiteouts and marks of impure directories. The content of metadata copies
is looked up in the lower layers and opened. Nothing is changed. Users may write to the overlay meanwhile, so what vanishes during the walk
is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import lowers, marks
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.lowers import Lowers
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.marks import Marks
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import (
    beneath,
    files,
    mountinfo,
    syscalls,
    trust,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Note, Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, OverlayLayers
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import targets
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.overlay_marks import (
    is_metacopy,
    redirect_problem,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import Findings
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.targets import DataLayers, File

_SEALING = (marks.OPAQUE, marks.KERNEL_SEALED)
#: Files whose content is looked up at a time.
_MOST_FILES = 1024


@dataclass(frozen=True)
class _Directory:
    """A directory of the upper layer."""

    #: Its path in the upper layer, with a slash at its start.
    path: bytes
    #: Its path in the lower layers that it is merged with; None if it is in the upper layer alone.
    lower: bytes | None
    #: Whether the kernel looks up no names of it in the lower layers.
    sealed: bool


def verify(mount: Mount, threads: int, progress: Progress, note: Note) -> Findings:
    """Verify the upper layer of an overlay. This many ``threads`` look up content in its lower layers; with none, these are not asked.

    Raises OverlayError if the overlay has no upper layer.
    """
    layers = mountinfo.overlay_layers(mount)
    if layers.upper is None:
        raise OverlayError(
            f"the overlay at {show(mount.path)} shows no view of the state directory, and has no upper layer: give the mountpoint of a"
            " view, or its 'state_dir'"
        )
    files.allow_deep_trees()
    findings = Findings()
    try:
        trust.check_way(posixpath.dirname(layers.upper), unless_hidden=True)
    except OverlayError as error:
        findings.add(b"/", "writable_by_others", str(error))
    prefix = b"user.overlay." if (b"userxattr", None) in layers.settings else b"trusted.overlay."
    with contextlib.ExitStack() as stack:
        below = stack.enter_context(lowers.opened(layers)) if threads else None
        root = beneath.open_layer(layers.upper)
        stack.callback(os.close, root)
        walk = _UpperWalk(root, prefix, below, findings, progress, note)
        content = _content(below, layers, note) if below is not None else None
        for wanted in walk.files():
            if content is not None:
                targets.check(content, iter(wanted), lambda _file: None, threads, findings, progress)
    return findings


def _content(below: Lowers, layers: OverlayLayers, note: Note) -> DataLayers:
    """Return the lower layers as those in which the content of files is looked up."""
    name = b", ".join(layers.lower)
    return DataLayers(DataPlaces.of_one_overlay((name,)), {name: below.root}, note, "lower layer")


class _UpperWalk:
    def __init__(
        self, root: int, prefix: bytes, below: Lowers | None, findings: Findings, progress: Progress, note: Note
    ) -> None:
        self._root = root
        self._prefix = prefix
        self._below = below
        self._findings = findings
        self._progress = progress
        self._note = note
        #: The directory of the upper layer that is merged with each directory of the lower layers.
        self._merged: dict[bytes, bytes] = {}
        #: The metadata copies whose content was not looked up yet.
        self._files: list[File] = []

    def files(self) -> Iterator[list[File]]:
        """Check everything but the content of metadata copies, and yield these copies, some at a time."""
        pending = [_Directory(b"/", b"/", False)]
        while pending:
            directory = pending.pop()
            self._progress()
            self._note.write(show(directory.path))
            # Somebody may have just removed it.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                pending += self._visit(directory)
            if len(self._files) >= _MOST_FILES:
                yield self._taken()
        yield self._taken()

    def _taken(self) -> list[File]:
        taken, self._files = self._files, []
        return taken

    def _visit(self, directory: _Directory) -> list[_Directory]:
        """Check a directory and the files in it, and return its subdirectories."""
        fd = beneath.open_at(self._root, directory.path.lstrip(b"/"), same_mount=True)
        try:
            if self._below is not None and directory.lower is not None:
                self._below.refresh(directory.lower)
            with beneath.working_directory_kept():
                beneath.enter(fd)
                inner = []
                impure = False
                found = sorted(beneath.entries(fd), key=lambda entry: entry.name)
                for entry in found:
                    path = posixpath.join(directory.path, entry.name)
                    status = os.lstat(entry.name)
                    self._findings.checked += 1
                    names = beneath.attribute_names_here(entry.name)
                    impure = impure or os.fsdecode(self._prefix + b"origin") in names
                    if stat.S_ISDIR(status.st_mode):
                        inner.append(self._enter(directory, entry.name, path))
                    elif stat.S_ISREG(status.st_mode):
                        self._file(directory, entry.name, path, status)
                    elif stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                        self._whiteout(directory, entry.name, path)
            if impure and beneath.attribute(fd, self._prefix + b"impure") != b"y":
                self._findings.add(directory.path, "missing_impure")
            self._uncovered(directory, fd, {entry.name for entry in found})
            return inner
        finally:
            os.close(fd)

    def _marks(self, name: bytes) -> Marks:
        def read(attribute: bytes) -> bytes | None:
            return beneath.attribute_here(name, attribute)

        return Marks(
            opaque=read(self._prefix + b"opaque"),
            redirect=read(self._prefix + b"redirect"),
            copied=read(self._prefix + b"origin") is not None,
            sealed_from=read(marks.SEALED),
        )

    def _enter(self, parent: _Directory, name: bytes, path: bytes) -> _Directory:
        """Check the redirect of a directory, and return it."""
        found = self._marks(name)
        # A directory below a sealed one is looked up in the lower layers only by an absolute redirect.
        lower = marks.lower_path(None if parent.sealed else parent.lower, name, found)
        if found.redirect is not None:
            code = redirect_problem(found.redirect) if found.redirect.startswith(b"/") else None
            if code is None and not found.redirect.startswith(b"/") and b"/" in found.redirect:
                code = "relative_redirect"
            if code is not None:
                self._findings.add(path, code, f"the redirect of the directory is {show(found.redirect)}")
                lower = None
        if lower is not None and self._below is not None:
            lower = self._existing(path, lower, found)
        return _Directory(path, lower, found.opaque in _SEALING or (parent.sealed and lower is None))

    def _existing(self, path: bytes, lower: bytes, found: Marks) -> bytes | None:
        """Return the directory of the lower layers that one is merged with; None if there is none."""
        try:
            fd = self._below.open(lower) if self._below else -1
        except OSError as error:
            code = targets.REFUSALS.get(error.errno or 0)
            if code is None:
                raise
            self._findings.add(path, code, f"{show(lower)} in the lower layers: {error.strerror}")
            return None
        if fd < 0:
            if found.redirect is not None:
                self._findings.add(path, "missing_target", f"the lower layers have no directory {show(lower)}")
            return None
        os.close(fd)
        other = self._merged.setdefault(lower, path)
        if other != path:
            self._findings.add(path, "duplicate_redirect", f"it is merged with {show(lower)}, as {show(other)} is")
        return lower

    def _file(self, directory: _Directory, name: bytes, path: bytes, status: os.stat_result) -> None:
        metacopy, redirect = (beneath.attribute_here(name, self._prefix + one) for one in (b"metacopy", b"redirect"))
        if metacopy is None:
            # When content is copied up, the kernel removes the mark and keeps the redirect.
            if redirect is not None and status.st_size and not _has_data(name):
                self._findings.add(path, "redirect_without_metacopy")
            return
        if not is_metacopy(metacopy):
            self._findings.add(path, "invalid_metacopy")
            return
        target = self._target(directory, name, path, redirect)
        if target is not None:
            # The file may have been touched since it was copied.
            self._files.append(File(path, target.lstrip(b"/"), status.st_size, None))

    def _target(self, directory: _Directory, name: bytes, path: bytes, redirect: bytes | None) -> bytes | None:
        """Return the path of the content of a file in the lower layers; None if it has none, which is reported."""
        if redirect is not None and redirect.startswith(b"/"):
            code = redirect_problem(redirect)
            if code is not None:
                self._findings.add(path, code, f"its redirect is {show(redirect)}")
            return None if code is not None else redirect
        if directory.sealed or directory.lower is None:
            self._findings.add(path, "metacopy_without_redirect" if redirect is None else "relative_redirect")
            return None
        return posixpath.join(directory.lower, redirect or name)

    def _whiteout(self, directory: _Directory, name: bytes, path: bytes) -> None:
        if directory.sealed:
            self._findings.add(path, "whiteout_in_opaque")
        elif self._below is not None and (
            directory.lower is None or not self._below.has(posixpath.join(directory.lower, name))
        ):
            self._findings.add(path, "orphan_whiteout")

    def _uncovered(self, directory: _Directory, fd: int, names: set[bytes]) -> None:
        """Report an opaque directory that was finalized and hides names of the lower layers.

        A directory that a user removed and made again is opaque too, and hides them on purpose.
        """
        if self._below is None or not directory.sealed:
            return
        sealed_from = beneath.attribute(fd, marks.SEALED)
        if sealed_from is None and beneath.attribute(fd, self._prefix + b"opaque") == marks.KERNEL_SEALED:
            sealed_from = directory.lower
        if sealed_from is None:
            return
        try:
            self._below.refresh(sealed_from)
            hidden = (self._below.names(sealed_from) or set()) - names
        except OSError as error:
            if error.errno not in targets.REFUSALS:
                raise
            # The content of the files in it is reported.
            return
        if hidden:
            shown = ", ".join(show(name) for name in sorted(hidden)[:5])
            self._findings.add(directory.path, "opaque_over_uncovered", f"it hides {len(hidden)} names: {shown}")


def _has_data(name: bytes) -> bool:
    """Return whether a file in the working directory has content of its own. Its blocks may be those of its xattrs."""
    try:
        held = os.open(name, syscalls.HOLD)
    except FileNotFoundError:
        return True
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            # Somebody has just replaced it.
            return True
        fd = os.open(beneath.name_of(held), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(held)
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    finally:
        os.close(fd)
    return True
