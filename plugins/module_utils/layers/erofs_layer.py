# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a layer of the format ``erofs``: one EROFS image, made by mkcomposefs or, if that is missing, by mkfs.erofs.

Both read the entries from a pipe: mkcomposefs as composefs-dump(5), mkfs.erofs as a tar archive without content (``--tar=headerball``,
erofs-utils 1.8). The overlay xattrs in the image are always those of the namespace ``trusted``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import dump, headerball
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_build import (
    BuildReport,
    FormatSupport,
    LayerContent,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, Placement, Tally

_CHUNK = 1 << 18
#: Directories of administration programs, which the PATH of a task may lack.
_MORE_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_POLL_SECONDS = 0.1

#: fcntl(2). The module fcntl of Python has it from version 3.10 on.
_F_SETPIPE_SZ = 1031
_PIPE_BYTES = 1 << 20

_METACOPY = b"trusted.overlay.metacopy"
_REDIRECT = b"trusted.overlay.redirect"


@dataclass(frozen=True)
class Builder:
    """A program that builds images."""

    #: ``mkcomposefs`` or ``mkfs.erofs``.
    name: str
    path: str

    def command(self, image: str) -> list[str]:
        """Return the command that reads entries from its standard input and writes ``image``."""
        if self.name == "mkcomposefs":
            return [self.path, "--from-file", "-", image]
        # A fixed time and UUID: the same entries give the same bytes.
        return [self.path, "--quiet", "--tar=headerball", "-T0", "--mkfs-time", "-Uclear", image, "/dev/stdin"]

    def text(self, entries: Iterable[Entry], tally: Tally) -> Iterator[bytes]:
        """Yield the entries as the program reads them, and count them in ``tally``."""
        if self.name == "mkcomposefs":
            for entry in entries:
                tally.add(entry)
                yield manifest.encode(entry)
            return
        for entry in entries:
            tally.add(entry)
            has_content = stat.S_ISREG(entry.mode) and not entry.is_hardlink and entry.size and entry.target is not None
            redirect = ((_METACOPY, b""), (_REDIRECT, b"/" + (entry.target or b""))) if has_content else ()
            yield headerball.encode(entry, redirect)
        yield headerball.END

    def build_layer(self, path: str, content: LayerContent, progress: Progress) -> BuildReport:
        """Build an image at ``path``, where nothing exists yet, without syncing it. Raises OverlayError or OSError if that fails."""
        tally = Tally()
        image = build(self._content_text(content, tally), path, self, progress)
        os.chmod(path, 0o644)
        return BuildReport(tally, os.stat(path).st_blocks * 512, image=image)

    def _content_text(self, content: LayerContent, tally: Tally) -> Iterator[bytes]:
        """Yield the content of a layer as the program reads it. The text of manifests is copied if possible, which is much faster."""
        if self.name != "mkcomposefs" or content.alters_entries:
            yield from self.text(content.composition.entries(), tally)
            return
        for part in content.composition.parts():
            if isinstance(part, Placement):
                yield from manifest_store.parse(part, functools.partial(dump.placed_text, part, tally=tally))
            else:
                yield from self.text((part,), tally)


def find_program(name: str) -> str | None:
    """Return the path of an administration program; None if this host does not have it."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PLACES)))


def find_builder() -> Builder:
    """Return the program that builds images on this host. Raises OverlayError that says what is missing if there is none."""
    found = find_program("mkcomposefs")
    if found:
        return Builder("mkcomposefs", found)
    found = find_program("mkfs.erofs")
    if found is None:
        raise OverlayError(
            "this host has neither mkcomposefs (composefs) nor mkfs.erofs (erofs-utils): install one of them"
        )
    # Older versions can only copy a directory, and would read empty files of full size as zeros, byte by byte.
    if b"headerball" not in usage_text(found):
        raise OverlayError(
            f"{found} is too old and mkcomposefs is missing: install erofs-utils 1.8 or later (for --tar=headerball), or composefs"
        )
    return Builder("mkfs.erofs", found)


def usage_text(program: str) -> bytes:
    """Return what a program prints about its usage."""
    # The run_command of AnsibleModule is for modules, and returns text.
    done = subprocess.run(  # pylint: disable=ansible-bad-function
        [program, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout


def build(text: Iterator[bytes], image: str, builder: Builder, progress: Progress = no_progress) -> Image:
    """Build the image of a view from its entries, which ``text`` yields as the program reads them.

    The file is not synced, and a killed run leaves a partial one, so it has to be written aside. Raises OverlayError with the output of the
    program if it fails.
    """
    with tempfile.TemporaryFile() as said:
        # The run_command of AnsibleModule takes all of the input at once.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            builder.command(image),
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            # Safe, because modules work in a process with one thread.
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        try:
            whole = _feed(cast(BinaryIO, process.stdin), text, progress)
            status = wait(process, progress)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said.seek(0)
        words = said.read().decode("utf-8", "backslashreplace").strip()
    if status or not whole:
        raise OverlayError(
            f"{builder.path} could not build the image (exit status {status}): {words or 'it printed nothing'}"
        )
    return Image(file_digest(image, progress), os.stat(image).st_size, builder.name)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    syscalls.die_with_parent(signal.SIGKILL)


def _feed(pipe: BinaryIO, text: Iterator[bytes], progress: Progress) -> bool:
    """Write all text to the program, and return whether it read everything."""
    pending: list[bytes] = []
    size = 0
    # A pipe of the usual 64 KiB makes both sides wait for each other. For users other than root, the kernel may refuse a larger one.
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
    try:
        with pipe as stream:
            for part in text:
                pending.append(part)
                size += len(part)
                if size > _CHUNK:
                    stream.write(b"".join(pending))
                    pending.clear()
                    size = 0
                    progress()
            stream.write(b"".join(pending))
    except BrokenPipeError:
        return False
    return True


def wait(process: subprocess.Popen[bytes], progress: Progress) -> int:
    """Return the exit status of the program. It makes progress as long as it uses processor time."""
    used = -1
    # Popen.wait() with a timeout polls every 50 ms in the end, which is longer than a small image takes.
    ended = os.pidfd_open(process.pid)
    try:
        while not select.select([ended], [], [], _POLL_SECONDS)[0]:
            now = _processor_time(process.pid)
            if now != used:
                used = now
                progress()
    finally:
        os.close(ended)
    return process.wait()


def _processor_time(pid: int) -> int:
    """Return how long a process has run in user and kernel mode, in clock ticks (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def file_digest(path: str, progress: Progress = no_progress) -> str:
    """Return ``sha256:`` and the hexadecimal SHA-256 of a file."""
    with open(path, "rb", buffering=0) as stream:
        return "sha256:" + files.sha256(stream.fileno(), progress)


def mount_obstacle() -> str | None:
    """Return why this host cannot mount EROFS images; None if it can. The kernel loads a missing module when it is asked."""
    try:
        context = syscalls.fsopen(b"erofs")
    except OSError as error:
        if error.errno == errno.ENODEV:
            return "the kernel has no EROFS"
        return f"mounting EROFS is refused ({error.strerror})"
    try:
        # A kernel without POSIX ACLs would enforce only the mode, which is wider than the ACL. It ignores the option, with a message.
        syscalls.fsconfig_flag(context, b"acl")
        said = syscalls.context_messages(context)
    except OSError as error:
        said = f"{error.strerror}"
    finally:
        os.close(context)
    return f"the kernel's EROFS has no POSIX ACLs ({said})" if said else None


SUPPORT = FormatSupport(find_builder, mount_obstacle)
