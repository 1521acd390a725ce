# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the declaration of views, and complete it with defaults, before anything is changed anywhere.

A declaration is a list of views, each a mapping of keys, and common values for the keys that views leave out. ``KEYS`` says what each
key may hold. All problems are found, not only the first, and each is one line that names the view and the key.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import data_choice, view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import clean_globs
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import parse_mode
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError, did_you_mean
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import (
    is_inside,
    overlap,
    to_bytes,
    to_text,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import relative_path
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import (
    DEFAULT_IGNORED_NAMES,
    IgnoredNames,
    Pattern,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.versions import ORDERS
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import software_root_spec
from ansible_collections.renderfarm.overlay.plugins.module_utils.stores import locations
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import is_view_name

#: Characters of a value that a message shows.
_SHOWN = 60
#: How the variables begin that are given for all views.
_PREFIX = "overlay_"
_TRUE = ("y", "yes", "on", "true", "t", "1")
_FALSE = ("n", "no", "off", "false", "f", "0")
#: A size in bytes, as Ansible takes it.
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)[KMGTPEZYkmgtpezy]?[bB]?")
#: The keys that are the same for all views of a state directory, since they share its data images.
_OF_STATE_DIR = ("data_budget", "data_keep_free")


class InvalidValueError(ValueError):
    """A value is not what its key takes. The text is the end of a sentence that begins with the name of the key."""


#: Makes a value what its key takes. Raises InvalidValueError.
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class Key:
    """What one key of a view takes."""

    convert: Convert
    #: The value if the key is not given; a function is given the values of the keys before it.
    default: Any = None
    required: bool = False
    #: Whether it can be given for all views.
    common: bool = True
    #: The key that takes the place of this one: a view that has it needs no other, and is not given that for all views.
    unless: str = ""


def declared_views(views: Any, common: Mapping[str, Any], chosen: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    """Return the declared views, each with a value for every key, and the problems of the declaration, one line each.

    ``common`` has values for keys that views leave out, by their names. ``chosen`` is the name of the one view to return; if it is
    empty, all are returned. What is blank or None counts as not given. If there are problems, the views are not to be used.
    """
    if not isinstance(views, (list, tuple)):
        return [], [f"overlay_views must be a list of views, not {_described(views)}"]
    problems = [*_common_problems(common)]
    completed = []
    for number, view in enumerate(views, 1):
        if not isinstance(view, Mapping):
            problems.append(f"view number {number} must be a mapping of keys to values, not {_described(view)}")
            continue
        values, found = _completed(view, common, number)
        problems += found
        completed.append(values)
    problems += _problems_between(completed)
    if chosen:
        completed = [view for view in completed if view["name"] == chosen]
    return completed, list(dict.fromkeys(problems))


def declared_roots(roots: Any) -> list[dict[str, Any]]:
    """Return several software roots, each with all its keys; none if they are not given. Raises OverlayError if one is wrong."""
    if _is_blank(roots):
        return []
    try:
        return _roots(roots)
    except InvalidValueError as error:
        raise OverlayError(f"{_PREFIX}roots {error}") from None


def unknown_variables(names: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Yield a line for each variable that begins as ours do and means nothing; ``others`` are variables that are not keys of views."""
    known = {*(_PREFIX + name for name, key in KEYS.items() if key.common), *others}
    for name in sorted(set(names) - known):
        yield f"there is no variable {name}{did_you_mean(name, sorted(known), _PREFIX)}"


def _common_problems(common: Mapping[str, Any]) -> Iterator[str]:
    for name, value in common.items():
        key = KEYS.get(name)
        if key and key.common and not _is_blank(value):
            try:
                key.convert(value)
            except InvalidValueError as error:
                yield f"overlay_{name} {error}"


def _completed(view: Mapping[str, Any], common: Mapping[str, Any], number: int) -> tuple[dict[str, Any], list[str]]:
    """Return a view with a value for every key, and its problems."""
    given = view.get("name")
    label = f"view {given}" if isinstance(given, str) and given else f"view number {number}"
    problems = [f"{label}: there is no key {name}{did_you_mean(str(name), KEYS)}" for name in view if name not in KEYS]
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        value, is_own = view.get(name), True
        if _is_blank(value) and key.common:
            # What is given for all views is for those that need it.
            value, is_own = None if key.unless and _has(view, values, key.unless) else common.get(name), False
        if _is_blank(value):
            values[name] = key.default(values) if callable(key.default) else key.default
            if key.required and not (key.unless and _has(view, values, key.unless)):
                also = f", or overlay_{name} for all views" if key.common else ""
                problems.append(f"{label}: {name} is missing: give it{also}")
            continue
        try:
            values[name] = key.convert(value)
        except InvalidValueError as error:
            values[name] = None
            if is_own:
                problems.append(f"{label}: {name} {error}")
    if not problems:
        problems = [f"{label}: {problem}" for problem in _contradictions(values)]
    return values, problems


def _has(view: Mapping[str, Any], values: Mapping[str, Any], name: str) -> bool:
    """Return whether a view has a value for a key, of its own or of those that are given for all views."""
    return bool(values.get(name)) or not _is_blank(view.get(name))


def _contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not go together within one view."""
    if view["state"] == "mounted" and not view["generation"]:
        if not view["releases"] and not view["query"]:
            yield "releases and query are both missing: give one of them"
        elif view["releases"] and view["query"]:
            yield "releases and query are both given: give one of them"
    if view["build"] == "central" and view["format"] == "directory":
        yield "build: central builds images, so format: directory cannot be: leave out one of them"
    if view["require_verity"] and view["build"] == "local":
        yield "require_verity is for images, and build: local builds layers on each host: set build: central, or leave it out"
    if view["strategy"] == "redirect" and (view["build"] == "central" or view["format"] == "erofs"):
        yield "strategy: redirect cannot have images: set build: local, and format: directory or auto"
    if view["strategy"] == "redirect" and view["xattr_namespace"] != "trusted":
        yield "strategy: redirect needs xattr_namespace: trusted"
    if view["roots"]:
        yield from _root_contradictions(view)
    if view["writable"] == "scratch" and view["persist"] != "none":
        yield "writable: scratch ends with the mount, so it cannot be mounted at boot: set persist: none, or writable: upper"
    yield from _data_image_contradictions(view)
    for path in filter(None, (view["root"], *view["data"], *(root["path"] for root in view["roots"]))):
        if _inside(view["mountpoint"], path):
            yield f"mountpoint {view['mountpoint']} is inside of the software root {path}: mount the view outside of it"
            return


def _root_contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not go together with several software roots."""
    for name in ("root", "data"):
        if view[name]:
            yield f"roots and {name} are both given: give one of them"
    if view["strategy"] == "redirect":
        yield "strategy: redirect has no data-only layers, which roots needs: leave out one of them"
    if view["writable"] != "none":
        yield f"writable: {view['writable']} is for views of one software root: give root instead of roots, or leave it out"
    if view["data_images"] != "none":
        yield f"data_images: {view['data_images']} is for views of one software root: give root instead of roots, or leave it out"


def _data_image_contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    kind = view["data_images"]
    if kind == "none":
        return
    if view["strategy"] == "redirect":
        yield f"strategy: redirect has no data-only layers, so data_images: {kind} cannot be: leave out one of them"
    if view["writable"] != "none":
        yield (
            f"writable: {view['writable']} keeps a view from being switched while it is in use, which data_images: {kind} needs: leave out"
            " one of them"
        )


def _problems_between(views: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what does not go together between views."""
    seen: dict[str, Mapping[str, Any]] = {}
    for view in views:
        name = view["name"]
        if name in seen:
            yield f"view {name} is declared twice: give each view a name of its own"
        elif name:
            seen[name] = view
    shown = [view for view in seen.values() if view["mountpoint"] and view["state"] == "mounted"]
    yield from view_roots.mount_differences(shown)
    for number, view in enumerate(shown):
        for other in shown[:number]:
            yield from _differences_of_state_dir(other, view)
            if view["mountpoint"] == other["mountpoint"]:
                yield f"views {other['name']} and {view['name']} have the same mountpoint {view['mountpoint']}"
            elif overlap(to_bytes(view["mountpoint"]), to_bytes(other["mountpoint"])):
                yield (
                    f"views {other['name']} and {view['name']} have mountpoints inside of each other: {other['mountpoint']} and"
                    f" {view['mountpoint']}"
                )


def _differences_of_state_dir(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that two views with data images in one state directory have to agree on, and do not."""
    if one["state_dir"] != other["state_dir"] or "none" in (one["data_images"], other["data_images"]):
        return
    for key in _OF_STATE_DIR:
        if one[key] != other[key]:
            yield (
                f"views {one['name']} and {other['name']} share the data images in {one['state_dir']}, and differ in {key}: give one value"
                f" as overlay_{key}"
            )


def _inside(path: str, directory: str) -> bool:
    return is_inside(to_bytes(path), to_bytes(directory))


def _is_blank(value: Any) -> bool:
    """Return whether a value counts as not given, as the empty answer of an AWX survey does."""
    return value is None or (isinstance(value, str) and not value.strip())


def _described(value: Any) -> str:
    """Return a value for a message, shortened."""
    # Values come from Ansible, which derives types of its own from Python's.
    if isinstance(value, bool):
        kind, shown = "", str(value).lower()
    elif isinstance(value, str):
        kind, shown = "the text ", repr(str(value))
    elif isinstance(value, (int, float)):
        kind, shown = "the number ", str(value)
    else:
        return (
            "a mapping" if isinstance(value, Mapping) else "a list" if isinstance(value, (list, tuple)) else "nothing"
        )
    return kind + (shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...")


# Values of keys


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InvalidValueError(f"must be text, not {_described(value)}")
    _encoded(str(value))
    return str(value)


def _encoded(text: str) -> bytes:
    """Return a text as bytes. Raises InvalidValueError for a lone surrogate that stands for no byte, since modules cannot be given it."""
    try:
        return to_bytes(text)
    except UnicodeEncodeError:
        raise InvalidValueError(f"must be Unicode text, which {_described(text)} is not") from None


def _name(value: Any) -> str:
    if not isinstance(value, str) or not is_view_name(value):
        raise InvalidValueError(
            f"must have letters, digits, '.', '_' and '-' only, up to 100 of them, not {_described(value)}"
        )
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise InvalidValueError(f"must be an absolute path, not {_described(value)}")
    if b"\0" in _encoded(value):
        raise InvalidValueError("must not have a NUL byte")
    return posixpath.normpath("/" + value.lstrip("/"))


def _location(value: Any) -> str:
    if not isinstance(value, str) or not locations.is_address(value):
        return _path(value)
    problem = locations.problem_of(value)
    if problem:
        raise InvalidValueError(f"{locations.shown(value)} {problem}")
    return value.rstrip("/")


def _relative(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"must have {what} as a path, not {_described(value)}")
    try:
        return to_text(relative_path(_encoded(value), what))
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None


def _one_of(*words: str) -> Convert:
    def convert(value: Any) -> str:
        if value not in words:
            meant = did_you_mean(str(value), words)
            raise InvalidValueError(f"must be {', '.join(words[:-1])} or {words[-1]}, not {_described(value)}{meant}")
        return str(value)

    return convert


def _boolean(value: Any) -> bool:
    word = str(value).strip().lower()
    if not isinstance(value, (bool, int, str)) or word not in (*_TRUE, *_FALSE):
        raise InvalidValueError(f"must be true or false, not {_described(value)}")
    return word in _TRUE


def _number(value: Any) -> float:
    try:
        found = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = None
    if found is None or not 0 <= found < float("inf"):
        raise InvalidValueError(f"must be a number from 0 on, not {_described(value)}")
    return found


def _whole(value: Any) -> int:
    found = _number(value)
    if found != int(found):
        raise InvalidValueError(f"must be a whole number, not {_described(value)}")
    return int(found)


def _size(value: Any) -> str:
    found = None if isinstance(value, bool) else _SIZE.fullmatch(str(value))
    if found is None or not float(found[1]):
        raise InvalidValueError(f"must be a size above 0, such as 2G, not {_described(value)}")
    return str(value)


def _bytes(value: Any) -> int:
    """Return the bytes of a size, which may have a unit."""
    return data_choice.size_in_bytes(_size(value))


def _keep_free(value: Any) -> str:
    """Return a size, or a percentage, as text."""
    text = "" if isinstance(value, bool) else str(value).strip()
    try:
        data_choice.bytes_to_keep_free(text, 0)
    except ValueError:
        raise InvalidValueError(
            f"must be a size, such as 20G, or a part of the disk, such as 5%, not {_described(value)}"
        ) from None
    return text


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise InvalidValueError(f"must be a list of {what}, not {_described(value)}")
    return list(value)


def _paths(value: Any) -> list[str]:
    return [_path(one) for one in _list(value, "absolute paths")]


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"must be a mapping, not {_described(value)}")
    return dict(value)


def _releases(value: Any) -> list[dict[str, Any]]:
    return [_release(one) for one in _list(value, "releases")]


_OF_RELEASE = ("release", "at", "source", "include", "exclude")


def _release(value: Any) -> dict[str, Any]:
    """Return a release as a mapping; a path alone is short for one."""
    if isinstance(value, str):
        value = {"release": value}
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"must have paths of releases, or mappings with 'release', not {_described(value)}")
    for name in value:
        if name not in _OF_RELEASE:
            raise InvalidValueError(f"has a release with the key {name}: the keys are {', '.join(_OF_RELEASE)}")
    if _is_blank(value.get("release")):
        raise InvalidValueError(
            "has a mapping without 'release', which is the path of a release below the software root"
        )
    found: dict[str, Any] = {"release": _relative(value["release"], "a release")}
    for name in ("at", "source"):
        if value.get(name) is not None:
            found[name] = _relative(value[name], f"'{name}' of release {found['release']}") if value[name] else ""
    for name in ("include", "exclude"):
        if value.get(name):
            found[name] = _globs(value[name], name, f"has release {found['release']}, which has a wrong pattern")
    return found


def _globs(value: Any, what: str, problem: str) -> list[str]:
    found = _list(value, "patterns")
    try:
        clean_globs([_encoded(_text(one)) for one in found], what)
    except OverlayError as error:
        raise InvalidValueError(f"{problem}: {error}") from None
    return [str(one) for one in found]


def _patterns(value: Any) -> list[str]:
    return _globs(value, "exclude", "has a wrong pattern")


def _links(value: Any) -> list[dict[str, str]]:
    found = []
    for link in _list(value, "links, each with 'path' and 'target'"):
        if not isinstance(link, Mapping) or set(link) != {"path", "target"}:
            raise InvalidValueError("must have links with the keys 'path' and 'target' only")
        found.append({"path": _relative(link["path"], "the path of a link"), "target": _text(link["target"])})
    return found


def _pattern(value: Any) -> str:
    try:
        Pattern.parse(_text(value))
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return str(value)


def _mode(value: Any) -> str:
    try:
        parse_mode(_text(value))
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return str(value)


def _names(value: Any) -> list[str]:
    found = [_text(one) for one in _list(value, "patterns of names")]
    try:
        IgnoredNames(found)
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return found


_OF_ROOT = ("name", "path", "pattern", "ready_marker", "at", *view_roots.MOUNT_KEYS)


def _roots(value: Any) -> list[dict[str, Any]]:
    found = [_root(one) for one in _list(value, "software roots, each with 'name' and 'path'")]
    names = [root["name"] for root in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InvalidValueError(f"has the name {twice} twice: give each software root a name of its own")
    return found


def _root(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"must have mappings with 'name' and 'path', not {_described(value)}")
    for name in value:
        if name not in _OF_ROOT:
            raise InvalidValueError(f"has a root with the key {name}: the keys are {', '.join(_OF_ROOT)}")
    for name in ("name", "path"):
        if _is_blank(value.get(name)):
            raise InvalidValueError(f"has a root without '{name}': give it")
    name = _name(value["name"])
    pattern = _text(value.get("pattern") or "{version}")
    try:
        Pattern.parse(pattern, name)
    except OverlayError as error:
        raise InvalidValueError(f"has the root {name}: {error}") from None
    marker, at = value.get("ready_marker"), value.get("at")
    path = _path(value["path"])
    return {
        "name": name,
        "path": path,
        "pattern": pattern,
        # None for that of the view.
        "ready_marker": None if marker is None else _text(marker),
        "at": name if at is None else _relative(at, f"'at' of root {name}") if at else "",
        **_root_mount(value, name, path),
    }


def _root_mount(root: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    """Return how a software root is mounted: its source, which is empty if the site mounts it, and what differs from the defaults."""
    given = {key: None if _is_blank(root.get(key)) else root[key] for key in view_roots.MOUNT_KEYS}
    if given["source"] is None:
        extra = next((key for key in view_roots.MOUNT_KEYS if given[key] is not None), None)
        if extra:
            raise InvalidValueError(
                f"has the root {name} with '{extra}' and without 'source': give what to mount, or leave it out"
            )
        return {**given, "source": ""}
    source = _text(given["source"])
    fstype = None if given["fstype"] is None else _one_of("nfs", "nfs4")(given["fstype"])
    options = None if given["options"] is None else [_text(one) for one in _list(given["options"], "mount options")]
    try:
        software_root_spec(to_bytes(path), source, fstype or "nfs", options or ())
    except OverlayError as error:
        raise InvalidValueError(f"has the root {name}: {error}") from None
    read_ahead = None if given["read_ahead"] is None else _whole(given["read_ahead"])
    return {"source": source, "fstype": fstype, "options": options, "read_ahead": read_ahead}


#: What each key of a view takes, in the order in which defaults are derived from others.
KEYS: dict[str, Key] = {
    "name": Key(_name, required=True, common=False),
    "mountpoint": Key(_path, required=True, common=False),
    "state": Key(_one_of("mounted", "unmounted", "absent"), "mounted"),
    "generation": Key(_text, ""),
    "releases": Key(_releases, lambda _view: [], common=False),
    "query": Key(_text, "", common=False),
    "links": Key(_links, lambda _view: [], common=False),
    "release_links": Key(_one_of("show", "ignore"), "show"),
    "roots": Key(_roots, lambda _view: [], unless="root"),
    "root": Key(_path, "", required=True, unless="roots"),
    "root_name": Key(_text, lambda view: view["root"]),
    "store": Key(_location, required=True),
    "pattern": Key(_pattern, "{package}/{version}"),
    "ready_marker": Key(_text, ""),
    "ignore_names": Key(_names, lambda _view: list(DEFAULT_IGNORED_NAMES)),
    "exclude": Key(_patterns, lambda _view: []),
    "version_order": Key(_one_of(*ORDERS), "vendor"),
    "prereleases": Key(_boolean, False),
    "checksum": Key(_one_of("none", "sha256"), "none"),
    "linger": Key(_whole, 172800),
    "sample": Key(_whole, 20),
    "strategy": Key(_one_of("auto", "data_only", "redirect"), "auto"),
    "format": Key(_one_of("auto", "directory", "erofs"), "auto"),
    "build": Key(_one_of("local", "central"), "local"),
    "image_store": Key(_location, lambda view: f"{view['store']}/.images"),
    "ca_path": Key(_path, ""),
    "xattr_namespace": Key(_one_of("trusted", "user"), "trusted"),
    "owner": Key(_text, ""),
    "group": Key(_text, ""),
    "owner_map": Key(_mapping, lambda _view: {}),
    "group_map": Key(_mapping, lambda _view: {}),
    "mode": Key(_mode, ""),
    "keep_setid": Key(_boolean, False),
    "on_conflict": Key(_one_of("error", "first", "last"), "error"),
    "options": Key(_mapping, lambda _view: {"nodev": True, "nosuid": True}),
    "data": Key(_paths, lambda view: [] if view["roots"] else [view["root"]], unless="roots"),
    "switch": Key(_one_of("auto", "beneath", "over", "replace", "never"), "auto"),
    "inner_mounts": Key(_one_of("carry", "drop"), "carry"),
    "persist": Key(_one_of("none", "systemd", "fstab"), "none"),
    "writable": Key(_one_of("none", "scratch", "upper"), "none"),
    "scratch_size": Key(_size, "2G"),
    "discard_changes": Key(_boolean, False),
    "require_verity": Key(_boolean, False),
    "data_images": Key(_one_of("none", "trace", "everything", "only"), "none"),
    "data_budget": Key(_bytes, 0),
    "data_keep_free": Key(_keep_free, "5%"),
    "keep": Key(_whole, 3),
    "min_age": Key(_number, 3600.0),
    "health_check": Key(_text, ""),
    "health_timeout": Key(_number, 60.0),
    "health_user": Key(_text, "nobody"),
    "state_dir": Key(_path, "/var/lib/renderfarm-overlay"),
    "scan_host": Key(_text, ""),
    "scan_root": Key(_path, lambda view: view["root"]),
    "scan_store": Key(_location, lambda view: view["store"]),
    "scan_image_store": Key(_location, lambda view: f"{view['scan_store']}/.images"),
}
