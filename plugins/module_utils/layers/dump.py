# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn manifests into the composefs-dump text of a view without creating an Entry for each line.

Most lines of a manifest are plain: one regular expression matches them, and a prefix turns them into lines of the view. They pass the same
checks as entries. All other lines are decoded, checked and encoded one by one.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import placed
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import OwnershipRules
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement, Tally
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_check import check_depth, check_target
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import StructureCheck

_CHECKSUM = re.compile(rb" user\.renderfarm\.sha256=[0-9a-f]{64}$", re.MULTILINE)
_CHECKSUM_START = b" user.renderfarm.sha256="

#: A plain line: a file with one name, with or without content, a directory or a symbolic link, without escapes and xattrs. Set-ID bits and
#: mtimes before 1970 are rare, so lines with them are not plain. Groups: path of the directory with a trailing slash, name, size of a file
#: with content, link count of a directory, size and target of a symbolic link.
_PLAIN = (
    rb"^(/(?:[!-\[\]-~]+/)?)((?!\.\.? )[!-.0-\[\]-~]{1,255}) (?:(?:"
    rb"([1-9][0-9]{0,14}) 10[01][0-7]{3} 1 %(common)s %(release)s\1\2"
    rb"|0 10[01][0-7]{3} 1 %(common)s -"
    rb") - -(?: user\.renderfarm\.sha256=[0-9a-f]{64})?"
    rb"|0 4[0-7]{4} ([2-9]|[1-9][0-9]{1,8}) %(common)s - - -"
    rb"|([1-9][0-9]{0,3}) 120777 1 %(common)s (?!- )([!-\[\]-~]+) - -"
    rb")$"
)
_COMMON = rb"[0-9]{1,9} [0-9]{1,9} 0 [0-9]{1,10}\.[0-9]{1,9}"


def placed_text(placement: Placement, chunks: Iterable[bytes], tally: Tally) -> Iterator[bytes]:
    """Yield the entries of a release as composefs-dump text of the view, and count them in ``tally``.

    ``chunks`` is the text of its manifest in parts of whole lines. Raises ManifestError naming the line if the manifest is invalid.
    """
    rewriter = _Rewriter(placement, tally)
    for chunk in chunks:
        yield rewriter.text(chunk)
    rewriter.end()


@contextlib.contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Add the line number to an error in the block."""
    try:
        yield
    except ManifestError as error:
        raise ManifestError(f"line {number}: {error}") from None


class _Rewriter:
    """Rewrites the manifest of one placement."""

    def __init__(self, placement: Placement, tally: Tally) -> None:
        release = to_bytes(placement.record.release)
        self._placement = placement
        self._tally = tally
        self._release = release
        self._check = StructureCheck(release)
        self._number = 0
        #: The text between two plain lines: a newline, and the prefix of the path in the next line.
        self._between = b"\n" + (b"/" + manifest.escape(placement.at) if placement.at else b"")
        # The content path in a plain line is right only if the data is at the release's own path.
        self._plain = (
            re.compile(_PLAIN % {b"common": _COMMON, b"release": re.escape(manifest.escape(release))}, re.MULTILINE)
            if placement.source == release
            else None
        )

    def text(self, chunk: bytes) -> bytes:
        """Return a part of the manifest, which consists of whole lines, as text of the view."""
        if self._number == 0:
            # The root is not a plain line. It is handled alone, so that the rest of its chunk can be rewritten at once.
            root, _newline, chunk = chunk.partition(b"\n")
            return self._line(root) + (self.text(chunk) if chunk else b"")
        if self._plain:
            found = self._plain.findall(chunk)
            # The last line of a manifest may lack its newline and must not be lost.
            if len(found) == chunk.count(b"\n") and chunk.endswith(b"\n"):
                self._pass(found)
                return self._moved(chunk[:-1])
        return b"".join(map(self._line, manifest.lines(chunk)))

    def _line(self, line: bytes) -> bytes:
        """Return one line, given without its newline, as text of the view."""
        if self._plain and self._number:
            found = self._plain.findall(line)
            if found:
                self._pass(found)
                return self._moved(line)
        self._number += 1
        with _numbered(self._number):
            entry = manifest.decode(line)
            self._check.add(entry)
        (entry,) = placed(self._placement, iter((entry,)), OwnershipRules())
        self._tally.add(entry)
        return manifest.encode(entry)

    def _moved(self, text: bytes) -> bytes:
        """Return plain lines as text of the view, without checksums. The last line of ``text`` has no newline."""
        if _CHECKSUM_START in text:
            text = _CHECKSUM.sub(b"", text)
        return self._between[1:] + self._between.join(text.split(b"\n")) + b"\n"

    def _pass(self, found: list[tuple[bytes, ...]]) -> None:
        """Check and count plain lines, given as the groups that were matched."""
        check, tally = self._check, self._tally
        files = size = directories = symlinks = 0
        parent, last = check.position()
        for number, (directory, name, length, links, target_length, target) in enumerate(found, self._number + 1):
            if directory == parent and name > last:
                # Most names follow in order. A call for each would take longer than everything else here.
                last = name
            else:
                with _numbered(number):
                    check.pass_names(last)
                    check.add_name(directory, name)
                parent, last = directory, name
            if length:
                files += 1
                size += int(length)
            elif links:
                check.pass_names(last)
                self._enter(number, directory + name, int(links))
                parent, last = check.position()
                directories += 1
            elif target:
                with _numbered(number):
                    check_target(directory + name, target, int(target_length))
                symlinks += 1
            else:
                files += 1
        check.pass_names(last)
        self._number += len(found)
        tally.files += files
        tally.bytes += size
        tally.directories += directories
        tally.symlinks += symlinks

    def _enter(self, number: int, path: bytes, nlink: int) -> None:
        """Check the directory whose line was read last, and make it the current one."""
        with _numbered(number):
            check_depth(path, self._release)
        self._check.enter(path, nlink)

    def end(self) -> None:
        """Check that nothing is missing after the last line. Raises ManifestError if something is."""
        try:
            self._check.end()
        except ManifestError as error:
            raise ManifestError(f"after line {self._number}: {error}") from None
