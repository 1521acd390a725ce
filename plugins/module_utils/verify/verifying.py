# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verify one layer with several processes: one part is a release, and one is everything else."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import parallel
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import Composition, placed
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import OwnershipRules
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline, syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Note, Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import images, strategies
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import without_suffix
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest, manifest_store, sampling
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import (
    CHECKSUM_XATTR,
    Entry,
    Placement,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import targets
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.comparison import Comparison
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.layer_walk import LayerWalk
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import Findings
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.targets import DataLayers, File
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_spec import LayerSpec

#: What is verified: the layer itself, that its files open, and their content. Each has everything of those before it.
LEVELS = ("metadata", "open", "content")
METADATA, OPEN, CONTENT = LEVELS

#: The part of a layer that is no release by itself.
REST = -1
#: Files whose content is looked up before an interrupted run is able to go on there.
_MOST_FILES = 1024


@dataclass(frozen=True)
class LayerRequest:
    """What to verify of a layer."""

    #: The path of the directory of the layer, or the layer name of its image.
    layer: bytes
    xattr_namespace: str
    strategy: str
    level: str
    #: The number of all entries of the layer.
    entries: int
    #: The declaration of the layer; None if it cannot be compared.
    spec: LayerSpec | None = None
    #: The data layers, as directories or as layer names of images.
    data: DataPlaces = field(default_factory=lambda: DataPlaces.of_one_overlay(()))
    #: The paths of the image files among these layers.
    images: tuple[bytes, ...] = ()
    layer_is_image: bool = False
    #: Whether the file system of the layer could not hold all ACLs.
    narrowed: bool = False
    #: How many entries to draw at random; 0 for all.
    sample: int = 0
    #: The processes that read the layer, and the threads of each that wait for the file server.
    workers: int = 1
    threads: int = 8
    #: The value of time.monotonic() after which no further part is begun, and no further files are opened; None for no limit.
    until: float | None = None
    #: Path of the ready marker of each release, and of those of some software roots, by the name of the root.
    ready_marker: str = ""
    ready_markers: Mapping[str, str] = field(default_factory=dict)
    #: The parts that an interrupted run has verified already.
    done: frozenset[int] = frozenset()
    #: Those that it has begun: the number of entries whose content it has looked up, and what it has found so.
    begun: Mapping[int, tuple[int, Findings]] = field(default_factory=dict)
    #: Called with a part, its findings, and the number of entries as in ``begun``; None if the part is finished.
    note: Callable[[int, Findings, int | None], None] = field(default=lambda _part, _findings, _entries: None)


@dataclass
class Verified:
    """The findings of a verification, or of one part, and whether it was verified to its end."""

    findings: Findings
    complete: bool
    #: The number of parts that are left.
    left: int = 0


def verify(request: LayerRequest, seconds: float, progress: Progress, note: Note) -> Verified:
    """Verify a layer in a child process, which is given up after ``seconds`` without progress.

    Raises OverlayError if a manifest cannot be read, and OSError if the file server fails.
    """

    def work(inner: Progress) -> Verified:
        if request.images:
            images.mount_unseen(request.images, (request.layer, *request.data.layers))
        with contextlib.ExitStack() as stack:
            return _Layer(request, stack, inner, note).run()

    return deadline.run(work, seconds, progress)


class _OutOfTimeError(Exception):
    """The time limit has passed."""


class _Layer:
    def __init__(self, request: LayerRequest, stack: contextlib.ExitStack, progress: Progress, note: Note) -> None:
        self._request = request
        self._progress = progress
        self._note = note
        shown = strategies.SHOWN_DIRECTORY.encode() if request.strategy == strategies.REDIRECT else b""
        self._root = self._opened(stack, os.path.join(request.layer, shown))
        #: The data layers, open, by their path.
        self._data: dict[bytes, int] = {}
        if request.level != METADATA:
            for path in request.data.layers:
                note.write(f"data layer {os.fsdecode(path)}")
                self._data[path] = _as_seen_by_overlay(self._opened(stack, path), stack)
        self._composition: Composition | None = None
        self._releases: list[Placement] = []
        if request.spec is not None:
            self._composition = generations.composed(request.spec, progress)
            self._releases = self._composition.passed_through
        self._drawn = (
            frozenset(random.sample(range(request.entries), min(request.sample, request.entries)))
            if request.sample
            else None
        )

    @staticmethod
    def _opened(stack: contextlib.ExitStack, path: bytes) -> int:
        fd = beneath.open_layer(path)
        stack.callback(os.close, fd)
        return fd

    def run(self) -> Verified:
        is_whole = any(not placement.at for placement in self._releases)
        parts = [number for number in range(len(self._releases)) if number not in self._request.done]
        if self._drawn is not None:
            return Verified(self._sampled(), True) if self._composition else self._visit(REST, self._progress)[0]
        if not is_whole and REST not in self._request.done:
            parts.append(REST)
        workers = min(self._request.workers, len(parts))
        found = parallel.walk(parts, self._visit, max(workers, 1), self._progress)
        findings = Findings()
        for one in found:
            findings.merge(one.findings)
        left = sum(not one.complete for one in found)
        return Verified(findings, not left, left)

    def _is_late(self) -> bool:
        return self._request.until is not None and time.monotonic() > self._request.until

    def _visit(self, part: int, progress: Progress) -> tuple[Verified, list[int]]:
        """Verify a part. If the time does not suffice, return only what was found wrong with the content of its files."""
        request = self._request
        entries, opened = request.begun.get(part, (0, Findings()))
        if self._is_late():
            return Verified(opened, False), []
        findings = Findings()
        walk = self._walk(findings, progress)
        placement = self._releases[part] if part != REST else None
        top = b"/" + placement.at if placement else b"/"
        without = () if placement else frozenset(b"/" + one.at for one in self._releases)
        actual = walk.lines(top, without)
        if request.level != METADATA:
            actual = self._opening(actual, part, entries, opened, progress)
        try:
            if self._composition is not None:
                expected = self._expected(part)
                Comparison(findings, walk.flawed, request.narrowed).run(expected, actual)
            else:
                findings.checked += sum(map(len, actual))
        except _OutOfTimeError:
            return Verified(opened, False), []
        findings.merge(opened)
        if request.level != METADATA:
            self._compare_releases(part, findings, progress)
        request.note(part, findings, None)
        return Verified(findings, True), []

    def _walk(self, findings: Findings, progress: Progress) -> LayerWalk:
        request = self._request
        opaque = request.strategy == strategies.REDIRECT
        return LayerWalk(self._root, request.xattr_namespace, opaque, request.layer_is_image, findings, progress)

    def _expected(self, part: int) -> Iterator[list[bytes]]:
        """Yield the lines of a part as the manifests give them."""
        composition = self._composition
        if composition is None:
            return
        if part == REST:
            for one in composition.parts():
                if isinstance(one, Entry):
                    yield [manifest.encode(one)[:-1]]
            return
        placement = self._releases[part]
        ownership = composition.ownership
        moved = placement.source != to_bytes(placement.record.release) or ownership != OwnershipRules()
        base = b"/" + manifest.escape(placement.at) if placement.at else b""
        for chunk in manifest_store.text(placement):
            lines = manifest.lines(chunk)
            # The path of the release itself is "/" in its manifest. Names of hard links and xattrs are not the same in the view.
            if not moved and not chunk.startswith(b"/ ") and b"@" not in chunk and b"=" not in chunk:
                yield [base + line for line in lines]
            else:
                entries = placed(placement, map(manifest.decode, lines), ownership)
                yield [manifest.encode(entry)[:-1] for entry in entries]

    def _opening(
        self, parts: Iterator[list[bytes]], part: int, entries: int, findings: Findings, progress: Progress
    ) -> Iterator[list[bytes]]:
        """Yield the lines of a layer, and look up the content of its files on the way, but not that of the first ``entries``.

        Raises _OutOfTimeError if the time limit passes.
        """
        checksums = self._checksums(part) if self._request.level == CONTENT else {}
        data = self._data_layers()
        files: list[File] = []

        def look() -> None:
            targets.check(data, iter(files), self._finder(checksums), self._request.threads, findings, progress)
            files.clear()

        number = 0
        for lines in parts:
            yield lines
            for line in lines:
                is_wanted = number >= entries and (self._drawn is None or number in self._drawn)
                file = _file(manifest.decode(line)) if is_wanted else None
                files += [file] if file else []
                number += 1
            if len(files) >= _MOST_FILES:
                look()
                self._request.note(part, findings, number)
                if self._is_late():
                    raise _OutOfTimeError
        look()

    def _data_layers(self) -> DataLayers:
        found = frozenset(without_suffix(image) for image in self._request.images)
        return DataLayers(self._request.data, self._data, self._note, images=found)

    def _checksums(self, part: int) -> dict[tuple[bytes | None, bytes], str]:
        """Map the content of each file of a part to its SHA-256, as far as manifests have it.

        A key has the data layer of the release, None if there is one software root, and the path of the content there.
        """
        found = {}
        for placement in self._placements(part):
            if placement.record.checksums:
                root = self._root_of(placement)
                for entry in manifest_store.entries(placement):
                    for name, value in entry.xattrs:
                        if name == CHECKSUM_XATTR:
                            place = (placement.source + entry.path).lstrip(b"/")
                            found[root, place] = value.decode("ascii", "replace")
        return found

    def _finder(self, checksums: Mapping[tuple[bytes | None, bytes], str]) -> Callable[[File], str | None]:
        """Return a function that returns the SHA-256 of the content of a file."""
        data = self._request.data
        return lambda file: checksums.get((data.of(file.path).root_for(file.target), file.target))

    def _root_of(self, placement: Placement) -> bytes | None:
        """Return the data layer that a release is on; None if there is one software root."""
        return self._request.data.of(placement.at).root_for(placement.source)

    def _placements(self, part: int) -> list[Placement]:
        if part != REST:
            return [self._releases[part]]
        placements = self._request.spec.placements if self._request.spec else ()
        return [one for one in placements if one not in self._releases]

    def _compare_releases(self, part: int, findings: Findings, progress: Progress) -> None:
        """Compare the releases of a part with their manifests: the names in each directory. Files were looked up already."""
        if not self._data:
            return
        for placement in self._placements(part):
            release, own = to_bytes(placement.record.release), self._root_of(placement)
            # Before its path on the root, the name of a release of several roots has that of its root.
            if placement.source not in (release, release.partition(b"/")[2] if own is not None else release):
                continue
            root = os.fsdecode(self._request.data.layers[-1] if own is None else own)
            self._note.write(f"release {placement.record.release} in {root}")
            marker = self._request.ready_markers.get(placement.record.root, self._request.ready_marker)
            count = self._request.sample or 2 * placement.record.entries.directories
            try:
                differences = sampling.sample_differences(placement, root, count, marker, progress)
            except OverlayError as error:
                differences = [str(error)]
            for text in differences:
                findings.add(release, "release_differs", text)

    def _sampled(self) -> Findings:
        """Verify the entries that were drawn."""
        findings = Findings()
        walk = self._walk(findings, self._progress)
        drawn = self._drawn or frozenset()
        number = 0
        files: list[File] = []
        checksums: dict[tuple[bytes | None, bytes], str] = {}
        for part in (REST, *range(len(self._releases))):
            before = len(files)
            for line in (line for lines in self._expected(part) for line in lines):
                if number in drawn:
                    entry = manifest.decode(line)
                    actual = walk.line_of(entry)
                    comparison = Comparison(findings, walk.flawed, self._request.narrowed)
                    comparison.run(iter(((line,),)), iter(() if actual is None else ([actual],)))
                    file = _file(manifest.decode(actual)) if actual is not None else None
                    files += [file] if file else []
                number += 1
            if self._request.level == CONTENT and len(files) > before:
                checksums.update(self._checksums(part))
            self._progress()
        if self._request.level != METADATA:
            data = self._data_layers()
            targets.check(data, iter(files), self._finder(checksums), self._request.threads, findings, self._progress)
            for part in (REST, *range(len(self._releases))):
                self._compare_releases(part, findings, self._progress)
        return findings


def _as_seen_by_overlay(layer: int, stack: contextlib.ExitStack) -> int:
    """Return a descriptor of an open data layer without the mounts inside of it, since the kernel looks beneath them.

    The mount of a nested export is made by the NFS client itself, whoever looks, and the kernel refuses to enter it.
    """
    try:
        copy = syscalls.clone_mounts(layer, inner=False)
    except OSError as error:
        # EPERM without CAP_SYS_ADMIN, EINVAL in a user namespace that may not uncover what is beneath.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        return layer
    stack.callback(os.close, copy)
    return copy


def _file(entry: Entry) -> File | None:
    """Return the file with content that an entry of a layer describes; None for any other entry."""
    if entry.target is None or entry.is_hardlink or entry.mode & 0o170000 != 0o100000:
        return None
    return File(entry.path, entry.target, entry.size, entry.mtime_ns)
