# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest store: a folder with one gzipped composefs-dump and one small JSON record for each release.

The record is written last and removed first, so a manifest counts only when it is whole. What comes out of a manifest is checked
against the record's digest while it is read: nothing built from it may be used before the reading has ended without an error.
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
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.scan import Scan, ScanReport

Parsed = TypeVar("Parsed")

SUFFIX = ".dump.gz"
RECORD_SUFFIX = ".json"

#: Higher levels make manifests a few per cent smaller and take several times as long.
_COMPRESSION = 6
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Written:
    """The outcome of writing a manifest."""

    record: ManifestRecord
    report: ScanReport


def check_store(store: str) -> None:
    """Raises OverlayError when there is no manifest store at ``store``: one that is not mounted is never made as a local directory."""
    if os.path.isdir(store):
        return
    shown = show(os.fsencode(store))
    if os.path.lexists(store):
        raise OverlayError(f"manifest store {shown} is not a directory")
    raise OverlayError(f"manifest store {shown} does not exist: is it mounted? A new one is made once, with mkdir")


def is_used(store: str) -> bool:
    """Tell whether there is anything in the store, as there is not below a mountpoint at which nothing is mounted."""
    with os.scandir(store) as listing:
        return any(True for _item in listing)


def manifest_path(store: str, release: str) -> str:
    return os.path.join(store, release + SUFFIX)


def record_path(manifest_file: str) -> str:
    """Return where the record of a manifest is. Raises ManifestError for a path that is no manifest's."""
    if not manifest_file.endswith(SUFFIX):
        raise ManifestError(f"{show(os.fsencode(manifest_file))} is not a manifest: their names end in {SUFFIX}")
    return manifest_file[: -len(SUFFIX)] + RECORD_SUFFIX


def find_record(manifest_file: str, release: str | None = None) -> ManifestRecord | None:
    """Return the record of a manifest; None where there is no whole one, or one of an older version of the collection.

    ``release`` is the path of the release where the caller knows it.
    """
    try:
        return _record(manifest_file, release)
    except OutdatedError:
        return None


def is_outdated(manifest_file: str) -> bool:
    """Tell whether there is a record that an older version of the collection has written."""
    try:
        _record(manifest_file, None)
    except OutdatedError:
        return True
    except OverlayError:
        pass
    return False


def _record(manifest_file: str, release: str | None) -> ManifestRecord | None:
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
    # The record says which release it is of, and so does its place: what is built from it finds content by that path.
    is_there = os.path.abspath(manifest_file).endswith("/" + record.release + SUFFIX)
    if not is_there or release not in (None, record.release):
        raise ManifestError(
            f"{shown} is the record of release {show(os.fsencode(record.release))}, which does not belong there: {_REMEDY}"
        )
    return record


def remains(manifest_file: str) -> bool:
    """Tell whether there is a manifest, or any part of one."""
    return os.path.lexists(manifest_file) or os.path.lexists(record_path(manifest_file))


def find_manifests(store: str, pattern: Pattern, progress: Progress = no_progress) -> Iterator[Release]:
    """Yield the releases that have a manifest in the store. Raises OverlayError when there is no store."""
    check_store(store)
    for folder, folders, names in os.walk(store):
        progress()
        parents = os.path.relpath(folder, store).split("/") if folder != store else []
        level = pattern.levels[len(parents)]
        # Folders of other things, such as an image store, are not looked into.
        folders[:] = [name for name in folders if level.fullmatch(name)]
        if len(parents) + 1 == len(pattern.levels):
            folders.clear()
            for name in names:
                if name.endswith(RECORD_SUFFIX):
                    release = pattern.release([*parents, name[: -len(RECORD_SUFFIX)]])
                    if release:
                        yield release


def read_record(manifest_file: str, release: str | None = None) -> ManifestRecord:
    """Return the record of a manifest that is taken to be whole: it has to be there, and as long as when it was written.

    ``release`` is the path of the release where the caller knows it. Raises ManifestError, and OutdatedError for a manifest that has to be
    made again.
    """
    record = _record(manifest_file, release)
    shown = show(os.fsencode(manifest_file))
    if record is None:
        raise ManifestError(f"{shown}: there is no such manifest; make it with release_manifest")
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
    """Yield the entries of a placement's manifest, checked.

    Raises ManifestError: for a malformed or truncated file where that shows, and after the last entry when the text as a whole does
    not have the digest that was recorded.
    """

    def parsed(chunks: Iterator[bytes]) -> Iterator[Entry]:
        lines = (line for chunk in chunks for line in manifest.lines(chunk))
        return manifest.read_entries(lines, os.fsencode(placement.record.release))

    return parse(placement, parsed)


