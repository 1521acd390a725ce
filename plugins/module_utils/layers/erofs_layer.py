# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Building a layer of format ``erofs``: one EROFS image, made by mkcomposefs or, where there is none, by mkfs.erofs.

Both are given the entries through a pipe: mkcomposefs as composefs-dump(5), mkfs.erofs as a tar archive without content
(``--tar=headerball``, erofs-utils 1.8). The attributes in the image are always those of the namespace ``trusted``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers import headerball
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.layer_formats import Image
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, Tally

_CHUNK = 1 << 18
#: Programs of administrators are in folders that need not be on the PATH of a task.
_MORE_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_POLL_SECONDS = 0.1

#: fcntl(2); Python's own module has it from 3.10 on.
_F_SETPIPE_SZ = 1031
_PIPE_BYTES = 1 << 20

_METACOPY = b"trusted.overlay.metacopy"
_REDIRECT = b"trusted.overlay.redirect"


@dataclass(frozen=True)
class Builder:
    """A program that makes images."""

    #: ``mkcomposefs`` or ``mkfs.erofs``.
    name: str
    path: str

    def command(self, image: str) -> list[str]:
        """Return the command that reads entries from its standard input and writes ``image``."""
        if self.name == "mkcomposefs":
            return [self.path, "--from-file", "-", image]
        # No time and no identifier of its own: the same entries give the same bytes.
        return [self.path, "--quiet", "--tar=headerball", "-T0", "--mkfs-time", "-Uclear", image, "/dev/stdin"]

    def text(self, entries: Iterable[Entry], tally: Tally) -> Iterator[bytes]:
        """Yield the entries as the program reads them, and count them."""
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


def find_builder() -> Builder:
    """Return the program that makes images on this host. Raises OverlayError, which says what is missing, where there is none."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), *_MORE_PLACES))
    found = shutil.which("mkcomposefs", path=places)
    if found:
        return Builder("mkcomposefs", found)
    found = shutil.which("mkfs.erofs", path=places)
    if found is None:
        raise OverlayError("there is neither mkcomposefs (composefs) nor mkfs.erofs (erofs-utils) on this host")
    # Older releases take directories alone, in which files of the size of a release's would have to be read as zeros.
    # The run_command of AnsibleModule is for modules, and gives text.
    usage = subprocess.run(  # pylint: disable=ansible-bad-function
        [found, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if b"headerball" not in usage.stdout:
        raise OverlayError(
            f"{found} is too old (erofs-utils 1.8 is needed for --tar=headerball), and there is no mkcomposefs (composefs)"
        )
    return Builder("mkfs.erofs", found)


def build(text: Iterator[bytes], image: str, builder: Builder, progress: Progress = no_progress) -> Image:
    """Write the image of a view from its entries as the program reads them. Raises OverlayError with what it says when it fails.

    The file is not synced, and has to be written aside by the caller: a killed run leaves a part of it.
    """
    with tempfile.TemporaryFile() as said:
        # The run_command of AnsibleModule takes all of the input at once.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function
            builder.command(image),
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C"},
            # Safe here: modules do their work in a process with one thread.
            preexec_fn=_end_with_parent,  # noqa: PLW1509
        )
        try:
            whole = _feed(cast(BinaryIO, process.stdin), text, progress)
            status = _wait(process, progress)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said.seek(0)
        words = said.read().decode("utf-8", "backslashreplace").strip()
    if status or not whole:
        raise OverlayError(
            f"{builder.path} could not make the image (exit status {status}): {words or 'it said nothing'}"
        )
    return Image(file_digest(image, progress), os.stat(image).st_size, builder.name)


def _end_with_parent() -> None:
    syscalls.die_with_parent(signal.SIGKILL)


def _feed(pipe: BinaryIO, text: Iterator[bytes], progress: Progress) -> bool:
    """Write all text to the program; False where it stopped reading before the end."""
    pending: list[bytes] = []
    size = 0
    # In a pipe of the usual 64 KiB each side waits for the other all the time. Users other than root may have had their share.
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


def _wait(process: subprocess.Popen[bytes], progress: Progress) -> int:
    """Return the program's exit status. It counts as getting further for as long as it takes up time of a processor."""
    used = -1
    # Popen.wait() with a limit looks only every 50 ms in the end, which is longer than a small image takes.
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
    """Return the clock ticks that a process has run, in user mode and in the kernel (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def file_digest(path: str, progress: Progress = no_progress) -> str:
    """Return ``sha256:`` and the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            chunk = stream.read(1 << 20)
            if not chunk:
                return "sha256:" + digest.hexdigest()
            digest.update(chunk)
            progress()
