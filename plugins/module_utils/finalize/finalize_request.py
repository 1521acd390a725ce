# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run is asked to do with an overlay, and what follows from that alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, containing_mount
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path

PASSES = ("copy_up", "readdir", "seal", "warm")
SEALS = ("auto", "offline", "kernel", "none")
STALE = ("report", "remove", "ignore")

MOST_WORKERS = 256
#: Default numbers of processes. Copying up contends for locks in the kernel: on XFS four processes took longer than two. With a file
#: server the processes mostly wait for its answers, several for each file.
WORKERS_HERE, WORKERS_FAR = 2, 8
#: File systems of the host itself that have anonymous device numbers, as network file systems do.
_HERE = frozenset((b"bcachefs", b"btrfs", b"erofs", b"overlay", b"ramfs", b"tmpfs", b"zfs"))


@dataclass(frozen=True)
class Wanted:
    """How entries are to be copied up."""

    #: The uid and gid that they get; None keeps theirs.
    owner: int | None
    group: int | None
    #: Whether the pass ``copy_up`` was chosen.
    copy_up: bool
    #: Whether files keep set-ID bits and capabilities when their owner or group changes. chown(2) clears them.
    keep_setid: bool
    #: Whether content may be copied if the overlay cannot copy metadata alone.
    copy_content: bool
    #: Whether to change nothing, and report what a run would do.
    check_mode: bool
    #: Whether the upper layer is to need nothing from the lower layers: all content is copied.
    detach: bool = False


@dataclass(frozen=True)
class Request:
    """What to do with the overlay at ``path``."""

    path: bytes
    #: Relative to the overlay's root; empty for the whole overlay.
    subtrees: tuple[bytes, ...]
    #: Some of PASSES.
    passes: frozenset[str]
    #: One of SEALS.
    seal: str
    allow_unmount: bool
    #: One of STALE.
    stale: str
    #: Directories up to this many levels below the root stay merged.
    merged_levels: int
    wanted: Wanted
    #: How many processes work at the same time; None for the default.
    workers: int | None
    #: How many seconds to wait for another run.
    patience: float

    @property
    def seals(self) -> bool:
        return "seal" in self.passes and self.seal != "none"


def check_numbers(workers: int | None, merged_levels: int) -> None:
    """Check the options of these names. Raises OverlayError if one is out of range."""
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise OverlayError(f"workers must be from 1 to {MOST_WORKERS}, not {workers}")
    if merged_levels < 0:
        raise OverlayError(f"merged_levels must be 0 or more, not {merged_levels}")


def check_detach(subtrees: Collection[bytes], passes: Collection[str], seal: str, merged_levels: int) -> None:
    """Check the options that are given together with ``detach``. Raises OverlayError if they leave a part of the overlay merged."""
    reasons = {
        "'subtrees' out": bool(subtrees),
        "'merged_levels' out": merged_levels > 0,
        "'passes' out, or name copy_up and seal among them": not {"copy_up", "seal"}.issubset(passes),
        f"'seal' out, or set it to offline, not {seal}": seal not in ("auto", "offline"),
    }
    for reason, applies in reasons.items():
        if applies:
            raise OverlayError(f"'detach' detaches a whole overlay, and no part of it may stay merged: leave {reason}")


def chosen_subtrees(given: Collection[bytes]) -> tuple[bytes, ...]:
    """Return the subtrees as sorted paths relative to the overlay, without those inside others.

    Raises OverlayError if one is the overlay itself, or no path below it.
    """
    found: list[bytes] = []
    for path in sorted({relative_path(one, "subtree") for one in given}):
        if not path:
            raise OverlayError(
                "a subtree must be a directory below the overlay's root: leave 'subtrees' out to finalize the whole overlay"
            )
        if not any(path.startswith(other + b"/") for other in found):
            found.append(path)
    return tuple(found)


def default_workers(lowers: Iterable[bytes], mounts: Sequence[Mount]) -> int:
    """Return how many processes finalize an overlay over these lower layers by default."""

    def is_here(path: bytes) -> bool:
        mount = containing_mount(mounts, path)
        return mount is not None and (mount.device[0] != 0 or mount.fstype in _HERE)

    return WORKERS_HERE if all(map(is_here, lowers)) else WORKERS_FAR
