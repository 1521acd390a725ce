# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write manifests to the manifest store, compare releases with their manifests, and remove manifests.

The record is written last and removed first, so an incomplete manifest has no record. Only the host that scans releases needs this file.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    Entry,
    ManifestRecord,
    Placement,
    Tally,
    below_root,
    root_identity,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest_store import (
    check_store,
    entries,
    manifest_path,
    record_path,
    trace_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import IgnoredNames
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan import Scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan_report import ScanReport

#: gzip level. Higher levels make manifests a few per cent smaller and take several times as long.
_COMPRESSION = 6
#: The number of bytes that are compressed at once.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Written:
    """A manifest that was written: its record, and the findings of the scan."""

    record: ManifestRecord
    report: ScanReport


def write(
    store: str,
    root: str,
    release: str,
    checksum: bool,
    progress: Progress = no_progress,
    root_name: str | None = None,
    ignored: IgnoredNames | None = None,
    prefix: str = "",
) -> Written:
    """Scan a release and write its manifest to the store. An interrupted run leaves no record, and so no manifest.

    With ``checksum`` the SHA-256 of every file is recorded. ``root_name`` is the identity of the software root, by default its path. Names
    that are ``ignored``, by default the usual ones, are left out. ``prefix`` is that of ``entries.below_root``.
    Raises OverlayError if the release cannot be described by a manifest.
    """
    check_store(store)
    path = manifest_path(store, release)
    # Other users may write to the store and replace directories in it meanwhile.
    with files.directory_within(store, os.path.dirname(release), files.mode_within(store)) as directory:
        inside = os.path.join(directory, os.path.basename(path))
        try:
            with files.written_aside(inside) as aside:
                scanned, report = _scan_into(aside, root, release, checksum, progress, ignored, prefix)
                record = replace(scanned, root=root_identity(root_name or root))
                text = manifest.record_to_json(record)
        except BaseException:
            remove_empty_directories(store, release)
            raise
        with files.written_aside(record_path(inside)) as aside:
            aside.write(text)
    return Written(record, report)


def _scan_into(
    aside: BinaryIO,
    root: str,
    release: str,
    checksum: bool,
    progress: Progress,
    ignored: IgnoredNames | None,
    prefix: str,
) -> tuple[ManifestRecord, ScanReport]:
    """Scan a release and write its manifest to the open file ``aside``. Return the record and the findings of the scan."""
    path = below_root(release, prefix)
    scan = Scan(os.fsencode(root), os.fsencode(path), checksum, progress, ignored, os.fsencode(release))
    writer = _ManifestWriter(aside)
    for entry in scan:
        writer.add(entry)
    record = writer.finish(release, checksum)
    if not scan.report.link_counts:
        return record, scan.report
    # Only now is it known which files have names outside of the release, so the manifest is written again with their link counts.
    counts = scan.report.link_counts
    with files.unnamed_copy(aside) as first_version:
        aside.seek(0)
        aside.truncate()
        writer = _ManifestWriter(aside)
        with gzip.open(first_version, "rb") as stream:
            for entry in _decoded(stream):
                first = entry.target if entry.is_hardlink else entry.path
                writer.add(entry._replace(nlink=counts[first]) if first in counts else entry)
    return writer.finish(release, checksum), scan.report


class _ManifestWriter:
    """Write entries as gzipped text, and collect the fields of the record."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        # Without a file name and time in the gzip header, the same tree gives the same bytes.
        self._gzip = gzip.GzipFile("", "wb", _COMPRESSION, stream, mtime=0)
        self._digest = hashlib.sha256()
        self._tally = Tally()
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def add(self, entry: Entry) -> None:
        """Write one entry."""
        line = manifest.encode(entry)
        self._tally.add(entry)
        self._pending.append(line)
        self._pending_bytes += len(line)
        if self._pending_bytes > _CHUNK:
            self._flush()

    def _flush(self) -> None:
        text = b"".join(self._pending)
        self._digest.update(text)
        self._gzip.write(text)
        self._pending.clear()
        self._pending_bytes = 0

    def finish(self, release: str, checksum: bool) -> ManifestRecord:
        """Write what is left, and return the record of the manifest without the software root."""
        self._flush()
        self._gzip.close()
        return ManifestRecord(
            release=release,
            digest="sha256:" + self._digest.hexdigest(),
            stored_bytes=self._stream.tell(),
            entries=self._tally.counts(),
            bytes=self._tally.bytes,
            checksums=checksum,
        )


def rescan_differences(
    placement: Placement,
    root: str,
    progress: Progress = no_progress,
    ignored: IgnoredNames | None = None,
    prefix: str = "",
) -> tuple[list[str], int]:
    """Scan a release again and compare it with its manifest, without names that are ``ignored``.

    Return descriptions of the first differences, and the number of all differences, as ``manifest.listing_differences`` does.
    """
    record = placement.record
    with tempfile.TemporaryFile() as aside:
        now, _report = _scan_into(aside, root, record.release, record.checksums, progress, ignored, prefix)
        if now.digest == record.digest:
            return [], 0
        aside.seek(0)
        with gzip.open(aside, "rb") as stream:
            # An older manifest may have names that are ignored now.
            leave_out = IgnoredNames() if ignored is None else ignored
            recorded = (entry for entry in entries(placement) if not leave_out.in_path(entry.path))
            return manifest.listing_differences(recorded, _decoded(stream))


def _decoded(stream: gzip.GzipFile) -> Iterator[Entry]:
    """Yield the entries of a manifest that this process wrote, without checks."""
    return map(manifest.decode, (line.rstrip(b"\n") for line in stream))


def remove(store: str, release: str) -> None:
    """Remove a manifest, its record first, then the trace of the release, and the directories of the store that this leaves empty.

    Missing files are ignored.
    """
    path = manifest_path(store, release)
    with (
        contextlib.suppress(FileNotFoundError),
        files.directory_within(store, os.path.dirname(release), None) as directory,
    ):
        inside = os.path.join(directory, os.path.basename(path))
        for name in (record_path(inside), inside, trace_of(inside)):
            with contextlib.suppress(FileNotFoundError):
                if name:
                    os.unlink(name)
    remove_empty_directories(store, release)


def remove_empty_directories(store: str, release: str) -> None:
    """Remove the empty directories of the store that are above the manifest of a release."""
    for _level in release.split("/")[1:]:
        release = os.path.dirname(release)
        with contextlib.suppress(OSError), files.directory_within(store, os.path.dirname(release), None) as directory:
            os.rmdir(os.path.join(directory, os.path.basename(release)))
