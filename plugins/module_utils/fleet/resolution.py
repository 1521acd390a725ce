# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Resolve the views of many hosts once: find what is the same for all of them, and choose the releases."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import data_choice, view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.image_names import IMAGE_SUFFIX
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.versions import is_prerelease
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations

#: The keys of a view that decide what it shows. They are the same on all hosts that declare it.
SHARED = (
    *(
        "releases",
        "query",
        "links",
        "release_links",
        "root_name",
        "pattern",
        "ready_marker",
        "version_order",
        "prereleases",
    ),
    *("ignore_names", "exclude", "roots"),
    *("checksum", "linger", "sample", "build"),
    *("owner", "group", "owner_map", "group_map", "mode", "keep_setid", "on_conflict", "xattr_namespace"),
)
#: The keys that say how the host that scans reaches the software root and the stores.
_OF_SCANNING = ("scan_root", "scan_store", "scan_image_store")
#: Hosts that a message names.
_NAMED = 3
#: Releases that messages name.
_NAMED_RELEASES = 10


@dataclass(frozen=True)
class Listing:
    """What one listing of releases is made with: the parameters of release_info."""

    root: str
    root_name: str
    store: str
    pattern: str
    ready_marker: str
    version_order: str
    ignore_names: tuple[str, ...]
    prefix: str = ""
    package: str = ""
    #: The name and the path of each other software root.
    others: tuple[tuple[str, str], ...] = ()
    #: Whether it has to be a mountpoint.
    mounted: bool = False

    @classmethod
    def of(cls, view: Mapping[str, Any]) -> list[Listing]:
        """Return the listings that a view chooses its releases from: one for each software root."""
        shared = (view["version_order"], tuple(view["ignore_names"]))
        # The playbook mounts these on a host that it deploys to. A host outside of the run may be the file server.
        mounted = view.get("mounted_roots", ())
        if not view["roots"]:
            place = (view["scan_root"], view["root_name"], view["scan_store"])
            return [
                cls(
                    *place,
                    view["pattern"],
                    view["ready_marker"],
                    *shared,
                    mounted=_normal(view["scan_root"]) in mounted,
                )
            ]
        return [
            cls(
                *(root["path"], root["name"], view["scan_store"], root["pattern"], marker_of(view, root), *shared),
                prefix=root["name"],
                package=root["name"],
                others=tuple((one["name"], one["path"]) for one in view["roots"] if one is not root),
                mounted=_normal(root["path"]) in mounted,
            )
            for root in view["roots"]
        ]

    def options(self) -> dict[str, Any]:
        """Return the parameters of release_info."""
        given = {name: value for name, value in vars(self).items() if name != "others"}
        return {**given, "ignore_names": list(self.ignore_names), "named_roots": dict(self.others)}

    def scan_options(self) -> dict[str, Any]:
        """Return the parameters of release_manifest that it has in common with release_info."""
        return {name: value for name, value in self.options().items() if name not in _OF_LISTING}


def _normal(path: str) -> str:
    """Return a path without the slashes that make no difference."""
    return posixpath.normpath(path)


#: The parameters of release_info that release_manifest does not have.
_OF_LISTING = ("pattern", "version_order", "package", "named_roots", "mounted")


