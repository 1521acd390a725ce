# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a layer of the format ``directory`` from a stream of entries.

A file of the layer has its size but no content. Two xattrs tell the kernel that it is a metadata copy, and where in the data layer its
content is (Documentation/filesystems/overlayfs.rst, 'Metadata only copy up' and 'Data-only lower layers'). If the data layer will be an
ordinary lower layer, directories are opaque, so that the kernel looks up their names in no other layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import (
    BuildReport,
    FormatSupport,
    LayerContent,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, syscalls, xattrs
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, refusal_hint, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import posix_acl
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACCESS_XATTR, DEFAULT_XATTR

_BLOCK = 512
#: The errors of file systems that store no ACLs, or none of that length.
_CANNOT_HOLD = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.E2BIG, errno.EINVAL)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectoryBuilder:
    """The builder of layers of the format ``directory``. It needs no program."""

    path = ""

    def build_layer(self, path: str, content: LayerContent, progress: Progress) -> BuildReport:
        """Build a layer at ``path``, where nothing exists yet, without syncing it. Raises OverlayError or OSError if that fails."""
        files.make_directories(path, 0o755)
        # The directories above may have a default ACL, which new files would inherit. Modes have to be those of the releases.
        with contextlib.suppress(OSError):
            os.removexattr(path, "system.posix_acl_default")
        opaque = content.strategy == strategies.REDIRECT
        if opaque:
            path = os.path.join(path, strategies.SHOWN_DIRECTORY)
            files.make_directories(path, 0o755)
        tree = DirectoryLayer(os.fsencode(path), content.xattr_namespace, progress, opaque)
        return tree.build(content.composition.entries())


__all__ = ["SUPPORT", "BuildReport", "DirectoryBuilder", "DirectoryLayer"]
SUPPORT = FormatSupport(find_builder=DirectoryBuilder, mount_obstacle=lambda: None)


def _cannot_hold(fd: int, error: OSError) -> bool:
    """Return whether a file system cannot store the ACL that it refused. ext4 returns ENOSPC also if the ACL is too large for its block."""
    return error.errno in _CANNOT_HOLD or (error.errno == errno.ENOSPC and os.fstatvfs(fd).f_bfree > 0)


