# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and write the manifest store: a directory with a gzipped composefs-dump and a small JSON record for each release.

The record is written last and removed first, so an incomplete manifest has no record. The text of a manifest is checked against the
digest in the record while it is read. Do not use anything that was built from it before it has been read to its end without an error.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError, OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    Entry,
    ManifestRecord,
    Placement,
    Tally,
    root_identity,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern, Release
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan import Scan
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan_report import ScanReport

Parsed = TypeVar("Parsed")

SUFFIX = ".dump.gz"
RECORD_SUFFIX = ".json"

#: gzip level. Higher levels make manifests a few per cent smaller and take several times as long.
_COMPRESSION = 6
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Written:
    """A manifest that was written: its record, and the findings of the scan."""

    record: ManifestRecord
    report: ScanReport


def check_store(store: str) -> None:
    """Check that the manifest store exists. It is never created, since a missing one is usually a share that is not mounted.

    Raises OverlayError if there is no directory at ``store``.
    """
    if os.path.isdir(store):
        return
    shown = show(os.fsencode(store))
    if os.path.lexists(store):
        raise OverlayError(f"manifest store {shown} is not a directory")
    raise OverlayError(f"manifest store {shown} does not exist: is it mounted? Create a new store once, with mkdir")


def is_used(store: str) -> bool:
    """Return whether anything is in the store. A mountpoint without a mount is usually empty."""
    with os.scandir(store) as listing:
        return any(True for _item in listing)


def manifest_path(store: str, release: str) -> str:
    """Return the path of the manifest of a release."""
    return os.path.join(store, release + SUFFIX)


def record_path(manifest_file: str) -> str:
    """Return the path of the record of a manifest. Raises ManifestError if ``manifest_file`` does not have the name of a manifest."""
    if not manifest_file.endswith(SUFFIX):
        raise ManifestError(
            f"{show(os.fsencode(manifest_file))} is not a manifest: the name of a manifest ends in {SUFFIX}"
        )
    return manifest_file[: -len(SUFFIX)] + RECORD_SUFFIX


def find_record(manifest_file: str, release: str | None = None) -> ManifestRecord | None:
    """Return the record of a manifest, or None if there is none or an older version of the collection wrote it.

    ``release`` is the path of the release, if known. Raises ManifestError if the record is damaged or belongs to another release.
    """
    try:
        return _record(manifest_file, release)
    except OutdatedError:
        return None


def is_outdated(manifest_file: str) -> bool:
    """Return whether an older version of the collection wrote the record of a manifest."""
    try:
        _record(manifest_file, None)
    except OutdatedError:
        return True
    except OverlayError:
        pass
    return False


def _record(manifest_file: str, release: str | None) -> ManifestRecord | None:
    """Return the record of a manifest, None if there is none.

    Raises OutdatedError if an older version of the collection wrote it, and ManifestError if it is damaged or belongs elsewhere.
    """
    path = record_path(manifest_file)
    shown = show(os.fsencode(path))
    try:
        record = manifest.record_from_json(record_files.read(path, manifest.LARGEST_RECORD))
    except FileNotFoundError:
        return None
    except OutdatedError as error:
        raise OutdatedError(f"{shown}: {error}") from None
    except ManifestError as error:
        raise ManifestError(f"{shown}: {error}; {_REMEDY}") from None
    # Layers find content by the path of the release in the record, so it must be the path by which the manifest was found.
    is_there = os.path.abspath(manifest_file).endswith("/" + record.release + SUFFIX)
    if not is_there or release not in (None, record.release):
        raise ManifestError(
            f"{shown} is the record of release {show(os.fsencode(record.release))}, which does not belong there: {_REMEDY}"
        )
    return record


def remains(manifest_file: str) -> bool:
    """Return whether there is a manifest or any part of one."""
    return os.path.lexists(manifest_file) or os.path.lexists(record_path(manifest_file))


