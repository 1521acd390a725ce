# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests into the composefs-dump of a view as text, without making an entry of each line.

Most lines of a manifest are of a few plain kinds, which one expression matches, and only a prefix makes them lines of the view. The
same is checked of them as of entries that are read one by one, which is what happens to all other lines.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.compose import placed
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import Attributes
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import ManifestError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import manifest
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement, Tally
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entry_check import check_depth, check_target
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import StructureCheck

_CHECKSUM = re.compile(rb" user\.renderfarm\.sha256=[0-9a-f]{64}$", re.MULTILINE)
_CHECKSUM_START = b" user.renderfarm.sha256="

#: A line without escapes and attributes of a file with one name, an empty one, a directory or a symbolic link; set-ID bits and times
#: before 1970 are rare, and not plain. Groups: the directory with its slash, the name, the size where there is content, the links of
#: a directory, and the size and the target of a symbolic link.
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
    """Yield a release's entries as they stand in the view, as text, and count them.

    ``chunks`` is the text of its manifest in parts of whole lines. Raises ManifestError for what no manifest may have.
    """
    rewriter = _Rewriter(placement, tally)
    for chunk in chunks:
        yield rewriter.text(chunk)
    rewriter.end()


@contextlib.contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Name the line in an error about it."""
    try:
        yield
    except ManifestError as error:
        raise ManifestError(f"line {number}: {error}") from None


class _Rewriter:
    def __init__(self, placement: Placement, tally: Tally) -> None:
        release = to_bytes(placement.record.release)
        self._placement = placement
        self._tally = tally
        self._release = release
        self._check = StructureCheck(release)
        self._number = 0
        #: What comes between two lines: the end of one, and the place that the next one's path is below.
        self._between = b"\n" + (b"/" + manifest.escape(placement.at) if placement.at else b"")
        # Only content that is found at the release's own path is where the line says.
        self._plain = (
            re.compile(_PLAIN % {b"common": _COMMON, b"release": re.escape(manifest.escape(release))}, re.MULTILINE)
            if placement.source == release
            else None
        )

    def text(self, chunk: bytes) -> bytes:
        if self._number == 0:
            # The root is no plain line, and must not keep those that come with it from being taken at once.
            root, _newline, chunk = chunk.partition(b"\n")
            return self._line(root) + (self.text(chunk) if chunk else b"")
        if self._plain:
            found = self._plain.findall(chunk)
            # The last line of a manifest may lack its newline, and must not be passed over.
            if len(found) == chunk.count(b"\n") and chunk.endswith(b"\n"):
                self._pass(found)
                return self._moved(chunk[:-1])
        return b"".join(map(self._line, manifest.lines(chunk)))

    def _line(self, line: bytes) -> bytes:
        """Return one line, which has no newline, as it stands in the view."""
        if self._plain and self._number:
            found = self._plain.findall(line)
            if found:
                self._pass(found)
                return self._moved(line)
        self._number += 1
        with _numbered(self._number):
            entry = manifest.decode(line)
            self._check.add(entry)
        (entry,) = placed(self._placement, iter((entry,)), Attributes())
        self._tally.add(entry)
        return manifest.encode(entry)

    def _moved(self, text: bytes) -> bytes:
        """Return plain lines at their place in the view, without the checksums that stay in the manifest.

        The last one of them has no newline yet.
        """
        if _CHECKSUM_START in text:
            text = _CHECKSUM.sub(b"", text)
        return self._between[1:] + self._between.join(text.split(b"\n")) + b"\n"

    def _pass(self, found: list[tuple[bytes, ...]]) -> None:
        """Check and count lines that are plain."""
        check, tally = self._check, self._tally
        files = size = directories = symlinks = 0
        parent, last = check.position()
        for number, (folder, name, length, links, target_length, target) in enumerate(found, self._number + 1):
            if folder == parent and name > last:
                # Most names follow their neighbour's, and a call for each would take longer than all else here.
                last = name
            else:
                with _numbered(number):
                    check.pass_names(last)
                    check.add_name(folder, name)
                parent, last = folder, name
            if length:
                files += 1
                size += int(length)
            elif links:
                check.pass_names(last)
                self._enter(number, folder + name, int(links))
                parent, last = check.position()
                directories += 1
            elif target:
                with _numbered(number):
                    check_target(folder + name, target, int(target_length))
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
        with _numbered(number):
            check_depth(path, self._release)
        self._check.enter(path, nlink)

    def end(self) -> None:
        try:
            self._check.end()
        except ManifestError as error:
            raise ManifestError(f"after line {self._number}: {error}") from None