class DirectoryLayer:
    """One layer that is being built in the empty directory ``path``.

    ``namespace`` is the first word of the overlay xattrs, ``trusted`` or ``user``. ``opaque`` is whether directories are opaque.
    """

    def __init__(self, path: bytes, namespace: str, progress: Progress = no_progress, opaque: bool = False) -> None:
        self.report = BuildReport()
        self._path = path
        self._progress = progress
        self._opaque = f"{namespace}.overlay.opaque".encode() if opaque else None
        self._metacopy = f"{namespace}.overlay.metacopy".encode()
        self._redirect = f"{namespace}.overlay.redirect".encode()
        self._user = os.geteuid()
        self._group = os.getegid()
        #: The open directories from the root down: descriptor, path with a slash at its end, and entry.
        self._open: list[tuple[int, bytes, Entry]] = []

    def build(self, entries: Iterable[Entry]) -> BuildReport:
        """Write the entries and return a report. Raises OverlayError, or OSError with the path within the view, if an entry fails."""
        files.allow_deep_trees()
        previous_mask = os.umask(0)
        try:
            for entry in entries:
                try:
                    self._add(entry)
                except OSError as error:
                    raise self._explained(error, entry) from None
            self._close_down_to(0)
        finally:
            os.umask(previous_mask)
            for fd, _path, _entry in self._open:
                os.close(fd)
        return self.report

    def _add(self, entry: Entry) -> None:
        path = entry.path
        cut = path.rfind(b"/") + 1
        name = path[cut:]
        if not name:
            self._enter(entry, os.open(self._path, syscalls.LIST_REAL_DIRECTORY), b"/")
        else:
            while self._open[-1][1] != path[:cut]:
                self._close_down_to(len(self._open) - 1)
            parent = self._open[-1][0]
            if entry.is_hardlink:
                self._link(entry, parent, name)
            elif stat.S_ISREG(entry.mode):
                self._create(entry, parent, name)
            elif stat.S_ISDIR(entry.mode):
                os.mkdir(name, 0o700, dir_fd=parent)
                self._enter(entry, os.open(name, syscalls.LIST_REAL_DIRECTORY, dir_fd=parent), path + b"/")
            else:
                self._symlink(entry, parent, name)
        self.report.tally.add(entry)

    def _create(self, entry: Entry, parent: int, name: bytes) -> None:
        mode = entry.mode & 0o7777
        # A user other than root may set xattrs only on files that their owner may write to.
        created = mode & 0o777 | stat.S_IWUSR
        fd = os.open(name, _NEW_FILE, created, dir_fd=parent)
        try:
            if entry.uid != self._user or entry.gid != self._group:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.size and entry.target is not None:
                xattrs.write(fd, self._metacopy, b"")
                xattrs.write(fd, self._redirect, b"/" + entry.target)
                os.ftruncate(fd, entry.size)
            # chown and truncate remove set-user-ID bits and capabilities, so these are set afterwards.
            if mode != created:
                os.fchmod(fd, mode)
            if entry.xattrs:
                self._write_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
            blocks = os.fstat(fd).st_blocks
        finally:
            os.close(fd)
        if blocks:
            self.report.spilled += 1
            self.report.bytes_on_disk += blocks * _BLOCK

    def _write_xattrs(self, fd: int, entry: Entry) -> None:
        for name, value in entry.xattrs:
            try:
                xattrs.write(fd, name, value)
            except OSError as error:
                if name not in (ACCESS_XATTR, DEFAULT_XATTR) or not _cannot_hold(fd, error):
                    raise
                self.report.narrowed.add(entry.path)
                if name == ACCESS_XATTR:
                    bits = posix_acl.narrowed(posix_acl.parse(value), entry.uid, entry.gid)
                    os.fchmod(fd, entry.mode & 0o7000 | bits)

    def _symlink(self, entry: Entry, parent: int, name: bytes) -> None:
        os.symlink(entry.target or b"", name, dir_fd=parent)
        if entry.uid != self._user or entry.gid != self._group:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
        self.report.bytes_on_disk += os.stat(name, dir_fd=parent, follow_symlinks=False).st_blocks * _BLOCK

    def _link(self, entry: Entry, parent: int, name: bytes) -> None:
        root = self._open[0][0]
        os.link((entry.target or b"").lstrip(b"/"), name, src_dir_fd=root, dst_dir_fd=parent, follow_symlinks=False)

    def _enter(self, entry: Entry, fd: int, path: bytes) -> None:
        self._open.append((fd, path, entry))
        if self._opaque:
            xattrs.write(fd, self._opaque, b"y")
        self._progress()

    def _close_down_to(self, depth: int) -> None:
        """Close directories. They get their owner, mode and times only now, since adding names would change the times."""
        while len(self._open) > depth:
            fd, _path, entry = self._open.pop()
            try:
                os.fchown(fd, entry.uid, entry.gid)
                os.fchmod(fd, entry.mode & 0o7777)
                if entry.xattrs:
                    self._write_xattrs(fd, entry)
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
                self.report.bytes_on_disk += os.fstat(fd).st_blocks * _BLOCK
            except OSError as error:
                raise self._explained(error, entry) from None
            finally:
                os.close(fd)

    def _explained(self, error: OSError, entry: Entry) -> Exception:
        where = os.fsdecode(self._path)
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
            return OverlayError(
                f"{where}: this file system cannot store the xattr {self._redirect.decode()} of a layer; put the state directory on"
                " ext4, XFS, btrfs or tmpfs"
            )
        if error.errno == errno.EPERM:
            return OverlayError(
                f"{where}: not allowed to set the owner, mode or xattrs of {show(entry.path)}"
                f"{refusal_hint(os.geteuid() == 0, True, None)}"
            )
        return OSError(error.errno, f"{error.strerror}, building {show(entry.path)} of the layer", where)
