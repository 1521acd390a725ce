# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the symbolic links that a view declares in addition to those of its releases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, show
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.manifest import sibling_key

#: Bytes of the longest target: PATH_MAX without the NUL byte at its end.
LONGEST_LINK_TARGET = 4095


@dataclass(frozen=True)
class Link:
    """A symbolic link that a view declares."""

    #: Path in the view, relative to its root.
    path: bytes
    #: Target, which need not exist.
    target: bytes


def declared_links(given: Iterable[tuple[bytes, bytes]]) -> tuple[Link, ...]:
    """Return the declared links in manifest order. ``given`` are pairs of a path in the view and a target.

    Raises OverlayError if a link is at the root of the view or below another link, a path has two targets, or a target is invalid.
    """
    found: dict[bytes, Link] = {}
    for path, target in given:
        link = Link(relative_path(path, "path of the link"), target)
        if not link.path:
            raise OverlayError(f"link '{show(path)}' would replace the root of the view: give a path below the root")
        if not target or len(target) > LONGEST_LINK_TARGET or b"\0" in target:
            raise OverlayError(
                f"target of link '{show(path)}' has {len(target)} bytes: give 1 to {LONGEST_LINK_TARGET} bytes without NUL"
            )
        if found.setdefault(link.path, link) != link:
            raise OverlayError(
                f"link '{show(path)}' is declared with two targets, {show(found[link.path].target)!r} and {show(target)!r}"
            )
    ordered = sorted(found.values(), key=lambda link: sibling_key(b"/" + link.path))
    for first, second in zip(ordered, ordered[1:]):
        if second.path.startswith(first.path + b"/"):
            raise OverlayError(f"link '{show(second.path)}' would be below link '{show(first.path)}'")
    return tuple(ordered)
