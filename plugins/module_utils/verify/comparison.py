# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare the entries of a layer with those that its manifests give. Both are streams of lines of composefs-dump text, in manifest order.

Almost all lines are equal byte by byte, so only the others are decoded.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator, Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Entry
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.posix_acl import ACL_XATTRS
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import Findings

_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link"}


class Comparison:
    """Compares a layer, or a part of it, with what its manifests give.

    ``flawed`` has the paths of files whose overlay xattrs were reported already. It may grow while the layer is read. ``narrowed`` is
    whether the file system of the layer could not hold all ACLs, so that ACLs and the modes of their files may differ.
    """

    def __init__(self, findings: Findings, flawed: Collection[bytes] = (), narrowed: bool = False) -> None:
        self._findings = findings
        self._flawed = flawed
        self._narrowed = narrowed
        #: The directory whose absence, or presence, was reported last. What is below it is not reported.
        self._reported_above: bytes | None = None

    def run(self, expected: Iterator[Sequence[bytes]], actual: Iterator[Sequence[bytes]]) -> None:
        """Compare all lines and add the differences to the findings. Each item is some lines, which have no newlines."""
        wanted = _Lines(expected)
        for found in actual:
            self._findings.checked += len(found)
            if not wanted.skip(found):
                for line in found:
                    self._find(line, wanted)
        for line in wanted.rest():
            self._report(manifest.decode(line), "missing_entry")

    def _find(self, line: bytes, wanted: _Lines) -> None:
        """Compare a line of the layer with the next ones of the manifests."""
        there: Entry | None = None
        while True:
            next_one = wanted.peek()
            if next_one == line:
                wanted.advance()
                return
            there = there or manifest.decode(line)
            declared = None if next_one is None else manifest.decode(next_one)
            order = 1 if declared is None else _order(declared, there)
            if declared is None or order > 0:
                self._report(there, "unknown_entry")
                return
            wanted.advance()
            if order == 0:
                self._compare(declared, there)
                return
            self._report(declared, "missing_entry")

    def _report(self, entry: Entry, code: str) -> None:
        if self._reported_above is not None and entry.path.startswith(self._reported_above):
            return
        self._findings.add(entry.path, code)
        if entry.is_directory:
            self._reported_above = entry.path.rstrip(b"/") + b"/"

    def _compare(self, declared: Entry, there: Entry) -> None:
        kinds = [stat.S_IFMT(one.mode) for one in (declared, there)]
        if kinds[0] != kinds[1]:
            names = [_KINDS.get(kind, "of another type") for kind in kinds]
            self._findings.add(declared.path, "entry_differs", f"it is {names[1]} instead of {names[0]}")
            return
        if (declared.is_hardlink, declared.nlink) != (there.is_hardlink, there.nlink) and not declared.is_directory:
            first = declared.target if declared.is_hardlink else None
            detail = f"it has {there.nlink} names instead of {declared.nlink}"
            self._findings.add(
                declared.path, "lost_hard_links", detail + (f", one of which is {show(first)}" if first else "")
            )
        elif declared.is_hardlink:
            # Everything else is that of the first name, which was compared.
            if declared.target != there.target:
                self._findings.add(declared.path, "lost_hard_links", "it is a name of another file")
            return
        differences = list(self._differences(declared, there))
        if differences:
            self._findings.add(declared.path, "entry_differs", "; ".join(differences))

    def _differences(self, declared: Entry, there: Entry) -> Iterator[str]:
        has_acl = self._narrowed and any(name in ACL_XATTRS for name, _value in declared.xattrs)
        if declared.mode != there.mode and not has_acl:
            yield f"mode {there.mode & 0o7777:04o} instead of {declared.mode & 0o7777:04o}"
        for name in ("uid", "gid", "size", "mtime_ns"):
            if getattr(declared, name) != getattr(there, name):
                yield f"{name} {getattr(there, name)} instead of {getattr(declared, name)}"
        if declared.target != there.target and declared.path not in self._flawed and not declared.is_hardlink:
            word = "redirect" if stat.S_ISREG(declared.mode) else "target"
            yield f"{word} {_shown(there.target)} instead of {_shown(declared.target)}"
        left, right = (
            {pair for pair in one.xattrs if not (has_acl and pair[0] in ACL_XATTRS)} for one in (declared, there)
        )
        for xattr in sorted({xattr for xattr, _value in left ^ right}):
            yield f"another value of the xattr {show(xattr)}"


def _shown(target: bytes | None) -> str:
    return "none" if target is None else show(target)


def _order(declared: Entry, there: Entry) -> int:
    """Return -1 if the declared entry comes first, 1 if the other one does, and 0 if both are at one path."""
    left, right = manifest.sibling_key(declared.path), manifest.sibling_key(there.path)
    return (left > right) - (left < right)


class _Lines:
    """Lines that come in parts."""

    def __init__(self, parts: Iterator[Sequence[bytes]]) -> None:
        self._parts = parts
        self._lines: list[bytes] = []
        self._position = 0

    def _has(self, count: int) -> bool:
        """Return whether there are so many further lines, after reading as many parts as that needs."""
        while len(self._lines) - self._position < count:
            part = next(self._parts, None)
            if part is None:
                return False
            self._lines = [*self._lines[self._position :], *part]
            self._position = 0
        return True

    def skip(self, lines: Sequence[bytes]) -> bool:
        """Pass the next lines if they equal these, and return whether they do."""
        if not self._has(len(lines)):
            return False
        end = self._position + len(lines)
        if self._lines[self._position : end] != lines:
            return False
        self._position = end
        return True

    def peek(self) -> bytes | None:
        """Return the next line; None at the end."""
        return self._lines[self._position] if self._has(1) else None

    def advance(self) -> None:
        """Pass the next line."""
        self._position += 1

    def rest(self) -> Iterator[bytes]:
        """Yield all further lines."""
        while self._has(1):
            self._position += 1
            yield self._lines[self._position - 1]
