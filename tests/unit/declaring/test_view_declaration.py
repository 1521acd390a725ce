"""Checking a declaration: every problem is found and named, and what is right is completed with defaults."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.renderfarm.overlay.plugins.action.declared_views import _OTHERS
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import (
    declared_views,
    run_problem,
    unknown_variables,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_keys import KEYS, RUN_VARIABLES
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.view_roots import mounts_of

COMMON = {"root": "/net/software", "store": "/net/manifests"}


def view(**keys: Any) -> dict[str, Any]:
    return {"name": "software", "mountpoint": "/software", "releases": ["houdini/20.5.410"], **keys}


def problems(*views: Any, **common: Any) -> list[str]:
    return declared_views(list(views), {**COMMON, **common})[1]


def test_a_view_is_completed_with_defaults() -> None:
    ([found], none) = declared_views([view(keep="5")], {**COMMON, "persist": "systemd", "linger": 60})
    assert none == []
    assert set(found) == set(KEYS)
    assert found["releases"] == [{"release": "houdini/20.5.410"}]
    assert (found["keep"], found["persist"], found["linger"], found["data"]) == (5, "systemd", 60, ["/net/software"])
    assert found["image_store"] == found["scan_image_store"] == "/net/manifests/.images"
    assert found["options"] == {"nodev": True, "nosuid": True}


def test_a_store_may_be_an_address() -> None:
    ([found], none) = declared_views([view(store="https://stores.example.com/manifests/")], COMMON)
    assert none == []
    assert found["store"] == found["scan_store"] == "https://stores.example.com/manifests"
    assert found["image_store"] == "https://stores.example.com/manifests/.images"


@pytest.mark.parametrize("key", ["store", "image_store", "scan_store", "scan_image_store"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("https://reader:hidden@host/x", "https://host/x has a user name or a password: leave them out"),
        ("https://host/x?signature=hidden", "https://host/x has a '?' or a '#'"),
        ("file:///net/x", "file:///net/x has the scheme file: give an http(s) address or an absolute path"),
        ("net/x", "must be an absolute path, not the text 'net/x'"),
    ],
)
def test_an_unusable_address_is_named_without_its_secrets(key: str, value: str, problem: str) -> None:
    (found,) = problems(view(**{key: value}))
    assert found.startswith(f"view software: {key} {problem}")
    assert "hidden" not in found


def test_only_stores_may_be_addresses() -> None:
    assert "root must be an absolute path" in problems(view(root="https://host/x"))[0]


ROOTS = [
    {"name": "houdini", "path": "/net/houdini/"},
    {"name": "maya", "path": "/net/maya", "at": "", "pattern": "v{version}"},
]


NO_MOUNT = {"ready_marker": None, "source": "", "fstype": None, "options": None, "read_ahead": None}
SOURCE = "filer:/vol/houdini"


def test_roots_with_a_source_are_mounted_once_on_a_host() -> None:
    first = {**ROOTS[0], "source": SOURCE, "options": ["ro", "vers=3"], "read_ahead": 128, "fstype": "nfs4"}
    views = [view(roots=[ROOTS[1], first]), view(name="other", mountpoint="/other", roots=[first])]
    found, none = declared_views(views, COMMON)
    assert none == []
    expected = {"source": SOURCE, "fstype": "nfs4", "options": ["ro", "vers=3"], "read_ahead": 128}
    assert mounts_of(found) == [{"path": "/net/houdini", **expected}]
    inner = {"name": "inner", "path": "/net/houdini/inner", "source": "[fe80::1]:/x"}
    found, none = declared_views([view(roots=[inner, {**ROOTS[0], "source": SOURCE}])], COMMON)
    assert (none, [one["path"] for one in mounts_of(found)]) == ([], ["/net/houdini", "/net/houdini/inner"])


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"source": "filer:/vol/other"}, "software root houdini at /net/houdini: source is given twice and differs"),
        ({"name": "hou"}, None),
        ({"name": "hou", "options": ["ro"]}, "software root houdini and hou at /net/houdini: options is given twice"),
        ({"path": "/net/other"}, "software root houdini has a source and the paths /net/houdini and /net/other"),
        ({"source": ""}, None),
    ],
)
def test_a_root_is_mounted_from_one_source_at_one_path(keys: dict[str, Any], problem: str | None) -> None:
    root = {**ROOTS[0], "source": SOURCE}
    other = view(name="other", mountpoint="/other", roots=[{**root, **keys}])
    found = problems(view(roots=[root]), other)
    assert [one[: len(problem or "")] for one in found] == ([problem] if problem else [])
    assert problems(view(roots=[root]), {**other, "state": "absent"}) == []


def test_roots_are_completed_and_replace_the_common_root() -> None:
    ([found], none) = declared_views([view(roots=ROOTS)], COMMON)
    assert none == []
    assert (found["root"], found["data"]) == ("", [])
    assert found["roots"] == [
        {**NO_MOUNT, "name": "houdini", "path": "/net/houdini", "pattern": "{version}", "at": "houdini"},
        {**NO_MOUNT, "name": "maya", "path": "/net/maya", "pattern": "v{version}", "at": ""},
    ]
    assert declared_views([view()], {"roots": ROOTS, "store": "/s"})[1] == []
    ([found], none) = declared_views([view(root="/net/tools")], {"roots": ROOTS, "store": "/s"})
    assert (none, found["roots"], found["data"]) == ([], [], ["/net/tools"])


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"roots": {}}, "must be a list of software roots"),
        ({"roots": ["/net"]}, "must have mappings with 'name' and 'path'"),
        ({"roots": [{"name": "a"}]}, "has a root without 'path'"),
        ({"roots": [{"name": "a/b", "path": "/a"}]}, "must have letters, digits"),
        ({"roots": [{"name": "a", "path": "/a", "host": "x"}]}, "has a root with the key host"),
        ({"roots": [{"name": "a", "path": "/a", "source": "x"}]}, "has the root a: source 'x' is not an NFS export"),
        (
            {"roots": [{"name": "a", "path": "/a", "options": ["ro"]}]},
            "has the root a with 'options' and without 'source'",
        ),
        ({"roots": [{"name": "a", "path": "/a", "source": "h:/x", "options": ["a b"]}]}, "option 'a b' may not"),
        ({"roots": [{"name": "a", "path": "/a", "source": "h:/x", "fstype": "ext4"}]}, "must be nfs or nfs4"),
        ({"roots": [ROOTS[0], ROOTS[0]]}, "has the name houdini twice"),
        ({"roots": [{"name": "a", "path": "/a", "pattern": "x"}]}, "has the root a: pattern 'x' must have"),
        ({"roots": ROOTS, "root": "/net/software"}, "roots and root are both given"),
        ({"roots": ROOTS, "data": ["/net/software"]}, "roots and data are both given"),
        ({"roots": ROOTS, "strategy": "redirect"}, "which roots needs"),
        ({"roots": ROOTS, "writable": "scratch"}, "is for views of one software root"),
        ({"roots": ROOTS, "data_images": "trace"}, "is for views of one software root"),
        ({"roots": ROOTS, "mountpoint": "/net/maya/view"}, "is inside of the software root /net/maya"),
    ],
)
def test_roots_that_cannot_be_are_named(keys: dict[str, Any], problem: str) -> None:
    (found,) = problems(view(**keys))
    assert problem in found


def test_roots_that_share_an_overlay_are_mounted_at_boot() -> None:
    sharing = [{"name": name, "path": f"/net/{name}", "pattern": f"{name}/{{version}}"} for name in ("houdini", "maya")]
    assert problems(view(roots=sharing, persist="systemd")) == []


def test_sizes_of_data_images_are_bytes() -> None:
    ([found], none) = declared_views([view(data_budget="1.5G", data_keep_free="5%")], COMMON)
    assert none == []
    assert (found["data_budget"], found["data_keep_free"]) == (3 << 29, "5%")


def test_views_without_data_images_and_in_other_state_directories_may_have_other_budgets() -> None:
    one = view(data_images="trace", data_budget="1G")
    assert problems(one, view(name="b", mountpoint="/b", data_budget="2G")) == []
    assert problems(one, view(name="b", mountpoint="/b", data_images="trace", state_dir="/x", data_budget="2G")) == []


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_what_is_blank_is_not_given(blank: str | None) -> None:
    given_ = view(keep=blank, query=blank, generation=blank, persist=blank, root=blank)
    ([found], none) = declared_views([given_], {**COMMON, "persist": "fstab", "owner": blank})
    assert none == []
    assert (found["keep"], found["query"], found["persist"], found["root"]) == (3, "", "fstab", "/net/software")


@pytest.mark.parametrize(
    ("views", "problem"),
    [
        ("houdini/1.0", "overlay_views must be a list of views, not the text 'houdini/1.0'"),
        ({"name": "x"}, "overlay_views must be a list of views, not a mapping"),
        (["software"], "view number 1 must be a mapping of keys to values, not the text 'software'"),
        (
            [view(releases="houdini/1.0")],
            "view software: releases must be a list of releases, not the text 'houdini/1.0'",
        ),
        ([view(mountpoint="software")], "view software: mountpoint must be an absolute path, not the text 'software'"),
        ([{"name": "x", "releases": ["a/1"]}], "view x: mountpoint is missing: give it"),
        ([view(ready_maker=".ready")], "view software: there is no key ready_maker: did you mean ready_marker?"),
        (
            [view(format="erfs")],
            "view software: format must be auto, directory or erofs, not the text 'erfs': did you mean erofs?",
        ),
        ([view(writable="yes")], "view software: writable must be none, scratch or upper, not the text 'yes'"),
        ([view(scratch_size="big")], "view software: scratch_size must be a size above 0, such as 2G, not the text"),
        ([view(scratch_size="0G")], "view software: scratch_size must be a size above 0, such as 2G, not the text"),
        ([view(scratch_size=True)], "view software: scratch_size must be a size above 0, such as 2G, not true"),
        (
            [view(writable="scratch", persist="systemd")],
            "view software: writable: scratch ends with the mount, so it cannot be mounted at boot",
        ),
        ([view(data_images="all")], "view software: data_images must be none, trace, everything or only, not"),
        ([view(data_budget="much")], "view software: data_budget must be a size above 0, such as 2G, not the text"),
        (
            [view(data_keep_free="5 %")],
            "view software: data_keep_free must be a size, such as 20G, or a part of the disk",
        ),
        (
            [view(data_keep_free=True)],
            "view software: data_keep_free must be a size, such as 20G, or a part of the disk",
        ),
        (
            [view(data_images="trace", strategy="redirect", build="local")],
            "view software: strategy: redirect has no data-only layers, so data_images: trace cannot be",
        ),
        (
            [view(data_images="only", writable="upper")],
            "view software: writable: upper keeps a view from being switched while it is in use",
        ),
        (
            [
                view(data_images="trace", data_budget="1G"),
                view(name="b", mountpoint="/b", data_images="only", data_budget="2G"),
            ],
            "views software and b share the data images in /var/lib/renderfarm-overlay, and differ in data_budget",
        ),
        ([view(keep=-1)], "view software: keep must be a number from 0 on, not the number -1"),
        ([view(keep=1.5)], "view software: keep must be a whole number, not the number 1.5"),
        ([view(keep=True)], "view software: keep must be a number from 0 on, not true"),
        ([view(keep_setid="maybe")], "view software: keep_setid must be true or false, not the text 'maybe'"),
        ([view(query="@")], "view software: releases and query are both given: give one of them"),
        ([view(releases=[])], "view software: releases and query are both missing: give one of them"),
        (
            [view(build="central", format="directory")],
            "view software: build: central builds images, so format: directory cannot",
        ),
        ([view(strategy="redirect", format="erofs")], "view software: strategy: redirect cannot have images"),
        (
            [view(mountpoint="/net/software/view")],
            "view software: mountpoint /net/software/view is inside of the software root",
        ),
        ([view(releases=[{"at": "x"}])], "view software: releases has a mapping without 'release'"),
        ([view(releases=[{"release": "a/1", "to": "x"}])], "view software: releases has a release with the key to"),
        ([view(releases=["a/../b"])], "view software: releases is wrong"),
        (
            [view(releases=[{"release": "a/1", "include": ["**/**/../x"]}])],
            "view software: releases has release a/1, which has a wrong pattern",
        ),
        ([view(links=[{"path": "a"}])], "view software: links must have links with the keys 'path' and 'target' only"),
        ([view(pattern="{version}")], "view software: pattern is wrong"),
        ([view(mode="rwx")], "view software: mode is wrong"),
        ([view(name="../x")], "view ../x: name must have letters, digits"),
        ([view(data="/net")], "view software: data must be a list of absolute paths, not the text '/net'"),
        ([view(), view(mountpoint="/other")], "view software is declared twice: give each view a name of its own"),
        ([view(), view(name="b")], "views software and b have the same mountpoint /software"),
        (
            [view(), view(name="b", mountpoint="/software/b/")],
            "views software and b have mountpoints inside of each other: /software and /software/b",
        ),
    ],
)
def test_a_problem_is_named(views: Any, problem: str) -> None:
    found = declared_views(views, COMMON)[1]
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_all_problems_are_found_at_once() -> None:
    found = problems(view(format="x", keep="y"), view(name="b", mountpoint="b"), persist="never")
    assert [line.partition(" must")[0] for line in found] == [
        "overlay_persist",
        "view software: format",
        "view software: keep",
        "view b: mountpoint",
    ]


def test_a_common_value_that_is_missing_is_named_with_its_variable() -> None:
    assert declared_views([view()], {"root": "/net/software"})[1] == [
        "view software: store is missing: give it, or overlay_store for all views"
    ]


def test_a_key_whose_common_value_is_not_known_is_not_told_as_missing() -> None:
    common = {"store": "/net/manifests"}
    assert declared_views([view()], common, unknown=["root"])[1] == []
    assert declared_views([view(keep="x")], common, unknown=["root"])[1] == [
        "view software: keep must be a number from 0 on, not the text 'x'"
    ]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("serial", "abc", "must be a number of hosts, or their percentage, such as 10%, not the text 'abc'"),
        ("serial", -5, "must be a number of hosts, or their percentage, such as 10%, not the number -5"),
        ("serial", [1, "x"], "must be a number of hosts, or their percentage, such as 10%, not the text 'x'"),
        ("serial", "150%", "must be a number of hosts, or their percentage, such as 10%, not the text '150%'"),
        ("max_fail_percentage", "many", "must be a number from 0 on, not the text 'many'"),
        ("max_fail_percentage", 101, "must be a percentage from 0 to 100, not the number 101"),
        ("hold", "a day", "must be a number from 0 on, not the text 'a day'"),
        ("lift_holds", "perhaps", "must be true or false, not the text 'perhaps'"),
        ("report_dir", "report", "must be an absolute path, not the text 'report'"),
        ("level", "metdata", "must be metadata, open or content, not the text 'metdata': did you mean metadata?"),
    ],
)
def test_a_wrong_variable_of_a_run_is_named(name: str, value: Any, problem: str) -> None:
    assert run_problem(name, value) == f"overlay_{name} {problem}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("serial", one) for one in (1, "10%", [1, "10%", "100%"], "", None, 0)],
        *[("max_fail_percentage", one) for one in (0, "0", "25%", 12.5, " ")],
        *[("hold", "86400"), ("lift_holds", "false"), ("level", "open"), ("no_variable_of_ours", object())],
    ],
)
def test_a_right_variable_of_a_run_is_no_problem(name: str, value: Any) -> None:
    assert run_problem(name, value) == ""


def test_every_variable_of_a_run_is_known() -> None:
    assert (
        list(unknown_variables([f"overlay_{name}" for name in RUN_VARIABLES], [f"overlay_{name}" for name in _OTHERS]))
        == []
    )


def test_a_text_of_ansible_is_shown_as_text() -> None:
    class Text(str):
        __slots__ = ()

    assert problems(view(format=Text("erfs")))[0].endswith("not the text 'erfs': did you mean erofs?")


LONG = "x" * 9000


@pytest.mark.parametrize(
    "wrong",
    [
        view(releases=LONG, format=LONG, keep=int("9" * 4000)),
        view(name=LONG),
        view(**{LONG: 1}),
        view(mountpoint=f"/{LONG}"),
        view(releases=[{LONG: 1}]),
        view(releases=["a/" * 9000 + ".."]),
        view(releases=["a/" * 2000 + ".."]),
        view(options={LONG: 1}),
        view(links=[{"path": LONG, "target": "x"}]),
        view(name="a\nb", persist="c\nd"),
        view(**{"a\nb\x1b[31m": 1}),
        view(options={"a\nb": 1}),
    ],
)
def test_a_message_is_one_short_line(wrong: dict[str, Any]) -> None:
    lines = problems(wrong)
    assert lines
    assert all(line.isprintable() and len(line) < 420 for line in lines)
    assert all(line.startswith("view ") for line in lines)


def test_a_clash_of_many_views_is_a_line_for_each() -> None:
    assert len(problems(*(view(name=f"v{number}") for number in range(60)))) == 59


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"releases": [1.1]}, "not the number 1.1: put it in quotes, since YAML takes 1.10 for the number 1.1"),
        ({"releases": [{"release": "a/1", "at": 1.1}]}, "'at' of release a/1 as a path, not the number 1.1: put it in"),
        ({"releases": [dt.date(2026, 1, 1)]}, "not the date 2026-01-01: put it in quotes"),
        ({"releases": [{"release": "a/1", "at": False}]}, "not false: put it in quotes, since YAML takes on, off, yes"),
        ({"name": 1.1}, "and begin with a letter or digit, not the number 1.1: put it in quotes"),
        ({"generation": 342391}, "must be text, not the number 342391: put it in quotes"),
        ({"ready_marker": 7}, "must have a marker as a path, not the number 7: put it in quotes"),
        ({"root_name": 7}, "must be text, not the number 7: put it in quotes"),
        ({"links": [{"path": "a", "target": 1.1}]}, "must be text, not the number 1.1: put it in quotes"),
        ({True: 1}, "there is no key true, since keys are text: put it in quotes, since YAML takes on"),
        ({None: 1}, "there is no key nothing, since keys are text"),
        ({"releases": [{None: "a/1"}]}, "has a release with the key nothing: the keys are release, at"),
        ({"persist": False}, "must be none, systemd or fstab, not false: did you mean none?"),
    ],
)
def test_what_yaml_takes_for_something_else_is_told(keys: dict[Any, Any], problem: str) -> None:
    (found,) = problems({**view(), **keys})
    assert problem in found


def test_users_and_groups_may_be_numbers() -> None:
    ([found], none) = declared_views(
        [view(owner=0, group="render", owner_map={1000: "root"}, health_user=65534)], COMMON
    )
    assert none == []
    assert (found["owner"], found["group"], found["health_user"]) == ("0", "render", "65534")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (
            {"options": {"lowerdir": "/x"}},
            "options is wrong: overlay option 'lowerdir' is not known: use one of nosuid",
        ),
        ({"options": {"nodev": "maybe"}}, "options is wrong: overlay option nodev has the value 'maybe': use true"),
        ({"owner_map": {5: None}}, "owner_map must be text, not nothing"),
        ({"group_map": {"a": {"b": 1}}}, "group_map must be text, not a mapping"),
        ({"generation": "../../x"}, "generation must be the ID of a generation, or previous, not the text '../../x'"),
        ({"ready_marker": "../ready"}, "ready_marker is wrong: a marker '../ready' may not contain '..'"),
        ({"ready_marker": "."}, "ready_marker must be the path of a file below each release, not the text '.'"),
        ({"links": [{"path": "/", "target": "x"}]}, "links is wrong: link '' would replace the root of the view"),
        ({"links": [{"path": "a", "target": ""}]}, "links is wrong: target of link 'a' has 0 bytes: give 1 to 4095"),
        ({"releases": ["a/1", {"release": "a/1"}]}, "releases has a/1 twice at one place: leave one of them out"),
        ({"linger": 10**12}, "linger must be a number up to 10000000000, not the number 1000000000000"),
        (
            {"releases": [{"release": "a/1", "source": {}}]},
            "must have 'source' of release a/1 as a path, not a mapping",
        ),
        ({"releases": [{"release": "a/1", "include": 0}]}, "must be a list of patterns, not the number 0"),
        ({"roots": [{"name": "a", "path": "/a", "pattern": 0}]}, "roots must be text, not the number 0"),
        ({"health_check": "a\0b"}, "health_check must not have a NUL byte"),
        ({"mountpoint": "/a/../.."}, "mountpoint / is the root of the host: give a directory below it"),
        (
            {"mountpoint": "/net"},
            "root /net/software is inside of the mountpoint /net of view software, which would hide",
        ),
        ({"store": "/software/manifests"}, "store /software/manifests is inside of the mountpoint /software of view"),
        ({"state_dir": "/software/state"}, "state_dir /software/state is inside of the mountpoint /software of view"),
    ],
)
def test_what_hosts_would_refuse_is_found_before(keys: dict[str, Any], problem: str) -> None:
    found = problems(view(**keys))
    assert found[0].startswith("view software: ")
    assert problem in found[0]
    assert len(found) == (2 if keys.get("mountpoint") == "/net" else 1)


def test_a_wrong_value_for_all_views_is_told_once_and_breaks_nothing() -> None:
    one = {"name": "a", "mountpoint": "/a", "query": "@"}
    wrong = {"roots": "x", "data": 5, "options": "nodev", "mode": [1], "persist": True}
    found = declared_views([one, {**one, "name": "b", "mountpoint": "/b"}], {"store": "/net/manifests", **wrong})[1]
    assert sorted(line.split()[0] for line in found) == sorted(f"overlay_{name}" for name in wrong)


def test_a_view_that_is_taken_down_needs_no_releases() -> None:
    assert problems(view(releases=[], state="absent")) == []


def test_views_that_are_not_mounted_may_share_a_mountpoint() -> None:
    assert problems(view(), view(name="old", state="absent")) == []


def test_one_view_is_chosen_and_all_are_checked() -> None:
    views = [view(), view(name="b", mountpoint="/b")]
    assert [one["name"] for one in declared_views(views, COMMON, "b")[0]] == ["b"]
    assert declared_views([view(keep="x"), view(name="b", mountpoint="/b")], COMMON, "b")[1]


def test_a_variable_that_means_nothing_is_named() -> None:
    names = ["overlay_ready_maker", "overlay_root", "overlay_views", "overlay_zzz"]
    assert list(unknown_variables(names, ["overlay_views"])) == [
        "there is no variable overlay_ready_maker: did you mean overlay_ready_marker?",
        "there is no variable overlay_zzz: leave it out",
    ]


#: hypothesis makes no lone surrogates of its own accord.
ODD_TEXTS = st.sampled_from(
    ["\ud800", "/\ud800", "https://host/\ud800", "\udcff", "/\udcff", "https://\udcff", "\0", "a" * 5000]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | ODD_TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "release", "at"]), inner, max_size=3)
    ),
    max_leaves=8,
)


NAMES = st.sampled_from([*KEYS, "other"]) | st.text(max_size=9) | ODD_TEXTS | st.none() | st.booleans() | st.floats()
VIEWS = st.dictionaries(NAMES, VALUES, max_size=6) | VALUES


@given(st.lists(VIEWS, max_size=3) | VALUES, st.dictionaries(st.sampled_from(list(KEYS)), VALUES, max_size=4))
def test_whatever_is_declared_gives_views_or_problems(views: Any, common: dict[str, Any]) -> None:
    found, lines = declared_views(views, common)
    assert all(line.isprintable() and len(line) < 420 for line in lines)
    if not lines:
        json.dumps(found)
        assert all(set(one) == set(KEYS) for one in found)
