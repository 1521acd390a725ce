# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Symbolic links that a view declares itself, besides those of its releases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key

#: Bytes of a target: PATH_MAX of the kernel without the NUL byte at its end.
TARGET_LIMIT = 4095


@dataclass(frozen=True)
class Link:
    """A symbolic link of the view."""

    #: Path within the view, relative to its root.
    path: bytes
    #: Any text; it need not lead anywhere.
    target: bytes


def declared_links(given: Iterable[tuple[bytes, bytes]]) -> tuple[Link, ...]:
    """Return the links, in the order in which their entries come, from pairs of a path within the view and a target.

    Raises OverlayError for a link at the root of the view, one inside of another, two at one path, and an impossible target.
    """
    found: dict[bytes, Link] = {}
    for path, target in given:
        link = Link(relative_path(path, "path of the link"), target)
        if not link.path:
            raise OverlayError(f"link '{show(path)}' would be the root of the view: give the path of the link itself")
        if not target or len(target) > TARGET_LIMIT or b"\0" in target:
            raise OverlayError(
                f"target of link '{show(path)}' has {len(target)} bytes: it has to have 1 to {TARGET_LIMIT}, none of them NUL"
            )
        if found.setdefault(link.path, link) != link:
            raise OverlayError(
                f"link '{show(path)}' is declared with two targets, {show(found[link.path].target)!r} and {show(target)!r}"
            )
    ordered = sorted(found.values(), key=lambda link: sibling_key(b"/" + link.path))
    for first, second in zip(ordered, ordered[1:]):
        if second.path.startswith(first.path + b"/"):
            raise OverlayError(f"link '{show(second.path)}' would be inside of link '{show(first.path)}'")
    return tuple(ordered)
