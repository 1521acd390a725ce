# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the manifest store: a directory with a gzipped composefs-dump and a small JSON record for each release.

The record is written last and removed first, so an incomplete manifest has no record. The text of a manifest is checked against the
digest in the record while it is read. Do not use anything that was built from it before it has been read to its end without an error.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from typing import Callable, TypeVar

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError, OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.records import OutdatedError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    Entry,
    ManifestRecord,
    Placement,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import Pattern, Release
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations

Parsed = TypeVar("Parsed")

SUFFIX = ".dump.gz"
RECORD_SUFFIX = ".json"
#: What follows the path of a release in the name of its trace (data_images/trace_files.py).
TRACE_SUFFIX = ".trace.json"

_CHUNK = 1 << 16


def check_store(store: str) -> None:
    """Check that the manifest store exists. It is never created, since a missing one is usually a share that is not mounted.

    Raises OverlayError if there is no directory at ``store``.
    """
    if locations.is_address(store):
        raise OverlayError(
            f"manifest store {locations.shown(store)} is an address, which can neither be listed nor written to: give the directory that"
            " the web server serves, or deploy with a lock"
        )
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


def empty_warning(store: str) -> str:
    """Return the warning about a store that was empty before it was written to."""
    return f"manifest store {store} was empty: if it is not a new one, check that the share is mounted there"


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


def trace_of(manifest_file: str) -> str | None:
    """Return the path of the trace beside a manifest, whether or not it exists; None if it is the record of another release there."""
    base = manifest_file[: -len(SUFFIX)]
    is_record = os.path.lexists(base + TRACE_SUFFIX[: -len(RECORD_SUFFIX)] + SUFFIX)
    return None if is_record else base + TRACE_SUFFIX


def find_manifests(
    store: str, pattern: Pattern, progress: Progress = no_progress, prefix: str = ""
) -> Iterator[Release]:
    """Yield the releases that match ``pattern`` and have a manifest in the directory ``prefix`` of the store, with their paths below it.

    An NFS client is made to ask its server, so that what other hosts have just written is found. Directories in the store that this process
    may not list are skipped. Raises OverlayError if there is no store, and OSError if the store cannot be listed.
    """
    check_store(store)
    directory = os.path.join(store, prefix) if prefix else store
    if prefix and not os.path.isdir(directory):
        # Its first manifest makes it.
        return
    yield from _find(directory, [], pattern, progress)


def _find(directory: str, parents: list[str], pattern: Pattern, progress: Progress) -> Iterator[Release]:
    """Yield the releases with a manifest in a directory of the store, which is ``parents`` below the store."""
    is_last = len(parents) + 1 == len(pattern.levels)
    try:
        with files.fresh_listing(directory) as listing:
            if is_last:
                names = _recorded({item.name for item in listing})
            else:
                # Directories that do not match the pattern, such as an image store, are skipped.
                level = pattern.levels[len(parents)]
                names = [
                    item.name for item in listing if level.fullmatch(item.name) and item.is_dir(follow_symlinks=False)
                ]
    except OSError as error:
        # Another host may have removed it, or it is a lost+found.
        if parents and error.errno in (errno.ENOENT, errno.ESTALE, errno.EACCES):
            return
        raise
    progress()
    for name in names:
        if not is_last:
            yield from _find(os.path.join(directory, name), [*parents, name], pattern, progress)
            continue
        release = pattern.release([*parents, name])
        if release:
            yield release


def _recorded(names: set[str]) -> list[str]:
    """Return the names of the releases that have a record among the files of a directory.

    The trace of release 1.0 has the name of the record of a release 1.0.trace, so it is one only beside a manifest of that release.
    """
    found = [name[: -len(RECORD_SUFFIX)] for name in names if name.endswith(RECORD_SUFFIX)]
    return [name for name in found if not (name + RECORD_SUFFIX).endswith(TRACE_SUFFIX) or name + SUFFIX in names]


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
