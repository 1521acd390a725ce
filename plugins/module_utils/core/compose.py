# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Composing a view: the manifests of several releases, each under its prefix, as one stream of entries."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from typing import Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.core.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.manifest import sibling_key
from ansible_collections.renderfarm.overlay.plugins.module_utils.core.model import (
    CAPABILITY_XATTR,
    Entry,
    Placement,
)

IMPLIED_MODE = stat.S_IFDIR | 0o755

Reader = Callable[[Placement], Iterator[Entry]]


def in_order(placements: Sequence[Placement]) -> list[Placement]:
    """Return the placements in the order in which their entries come. Raises OverlayError when two overlap."""
    ordered = sorted(placements, key=lambda placement: sibling_key(b"/" + placement.at))
    for first, second in zip(ordered, ordered[1:]):
        if not first.at or second.at == first.at or second.at.startswith(first.at + b"/"):
            raise OverlayError(
                f"release {second.record.release} at '/{show(second.at)}' would appear inside of release"
                f" {first.record.release} at '/{show(first.at)}': give each release of a view a place of its own with 'at'"
            )
    return ordered


def compose(
    placements: Sequence[Placement],
    read: Reader,
    owner: int | None = None,
    group: int | None = None,
) -> Iterator[Entry]:
    """Yield the entries of a view, in manifest order, starting with its root.

    ``read`` opens the manifest of a placement; one is open at a time.
    """
    for part in parts(placements, read, owner, group):
        if isinstance(part, Placement):
            yield from placed(part, read(part), owner, group)
        else:
            yield part


def parts(
    placements: Sequence[Placement], read: Reader, owner: int | None = None, group: int | None = None
) -> Iterator[Entry | Placement]:
    """Yield what a view is made of, in manifest order: its releases, and the directories above them that no manifest describes.

    Those are owned by root (or ``owner`` and ``group``), have mode 0755 and the latest mtime of the releases' roots below them, so
    that the same releases give the same view on every host.
    """
    ordered = in_order(placements)
    implied = _implied_directories(ordered, read, owner, group)
    emitted: set[bytes] = set()
    if not ordered:
        yield _implied_directory(b"/", 0, 0, owner, group)
    for placement in ordered:
        for path in _ancestors(placement.at):
            if path not in emitted:
                emitted.add(path)
                yield implied[path]
        yield placement


def placed(placement: Placement, entries: Iterator[Entry], owner: int | None, group: int | None) -> Iterator[Entry]:
    """Yield the entries of one release as they stand in the view: paths below ``at``, content below ``source``."""
    base = b"/" + placement.at if placement.at else b""
    source = placement.source
    for path, mode, size, nlink, uid, gid, mtime_ns, target, is_hardlink, xattrs in entries:
        here = (base + path if path != b"/" else base) or b"/"
        if target is not None:
            if is_hardlink:
                target = base + target
            elif stat.S_ISREG(mode):
                target = (source + path).lstrip(b"/")
        yield Entry(
            here,
            mode,
            size,
            nlink,
            uid if owner is None else owner,
            gid if group is None else group,
            mtime_ns,
            target,
            is_hardlink,
            tuple(pair for pair in xattrs if pair[0] == CAPABILITY_XATTR) if xattrs else xattrs,
        )


def _ancestors(at: bytes) -> list[bytes]:
    """Return the paths of the directories above a place in the view, from the root down; none for the root itself."""
    if not at:
        return []
    parts = at.split(b"/")
    return [b"/" + b"/".join(parts[:depth]) for depth in range(len(parts))]


def _implied_directories(
    ordered: Sequence[Placement], read: Reader, owner: int | None, group: int | None
) -> dict[bytes, Entry]:
    latest: dict[bytes, int] = {}
    children: dict[bytes, set[bytes]] = {}
    for placement in ordered:
        path = b"/" + placement.at
        ancestors = _ancestors(placement.at)
        if not ancestors:
            continue
        mtime_ns = next(read(placement)).mtime_ns
        for parent, child in zip(ancestors, [*ancestors[1:], path]):
            latest[parent] = max(latest.get(parent, mtime_ns), mtime_ns)
            children.setdefault(parent, set()).add(child)
    return {path: _implied_directory(path, latest[path], len(children[path]), owner, group) for path in latest}


def _implied_directory(path: bytes, mtime_ns: int, subdirectories: int, owner: int | None, group: int | None) -> Entry:
    return Entry(path, IMPLIED_MODE, 0, 2 + subdirectories, owner or 0, group or 0, mtime_ns, None, False, ())