def find_manifests(store: str, pattern: Pattern, progress: Progress = no_progress) -> Iterator[Release]:
    """Yield the releases that match ``pattern`` and have a manifest in the store. Raises OverlayError if there is no store."""
    check_store(store)
    for directory, directories, names in os.walk(store):
        progress()
        parents = os.path.relpath(directory, store).split("/") if directory != store else []
        level = pattern.levels[len(parents)]
        # Directories that do not match the pattern, such as an image store, are skipped.
        directories[:] = [name for name in directories if level.fullmatch(name)]
        if len(parents) + 1 == len(pattern.levels):
            directories.clear()
            for name in names:
                if name.endswith(RECORD_SUFFIX):
                    release = pattern.release([*parents, name[: -len(RECORD_SUFFIX)]])
                    if release:
                        yield release


def read_record(manifest_file: str, release: str | None = None) -> ManifestRecord:
    """Return the record of a manifest, having checked that the manifest exists and has the recorded length.

    ``release`` is the path of the release, if known. Raises OutdatedError if an older version of the collection wrote the manifest, and
    ManifestError if it is missing, truncated or damaged.
    """
    record = _record(manifest_file, release)
    shown = show(os.fsencode(manifest_file))
    if record is None:
        raise ManifestError(f"{shown}: there is no such manifest; create it with release_manifest")
    try:
        stored = os.stat(manifest_file).st_size
    except FileNotFoundError:
        raise ManifestError(f"{shown} is gone, but its record is there: {_REMEDY}") from None
    if stored != record.stored_bytes:
        raise ManifestError(f"{shown} has {stored} bytes where {record.stored_bytes} were written: {_REMEDY}")
    return record


_REMEDY = (
    "the manifest is truncated or altered; remove it (release_manifest with state: absent) and scan the release again"
)


def entries(placement: Placement) -> Iterator[Entry]:
    """Yield the checked entries of a placement's manifest.

    Raises ManifestError at the first entry that is malformed or missing, or after the last entry if the text does not have the recorded
    digest.
    """

    def parsed(chunks: Iterator[bytes]) -> Iterator[Entry]:
        lines = (line for chunk in chunks for line in manifest.lines(chunk))
        return manifest.read_entries(lines, os.fsencode(placement.record.release))

    return parse(placement, parsed)


def parse(placement: Placement, parser: Callable[[Iterator[bytes]], Iterator[Parsed]]) -> Iterator[Parsed]:
    """Yield the results of ``parser``, called with the text of a placement's manifest in parts of whole lines.

    Raises ManifestError naming the manifest if the parser raises one, or if the text does not match the record.
    """
    with _named(placement):
        yield from parser(_counted(placement))


def text(placement: Placement) -> Iterator[bytes]:
    """Yield the text of a placement's manifest in parts of whole lines.

    The lines and their order are not checked. Raises ManifestError if the text does not have the recorded number of lines and digest.
    """
    return parse(placement, lambda chunks: chunks)


