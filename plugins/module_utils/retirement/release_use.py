# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what uses releases on this host: views, data images, and processes.

A process uses a release if its working directory, its root, its program, or a file that it has open or mapped is in the release. It may be
reached through a view in any mount namespace, through an overlay that was detached, or on the software root itself. The kernel says the
mount and the path of each such file. No file is looked up on a data layer, whose server may not answer.

Where it is unknown what a process uses in a view, it counts as using each release that the view shows.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces, still_paths
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress, no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import Mount, overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import is_inside, to_bytes, to_text
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import Process
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached, strangers
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.host_generations import (
    HostGeneration,
    HostGenerations,
    state_directory,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_places import (
    PlacedRelease,
    releases_at,
    within,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_roots import ReleaseRoot

#: How a process uses a file, by the name of the link in /proc.
_WAYS = {b"cwd": "working directory", b"root": "root", b"exe": "program"}
_OPEN = "open"
_MAPPED = "mapped"
UNKNOWN = "unknown"

#: How many paths of a process are returned.
_MOST_PATHS = 10

_Everywhere = Sequence[tuple["int | None", Sequence[Mount]]]


@dataclass(frozen=True)
class _Tree:
    """A mount through which releases are reached, and how a path on it leads to them."""

    #: Its path as links in /proc have it; empty for a detached mount, whose links begin at its root.
    path: bytes
    #: The directory of the file system at its root, and the one that is the root of the view or the software root.
    root: bytes
    top: bytes
    #: The identities that the software root may have; none if it may have any, and for a view.
    identities: frozenset[str] = frozenset()
    #: Those of them that the names of its releases begin with.
    prefixes: frozenset[str] = frozenset()

    @property
    def has_prefix(self) -> bool:
        """Whether the names of all of its releases begin with the name of the software root."""
        return bool(self.prefixes) and self.prefixes == self.identities

    #: The generations that it may show; none for a software root.
    generations: tuple[HostGeneration, ...] = ()

    def inside(self, target: bytes) -> bytes | None:
        """Return the path of the target of a link, relative to the top; None if it is outside. Raises ValueError if it is unknown."""
        rest = target
        if self.path:
            if not is_inside(target, self.path):
                raise ValueError(target)
            rest = target[len(self.path.rstrip(b"/")) :]
        place = posixpath.normpath(b"/" + self.root.strip(b"/") + b"/" + rest.strip(b"/"))
        place = b"/" + place.lstrip(b"/")
        return place[len(self.top.rstrip(b"/")) :].strip(b"/") if is_inside(place, self.top) else None


@dataclass
class ReleaseUser:
    """A process that uses a release through one view, or on the software root (``view`` is None then)."""

    process: Process
    view: str | None
    generation: str | None
    #: How it uses each path in the release; ``.`` is the release itself.
    ways: dict[bytes, set[str]] = field(default_factory=dict)
    #: Whether it is unknown what it uses.
    is_unknown: bool = False

    def at(self, place: bytes) -> dict[str, Any] | None:
        """Return the user as the module returns it, with what it uses at a path in the release; None if it uses nothing there.

        An empty path is the whole release.
        """
        paths = sorted(path for path in self.ways if within(path, place) is not None)
        how = set().union(*(self.ways[path] for path in paths), [UNKNOWN] if self.is_unknown else [])
        if not how:
            return None
        return {
            **self.process.as_dict(),
            "view": self.view,
            "generation": self.generation,
            "how": sorted(how),
            "paths": [show(path) for path in paths[:_MOST_PATHS]],
            "path_count": len(paths),
        }


#: A release, the generation that shows it (None on a software root), and a path in it.
_Found = tuple[str, "HostGeneration | None", bytes]


class HostUse:
    """What is known of the releases on this host. ``roots`` are software roots, besides those that are data layers."""

    def __init__(
        self, state_dirs: Iterable[str], roots: Sequence[ReleaseRoot], identities: Iterable[str], with_processes: bool
    ) -> None:
        #: The identities of the software roots whose releases count; none if those of all do.
        self._identities = frozenset(identities)
        self._given = roots
        self.generations = HostGenerations()
        self.users: dict[str, dict[tuple[Process, str | None, str | None], ReleaseUser]] = {}
        #: Sentences about processes that may use any release.
        self.unknown = self.generations.unknown
        observed = detached.look(forget=False) if with_processes else None
        self._everywhere: _Everywhere = observed.live if observed else list(namespaces.everywhere())
        self._own = self._everywhere[0][1]
        self.state_dirs = list(dict.fromkeys((*state_dirs, *self._mounted_state_dirs())))
        self.generations.read(self.state_dirs)
        #: By the ID of the mount. Several software roots may be on one mount.
        self._trees: dict[int, list[_Tree]] = {}
        #: The path of each software root, with the identities that it may have; none if it may have any.
        self._roots: dict[bytes, set[str]] = {os.fsencode(root.path): set() for root in roots if not root.prefix}
        self._note_overlays()
        self._note_roots()
        if observed:
            self._note_detached(observed)
            self._note_users(observed)
            self._note_strangers(observed)

    def _mounted_state_dirs(self) -> Iterator[str]:
        """Yield the state directories of the views that are mounted here."""
        for mount in self._own:
            found = state_directory(overlay_layers(mount).lower) if mount.fstype == b"overlay" else None
            if found and still_paths.is_local(os.fsencode(found), self._own):
                yield found

    def _note_overlays(self) -> None:
        for pid, mounts in self._everywhere:
            prefix = b"" if pid is None else _root_of(pid)
            for mount in mounts:
                if mount.fstype != b"overlay" or mount.id in self._trees:
                    continue
                layers = overlay_layers(mount)
                shown = self.generations.of_layers(layers.lower, mounts, pid)
                for generation in shown:
                    generation.mounted = True
                    if pid is None and mount.root in (b"/", generation.top):
                        generation.mountpoints.append(mount.path)
                if shown:
                    self._trees[mount.id] = [_tree_of(prefix + mount.path, mount.root, shown)]
                    for root in _software_roots(layers, self.state_dirs):
                        self._note_identities(root, {one.root for generation in shown for one in generation.placed})

    def _note_identities(self, root: bytes, identities: set[str]) -> None:
        known = self._roots.setdefault(root, identities)
        # A root that was given may have any.
        if known:
            known |= identities

    def _note_roots(self) -> None:
        """Note the mounts that show a software root, and overlays that have one as an ordinary lower layer."""
        roots: dict[bytes, set[str]] = {}
        for path, identities in self._roots.items():
            place = still_paths.resolved(path, self._own)
            # Of two paths to one root, one that was given has no identities.
            roots[place] = roots.get(place, identities) and (roots.get(place, set()) | identities)
        prefixes = self._note_prefixes(roots)
        self._roots = roots
        #: The device and the directory on it of each software root, in any mount namespace, with its paths.
        tops: dict[tuple[tuple[int, int], bytes], list[bytes]] = {}
        for _pid, mounts in self._everywhere:
            for root in roots:
                mount = mountinfo.containing_mount(mounts, root)
                if mount and mount.fstype != b"autofs":
                    inner = root[len(mount.path.rstrip(b"/")) :]
                    tops.setdefault((mount.device, mount.shown.rstrip(b"/") + inner or b"/"), []).append(root)
        for pid, mounts in self._everywhere:
            prefix = b"" if pid is None else _root_of(pid)
            for mount in mounts:
                if mount.id in self._trees:
                    continue
                found = []
                for (device, top), paths in tops.items():
                    if mount.device == device and (is_inside(mount.shown, top) or is_inside(top, mount.shown)):
                        known = [roots[path] for path in paths]
                        identities = set().union(*known) if all(known) else set()
                        names = set().union(*(prefixes.get(path, ()) for path in paths))
                        found.append(
                            _Tree(prefix + mount.path, mount.shown, top, frozenset(identities), frozenset(names))
                        )
                if found:
                    self._trees[mount.id] = found
                if mount.fstype == b"overlay":
                    self._note_foreign(mount, pid, prefix)

    def _note_prefixes(self, roots: dict[bytes, set[str]]) -> dict[bytes, set[str]]:
        """Add the software roots whose releases have names that begin with theirs. Return the names of these roots by path.

        A view over several roots does not say which data layer is which root, so a data layer may have the identity of each of them. Here
        it is known.
        """
        prefixes: dict[bytes, set[str]] = {}
        for root in self._given:
            if root.prefix:
                place = still_paths.resolved(os.fsencode(root.path), self._own)
                prefixes.setdefault(place, set()).add(root.prefix)
        every = set().union(*prefixes.values())
        for place, names in prefixes.items():
            known = roots.get(place, names)
            # A root that was also given without a name may have any identity.
            roots[place] = known and (known - every) | names
        return prefixes

    def _note_foreign(self, mount: Mount, pid: int | None, prefix: bytes) -> None:
        """Note an overlay that shows no generation, if it has a software root among its layers."""
        layers = overlay_layers(mount)
        if set(layers.lower).intersection(self._roots):
            self._trees[mount.id] = [_Tree(prefix + mount.path, mount.root, b"/")]
        elif set(layers.data).intersection(self._roots):
            self.unknown.append(
                f"the overlay at {show(mount.path)}{mountinfo.in_namespace(pid)} has the layer {show(layers.lower[0])}, and it is unknown"
                " which releases that shows"
            )

    def _note_detached(self, observed: detached.Observed) -> None:
        for record, _users in observed.recorded:
            shown = self.generations.of_layers(record.lower, self._own, None)
            for mount_id in record.mounts if shown else ():
                self._trees.setdefault(mount_id, [_tree_of(b"", shown[0].top, shown)])

    def _note_users(self, observed: detached.Observed) -> None:
        for mount_id, tree in ((mount_id, tree) for mount_id, trees in self._trees.items() for tree in trees):
            #: What is at each path. Most processes use the same files.
            known: dict[bytes, list[_Found] | None] = {}
            for process, uses in observed.uses.get(mount_id, {}).items():
                users: dict[tuple[str, HostGeneration | None], ReleaseUser] = {}
                for link, target in uses:
                    if target not in known:
                        known[target] = self._found_at(tree, target)
                    found = known[target]
                    if found is None:
                        self._note_unknown(process, tree.generations)
                        continue
                    for release, generation, rest in found:
                        user = users.get((release, generation))
                        if user is None:
                            user = users[release, generation] = self._user(process, release, generation)
                        user.ways.setdefault(rest or b".", set()).add(_way_of(link))

    def _found_at(self, tree: _Tree, target: bytes) -> list[_Found] | None:
        """Return the releases at the target of a link, each with the path in it; None if it is unknown what is there."""
        try:
            inside = tree.inside(target)
        except ValueError:
            return None
        if inside is None:
            return []
        if not tree.generations:
            if self._identities and tree.identities and not self._identities & tree.identities:
                return []
            return [(release, None, rest) for release, rest in self._found_on_root(tree, inside)]
        return [
            (one.release, generation, within(inside, one.at) or b"")
            for generation in tree.generations
            for one in generation_releases(generation, inside)
            if self._counts(one)
        ]

    def _counts(self, one: PlacedRelease) -> bool:
        """Return whether a release is of the software roots that are asked for."""
        return not self._identities or one.root in self._identities

    def _found_on_root(self, tree: _Tree, path: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the releases that a path on a software root may be in, each with the path in it."""
        placed = [one for generation in self.generations.all for one in generation.placed if self._counts(one)]
        parts = path.split(b"/")
        above = [b"/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        names: dict[str, bytes] = {}
        for prefix in tree.prefixes:
            names.update((one.release, one.source) for one in placed if one.root == prefix)
            # A release that no view on this host shows is recognised by its path.
            for source in above:
                names.setdefault(f"{prefix}/{to_text(source)}", source)
        if not tree.has_prefix:
            names.update((one.release, one.source) for one in placed if one.root not in tree.prefixes)
            for source in above:
                names.setdefault(to_text(source), source)
        for release, source in names.items():
            rest = within(path, source)
            if rest is not None:
                yield release, rest

    def _note_unknown(self, process: Process, generations: Collection[HostGeneration]) -> None:
        for generation in generations:
            for one in filter(self._counts, generation.placed):
                self._user(process, one.release, generation).is_unknown = True

    def _user(self, process: Process, release: str, generation: HostGeneration | None) -> ReleaseUser:
        view, generation_id = (generation.view, generation.id) if generation else (None, None)
        users = self.users.setdefault(release, {})
        new = ReleaseUser(process, view, generation_id)
        return users.setdefault((process, view, generation_id), new)

    def _note_strangers(self, observed: detached.Observed) -> None:
        """Note the users of overlays that are mounted nowhere and have no record. What they use there is unknown."""
        live = [mount for _pid, mounts in observed.live for mount in mounts]
        for process, mount in strangers.overlays(observed.unlisted, live):
            if mount is None:
                self.unknown.append(
                    f"{process.name} ({process.pid}) has files of an overlay that is mounted nowhere any more; its releases are unknown"
                )
            else:
                shown = self.generations.of_layers(overlay_layers(mount).lower, self._own, None)
                self._note_unknown(process, shown)

    def releases(self) -> list[str]:
        """Return the releases that the generations on this host show."""
        placed = (one for generation in self.generations.all for one in generation.placed)
        return sorted({one.release for one in placed if self._counts(one)})

    def of_release(self, release: str) -> dict[str, Any]:
        """Return what uses a release: ``views``, ``data_images`` and ``processes``."""
        views = []
        for generation in self.generations.all:
            places = [one.at for one in generation.placed if one.release == release and self._counts(one)]
            if places:
                views.append(
                    {
                        "view": generation.view,
                        "generation": generation.id,
                        "state": generation.state,
                        "mounted": generation.mounted,
                        "mountpoints": [show(path) for path in generation.mountpoints],
                        "at": [show(b"/" + place) for place in places],
                    }
                )
        users = self._users_at(release, b"")
        return {
            "release": release,
            "in_use": bool(users or self.unknown),
            "shown": any(view["mounted"] for view in views),
            "views": views,
            "data_images": list(self._data_images(release)),
            "processes": users,
        }

    def _users_at(self, release: str, place: bytes) -> list[dict[str, Any]]:
        """Return the processes that use a path in a release, as the module returns them."""
        users = sorted(self.users.get(release, {}).values(), key=lambda user: (user.process, user.view or ""))
        return [found for found in (user.at(place) for user in users) if found]

    def _data_images(self, release: str) -> Iterator[dict[str, Any]]:
        for state_dir in self.state_dirs:
            for image in installing.installed(state_dir).values():
                if image.release == release and (not self._identities or image.root_name in self._identities):
                    yield {"id": image.id, "kind": image.kind, "bytes_on_disk": image.bytes_on_disk}

    def of_path(self, path: str) -> dict[str, Any]:
        """Return the release and the file at a path in a view or on a software root, where it appears in views, and what uses it."""
        place = still_paths.resolved(os.fsencode(path), self._own)
        found: dict[str, Any] = {
            "path": path,
            "release": None,
            "root": None,
            "source": None,
            "places": [],
            "processes": [],
        }
        shown = self._release_behind(place)
        if shown is None:
            return found
        one, source = shown
        found.update(release=one.release, root=one.root, source=show(source))
        found["processes"] = self._users_at(one.release, within(source, one.source) or b"")
        for generation in self.generations.all:
            for placed in generation.placed:
                there = placed.place_of(source) if (placed.root, placed.release) == (one.root, one.release) else None
                if there is not None and self._shows(generation, there, source):
                    found["places"].append(
                        {
                            "view": generation.view,
                            "generation": generation.id,
                            "state": generation.state,
                            "path": show(b"/" + there),
                            "paths": [show(os.path.join(mountpoint, there)) for mountpoint in generation.mountpoints],
                        }
                    )
        return found

    def _shows(self, generation: HostGeneration, path: bytes, source: bytes) -> bool:
        """Return whether a generation shows a file of the data layer at a path. It is not known of images, which count as showing it."""
        place = generation.place_in_layer(path)
        if place is None:
            return True
        return os.path.lexists(place) and generation.source_of(path) in (None, source)

    def _release_behind(self, place: bytes) -> tuple[PlacedRelease, bytes] | None:
        """Return the release at an absolute path, and its path on the software root; None if there is none."""
        mount = mountinfo.containing_mount(self._own, place)
        for tree in self._trees.get(mount.id, ()) if mount else ():
            inside = tree.inside(place)
            found = None if inside is None else self._release_in(tree, inside)
            if found:
                return found
        return None

    def _release_in(self, tree: _Tree, inside: bytes) -> tuple[PlacedRelease, bytes] | None:
        """Return the release at a path in a tree, and its path on the software root; None if there is none."""
        for generation in tree.generations:
            redirect = generation.source_of(inside)
            for one in generation_releases(generation, inside):
                source = redirect if redirect is not None else one.source_of(inside)
                if source is not None:
                    return one, source
        if not tree.generations:
            for generation in self.generations.all:
                for one in generation.placed:
                    is_other = tree.has_prefix and one.root not in tree.prefixes
                    if within(inside, one.source) is not None and not is_other:
                        return one, inside
        return None


def generation_releases(generation: HostGeneration, path: bytes) -> list[PlacedRelease]:
    """Return the releases that a path in a generation may belong to. The layer is asked if several are merged there."""
    found = releases_at(generation.placed, path, None)
    return found if len(found) < 2 else releases_at(found, path, generation.source_of(path))


def _way_of(link: bytes) -> str:
    """Return how a process uses the target of a link in /proc."""
    return _MAPPED if b"/map_files/" in link else _WAYS.get(posixpath.basename(link), _OPEN)


def _tree_of(path: bytes, root: bytes, shown: Sequence[HostGeneration]) -> _Tree:
    return _Tree(path, root, shown[0].top, generations=tuple(shown))


def _software_roots(layers: mountinfo.OverlayLayers, state_dirs: Collection[str]) -> Iterator[bytes]:
    """Yield the data layers of a view that are no data images; for the strategy redirect, the ordinary layers after the first."""
    places = [to_bytes(installing.data_directory(state_dir)) for state_dir in state_dirs]
    for layer in layers.data or layers.lower[1:]:
        if not any(is_inside(layer, place) for place in places):
            yield layer


def _root_of(pid: int) -> bytes:
    """Return the root directory of a process as links in /proc have it, without a slash at its end."""
    try:
        return os.readlink(b"/proc/%d/root" % pid).rstrip(b"/")
    except OSError:
        return b""


def observe(
    state_dirs: Iterable[str],
    roots: Sequence[ReleaseRoot],
    identities: Iterable[str],
    with_processes: bool,
    progress: Progress = no_progress,
) -> HostUse:
    """Return what is known of the releases on this host. Raises OverlayError if the state directory is not trustworthy.

    ``roots`` are software roots, besides those that are data layers. Only releases of software roots with one of the ``identities`` count;
    without any, those of all do.
    """
    found = HostUse(state_dirs, roots, identities, with_processes)
    progress()
    return found
