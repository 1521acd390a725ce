# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attribute opened files to releases, and turn them into traces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import (
    Trace,
    TracedFile,
    trace_of,
)


@dataclass(frozen=True)
class AddToTrace(Action):
    """Merge what was recorded of a release into its trace in the manifest store."""

    trace: Trace

    def __str__(self) -> str:
        return f"add {self.trace.opens} opens of {len(self.trace.files)} files to the trace of release {self.trace.release}"


@dataclass(frozen=True)
class RecordOpens(Action):
    """Record opens. It is planned in check mode alone, where nothing is recorded."""

    path: str

    def __str__(self) -> str:
        return f"record which files are opened in the view at {self.path}"


class ReleasePlaces:
    """The releases of a view, by their places in the view and in the software root."""

    def __init__(self, releases: Iterable[Mapping[str, Any]]) -> None:
        """``releases`` are those of the records of generations."""
        self._by_source: dict[bytes, list[tuple[bytes, str]]] = {}
        for release in releases:
            places = self._by_source.setdefault(to_bytes(release["source"]), [])
            places.append((to_bytes(release["at"]), release["release"]))

    def find(self, content: bytes, name: bytes | None = None) -> tuple[str, bytes] | None:
        """Return the release of a file and its path relative to the release; None if no release of the view has it.

        ``content`` is its path relative to the software root. ``name``, relative to the view, decides between releases that are inside of
        each other on the software root.
        """
        found = None
        for source, rest in _splits(content):
            for at, release in self._by_source.get(source, ()):
                if name is None or name == (at + b"/" + rest).lstrip(b"/"):
                    return release, rest
                found = found or (release, rest)
        return found


def _splits(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each directory above a relative path, the deepest one first and the empty one last, with the rest of the path."""
    end = path.rfind(b"/")
    while end > 0:
        yield path[:end], path[end + 1 :]
        end = path.rfind(b"/", 0, end)
    yield b"", path


@dataclass
class _OpenedContent:
    """A file of a release that was opened, by any of its names."""

    size: int
    opens: int = 0
    processes: set[int] = field(default_factory=set)


@dataclass
class OpenedReleases:
    """The files of each release that were opened."""

    _files: dict[str, dict[bytes, _OpenedContent]] = field(default_factory=dict)
    #: Opens of files that are of no release.
    unmapped: int = 0

    def add(self, release: str, path: bytes, size: int, opens: int, processes: Collection[int]) -> None:
        """Count opens of a file; ``path`` is relative to the release, and ``size`` in bytes."""
        file = self._files.setdefault(release, {}).setdefault(path, _OpenedContent(size))
        file.opens += opens
        file.processes.update(processes)

    @property
    def releases(self) -> list[str]:
        """Return the releases of which files were opened, sorted."""
        return sorted(self._files)

    def paths(self, release: str) -> set[bytes]:
        """Return the files of a release that were opened."""
        return set(self._files.get(release, ()))

    def keep(self, release: str, known: Collection[bytes]) -> None:
        """Count the opens of the files of a release that are not ``known`` as those of no release."""
        files = self._files[release]
        for path in [path for path in files if path not in known]:
            self.unmapped += files.pop(path).opens
        if not files:
            del self._files[release]

    def trace(self, release: str, one_start: bool) -> Trace:
        """Return the trace of a release. Starts are processes, unless all of it was one start."""
        files = self._files[release]
        starts = 1 if one_start else len(set().union(*(file.processes for file in files.values())))
        return trace_of(
            release,
            starts,
            (TracedFile(path, file.opens, 1 if one_start else len(file.processes)) for path, file in files.items()),
        )

    def bytes_of(self, release: str) -> int:
        """Return the size of the files of a release that were opened, in bytes."""
        return sum(file.size for file in self._files[release].values())


def plan_traces(traces: Iterable[Trace]) -> tuple[AddToTrace, ...]:
    """Return the plan that merges traces into those of the manifest store."""
    return tuple(AddToTrace(trace) for trace in traces)
