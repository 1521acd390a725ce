"""Write manifests of invented software: always the same bytes for the same number of files."""

from __future__ import annotations

import gzip
import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry, ManifestRecord, Tally

FILES_PER_RELEASE = 5_000
FILES_PER_DIRECTORY = 25
DIRECTORIES_PER_GROUP = 10

#: Software is rarely owned by the user who builds the layer, so each entry costs a chown, as for tar.
OWNER = 5000
_MTIME_NS = 1_700_000_000_123_456_789
_DIRECTORY = stat.S_IFDIR | 0o755
_FILE = stat.S_IFREG | 0o644
_SYMLINK = stat.S_IFLNK | 0o777


def write(store: Path, files: int) -> list[Path]:
    """Write manifests with ``files`` regular files in total, and return their paths."""
    return [_write_release(store, number) for number in range(files // FILES_PER_RELEASE)]


def write_changed(store: Path, files: int) -> list[Path]:
    """Write manifests as ``write`` does, but with another version of the release in the middle, which has more files."""
    manifests = write(store, files)
    middle = len(manifests) // 2
    manifests[middle] = _write_release(store, middle, "-hotfix", FILES_PER_RELEASE * 21 // 20)
    return manifests


def _write_release(store: Path, number: int, suffix: str = "", files: int = FILES_PER_RELEASE) -> Path:
    release = f"renderer_{number // 10:03}/{2020 + number % 10}.{number % 4}.{number % 7}{suffix}"
    path = Path(manifest_store.manifest_path(str(store), release))
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    tally = Tally()
    with gzip.GzipFile(path, "wb", 6, mtime=0) as stream:
        for entry in _entries(release.encode(), number + len(suffix), files):
            line = manifest.encode(entry)
            tally.add(entry)
            digest.update(line)
            stream.write(line)
    record = ManifestRecord(
        release,
        f"sha256:{digest.hexdigest()}",
        path.stat().st_size,
        tally.counts(),
        tally.bytes,
        False,
        "/net/software",
    )
    Path(manifest_store.record_path(str(path))).write_bytes(manifest.record_to_json(record))
    return path


def _entries(release: bytes, seed: int, files: int) -> Iterator[Entry]:
    """Yield the entries of a typical release: packages of 25 files whose first is empty, with paths of 70 to 100 bytes."""
    packages = files // FILES_PER_DIRECTORY
    yield _directory(b"/", 3)
    yield _directory(b"/lib", 3)
    yield _directory(b"/lib/python3.11", 2 + packages // DIRECTORIES_PER_GROUP)
    for package in range(packages):
        group = b"/lib/python3.11/shading_toolkit_%03d" % (package // DIRECTORIES_PER_GROUP)
        if package % DIRECTORIES_PER_GROUP == 0:
            yield _directory(group, 2 + DIRECTORIES_PER_GROUP)
        here = group + b"/component_%03d" % package
        yield _directory(here, 2)
        for number in range(FILES_PER_DIRECTORY):
            name = b"/__init__.py" if number == 0 else b"/node_definition_%02d.py" % number
            size = 0 if number == 0 else 500 + (seed * 7919 + package * 104_729 + number * 1_299_709) % 60_000
            target = release + here + name if size else None
            yield Entry(here + name, _FILE, size, 1, OWNER, OWNER, _MTIME_NS + number, target, False, ())
        if package % 4 == 0:
            target = b"node_definition_01.py"
            yield Entry(here + b"/node_latest.py", _SYMLINK, len(target), 1, OWNER, OWNER, _MTIME_NS, target, False, ())


def _directory(path: bytes, nlink: int) -> Entry:
    return Entry(path, _DIRECTORY, 0, nlink, OWNER, OWNER, _MTIME_NS, None, False, ())