def marker_of(view: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return the ready marker of releases of one of several software roots: its own, or that of the view."""
    marker: str = view["ready_marker"] if root["ready_marker"] is None else root["ready_marker"]
    return marker


def host_list(hosts: Sequence[str]) -> str:
    """Return hosts for a message: the first of them, and how many there are."""
    more = f" and {len(hosts) - _NAMED} more" if len(hosts) > _NAMED else ""
    return ", ".join(hosts[:_NAMED]) + more


def problems_of_hosts(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each problem of a declaration once, with the hosts that have it unless all have it."""
    hosts_of: dict[str, list[str]] = {}
    for host, problems in found.items():
        for problem in problems:
            hosts_of.setdefault(problem, []).append(host)
    return [
        problem if len(hosts) == len(found) else f"{problem} (on {host_list(hosts)})"
        for problem, hosts in hosts_of.items()
    ]


def nothing_declared(declared: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is wrong if no host declares a view, or the chosen view. ``declared`` is what declared_views returned on each host."""
    found = list(declared)
    names = sorted({name for one in found for name in one.get("names", ())})
    chosen = next((one["chosen"] for one in found if one.get("chosen")), "")
    if not names:
        if not any(one.get("problems") for one in found):
            yield "no host of this run declares a view: overlay_views lists the views of a host"
    elif chosen and chosen not in names:
        yield f"overlay_view: no host of this run has a view {chosen}; the views are {', '.join(names)}"


def shared_views(
    declared: Mapping[str, Sequence[Mapping[str, Any]]], scanning: str, mounted_root: str = ""
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return each view that some host is to mount, once, and the differences between hosts that cannot be.

    ``declared`` has the completed views of each host. ``scanning`` is the host that lists and scans: the paths there are taken from its own
    declaration of a view if it has one, else from that of the first host. A view that names a generation is not resolved. ``mounted_root``
    is the software root of views over one root that the playbook mounts on the host that scans; empty if it mounts none.
    """
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    problems: dict[str, None] = {}
    chosen: dict[str, dict[str, Any]] = {}
    for host, views in sorted(declared.items(), key=lambda item: item[0] != scanning):
        for view in views:
            if view["state"] != "mounted" or view["generation"]:
                continue
            name = view["name"]
            if name not in first:
                first[name] = host, view
                chosen[name] = {key: view[key] for key in ("name", *SHARED, *_OF_SCANNING)}
                mounted = [root["path"] for root in view["roots"] if root["source"] and scanning in declared]
                mounted += [mounted_root] if mounted_root else []
                chosen[name].update(data_images=[], data_required=False, mounted_roots=[*map(_normal, mounted)])
            _add_data_images(chosen[name], view["data_images"])
            other, known = first[name]
            for key in SHARED:
                if _content(view, key) != _content(known, key):
                    problems[
                        f"view {name}: {key} differs between hosts ({other} and {host}): a view shows the same on all hosts, so give views"
                        " that differ names of their own"
                    ] = None
    return list(chosen.values()), list(problems)


#: The keys of a software root that may differ between hosts.
_OF_MOUNT = ("path", *view_roots.MOUNT_KEYS)


def _content(view: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key as far as it decides what a view shows. Hosts may have a software root at different paths."""
    if key == "roots":
        return [{name: value for name, value in root.items() if name not in _OF_MOUNT} for root in view["roots"]]
    return view[key]


def _add_data_images(chosen: dict[str, Any], kind: str) -> None:
    """Add the data images that one host wants for a view. Hosts may differ in this, so the lock has all kinds that some host wants."""
    if kind == data_choice.NONE:
        return
    wanted = data_choice.EVERYTHING if kind == data_choice.ONLY else kind
    chosen["data_images"] = sorted({*chosen["data_images"], wanted})
    chosen["data_required"] = chosen["data_required"] or kind == data_choice.ONLY


#: Chooses from listed releases by a query: the filter select_releases.
Select = Callable[..., "list[dict[str, Any]]"]


@dataclass(frozen=True)
class Choice:
    """The releases of one view, and why there are none."""

    releases: tuple[dict[str, Any], ...] = ()
    #: Paths of the releases that have no manifest yet.
    unscanned: tuple[str, ...] = ()
    problem: str = ""
    #: All symbolic links of the view besides those of its releases.
    links: tuple[dict[str, str], ...] = ()
    #: A sentence for each of the first links to releases that the view leaves out.
    left_out: tuple[str, ...] = ()


def choose(
    view: Mapping[str, Any],
    listed: Sequence[Mapping[str, Any]],
    select: Select,
    links: Sequence[Mapping[str, Any]] = (),
) -> Choice:
    """Return the releases and links that a view shows. ``listed`` and ``links`` are what release_info returned."""
    query, order = view["query"], view["version_order"]
    if view["roots"]:
        # Releases without a manifest have no root yet.
        listed = [{**one, "root": one["path"].partition("/")[0]} for one in listed]
    if query:
        chosen = select(listed, query, prereleases=view["prereleases"], order=order)
        releases = [{"release": one["path"]} for one in chosen]
    else:
        releases = list(view["releases"])
    if view["roots"]:
        try:
            releases = [view_roots.release_of_root(view["roots"], one) for one in releases]
        except OverlayError as error:
            return Choice(problem=str(error))
    if view["exclude"]:
        releases = [{**one, "exclude": [*one.get("exclude", ()), *view["exclude"]]} for one in releases]
    if not releases:
        early = 0 if view["prereleases"] else sum(is_prerelease(one["version"], order) for one in listed)
        also = f", or one of the {early} pre-releases among them meant (prereleases: true)" if early else ""
        return Choice(
            problem=f"the query {query} chooses none of the {len(listed)} releases below {_shown_roots(view)}: is it mounted, and are the"
            f" releases ready{also}?"
        )
    known = {one["path"]: one for one in listed}
    paths = list(dict.fromkeys(one["release"] for one in releases))
    gone = sorted(path for path in paths if path in known and known[path]["exists"] is False)
    if gone:
        return Choice(
            problem=f"these releases have a manifest, but are not on the software root {_shown_roots(view)} any more:"
            f" {', '.join(gone)}; restore them, or take them out of the view"
        )
    unscanned = tuple(sorted(path for path in paths if path not in known or known[path]["manifest"] is None))
    followed, lost = _followed(listed, links)
    shown, left_out = _chosen_links(view, releases, followed)
    left_out = [*(f"view {view['name']}: {one}" for one in lost), *left_out]
    return Choice(tuple(releases), unscanned, links=tuple(shown), left_out=tuple(left_out))


def _shown_roots(view: Mapping[str, Any]) -> str:
    return ", ".join(root["path"] for root in view["roots"]) or str(view["scan_root"])


def _followed(
    listed: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return links, each with the release that it leads to, and a sentence for each of the first that lead to none on another root."""
    releases = {one["path"] for one in listed if one["exists"]}
    paths = {one["path"] for one in links}
    found, lost = [], []
    for one in links:
        name = one.get("elsewhere")
        if name is None or name in releases:
            found.append(one if name is None else {**one, "release": name})
        elif name in paths:
            lost.append(
                f"link {one['path']} is passed over: it leads to {name}, which is a symbolic link: let it lead to the release itself"
            )
        else:
            lost.append(f"link {one['path']} is passed over: it leads to {name}, where there is no release")
    return found, _first(lost, "links are passed over")


def _first(sentences: Sequence[str], what: str) -> list[str]:
    """Return the first sentences, and one that counts the others."""
    more = len(sentences) - _NAMED_RELEASES
    return [*sentences[:_NAMED_RELEASES], *([f"{more} more {what}"] if more > 0 else [])]


def _chosen_links(
    view: Mapping[str, Any], releases: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, str]], list[str]]:
    """Return the declared links of a view with those to its releases on the software root, and a sentence for each that it leaves out.

    Links to releases of packages that the view does not show are left out without a sentence.
    """
    shown = list(view["links"])
    to_releases = [one for one in links if one["release"]]
    if view["release_links"] == "ignore":
        count = len(to_releases)
        return shown, [
            f"view {view['name']}: links to releases are left out ({count}): release_links: ignore"
        ] if count else []
    tops = {root["name"]: root["at"] for root in view["roots"]}
    places = {
        one["release"]
        for one in releases
        if _place(one["release"], tops) == one.get("at", one["release"])
        # The names of releases of several software roots have the names of the roots in them, and their sources do not.
        and (view["roots"] or one["release"] == one.get("source", one["release"]))
    }
    beside = {posixpath.dirname(one["release"]) for one in releases}
    taken = {one["path"] for one in shown}
    below = {above for path in taken for above in _above(path)}
    covered = _Covered.of(releases)
    left_out = []
    for one in to_releases:
        path = _place(one["path"], tops)
        if path in taken:
            continue
        if one["release"] not in places:
            if posixpath.dirname(one["release"]) in beside:
                left_out.append(
                    f"link {one['path']} is left out, since the view does not show {one['release']} at this path"
                )
        elif covered.has(path, one["path"].partition("/")[0] if tops else ""):
            left_out.append(f"link {one['path']} is left out, since the view shows a release at its place {path}")
        elif path in below or taken.intersection(_above(path)):
            left_out.append(f"link {one['path']} is left out, since its place {path} is above or below another link")
        else:
            target = posixpath.relpath(_place(one["release"], tops), posixpath.dirname(path) or ".")
            shown.append({"path": path, "target": target})
            taken.add(path)
            below.update(_above(path))
    return shown, [f"view {view['name']}: {one}" for one in _first(left_out, "links to releases are left out")]


def _place(name: str, tops: Mapping[str, str]) -> str:
    """Return the path in a view of what has a name on a software root. ``tops`` are the places of several software roots, by name."""
    if not tops:
        return name
    root, _slash, path = name.partition("/")
    return "/".join(filter(None, (tops.get(root, root), path)))


@dataclass(frozen=True)
class _Covered:
    """The places of a view that releases have."""

    #: Each place of a release, with the root of the release; empty for a view of one software root.
    roots: Mapping[str, str]
    #: The directories above these places.
    above: frozenset[str]

    @classmethod
    def of(cls, releases: Iterable[Mapping[str, Any]]) -> _Covered:
        roots = {one.get("at", one["release"]): one["release"].partition("/")[0] for one in releases}
        return cls(roots, frozenset(above for place in roots for above in _above(place)))

    def has(self, path: str, root: str) -> bool:
        """Return whether a link would take the place of a release or of one above it, or be inside of a release of another root.

        ``root`` is the software root of the link; it is empty in a view of one software root. Whoever can write to one root could
        otherwise change what the view shows of another one.
        """
        if path in self.roots or path in self.above:
            return True
        return bool(root) and any(self.roots.get(place, root) != root for place in (*_above(path), ""))


def _above(path: str) -> Iterator[str]:
    """Yield the directories above a path in a view, without the root of the view."""
    while "/" in path:
        path = posixpath.dirname(path)
        yield path


def passed_over(
    listed: Mapping[str, Sequence[Mapping[str, Any]]], marker: str, declared: Collection[str] = ()
) -> Iterator[str]:
    """Yield a sentence for each of the first things on a software root that no view can choose, for those who publish software.

    These are releases without a ready marker, links to no release, and rez packages without a version. ``listed`` is what release_info
    returned, and ``marker`` the name of the ready marker. ``declared`` are the releases that views name, as they may name such a package.
    """
    unfollowed = [one for one in listed.get("links", ()) if one["reason"]]
    yield from _first(
        [f"link {one['path']} is passed over: {one['reason']}" for one in unfollowed], "links are passed over"
    )
    yield from _first(
        [
            f"{one['path']} is passed over: it has {one['definition']}, so it is a rez package without a version; name it in the releases"
            " of a view to show it"
            for one in listed.get("unversioned", ())
            if one["path"] not in declared
        ],
        "rez packages without a version are passed over",
    )
    unready = [one for one in listed.get("releases", ()) if one["exists"] and not one["ready"]]
    for one in unready[:_NAMED_RELEASES]:
        if one.get("held_back_by"):
            yield (
                f"release {one['path']} is passed over, since {one['held_back_by']} beside it says that it is being written or is to be"
                " ignored"
            )
            continue
        why = (
            "it was withdrawn"
            if one["manifest"]
            else f"it is still being copied, or the copy was interrupted; write {marker} when it is complete"
        )
        yield f"release {one['path']} is passed over, since it has no {marker}: {why} (last change: {one.get('not_ready_since')})"
    if len(unready) > _NAMED_RELEASES:
        yield f"{len(unready) - _NAMED_RELEASES} more releases are passed over, since they are not ready"


def unlistable(views: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each shared view that cannot be resolved, since a store for that is the address of a web server."""
    return [
        f"view {view['name']}: {name} is the address {locations.shown(view[name])}, which can neither be listed nor written to: give"
        " the directory that the web server serves, or deploy with a lock (overlay_lock)"
        for view in views
        for name in (
            "scan_store",
            *(("scan_image_store",) if view["build"] == "central" or view["data_images"] else ()),
        )
        if locations.is_address(view[name])
    ]


def batches(paths: Iterable[str], size: int) -> list[list[str]]:
    """Return paths in lists of at most ``size``."""
    ordered = list(paths)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


#: The keys of a view that a host needs to show it, besides what it was resolved to.
_OF_HOST = (
    *(
        "name",
        "mountpoint",
        "state",
        "generation",
        "store",
        "ca_path",
        "links",
        "strategy",
        "format",
        "xattr_namespace",
        "owner",
        "group",
    ),
    *(
        "owner_map",
        "group_map",
        "mode",
        "keep_setid",
        "on_conflict",
        "options",
        "data",
        "switch",
        "inner_mounts",
        "persist",
    ),
    *("writable", "scratch_size", "discard_changes", "require_verity", "roots"),
    *("keep", "min_age", "state_dir", "health_check", "health_timeout", "health_user"),
)
#: The keys of a software root that a host needs.
_OF_ROOT = ("name", "path", "pattern")
#: The keys that a host needs besides them if the view has data images.
_OF_DATA_IMAGES = ("data_images", "data_budget", "data_keep_free", "image_store")


def locked_views(views: Iterable[Mapping[str, Any]], lock: Mapping[str, LockedView]) -> list[dict[str, Any]]:
    """Return the views of a host as the module ``view`` takes them: completed, and with what the lock resolved them to.

    A view that is to be mounted and is not in the lock, since it could not be resolved, stays at the generation that the host showed last.
    Blank texts are left out of a view.
    """
    found = []
    for view in views:
        has_images = view["data_images"] != data_choice.NONE
        names = (*_OF_HOST, *(_OF_DATA_IMAGES if has_images else ()))
        options = {name: view[name] for name in names if view[name] not in ("", None)}
        options["roots"] = [{name: root[name] for name in _OF_ROOT} for root in view["roots"]]
        if view["state"] == "mounted" and not view["generation"]:
            locked = lock.get(view["name"])
            if locked is None:
                found.append({**options, "unresolved": True})
                continue
            options["locked_generation"] = locked.generation
            if locked.links:
                options["links"] = [dict(one) for one in locked.links]
            images = data_choice.images_of(view["data_images"], locked.data_images)
            if images:
                options["locked_data_images"] = [one.as_dict() for one in images]
            if locked.leaving:
                options["leaving"] = [dict(one) for one in locked.leaving]
            if locked.image_digest:
                options["image"] = f"{view['image_store']}/{locked.generation}{IMAGE_SUFFIX}"
                options["image_digest"] = locked.image_digest
            else:
                options["releases"] = [dict(one) for one in locked.releases]
        found.append(options)
    return found


def differing_views(shown: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[str]:
    """Return a sentence for each view of which hosts show different generations, or which failed on some of them.

    ``shown`` is what the module ``view`` returned on each host.
    """
    hosts_of: dict[str, dict[str, list[str]]] = {}
    failed: dict[str, list[str]] = {}
    for host, views in shown.items():
        for view in views:
            if view.get("failed"):
                failed.setdefault(view["name"], []).append(host)
            elif view.get("generation"):
                hosts_of.setdefault(view["name"], {}).setdefault(view["generation"], []).append(host)
    return [
        f"view {name}: hosts show different generations: "
        + ", ".join(f"{generation} on {host_list(hosts)}" for generation, hosts in generations.items())
        + (f"; it failed on {host_list(failed[name])}" if name in failed else "")
        for name, generations in hosts_of.items()
        if len(generations) > 1 or name in failed
    ]
