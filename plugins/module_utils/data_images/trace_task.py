# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trace a view: record opens, attribute them to releases, and compare them with the manifests of a store."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import (
    open_recorder,
    trace_files,
    traced_view,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.open_recorder import Recording
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.trace_results import OpenedReleases
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.traced_view import TracedView
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountpoints
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import UserCommand
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import ManifestRecord, Placement
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import Trace

#: Entries of a manifest that are read between two reports of progress.
_ENTRIES_PER_STEP = 10_000


@dataclass(frozen=True)
class TraceRequest:
    """What is to be traced."""

    #: The mountpoint of a view.
    path: bytes
    #: Record what reaches the software root, instead of what is opened in the view.
    misses: bool
    #: Record while this command runs; None to record for ``duration`` seconds.
    command: UserCommand | None
    duration: float
    #: The manifest store with the traces; None to keep nothing.
    store: str | None
    #: Exit statuses of the command that are no failure.
    success: Collection[int] = (0,)


@dataclass
class Traced:
    """What a run has traced."""

    request: TraceRequest
    recording: Recording
    releases: OpenedReleases
    warnings: list[str] = field(default_factory=list)
    #: Why the command is a failure; empty if it is none. Then nothing is attributed to releases.
    failure: str = ""

    def traces(self) -> list[Trace]:
        """Return the trace of each release of which files were opened."""
        one_start = self.request.command is not None
        return [self.releases.trace(release, one_start) for release in self.releases.releases]

    def values(self) -> dict[str, Any]:
        """Return the return values of the module."""
        result = self.recording.result
        store = self.request.store
        releases = [
            {
                "release": trace.release,
                "files": len(trace.files),
                "opens": trace.opens,
                "starts": trace.starts,
                "bytes": self.releases.bytes_of(trace.release),
                "trace": trace_files.trace_path(store, trace.release) if store else None,
            }
            for trace in self.traces()
        ]
        return {
            "releases": releases,
            "overflowed": self.recording.opened.overflowed,
            "unmapped": self.releases.unmapped,
            "exit_code": result.status if result else None,
            "output": result.output.decode("utf-8", "backslashreplace") if result else None,
        }


def words_of(command: Any) -> list[str]:
    """Return the words of a command, given as a text for the shell or as a list of words. Raises OverlayError if there are none."""
    if isinstance(command, (list, tuple)):
        argv = (
            [] if any(isinstance(word, (list, tuple, Mapping)) for word in command) else [str(word) for word in command]
        )
    else:
        argv = ["/bin/sh", "-c", str(command)] if str(command).strip() else []
    if not argv:
        raise OverlayError(
            "command must be a text or a list of words, and is neither: give the program and its arguments"
        )
    return argv


def observe(request: TraceRequest) -> tuple[TracedView, dict[str, ManifestRecord]]:
    """Return the view that is to be traced, and the records of those of its manifests that the store has.

    Raises OverlayError if there is no view or no store, or if the store has none of the manifests, before time is spent on tracing.
    """
    view = traced_view.observe(request.path)
    records: dict[str, ManifestRecord] = {}
    if request.store:
        manifest_store.check_store(request.store)
        for release, digest in view.releases.items():
            record = manifest_store.find_record(manifest_store.manifest_path(request.store, release), release)
            if record and record.digest == digest:
                records[release] = record
        if not records and view.releases:
            raise OverlayError(
                f"store {request.store} has the manifest of no release of the view at {show(request.path)}: give the store that the view"
                " was made from"
            )
    return view, records


def trace(
    request: TraceRequest,
    view: TracedView,
    records: Mapping[str, ManifestRecord],
    seconds: float,
    progress: Progress,
) -> Traced:
    """Record and attribute opens. Gives up after ``seconds`` without progress.

    Raises OverlayError if opens cannot be traced, the command cannot be run, or the stored trace of a release is damaged.
    """
    listening = traced_view.listening(view, request.misses, request.command is not None)
    if request.command:
        recording = open_recorder.record_command(listening, request.command, seconds, progress)
        failure = _failure(request, request.command, recording)
        if failure:
            return Traced(request, recording, OpenedReleases(), failure=failure)
    else:
        recording = open_recorder.record_time(listening, request.duration, progress)
    found = traced_view.attributed(view, recording.opened, request.misses, seconds, progress)
    traced = Traced(request, recording, found, _warnings(request, recording))
    if request.store:
        traced.warnings += _check_names(request.store, records, found, progress)
    return traced


def _failure(request: TraceRequest, command: UserCommand, recording: Recording) -> str:
    """Return why the command is a failure; empty if it is none. It may not have opened all that it needs."""
    result = recording.result
    if result is None or result.status in request.success:
        return ""
    said = show(result.output.strip())
    printed = f"; it printed: {said}" if said else ""
    if result.status is None:
        silent = mountpoints.silent()
        waits = f"no answer from the file server of {silent}" if silent else "raise 'time_limit'"
        return f"the command did not end within {command.seconds:g} seconds, so nothing was recorded: {waits}{printed}"
    how = f"failed with status {result.status}" if result.status > 0 else f"was ended by signal {-result.status}"
    return f"the command {how}, so nothing was recorded; 'exit_codes' accepts other statuses{printed}"


def _warnings(request: TraceRequest, recording: Recording) -> list[str]:
    warnings = []
    if recording.opened.overflowed:
        warnings.append(
            "the queue of the kernel overflowed, so files are missing in the trace: record again, or raise the sysctl"
            " fs.fanotify.max_queued_events"
        )
    if recording.switched and not request.misses:
        warnings.append(
            f"another view was mounted at {show(request.path)} meanwhile, so later opens are missing in the trace: record again"
        )
    return warnings


def _check_names(
    store: str, records: Mapping[str, ManifestRecord], found: OpenedReleases, progress: Progress
) -> list[str]:
    """Leave out files that are not in the manifest of their release, and return warnings.

    Raises OverlayError if the trace in the store has files that the manifest does not have.
    """
    warnings = []
    for release in found.releases:
        if release not in records:
            found.keep(release, ())
            warnings.append(
                f"store {store} does not have the manifest of release {release} that the view was made from, so nothing was recorded of it"
            )
            continue
        stored = trace_files.find(store, release)
        recorded = {file.path for file in stored.files} if stored else set()
        known = _known(store, records[release], found.paths(release) | recorded, progress)
        unknown = sorted(recorded - known)
        if unknown:
            raise OverlayError(
                f"{trace_files.trace_path(store, release)} has {show(unknown[0])!r}, which the manifest of release {release} does not have"
                " as a file with content: remove this trace, and record the release again"
            )
        found.keep(release, known)
    return warnings


def _known(store: str, record: ManifestRecord, wanted: Collection[bytes], progress: Progress) -> set[bytes]:
    """Return the ``wanted`` paths that are files with content in a manifest, each by its first name."""
    place = os.fsencode(record.release)
    placement = Placement(manifest_store.manifest_path(store, record.release), record, place, place)
    known = set()
    for number, entry in enumerate(manifest_store.entries(placement)):
        if number % _ENTRIES_PER_STEP == 0:
            progress()
        if entry.size and not entry.is_hardlink and stat.S_ISREG(entry.mode) and entry.path[1:] in wanted:
            known.add(entry.path[1:])
    return known
