# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the declaration of views, and complete it with defaults, before anything is changed anywhere.

A declaration is a list of views, each a mapping of keys, and common values for the keys that views leave out. ``KEYS`` says what each
key may hold. All problems are found, not only the first, and each is one line that names the view and the key.
"""

from __future__ import annotations

import itertools
import math
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import data_choice, view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import clean_globs
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import parse_mode
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import (
    OverlayError,
    did_you_mean,
    show_text,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import (
    is_inside,
    overlap,
    to_bytes,
    to_text,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import check_options
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

#: Characters of a value or a key that a message shows.
_SHOWN = 60
#: Characters of a message: of its beginning, and of its end, which says what to do.
_BEGINNING, _END = 300, 100
#: Bytes of the longest path: PATH_MAX of linux/limits.h without the NUL byte at its end. A name in it has at most NAME_MAX bytes.
_LONGEST_PATH, _LONGEST_NAME = 4095, 255
#: The largest number: 300 years in seconds. The end of what lasts longer is no date.
_LARGEST = 10_000_000_000
#: How the variables begin that are given for all views.
_PREFIX = "overlay_"
_TRUE = ("y", "yes", "on", "true", "t", "1")
_FALSE = ("n", "no", "off", "false", "f", "0")
#: A size in bytes, as Ansible takes it.
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)[KMGTPEZYkmgtpezy]?[bB]?")
#: The ID of a generation, the name of its directory, or a word for one.
_GENERATION = re.compile(r"[0-9a-z][0-9a-z_-]{0,99}")
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


def declared_views(
    views: Any, common: Mapping[str, Any], chosen: str = "", unknown: Collection[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the declared views, each with a value for every key, and the problems of the declaration, one line each.

    ``common`` has values for keys that views leave out, by their names. ``unknown`` are keys that are given for all views with values
    that are not known. ``chosen`` is the name of the one view to return; if it is empty, all are returned. What is blank or None counts
    as not given. If there are problems, the views are not to be used.
    """
    if not isinstance(views, (list, tuple)):
        return [], [f"overlay_views must be a list of views, not {_described(views)}"]
    problems = [*_common_problems(common)]
    completed = []
    for number, view in enumerate(views, 1):
        if not isinstance(view, Mapping):
            problems.append(f"view number {number} must be a mapping of keys to values, not {_described(view)}")
            continue
        values, found = _completed(view, common, unknown, number)
        problems += found
        completed.append(values)
    problems += _problems_between(completed)
    if chosen:
        completed = [view for view in completed if view["name"] == chosen]
    return completed, list(dict.fromkeys(map(one_line, problems)))


def one_line(text: str) -> str:
    """Return a message as one line of a length that can be read: without control characters, and with a gap if it is too long."""
    line = show_text(" ".join(part.strip() for part in text.splitlines()))
    return line if len(line) <= _BEGINNING + _END else f"{line[:_BEGINNING]} ... {line[-_END:]}"


def declared_roots(roots: Any) -> list[dict[str, Any]]:
    """Return several software roots, each with all its keys; none if they are not given. Raises OverlayError if one is wrong."""
    if is_blank(roots):
        return []
    try:
        return _roots(roots)
    except InvalidValueError as error:
        raise OverlayError(f"{_PREFIX}roots {error}") from None


