# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare the entries of a layer with those that its manifests give. Both are streams of lines of composefs-dump text, in manifest order.

Almost all lines are equal byte by byte, so only the others are decoded.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator

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

    def run(self, expected: Iterator[bytes], actual: Iterator[bytes]) -> None:
        """Compare all lines, which have no newlines, and add the differences to the findings."""
        wanted, found = next(expected, None), next(actual, None)
        checked = 0
        while wanted is not None or found is not None:
            checked += found is not None
            if wanted == found:
                wanted, found = next(expected, None), next(actual, None)
                continue
            there = None if found is None else manifest.decode(found)
            declared = None if wanted is None else manifest.decode(wanted)
            order = _order(declared, there)
            if declared is not None and order < 0:
                self._report(declared, "missing_entry")
                wanted = next(expected, None)
                checked -= found is not None
            elif there is not None and order > 0:
                self._report(there, "unknown_entry")
                found = next(actual, None)
            elif declared is not None and there is not None:
                self._compare(declared, there)
                wanted, found = next(expected, None), next(actual, None)
        self._findings.checked += checked

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
        left, right = ({pair for pair in one.xattrs if not (has_acl and pair[0] in ACL_XATTRS)} for one in (declared, there))
        for name in sorted({name for name, _value in left ^ right}):
            yield f"another value of the xattr {show(name)}"


def _shown(target: bytes | None) -> str:
    return "none" if target is None else show(target)


def _order(declared: Entry | None, there: Entry | None) -> int:
    """Return -1 if the declared entry comes first, 1 if the other one does, and 0 if both are at one path."""
    if declared is None or there is None:
        return 1 if declared is None else -1
    left, right = manifest.sibling_key(declared.path), manifest.sibling_key(there.path)
    return (left > right) - (left < right)
