# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the symbolic links that a view declares in addition to those of its releases, and find those to releases on the software root."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Callable

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


@dataclass(frozen=True)
class ReleaseLink:
    """A symbolic link on the software root, at a place where there could be a release or a directory of releases."""

    #: Path below the software root.
    path: str
    target: str
    #: The path of the release that it leads to; None if it leads to none.
    release: str | None
    #: Why it is passed over; empty if it leads to a release.
    reason: str = ""
    #: The name of what it leads to on another software root; None if it leads to none.
    elsewhere: str | None = None

    def as_dict(self, prefix: str = "") -> dict[str, Any]:
        """Return the link for the result of a module. ``link`` is a link with the same meaning in a view that shows the release.

        ``prefix`` is that of ``entries.below_root``.
        """
        path, link = posixpath.join(prefix, self.path), None
        if self.release is not None:
            link = {"path": path, "target": posixpath.relpath(self.release, posixpath.dirname(self.path) or ".")}
        return {
            "path": path,
            "target": self.target,
            "release": None if self.release is None else posixpath.join(prefix, self.release),
            "elsewhere": self.elsewhere,
            "reason": self.reason or None,
            "link": link,
        }


def release_links(
    found: Iterable[tuple[str, str]],
    releases: Collection[str],
    roots: Collection[str],
    others: Mapping[str, str] | None = None,
    resolved: Callable[[str], str] = str,
) -> list[ReleaseLink]:
    """Return where symbolic links on a software root lead, sorted by path. Each is followed once.

    ``found`` are pairs of a path below the software root and a target. No directory above such a path is a symbolic link. ``releases``
    are the paths of the releases on the software root, and ``roots`` the absolute paths by which links may name the software root, the
    real one first. ``others`` has the paths of other software roots, by the names of these roots, and ``resolved`` returns the real
    path of one. It is called only if a link does not lead to a release, and once for each root, because an automounter may then mount the
    root. What is there is not known here.
    """
    targets = dict(found)
    listed = []
    known: Mapping[str, Collection[str]] | None = None
    for path, target in sorted(targets.items()):
        place = _below_root(path, target, roots)
        if place in releases:
            listed.append(ReleaseLink(path, target, place))
            continue
        if known is None:
            known = {str(name): (resolved(top), top) for name, top in (others or {}).items()}
        elsewhere = _on_another_root(path, target, roots, known)
        if elsewhere is not None:
            listed.append(ReleaseLink(path, target, None, elsewhere=elsewhere))
            continue
        if place is None:
            reason = f"it leads to {target}, which is outside of the software root"
        elif place in targets:
            reason = f"it leads to {place}, which is a symbolic link: let it lead to the release itself"
        else:
            reason = f"it leads to {place or '.'} on the software root, where there is no release"
        listed.append(ReleaseLink(path, target, None, reason))
    return listed


def _on_another_root(
    path: str, target: str, roots: Collection[str], others: Mapping[str, Collection[str]]
) -> str | None:
    """Return the name of what a link leads to on another software root, as its releases have it; None if it leads to none of them."""
    real = next(iter(roots), "/")
    place = posixpath.normpath("/" + posixpath.join(real, posixpath.dirname(path), target).lstrip("/"))
    found: tuple[int, str] | None = None
    for name, tops in others.items():
        for top in (one.rstrip("/") + "/" for one in tops):
            # Of two roots inside of each other, it is on the inner one.
            if place.startswith(top) and (found is None or len(top) > found[0]):
                found = len(top), f"{name}/{place[len(top) :]}"
    return found[1] if found else None


def _below_root(path: str, target: str, roots: Collection[str]) -> str | None:
    """Return the path below the software root that a link leads to, empty for the root itself; None if it leads out of the root."""
    if target.startswith("/"):
        # A path may begin with two slashes, and normpath keeps these.
        place = posixpath.normpath("/" + target.lstrip("/"))
        for root in roots:
            if (place + "/").startswith(root.rstrip("/") + "/"):
                return place[len(root.rstrip("/")) :].strip("/")
        return None
    place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if place == ".":
        return ""
    return None if place == ".." or place.startswith("../") else place
