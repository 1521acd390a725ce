# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of verifications beside the generations of a view: the record of the last one, and the journal of an interrupted one.

The journal has a line for each part of the layer that was verified, and lines for how far one was. An interrupted run may leave its last
line incomplete, which is ignored.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import files, record_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import verified_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import (
    Findings,
    as_record,
    from_record,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verified_record import LastVerified
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths

_LARGEST_JOURNAL = 1 << 28


def record_of(paths: ViewPaths) -> str:
    """Return the path of the record of the last verification of a view."""
    return os.path.join(paths.root, "verified.json")


def find(paths: ViewPaths) -> LastVerified | None:
    """Return the last complete verification of a view; None if there is none, or if its record cannot be used."""
    try:
        return verified_record.verified_from_json(record_files.read(record_of(paths), verified_record.LARGEST_VERIFIED))
    except (OverlayError, OSError):
        return None


def write(paths: ViewPaths, verified: LastVerified) -> None:
    """Record a verification of a view, whose directory exists."""
    with files.written_aside(record_of(paths), 0o600) as stream:
        stream.write(verified_record.verified_to_json(verified))


class Journal:
    """The journal of a verification. ``key`` says what is verified; the journal of anything else is begun anew."""

    def __init__(self, paths: ViewPaths, key: str) -> None:
        self._path = os.path.join(paths.root, "verified.parts")
        self._key = key
        #: The findings of the parts that were verified.
        self.done: dict[int, Findings] = {}
        #: How many entries of the other parts were verified, and with which findings.
        self.begun: dict[int, tuple[int, Findings]] = {}
        self._read()

    def _read(self) -> None:
        try:
            text = record_files.read(self._path, _LARGEST_JOURNAL)
        except (OverlayError, OSError):
            return
        first, *lines = text.split(b"\n")[:-1] or [b""]
        if first != self._key.encode():
            return
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                fields = json.loads(line)
                part, entries, findings = int(fields["part"]), fields["entries"], from_record(fields)
                self.begun.pop(part, None)
                if entries is None:
                    self.done[part] = findings
                else:
                    self.begun[part] = (int(entries), findings)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Callable[[int, Findings, int | None], None]]:
        """Provide a function that adds a part. Several processes may call it.

        It takes the number of the part, its findings, and the number of entries that were verified; None for all of them.
        """
        if not self.done and not self.begun:
            with files.written_aside(self._path, 0o600) as stream:
                stream.write(self._key.encode() + b"\n")
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

        def add(part: int, findings: Findings, entries: int | None) -> None:
            line = json.dumps({"part": part, "entries": entries, **as_record(findings)}).encode("ascii") + b"\n"
            # One call: lines of several processes do not mix.
            os.write(fd, line)

        try:
            yield add
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove the journal."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