@contextlib.contextmanager
def _named(placement: Placement) -> Iterator[None]:
    """Add the path of the manifest and the remedy to an error in the block."""
    try:
        yield
    except (ManifestError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(f"{show(os.fsencode(placement.manifest))}: {error}; {_REMEDY}") from None


def _counted(placement: Placement) -> Iterator[bytes]:
    """Yield the text of a manifest. Raises ManifestError if the number of lines is not the recorded number of entries.

    A small compressed file can expand without end, so reading stops at the first line too many.
    """
    count = 0
    entries = placement.record.entries.total
    for chunk in _chunks(placement):
        count += chunk.count(b"\n") + (not chunk.endswith(b"\n"))
        if count > entries:
            break
        yield chunk
    if count != entries:
        raise ManifestError(
            f"it has {'more' if count > entries else 'fewer'} lines than the {entries} that were recorded"
        )


def _chunks(placement: Placement) -> Iterator[bytes]:
    """Yield the text of a manifest in parts of whole lines. Raises ManifestError if a line is too long or the digest is wrong."""
    digest = hashlib.sha256()
    with record_files.open_regular(placement.manifest) as stored, gzip.open(stored, "rb") as stream:
        rest = b""
        while True:
            part = stream.read(_CHUNK)
            if not part:
                break
            digest.update(part)
            whole, newline, rest_of = part.rpartition(b"\n")
            if newline:
                yield rest + whole + newline
                rest = rest_of
            else:
                rest += part
            if len(rest) > manifest.LONGEST_LINE:
                raise ManifestError(f"it has a line of more than {manifest.LONGEST_LINE} bytes")
        if rest:
            yield rest
    if "sha256:" + digest.hexdigest() != placement.record.digest:
        raise ManifestError(f"it does not have the recorded digest {placement.record.digest}")


def write(
    store: str,
    root: str,
    release: str,
    checksum: bool,
    progress: Progress = no_progress,
    root_name: str | None = None,
) -> Written:
    """Scan a release and write its manifest to the store. An interrupted run leaves no record, and so no manifest.

    With ``checksum`` the SHA-256 of every file is recorded. ``root_name`` is the identity of the software root, by default its path.
    Raises OverlayError if the release cannot be described by a manifest.
    """
    check_store(store)
    path = manifest_path(store, release)
    # Other users may write to the store and replace directories in it meanwhile.
    with files.directory_within(store, os.path.dirname(release), files.mode_within(store)) as directory:
        inside = os.path.join(directory, os.path.basename(path))
        try:
            with files.written_aside(inside) as aside:
                scanned, report = _scan_into(aside, root, release, checksum, progress)
                record = replace(scanned, root=root_identity(root_name or root))
                text = manifest.record_to_json(record)
        except BaseException:
            _remove_empty_directories(store, release)
            raise
        with files.written_aside(record_path(inside)) as aside:
            aside.write(text)
    return Written(record, report)


def _scan_into(
    aside: BinaryIO, root: str, release: str, checksum: bool, progress: Progress
) -> tuple[ManifestRecord, ScanReport]:
    """Scan a release and write its manifest to the open file ``aside``. Return the record and the findings of the scan."""
    scan = Scan(os.fsencode(root), os.fsencode(release), checksum, progress)
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


def rescan_differences(placement: Placement, root: str, progress: Progress = no_progress) -> tuple[list[str], int]:
    """Scan a release again and compare it with its manifest.

    Return descriptions of the first differences, and the number of all differences, as ``manifest.listing_differences`` does.
    """
    record = placement.record
    with tempfile.TemporaryFile() as aside:
        now, _report = _scan_into(aside, root, record.release, record.checksums, progress)
        if now.digest == record.digest:
            return [], 0
        aside.seek(0)
        with gzip.open(aside, "rb") as stream:
            return manifest.listing_differences(entries(placement), _decoded(stream))


def _decoded(stream: gzip.GzipFile) -> Iterator[Entry]:
    """Yield the entries of a manifest that this process wrote, without checks."""
    return map(manifest.decode, (line.rstrip(b"\n") for line in stream))


def remove(store: str, release: str) -> None:
    """Remove a manifest, its record first, and the directories of the store that this leaves empty. Missing files are ignored."""
    path = manifest_path(store, release)
    with (
        contextlib.suppress(FileNotFoundError),
        files.directory_within(store, os.path.dirname(release), None) as directory,
    ):
        for name in (record_path(path), path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, os.path.basename(name)))
    _remove_empty_directories(store, release)


def _remove_empty_directories(store: str, release: str) -> None:
    """Remove the empty directories of the store that are above the manifest of a release."""
    for _level in release.split("/")[1:]:
        release = os.path.dirname(release)
        with contextlib.suppress(OSError), files.directory_within(store, os.path.dirname(release), None) as directory:
            os.rmdir(os.path.join(directory, os.path.basename(release)))