def parse(placement: Placement, parser: Callable[[Iterator[bytes]], Iterator[Parsed]]) -> Iterator[Parsed]:
    """Yield what ``parser`` makes of the text of a placement's manifest, which it is given in parts of whole lines.

    Raises ManifestError naming the manifest if the parser raises one, or if the text is not the one that was recorded.
    """
    with _explained(placement):
        yield from parser(_counted(placement))


def text(placement: Placement) -> Iterator[bytes]:
    """Yield a placement's manifest in parts of whole lines.

    Raises ManifestError when it does not have the number of lines and the digest that were recorded. Nothing else is checked: neither
    the lines nor their order.
    """
    return parse(placement, lambda chunks: chunks)


@contextlib.contextmanager
def _explained(placement: Placement) -> Iterator[None]:
    """Name the manifest, and what can be done, in an error about it."""
    try:
        yield
    except (ManifestError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(f"{show(os.fsencode(placement.manifest))}: {error}; {_REMEDY}") from None


def _counted(placement: Placement) -> Iterator[bytes]:
    """Yield the text of a manifest. Raises ManifestError when it has not as many lines as its record has entries.

    Little that is compressed can be endless when it is not, so the lines are counted as they come.
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
    """Yield the text of a manifest in parts of whole lines. Raises ManifestError when it does not have the digest recorded."""
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
                raise ManifestError(f"a line of it has more than {manifest.LONGEST_LINE} bytes")
        if rest:
            yield rest
    if "sha256:" + digest.hexdigest() != placement.record.digest:
        raise ManifestError(f"it does not have the digest {placement.record.digest} that was recorded")


def write(
    store: str,
    root: str,
    release: str,
    checksum: bool,
    progress: Progress = no_progress,
    root_name: str | None = None,
) -> Written:
    """Scan a release and put its manifest into the store. A run that is killed leaves no manifest that counts.

    ``root_name`` is the identity of the software root, its path by default.
    """
    check_store(store)
    path = manifest_path(store, release)
    # Others may write to the store, and exchange its directories.
    with files.directory_within(store, os.path.dirname(release), files.mode_within(store)) as folder:
        inside = os.path.join(folder, os.path.basename(path))
        try:
            with files.written_aside(inside) as aside:
                scanned, report = _scan_into(aside, root, release, checksum, progress)
                record = replace(scanned, root=root_identity(root_name or root))
                text = manifest.record_to_json(record)
        except BaseException:
            _remove_empty_folders(store, release)
            raise
        with files.written_aside(record_path(inside)) as aside:
            aside.write(text)
    return Written(record, report)


def _scan_into(
    aside: BinaryIO, root: str, release: str, checksum: bool, progress: Progress
) -> tuple[ManifestRecord, ScanReport]:
    scan = Scan(os.fsencode(root), os.fsencode(release), checksum, progress)
    writer = _ManifestWriter(aside)
    for entry in scan:
        writer.add(entry)
    record = writer.finish(release, checksum)
    if not scan.report.link_counts:
        return record, scan.report
    # Files with names outside of the release are known only now, so their lines are written again.
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
    """Writes entries as gzipped text, and keeps what the record will say."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        # No file name and no time in the gzip header: the same tree gives the same bytes.
        self._gzip = gzip.GzipFile("", "wb", _COMPRESSION, stream, mtime=0)
        self._digest = hashlib.sha256()
        self._tally = Tally()
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    def add(self, entry: Entry) -> None:
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


def differences(placement: Placement, root: str, progress: Progress = no_progress) -> tuple[list[str], int]:
    """Scan a release again and compare it with its manifest; see ``core.manifest.differences`` for what is returned."""
    record = placement.record
    with tempfile.TemporaryFile() as aside:
        now, _report = _scan_into(aside, root, record.release, record.checksums, progress)
        if now.digest == record.digest:
            return [], 0
        aside.seek(0)
        with gzip.open(aside, "rb") as stream:
            return manifest.differences(entries(placement), _decoded(stream))


def _decoded(stream: gzip.GzipFile) -> Iterator[Entry]:
    """Yield the entries of a manifest that this run has written itself."""
    return map(manifest.decode, (line.rstrip(b"\n") for line in stream))


def remove(store: str, release: str) -> None:
    """Remove a manifest, its record first, and the folders that this leaves empty. Whatever is not there is passed over."""
    path = manifest_path(store, release)
    with (
        contextlib.suppress(FileNotFoundError),
        files.directory_within(store, os.path.dirname(release), None) as folder,
    ):
        for name in (record_path(path), path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, os.path.basename(name)))
    _remove_empty_folders(store, release)


def _remove_empty_folders(store: str, release: str) -> None:
    """Remove the folders of a release's manifest in the store that have nothing in them."""
    for _level in release.split("/")[1:]:
        release = os.path.dirname(release)
        with contextlib.suppress(OSError), files.directory_within(store, os.path.dirname(release), None) as folder:
            os.rmdir(os.path.join(folder, os.path.basename(release)))
