# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read traces in the manifest store, and add to them: RELEASE.trace.json beside the manifest RELEASE.dump.gz.

Several hosts may add to a trace at the same time. Each holds the lock of the store while it reads, merges and writes, so that no counts
are lost. A killed run leaves the old trace or the new one. Users other than root may be able to write to the store, so files are opened
by the descriptor of their directory and never through a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import HostError, OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store, trace_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import Trace

#: The file in the store that is locked. Over NFS, the lock holds for all clients (flock(2)).
LOCK = ".traces.lock"
#: Seconds to wait for the lock. Whoever holds it merges one small file.
LOCK_SECONDS = 60.0


def trace_path(store: str, release: str) -> str:
    """Return the path of the trace of a release."""
    return os.path.join(store, release + manifest_store.TRACE_SUFFIX)


def find(store: str, release: str) -> Trace | None:
    """Return the trace of a release; None if there is none.

    Raises OverlayError if there is no store, or if the trace is damaged or of another release.
    """
    manifest_store.check_store(store)
    try:
        with files.directory_within(store, os.path.dirname(release), None) as directory:
            return _read(directory, store, release)
    except FileNotFoundError:
        return None


def add(store: str, trace: Trace, progress: Progress = no_progress) -> Trace:
    """Merge a trace into that of the store, and return the result.

    Raises OverlayError if the stored trace is damaged, or if other runs hold the lock for too long, and HostError if this host cannot
    write to the store.
    """
    manifest_store.check_store(store)
    path = trace_path(store, trace.release)
    with (
        _locked(store, progress),
        _writable(path),
        files.directory_within(store, os.path.dirname(trace.release), None) as directory,
    ):
        _refresh(directory)
        try:
            stored = _read(directory, store, trace.release)
        except FileNotFoundError:
            stored = None
        result = trace_record.merged(stored, trace) if stored else trace
        with files.written_aside(os.path.join(directory, os.path.basename(path))) as aside:
            aside.write(trace_record.trace_to_text(result))
    return result


def _read(directory: str, store: str, release: str) -> Trace:
    """Return the trace of a release in a directory of the store. Raises OverlayError if it is damaged or of another release."""
    path = trace_path(store, release)
    shown = show(os.fsencode(path))
    remedy = "remove it, and record the release again with access_trace"
    try:
        text = record_files.read(os.path.join(directory, os.path.basename(path)), trace_record.LARGEST_TRACE)
        trace = trace_record.trace_from_text(text)
    except OverlayError as error:
        raise OverlayError(f"{shown} is not a trace: {error}; {remedy}") from None
    if trace.release != release:
        raise OverlayError(
            f"{shown} is the trace of release {show(os.fsencode(trace.release))}, which does not belong there: {remedy}"
        )
    return trace


def _refresh(directory: str) -> None:
    """Revalidate a directory with its file server: another host may have just replaced a trace in it."""
    fd = os.open(directory, syscalls.HOLD_DIRECTORY)
    try:
        syscalls.refresh(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(store: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of the traces in a store while the block runs."""
    path = os.path.join(store, LOCK)
    with _writable(path):
        fd = files.open_or_make(path, 0o600)
    try:
        with _writable(path):
            files.wait_for_lock(fd, f"the traces in {show(os.fsencode(store))}", LOCK_SECONDS, progress)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _writable(path: str) -> Iterator[None]:
    """Turn an error of a file system in the block into HostError naming ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OverlayError(f"{show(os.fsencode(path))} is a symbolic link: remove it") from None
        raise HostError(
            f"{show(os.fsencode(path))} cannot be written: {error.strerror}; let this host write to the manifest store and lock"
            " files there, or leave out 'store'"
        ) from None
