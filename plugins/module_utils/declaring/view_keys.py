# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each key of a view takes, and each variable of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.declared_values import (
    Convert,
    InvalidValueError,
    account_of,
    boolean_of,
    bytes_of,
    check_keys,
    described,
    in_quotes,
    is_blank,
    list_of,
    location_of,
    mapping_of,
    number_of,
    one_of,
    path_of,
    paths_of,
    relative_path_of,
    size_of,
    text_of,
    whole_number_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import data_choice, view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.globs import clean_globs
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import declared_links
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.ownership import parse_mode
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.paths import to_bytes
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays.options import check_options
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.patterns import (
    DEFAULT_IGNORED_NAMES,
    IgnoredNames,
    Pattern,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.versions import ORDERS
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root.nfs_options import software_root_spec
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import is_view_name

#: The ID of a generation, the name of its directory, or a word for one.
_GENERATION = re.compile(r"[0-9a-z][0-9a-z_-]{0,99}")


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


def _generation(value: Any) -> str:
    text = text_of(value).strip()
    if not _GENERATION.fullmatch(text):
        raise InvalidValueError(f"must be the ID of a generation, or previous, not {described(value)}")
    return text


def _name(value: Any) -> str:
    if not isinstance(value, str) or not is_view_name(value):
        raise InvalidValueError(
            "must have letters, digits, '.', '_' and '-' only, up to 100 of them, and begin with a letter or digit, not"
            f" {described(value)}{in_quotes(value)}"
        )
    return value


def _bytes(value: Any) -> int:
    """Return the bytes of a size, which may have a unit."""
    return data_choice.size_in_bytes(size_of(value))


def _keep_free(value: Any) -> str:
    """Return a size, or a percentage, as text."""
    text = "" if isinstance(value, bool) else str(value).strip()
    try:
        data_choice.bytes_to_keep_free(text, 0)
    except ValueError:
        raise InvalidValueError(
            f"must be a size, such as 20G, or a part of the disk, such as 5%, not {described(value)}"
        ) from None
    return text


def _id_map(value: Any) -> dict[Any, Any]:
    """Return a mapping of users or groups. Hosts look them up."""
    found = mapping_of(value)
    for one in (*found.keys(), *found.values()):
        account_of(one)
    return found


def _options(value: Any) -> dict[Any, Any]:
    found = mapping_of(value)
    try:
        check_options(found)
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return found


def _marker(value: Any) -> str:
    found = relative_path_of(value, "a marker")
    if not found:
        raise InvalidValueError(f"must be the path of a file below each release, not {described(value)}")
    return found


def _releases(value: Any) -> list[dict[str, Any]]:
    return [_release(one) for one in list_of(value, "releases")]


_OF_RELEASE = ("release", "at", "source", "include", "exclude")


def _release(value: Any) -> dict[str, Any]:
    """Return a release as a mapping; a path alone is short for one."""
    if isinstance(value, str):
        value = {"release": value}
    if not isinstance(value, Mapping):
        raise InvalidValueError(
            f"must have paths of releases, or mappings with 'release', not {described(value)}{in_quotes(value)}"
        )
    check_keys(value, _OF_RELEASE, "a release")
    if is_blank(value.get("release")):
        raise InvalidValueError(
            "has a mapping without 'release', which is the path of a release below the software root"
        )
    found: dict[str, Any] = {"release": relative_path_of(value["release"], "a release")}
    for name in ("at", "source"):
        if value.get(name) is not None:
            found[name] = relative_path_of(value[name], f"'{name}' of release {found['release']}")
    for name in ("include", "exclude"):
        if not is_blank(value.get(name)):
            patterns = _globs(value[name], name, f"has release {found['release']}, which has a wrong pattern")
            found.update({name: patterns} if patterns else {})
    return found


def _globs(value: Any, what: str, problem: str) -> list[str]:
    found = list_of(value, "patterns")
    try:
        clean_globs([bytes_of(text_of(one)) for one in found], what)
    except OverlayError as error:
        raise InvalidValueError(f"{problem}: {error}") from None
    return [str(one) for one in found]


def _patterns(value: Any) -> list[str]:
    return _globs(value, "exclude", "has a wrong pattern")


def _links(value: Any) -> list[dict[str, str]]:
    found = []
    for link in list_of(value, "links, each with 'path' and 'target'"):
        if not isinstance(link, Mapping) or set(link) != {"path", "target"}:
            raise InvalidValueError("must have links with the keys 'path' and 'target' only")
        found.append({"path": relative_path_of(link["path"], "the path of a link"), "target": text_of(link["target"])})
    try:
        declared_links((bytes_of(link["path"]), bytes_of(link["target"])) for link in found)
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return found


def _pattern(value: Any) -> str:
    try:
        Pattern.parse(text_of(value))
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return str(value)


def _mode(value: Any) -> str:
    try:
        parse_mode(text_of(value))
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return str(value)


def _names(value: Any) -> list[str]:
    found = [text_of(one) for one in list_of(value, "patterns of names")]
    try:
        IgnoredNames(found)
    except OverlayError as error:
        raise InvalidValueError(f"is wrong: {error}") from None
    return found


_OF_ROOT = ("name", "path", "pattern", "ready_marker", "at", *view_roots.MOUNT_KEYS)


def roots_of(value: Any) -> list[dict[str, Any]]:
    """Return several software roots, each with all its keys. Raises InvalidValueError if one is wrong."""
    found = [_root(one) for one in list_of(value, "software roots, each with 'name' and 'path'")]
    names = [root["name"] for root in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InvalidValueError(f"has the name {twice} twice: give each software root a name of its own")
    return found


def _root(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValueError(f"must have mappings with 'name' and 'path', not {described(value)}")
    check_keys(value, _OF_ROOT, "a root")
    for name in ("name", "path"):
        if is_blank(value.get(name)):
            raise InvalidValueError(f"has a root without '{name}': give it")
    name = _name(value["name"])
    pattern = "{version}" if is_blank(value.get("pattern")) else text_of(value["pattern"])
    try:
        Pattern.parse(pattern, name)
    except OverlayError as error:
        raise InvalidValueError(f"has the root {name}: {error}") from None
    marker, at = value.get("ready_marker"), value.get("at")
    path = path_of(value["path"])
    return {
        "name": name,
        "path": path,
        "pattern": pattern,
        # None for that of the view.
        "ready_marker": None if marker is None else "" if marker == "" else _marker(marker),
        "at": name if at is None else relative_path_of(at, f"'at' of root {name}"),
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
    source = text_of(given["source"])
    fstype = None if given["fstype"] is None else one_of("nfs", "nfs4")(given["fstype"])
    options = None if given["options"] is None else [text_of(one) for one in list_of(given["options"], "mount options")]
    try:
        software_root_spec(to_bytes(path), source, fstype or "nfs", options or ())
    except OverlayError as error:
        raise InvalidValueError(f"has the root {name}: {error}") from None
    read_ahead = None if given["read_ahead"] is None else whole_number_of(given["read_ahead"])
    return {"source": source, "fstype": fstype, "options": options, "read_ahead": read_ahead}


#: What each key of a view takes, in the order in which defaults are derived from others.
KEYS: dict[str, Key] = {
    "name": Key(_name, required=True, common=False),
    "mountpoint": Key(path_of, required=True, common=False),
    "state": Key(one_of("mounted", "unmounted", "absent"), "mounted"),
    "generation": Key(_generation, ""),
    "releases": Key(_releases, lambda _view: [], common=False),
    "query": Key(text_of, "", common=False),
    "links": Key(_links, lambda _view: [], common=False),
    "release_links": Key(one_of("show", "ignore"), "show"),
    "roots": Key(roots_of, lambda _view: [], unless="root"),
    "root": Key(path_of, "", required=True, unless="roots"),
    "root_name": Key(text_of, lambda view: view["root"]),
    "store": Key(location_of, required=True),
    "pattern": Key(_pattern, "{package}/{version}"),
    "ready_marker": Key(_marker, ""),
    "ignore_names": Key(_names, lambda _view: list(DEFAULT_IGNORED_NAMES)),
    "exclude": Key(_patterns, lambda _view: []),
    "version_order": Key(one_of(*ORDERS), "vendor"),
    "prereleases": Key(boolean_of, False),
    "checksum": Key(one_of("none", "sha256"), "none"),
    "linger": Key(whole_number_of, 172800),
    "sample": Key(whole_number_of, 20),
    "strategy": Key(one_of("auto", "data_only", "redirect"), "auto"),
    "format": Key(one_of("auto", "directory", "erofs"), "auto"),
    "build": Key(one_of("local", "central"), "local"),
    "image_store": Key(location_of, lambda view: f"{view['store']}/.images"),
    "ca_path": Key(path_of, ""),
    "xattr_namespace": Key(one_of("trusted", "user"), "trusted"),
    "owner": Key(account_of, ""),
    "group": Key(account_of, ""),
    "owner_map": Key(_id_map, lambda _view: {}),
    "group_map": Key(_id_map, lambda _view: {}),
    "mode": Key(_mode, ""),
    "keep_setid": Key(boolean_of, False),
    "on_conflict": Key(one_of("error", "first", "last"), "error"),
    "options": Key(_options, lambda _view: {"nodev": True, "nosuid": True}),
    "data": Key(paths_of, lambda view: [] if view["roots"] else [view["root"]], unless="roots"),
    "switch": Key(one_of("auto", "beneath", "over", "replace", "never"), "auto"),
    "inner_mounts": Key(one_of("carry", "drop"), "carry"),
    "persist": Key(one_of("none", "systemd", "fstab"), "none"),
    "writable": Key(one_of("none", "scratch", "upper"), "none"),
    "scratch_size": Key(size_of, "2G"),
    "discard_changes": Key(boolean_of, False),
    "require_verity": Key(boolean_of, False),
    "data_images": Key(one_of("none", "trace", "everything", "only"), "none"),
    "data_budget": Key(_bytes, 0),
    "data_keep_free": Key(_keep_free, "5%"),
    "keep": Key(whole_number_of, 3),
    "min_age": Key(number_of, 3600.0),
    "health_check": Key(text_of, ""),
    "health_timeout": Key(number_of, 60.0),
    "health_user": Key(account_of, "nobody"),
    "state_dir": Key(path_of, "/var/lib/renderfarm-overlay"),
    "scan_host": Key(text_of, ""),
    "scan_root": Key(path_of, lambda view: view["root"]),
    "scan_store": Key(location_of, lambda view: view["store"]),
    "scan_image_store": Key(location_of, lambda view: f"{view['scan_store']}/.images"),
}


def _batches(value: Any) -> None:
    """Check the sizes of batches: a number of hosts, their percentage, or a list of these."""
    sizes = value if isinstance(value, (list, tuple)) else [value]
    for size in sizes or [""]:
        text = "" if isinstance(size, bool) else str(size).strip()
        found = re.fullmatch(r"([0-9]{1,9})(%?)", text)
        if found is None or (found[2] and int(found[1]) > 100):
            raise InvalidValueError(
                f"must be a number of hosts, or their percentage, such as 10%, not {described(size)}"
            )


def _percentage(value: Any) -> None:
    if isinstance(value, str):
        value = value.strip().rstrip("%")
    if number_of(value) > 100:
        raise InvalidValueError(f"must be a percentage from 0 to 100, not {described(value)}")


#: What each variable takes that is for a whole run. Ansible and the modules would refuse wrong values only after hosts have changed.
RUN_VARIABLES: dict[str, Callable[[Any], Any]] = {
    "become": boolean_of,
    "serial": _batches,
    "max_fail_percentage": _percentage,
    "hold": whole_number_of,
    "lift_holds": boolean_of,
    "canary_min": whole_number_of,
    "promote_after": number_of,
    "report_dir": path_of,
    "metrics_file": path_of,
    "level": one_of("metadata", "open", "content"),
    "time_limit": number_of,
    "repair": boolean_of,
    "drain": boolean_of,
    "drain_seconds": number_of,
    "delete_release": boolean_of,
    "unreachable_use": boolean_of,
    "prune_keep": whole_number_of,
    "prune_min_age": number_of,
}
