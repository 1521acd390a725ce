# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines of fstab(5): make one, read its fields, and edit those of a mountpoint. All other lines are kept byte for byte.

mount(8) (libmount), getmntent(3) and systemd's generator do not undo the same escapes. All of them undo those of a space, a tab, a
newline and a backslash, and take '#' within a line as it is. A line that begins with '#' is a comment. Only libmount undoes ``\043``, so
'#' is escaped at the start of a line and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import unescape


@dataclass(frozen=True)
class FstabFields:
    """The fields of a line, with their escapes undone."""

    source: bytes
    path: bytes
    fstype: bytes = b""
    options: tuple[bytes, ...] = ()


def make_line(source: bytes, path: bytes, fstype: bytes, options: bytes) -> bytes:
    """Return the line of a mount that is neither dumped nor checked at boot. ``options`` are separated by commas."""
    fields = b" ".join(_escaped(field) for field in (source, path, fstype, options))
    start = b"\\043" + fields[1:] if fields.startswith(b"#") else fields
    return start + b" 0 0\n"


def _escaped(field: bytes) -> bytes:
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % match.group()[0], field)


def read_line(line: bytes) -> FstabFields | None:
    """Return the fields of a line; None for a comment, an empty line, and one without a mountpoint."""
    fields = [field for field in re.split(rb"[ \t]+", line.rstrip(b"\r\n")) if field]
    if len(fields) < 2 or fields[0].startswith(b"#"):
        return None
    source, path, fstype, options = (unescape(field) for field in (*fields[:4], b"", b"")[:4])
    return FstabFields(source, path, fstype, tuple(options.split(b",")) if options else ())


def is_of(line: bytes, path: bytes) -> bool:
    """Return whether a line is for the mountpoint ``path``; a slash at the end of either is ignored."""
    fields = read_line(line)
    return fields is not None and fields.path.rstrip(b"/") == path.rstrip(b"/")


def split(text: bytes) -> list[bytes]:
    """Return the lines of a text, each with its newline; the last one may lack it."""
    return re.findall(rb"[^\n]*\n|[^\n]+", text)


def join(kept: Iterable[bytes], added: Iterable[bytes] = ()) -> bytes:
    """Return the text of the lines ``kept``, followed by those ``added``."""
    before, after = b"".join(kept), b"".join(added)
    if after and before and not before.endswith(b"\n"):
        before += b"\n"
    return before + after


def replaced(text: bytes, path: bytes, line: bytes | None) -> bytes:
    """Return a text with ``line`` as the one line for the mountpoint ``path``, or with no such line if it is None.

    The first line for the mountpoint is replaced, and further ones are removed. Without one, ``line`` is added at the end.
    """
    kept: list[bytes] = []
    missing = line
    for present in split(text):
        if not is_of(present, path):
            kept.append(present)
        elif missing is not None:
            kept.append(missing)
            missing = None
    return join(kept, () if missing is None else (missing,))
