# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that file servers, desktops and running software leave in a software root, and that are no part of a release."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes

#: Snapshot directories and recycle bins of file servers, index directories, files that an NFS client has renamed because they were deleted
#: while open, and bytecode that Python is writing.
DEFAULT_IGNORED_NAMES = (
    *(".nfs[0-9a-fA-F]*", ".snapshot", ".snapshots", "~snapshot", "#snapshot", "@Recently-Snapshot", ".zfs"),
    *("#recycle", "@Recycle", "@eaDir", "lost+found", ".DS_Store", "*.pyc.[0-9]*"),
)
#: The option of a module. The documentation fragment options.ignore_names has the same default.
OPTION = {"type": "list", "elements": "str", "default": list(DEFAULT_IGNORED_NAMES)}

_MOST_PATTERNS = 100
_LONGEST_PATTERN = 255


class IgnoredNames:
    """Patterns of names, as the shell has them: ``*``, ``?`` and ``[...]``. A name is one component of a path."""

    def __init__(self, patterns: Sequence[str] = DEFAULT_IGNORED_NAMES) -> None:
        """Compile the patterns. Raises OverlayError if one of them is not the pattern of a name."""
        if len(patterns) > _MOST_PATTERNS:
            raise OverlayError(f"ignore_names has {len(patterns)} patterns: give at most {_MOST_PATTERNS}")
        # As Latin-1, each byte of a name is one character of the expression.
        texts = []
        for pattern in patterns:
            raw = to_bytes(pattern)
            if not raw or b"/" in raw or raw.count(b"*") > 4 or len(raw) > _LONGEST_PATTERN:
                raise OverlayError(
                    f"ignore_names: {show(raw)} is not the pattern of a name: give a name of at most {_LONGEST_PATTERN} bytes,"
                    " without a slash and with at most four *"
                )
            texts.append(fnmatch.translate(raw.decode("latin-1")))
        self._matches = re.compile("|".join(texts).encode("latin-1")).match if texts else None

    def __contains__(self, name: bytes) -> bool:
        """Return whether a name is ignored."""
        return self._matches is not None and self._matches(name) is not None

    def in_path(self, path: bytes) -> bool:
        """Return whether a component of a path is ignored."""
        return any(name in self for name in path.split(b"/") if name)