def unknown_variables(names: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Yield a line for each variable that begins as ours do and means nothing; ``others`` are variables that are not keys of views."""
    known = {*(_PREFIX + name for name, key in KEYS.items() if key.common), *others}
    for name in sorted(set(names) - known):
        meant = did_you_mean(name, sorted(known), _PREFIX) or ": leave it out"
        yield f"there is no variable {_shortened(name)}{meant}"


def run_problem(name: str, value: Any) -> str:
    """Return what is wrong with a variable of a run that is no key of views, given its name without the prefix; empty if nothing is."""
    try:
        if name in RUN_VARIABLES and not is_blank(value):
            RUN_VARIABLES[name](value)
    except InvalidValueError as error:
        return one_line(f"{_PREFIX}{name} {error}")
    return ""


def _common_problems(common: Mapping[str, Any]) -> Iterator[str]:
    for name, value in common.items():
        key = KEYS.get(name)
        if key and key.common and not is_blank(value):
            try:
                key.convert(value)
            except InvalidValueError as error:
                yield f"overlay_{name} {error}"


def _completed(
    view: Mapping[str, Any], common: Mapping[str, Any], unknown: Collection[str], number: int
) -> tuple[dict[str, Any], list[str]]:
    """Return a view with a value for every key, and its problems."""
    label = view_label(view, number)
    problems = [f"{label}: {problem}" for name in view if name not in KEYS for problem in _wrong_key(name, KEYS)]
    values: dict[str, Any] = {}
    wrong = set()
    for name, key in KEYS.items():
        value, is_own = view.get(name), True
        if is_blank(value) and key.common:
            # What is given for all views is for those that need it.
            value, is_own = None if key.unless and _has(view, values, key.unless) else common.get(name), False
        if is_blank(value) and name in unknown:
            values[name] = None
            wrong.add(name)
        elif is_blank(value):
            values[name] = key.default(values) if callable(key.default) else key.default
            if key.required and not (key.unless and (key.unless in wrong or _has(view, values, key.unless))):
                also = f", or overlay_{name} for all views" if key.common else ""
                problems.append(f"{label}: {name} is missing: give it{also}")
        else:
            try:
                values[name] = key.convert(value)
            except InvalidValueError as error:
                values[name] = None
                wrong.add(name)
                if is_own:
                    problems.append(f"{label}: {name} {error}")
    if not problems and not wrong:
        problems = [f"{label}: {problem}" for problem in _contradictions(values)]
    return values, problems


def view_label(view: Mapping[str, Any], number: int) -> str:
    """Return how messages name a view: by its name if it has one, else by its number in the list, from 1 on."""
    name = view.get("name")
    return f"view {_shortened(name)}" if isinstance(name, str) and name.strip() else f"view number {number}"


def _wrong_key(name: Any, known: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with a key that is not known, as the end of a sentence that begins with what has it."""
    if not isinstance(name, str):
        yield f"there is no key {_described(name)}, since keys are text{_as_text(name)}"
        return
    shown = _shortened(name) if name.strip() else repr(str(name))
    yield f"there is no key {shown}" + (did_you_mean(name, known) or ": leave it out")


def _has(view: Mapping[str, Any], values: Mapping[str, Any], name: str) -> bool:
    """Return whether a view has a value for a key, of its own or of those that are given for all views."""
    return bool(values.get(name)) or not is_blank(view.get(name))


def _contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    """Yield what does not go together within one view."""
    if view["state"] == "mounted" and not view["generation"]:
        if not view["releases"] and not view["query"]:
            yield "releases and query are both missing: give one of them"
        elif view["releases"] and view["query"]:
            yield "releases and query are both given: give one of them"
    if view["on_conflict"] == "error":
        counts = Counter(map(repr, view["releases"]))
        twice = next((one for one in view["releases"] if counts[repr(one)] > 1), None)
        if twice:
            yield f"releases has {twice['release']} twice at one place: leave one of them out"
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
    yield from _mountpoint_contradictions(view)


def _mountpoint_contradictions(view: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a view cannot be mounted where it is declared."""
    if view["mountpoint"] == "/":
        yield "mountpoint / is the root of the host: give a directory below it"
        return
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
    shown = [view for view in seen.values() if view["mountpoint"] not in (None, "/") and view["state"] == "mounted"]
    yield from view_roots.mount_differences(shown)
    for number, view in enumerate(shown):
        for other in shown[:number]:
            yield from _differences_of_state_dir(other, view)
        # The first that clashes is enough, else a hundred views at one mountpoint were thousands of lines.
        clashes = (_clash(other["name"], other["mountpoint"], view) for other in shown[:number])
        yield from itertools.islice(filter(None, clashes), 1)
    yield from _hidden_paths(shown)


def _clash(other: str, place: str, view: Mapping[str, Any]) -> str:
    """Return what keeps a view from being mounted beside the view `other`, which is at `place`; empty if nothing does."""
    name, mountpoint = view["name"], view["mountpoint"]
    if mountpoint == place:
        return f"views {other} and {name} have the same mountpoint {place}: give each a mountpoint of its own"
    if overlap(to_bytes(mountpoint), to_bytes(place)):
        return (
            f"views {other} and {name} have mountpoints inside of each other: {place} and {mountpoint}: mount them beside each"
            " other"
        )
    return ""


def _hidden_paths(views: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the paths that hosts need, and that a view would hide."""
    for view in views:
        paths = [(view[key], key) for key in ("root", "store", "image_store", "ca_path", "state_dir")]
        paths += [(root["path"], "roots") for root in view["roots"] or ()]
        told: list[str] = []
        for path, key in paths:
            # By default, the images are below the manifests.
            if not path or any(_inside(path, other) for other in told):
                continue
            hiding = next((one for one in views if _inside(path, one["mountpoint"])), None)
            if hiding:
                told.append(path)
                yield (
                    f"view {view['name']}: {key} {path} is inside of the mountpoint {hiding['mountpoint']} of view {hiding['name']}, which"
                    " would hide it: give another mountpoint"
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


def is_blank(value: Any) -> bool:
    """Return whether a value counts as not given, as the empty answer of an AWX survey does."""
    return value is None or (isinstance(value, str) and not value.strip())


def _shortened(text: str) -> str:
    """Return a text for a message: on one line, and shortened."""
    shown = show_text(str(text))
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."


def _described(value: Any) -> str:
    """Return a value for a message, shortened."""
    # Values come from Ansible, which derives types of its own from Python's.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        shown = repr(str(value))
        return f"the text {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}"
    if isinstance(value, (int, float)):
        # Python refuses to write out integers of thousands of digits.
        return f"the number {value}" if abs(value) < 1e30 or value != value else "a number that is too large"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if value is None:
        return "nothing"
    return (
        f"the date {value.isoformat()}"
        if hasattr(value, "isoformat")
        else f"a value of the type {type(value).__name__}"
    )


def _as_text(value: Any) -> str:
    """Return the end of a message about a value that has to be text: what to do if YAML took text for something else."""
    if isinstance(value, bool):
        return ": put it in quotes, since YAML takes on, off, yes and no for true and false"
    if isinstance(value, float):
        return ": put it in quotes, since YAML takes 1.10 for the number 1.1"
    if isinstance(value, int) or hasattr(value, "isoformat"):
        return ": put it in quotes"
    return ""


# Values of keys


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"must be text, not {_described(value)}{_as_text(value)}")
    _encoded(value)
    return str(value)


def _encoded(text: str) -> bytes:
    """Return a text as bytes. Raises InvalidValueError for what modules cannot be given: NUL, and a surrogate that stands for no byte."""
    if "\0" in text:
        raise InvalidValueError("must not have a NUL byte")
    try:
        return to_bytes(text)
    except UnicodeEncodeError:
        raise InvalidValueError(f"must be Unicode text, which {_described(text)} is not") from None


def _account(value: Any) -> str:
    """Return the name of a user or group, or a uid or gid as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _generation(value: Any) -> str:
    text = _text(value).strip()
    if not _GENERATION.fullmatch(text):
        raise InvalidValueError(f"must be the ID of a generation, or previous, not {_described(value)}")
    return text


def _name(value: Any) -> str:
    if not isinstance(value, str) or not is_view_name(value):
        raise InvalidValueError(
            "must have letters, digits, '.', '_' and '-' only, up to 100 of them, and begin with a letter or digit, not"
            f" {_described(value)}{_as_text(value)}"
        )
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise InvalidValueError(f"must be an absolute path, not {_described(value)}")
    _check_length(value)
    return posixpath.normpath("/" + value.lstrip("/"))


def _check_length(path: str) -> None:
    """Raise InvalidValueError if the kernel takes no such path."""
    encoded = _encoded(path)
    longest = max(map(len, encoded.split(b"/")))
    if len(encoded) > _LONGEST_PATH or longest > _LONGEST_NAME:
        raise InvalidValueError(
            f"must have at most {_LONGEST_PATH} bytes, and {_LONGEST_NAME} in each name, not {len(encoded)} and {longest}"
        )


def _location(value: Any) -> str:
    if not isinstance(value, str) or not locations.is_address(value):
        return _path(value)
    problem = locations.problem_of(value)
    if problem:
        raise InvalidValueError(f"{locations.shown(value)} {problem}")
    return value.rstrip("/")


def _relative(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(f"must have {what} as a path, not {_described(value)}{_as_text(value)}")
    _check_length(value)
    try:
        return to_text(relative_path(_encoded(value), what))
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None


def _one_of(*words: str) -> Convert:
    def convert(value: Any) -> str:
        if value not in words:
            meant = did_you_mean("none" if value is False else str(value), words)
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
    except OverflowError:
        found = float("inf")
    if found is None or math.isnan(found) or found < 0:
        raise InvalidValueError(f"must be a number from 0 on, not {_described(value)}")
    if found > _LARGEST:
        raise InvalidValueError(f"must be a number up to {_LARGEST}, not {_described(value)}")
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
        raise InvalidValueError(
            f"must be a list of {what}, not {_described(value)}: give a list, also if it has one entry"
        )
    return list(value)


def _paths(value: Any) -> list[str]:
    return [_path(one) for one in _list(value, "absolute paths")]


def _mapping(value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"must be a mapping, not {_described(value)}")
    return dict(value)


def _id_map(value: Any) -> dict[Any, Any]:
    """Return a mapping of users or groups. Hosts look them up."""
    found = _mapping(value)
    for one in (*found.keys(), *found.values()):
        _account(one)
    return found


def _options(value: Any) -> dict[Any, Any]:
    found = _mapping(value)
    try:
        check_options(found)
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return found


def _marker(value: Any) -> str:
    found = _relative(value, "a marker")
    if not found:
        raise InvalidValueError(f"must be the path of a file below each release, not {_described(value)}")
    return found


def _releases(value: Any) -> list[dict[str, Any]]:
    return [_release(one) for one in _list(value, "releases")]


_OF_RELEASE = ("release", "at", "source", "include", "exclude")


def _release(value: Any) -> dict[str, Any]:
    """Return a release as a mapping; a path alone is short for one."""
    if isinstance(value, str):
        value = {"release": value}
    if not isinstance(value, Mapping):
        raise InvalidValueError(
            f"must have paths of releases, or mappings with 'release', not {_described(value)}{_as_text(value)}"
        )
    _check_keys(value, _OF_RELEASE, "a release")
    if is_blank(value.get("release")):
        raise InvalidValueError(
            "has a mapping without 'release', which is the path of a release below the software root"
        )
    found: dict[str, Any] = {"release": _relative(value["release"], "a release")}
    for name in ("at", "source"):
        if value.get(name) is not None:
            found[name] = _relative(value[name], f"'{name}' of release {found['release']}")
    for name in ("include", "exclude"):
        if not is_blank(value.get(name)):
            patterns = _globs(value[name], name, f"has release {found['release']}, which has a wrong pattern")
            found.update({name: patterns} if patterns else {})
    return found


def _check_keys(value: Mapping[Any, Any], known: Sequence[str], what: str) -> None:
    """Raise InvalidValueError if a mapping has a key that is not known; ``what`` is what the mapping stands for."""
    wrong = next((name for name in value if name not in known), None)
    if wrong is not None or None in value:
        shown = _shortened(wrong) if isinstance(wrong, str) else _described(wrong)
        raise InvalidValueError(f"has {what} with the key {shown}: the keys are {', '.join(known)}")


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
    try:
        declared_links((_encoded(link["path"]), _encoded(link["target"])) for link in found)
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
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
    _check_keys(value, _OF_ROOT, "a root")
    for name in ("name", "path"):
        if is_blank(value.get(name)):
            raise InvalidValueError(f"has a root without '{name}': give it")
    name = _name(value["name"])
    pattern = "{version}" if is_blank(value.get("pattern")) else _text(value["pattern"])
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
        "ready_marker": None if marker is None else "" if marker == "" else _marker(marker),
        "at": name if at is None else _relative(at, f"'at' of root {name}"),
        **_root_mount(value, name, path),
    }


def _root_mount(root: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    """Return how a software root is mounted: its source, which is empty if the site mounts it, and what differs from the defaults."""
    given = {key: None if is_blank(root.get(key)) else root[key] for key in view_roots.MOUNT_KEYS}
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
    "generation": Key(_generation, ""),
    "releases": Key(_releases, lambda _view: [], common=False),
    "query": Key(_text, "", common=False),
    "links": Key(_links, lambda _view: [], common=False),
    "release_links": Key(_one_of("show", "ignore"), "show"),
    "roots": Key(_roots, lambda _view: [], unless="root"),
    "root": Key(_path, "", required=True, unless="roots"),
    "root_name": Key(_text, lambda view: view["root"]),
    "store": Key(_location, required=True),
    "pattern": Key(_pattern, "{package}/{version}"),
    "ready_marker": Key(_marker, ""),
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
    "owner": Key(_account, ""),
    "group": Key(_account, ""),
    "owner_map": Key(_id_map, lambda _view: {}),
    "group_map": Key(_id_map, lambda _view: {}),
    "mode": Key(_mode, ""),
    "keep_setid": Key(_boolean, False),
    "on_conflict": Key(_one_of("error", "first", "last"), "error"),
    "options": Key(_options, lambda _view: {"nodev": True, "nosuid": True}),
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
    "health_user": Key(_account, "nobody"),
    "state_dir": Key(_path, "/var/lib/renderfarm-overlay"),
    "scan_host": Key(_text, ""),
    "scan_root": Key(_path, lambda view: view["root"]),
    "scan_store": Key(_location, lambda view: view["store"]),
    "scan_image_store": Key(_location, lambda view: f"{view['scan_store']}/.images"),
}


def _batches(value: Any) -> None:
    """Check the sizes of batches: a number of hosts, their percentage, or a list of these."""
    sizes = value if isinstance(value, (list, tuple)) else [value]
    for size in sizes or [""]:
        text = "" if isinstance(size, bool) else str(size).strip()
        found = re.fullmatch(r"([0-9]{1,9})(%?)", text)
        if found is None or (found[2] and int(found[1]) > 100):
            raise InvalidValueError(
                f"must be a number of hosts, or their percentage, such as 10%, not {_described(size)}"
            )


def _percentage(value: Any) -> None:
    if isinstance(value, str):
        value = value.strip().rstrip("%")
    if _number(value) > 100:
        raise InvalidValueError(f"must be a percentage from 0 to 100, not {_described(value)}")


#: What each variable takes that is for a whole run. Ansible and the modules would refuse wrong values only after hosts have changed.
RUN_VARIABLES: dict[str, Callable[[Any], Any]] = {
    "become": _boolean,
    "serial": _batches,
    "max_fail_percentage": _percentage,
    "hold": _whole,
    "lift_holds": _boolean,
    "canary_min": _whole,
    "promote_after": _number,
    "report_dir": _path,
    "metrics_file": _path,
    "level": _one_of("metadata", "open", "content"),
    "time_limit": _number,
    "repair": _boolean,
    "drain": _boolean,
    "drain_seconds": _number,
    "delete_release": _boolean,
    "unreachable_use": _boolean,
    "prune_keep": _whole,
    "prune_min_age": _number,
}
