"""Resolving views once for many hosts: what is shared, what may differ, and how releases are chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import declared_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import LockedImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import (
    SHARED,
    Listing,
    batches,
    choose,
    differing_views,
    host_list,
    locked_views,
    nothing_declared,
    passed_over,
    problems_of_hosts,
    shared_views,
    unlistable,
)

#: Other values than the defaults, for keys that hosts may not differ in.
OTHER = {
    "releases": ["b/1"],
    "query": "@",
    "links": [{"path": "x", "target": "y"}],
    "release_links": "ignore",
    "root_name": "other",
    "pattern": "{version}/{package}",
    "ready_marker": ".ready",
    "ignore_names": ["@eaDir"],
    "exclude": ["doc"],
    "version_order": "rez",
    "prereleases": True,
    "checksum": "sha256",
    "linger": 1,
    "sample": 1,
    "build": "central",
    "owner": "root",
    "group": "root",
    "owner_map": {"1": 2},
    "group_map": {"1": 2},
    "mode": "go-w",
    "keep_setid": True,
    "on_conflict": "first",
    "xattr_namespace": "user",
    "roots": [{"name": "maya", "path": "/net/maya", "pattern": "{version}", "ready_marker": None, "at": "maya"}],
}


def views(**keys: Any) -> list[dict[str, Any]]:
    given = {"name": "software", "mountpoint": "/software", "releases": ["a/1"], **keys}
    found, problems = declared_views([given], {"root": "/net/software", "store": "/net/manifests"})
    assert problems == []
    return found


def listed(path: str, **values: Any) -> dict[str, Any]:
    return {"path": path, "version": path.partition("/")[2], "exists": True, "manifest": f"/store/{path}", **values}


def test_releases_without_a_ready_marker_are_named_with_the_reason() -> None:
    listed = [
        {"path": "a/1", "exists": True, "ready": True, "manifest": None, "not_ready_since": None},
        {"path": "a/2", "exists": True, "ready": False, "manifest": None, "not_ready_since": "2026-11-27T15:00:00Z"},
        {"path": "a/3", "exists": True, "ready": False, "manifest": "/m", "not_ready_since": None},
        {"path": "a/4", "exists": False, "ready": False, "manifest": "/m", "not_ready_since": None},
    ]
    half, withdrawn = passed_over({"releases": listed}, ".ready")
    assert half.startswith("release a/2 is passed over, since it has no .ready: it is still being copied")
    assert half.endswith("(last change: 2026-11-27T15:00:00Z)")
    assert withdrawn.startswith("release a/3 is passed over, since it has no .ready: it was withdrawn")
    assert list(passed_over({"releases": [listed[1]] * 12}, ".ready"))[10:] == [
        "2 more releases are passed over, since they are not ready"
    ]


def test_a_release_that_rez_is_writing_is_named_with_the_marker() -> None:
    held = {"path": "a/1", "exists": True, "ready": False, "manifest": None, "held_back_by": ".building1"}
    (sentence,) = passed_over({"releases": [held]}, "")
    assert sentence.startswith("release a/1 is passed over, since .building1 beside it says that it is being written")


def test_a_rez_package_without_a_version_is_named_unless_a_view_names_it() -> None:
    listed = {"unversioned": [{"path": path, "definition": "package.py"} for path in ("site", "studio")]}
    (sentence,) = passed_over(listed, "", {"site"})
    assert sentence == (
        "studio is passed over: it has package.py, so it is a rez package without a version; name it in the releases of a view to show it"
    )
    many = {"unversioned": listed["unversioned"] * 6}
    assert list(passed_over(many, ""))[10:] == ["2 more rez packages without a version are passed over"]


def test_the_order_and_the_pre_releases_of_a_view_reach_the_query() -> None:
    (view,) = views(releases=[], query="@", version_order="rez", prereleases=True)
    given: dict[str, Any] = {}

    def select(found: list[dict[str, Any]], _query: str, **how: Any) -> list[dict[str, Any]]:
        given.update(how)
        return found

    assert choose(view, [listed("a/1")], select).releases == ({"release": "a/1"},)
    assert given == {"order": "rez", "prereleases": True}


def test_what_a_view_excludes_is_excluded_of_each_release() -> None:
    (view,) = views(releases=["a/1", {"release": "b/1", "exclude": ["x"]}], exclude=["share/doc", "**/*.a"])
    assert choose(view, [], None).releases == (  # type: ignore[arg-type]
        {"release": "a/1", "exclude": ["share/doc", "**/*.a"]},
        {"release": "b/1", "exclude": ["x", "share/doc", "**/*.a"]},
    )
    (view,) = views(releases=[], query="@", exclude=["doc"])
    chosen = choose(view, [listed("a/1")], lambda found, _query, **_how: list(found)).releases
    assert chosen == ({"release": "a/1", "exclude": ["doc"]},)


def test_every_shared_key_is_tried() -> None:
    assert set(OTHER) == set(SHARED)


@pytest.mark.parametrize("key", SHARED)
def test_hosts_may_not_differ_in_what_a_view_shows(key: str) -> None:
    other = {**views()[0], key: OTHER[key]}
    _found, problems = shared_views({"a": views(), "b": [other], "c": [other]}, "a")
    assert [problem.partition(":")[0] for problem in problems] == ["view software"] * len(problems)
    assert problems[0].startswith(f"view software: {key} differs between hosts (a and b): ")


def test_hosts_may_differ_in_where_and_how_they_show_it() -> None:
    other = views(
        mountpoint="/x", state_dir="/y", persist="fstab", switch="over", keep=1, store="/z", strategy="redirect"
    )
    found, problems = shared_views({"a": other, "b": views()}, "b")
    assert problems == []
    assert [(view["name"], view["scan_store"]) for view in found] == [("software", "/net/manifests")]


def test_roots_at_different_paths_need_a_name() -> None:
    (problem,) = shared_views({"a": views(), "b": views(root="/mnt/software")}, "a")[1]
    assert problem.startswith("view software: root_name differs")
    assert shared_views({"a": views(root_name="s"), "b": views(root="/mnt", root_name="s")}, "a")[1] == []


def test_only_what_is_to_be_mounted_is_resolved() -> None:
    declared = {"a": views(state="absent"), "b": views(generation="previous")}
    assert shared_views(declared, "a") == ([], [])


def test_a_problem_of_many_hosts_is_told_once() -> None:
    found = {"a": ["x", "y"], "b": ["x"], "c": ["x"]}
    assert problems_of_hosts(found) == ["x", "y (on a)"]
    assert host_list(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"


def test_a_run_without_a_view_and_a_view_that_nobody_has_are_problems() -> None:
    assert list(nothing_declared([{"names": []}, {"names": []}])) == [
        "no host of this run declares a view: overlay_views lists the views of a host"
    ]
    assert list(nothing_declared([{"names": [], "problems": ["x"]}])) == []
    assert list(nothing_declared([{"names": ["a"], "chosen": "c"}, {"names": ["b"]}])) == [
        "overlay_view: no host of this run has a view c; the views are a, b"
    ]
    assert list(nothing_declared([{"names": ["a"], "chosen": "b"}, {"names": ["b"]}])) == []


def test_releases_are_chosen_as_declared_and_by_query() -> None:
    there = [listed("a/1"), listed("a/2", manifest=None)]
    (view,) = views(releases=[{"release": "a/1", "at": "x"}, "c/1"])
    assert choose(view, there, None).releases == ({"release": "a/1", "at": "x"}, {"release": "c/1"})  # type: ignore[arg-type]
    assert choose(view, there, None).unscanned == ("c/1",)  # type: ignore[arg-type]
    (view,) = views(releases=[], query="@")
    choice = choose(view, there, lambda found, query, **_how: [dict(found[1])] if query == "@" else [])
    assert (choice.releases, choice.unscanned) == (({"release": "a/2"},), ("a/2",))


def test_a_query_that_chooses_nothing_and_a_release_that_is_gone_are_problems() -> None:
    (view,) = views(releases=[], query="x")
    assert choose(view, [], lambda _found, _query, **_how: []).problem.startswith(
        "the query x chooses none of the 0 releases below /net/software"
    )
    early = [listed("a/1-wip", version="1-wip"), listed("a/1", version="1")]
    assert "one of the 1 pre-releases among them meant (prereleases: true)?" in (
        choose(view, early, lambda _found, _query, **_how: []).problem
    )
    (view,) = views()
    assert "restore them, or take them out" in choose(view, [listed("a/1", exists=False)], None).problem  # type: ignore[arg-type]


def test_batches_are_of_a_size_at_most() -> None:
    assert batches("abcde", 2) == [["a", "b"], ["c", "d"], ["e"]]
    assert batches([], 2) == []


LOCK = {
    "software": LockedView("software", "0123456789abcdef", ({"release": "a/1", "digest": "sha256:" + "0" * 64},)),
    "central": LockedView(
        "central", "fedcba9876543210", ({"release": "a/1", "digest": "x"},), (), "sha256:" + "1" * 64
    ),
}


def test_a_host_is_given_the_releases_of_the_lock() -> None:
    (found,) = locked_views(views(), LOCK)
    assert found["releases"] == list(LOCK["software"].releases)
    assert found["locked_generation"] == "0123456789abcdef"
    assert not {"query", "scan_root", "owner", "image"} & set(found)


def test_a_host_is_given_the_image_of_the_lock_in_its_own_store() -> None:
    (found,) = locked_views(views(name="central", image_store="/images", build="central"), LOCK)
    assert (found["image"], found["image_digest"]) == ("/images/fedcba9876543210.erofs", "sha256:" + "1" * 64)
    assert "releases" not in found


def test_a_host_is_given_the_address_of_the_image_of_the_lock() -> None:
    (found,) = locked_views(
        views(name="central", store="https://host/x", build="central", ca_path="/etc/ssl/stores.pem"), LOCK
    )
    assert found["image"] == "https://host/x/.images/fedcba9876543210.erofs"
    assert found["ca_path"] == "/etc/ssl/stores.pem"


def test_a_view_is_only_resolved_in_directories() -> None:
    address = {"store": "https://host/x", "image_store": "https://host/y"}

    def problems(**keys: Any) -> list[str]:
        return unlistable(shared_views({"a": views(**address, **keys)}, "a")[0])

    assert problems(scan_store="/net/x") == []
    (problem,) = problems()
    assert problem == (
        "view software: scan_store is the address https://host/x, which can neither be listed nor written to: give the directory that the"
        " web server serves, or deploy with a lock (overlay_lock)"
    )
    assert len(problems(build="central")) == len(problems(data_images="trace")) == 2
    assert problems(build="central", scan_store="/net/x") == []


def test_a_view_that_is_not_in_the_lock_is_left_out_unless_it_is_taken_down_or_rolled_back() -> None:
    (found,) = locked_views(views(name="other"), LOCK)
    assert found["unresolved"] is True
    assert "locked_generation" not in found
    (found,) = locked_views(views(name="other", generation="previous"), LOCK)
    assert found["generation"] == "previous"
    (found,) = locked_views(views(name="other", state="absent"), LOCK)
    assert found["state"] == "absent"


def test_hosts_that_show_different_generations_are_named() -> None:
    shown = {
        "one": [{"name": "a", "generation": "1"}, {"name": "b", "generation": "2"}, {"name": "c"}],
        "two": [{"name": "a", "generation": "3"}, {"name": "b", "generation": "2"}],
    }
    assert differing_views(shown) == ["view a: hosts show different generations: 1 on one, 3 on two"]
    assert differing_views({}) == []
    alike: dict[str, list[dict[str, object]]] = {host: [{"name": "a", "generation": "1"}] for host in ("one", "two")}
    failing: dict[str, list[dict[str, object]]] = {**alike, "three": [{"name": "a", "generation": "1", "failed": True}]}
    assert differing_views(failing) == ["view a: hosts show different generations: 1 on one, two; it failed on three"]


def test_hosts_may_want_different_data_images_of_one_view() -> None:
    declared = {
        "a": views(),
        "b": views(data_images="trace"),
        "c": views(data_images="only"),
        "d": views(data_images="everything"),
    }
    (found,), problems = shared_views(declared, "a")
    assert problems == []
    assert (found["data_images"], found["data_required"]) == (["everything", "trace"], True)
    (found,), _problems = shared_views({"a": views(), "b": views(data_images="trace")}, "a")
    assert (found["data_images"], found["data_required"]) == (["trace"], False)


def test_a_host_is_given_the_data_images_of_its_kind() -> None:
    trace = LockedImage("a/1", "trace", "sha256:" + "1" * 64, 10, 3, False)
    everything = LockedImage("a/1", "everything", "sha256:" + "2" * 64, 99, 0, True)
    lock = {"software": replace(LOCK["software"], data_images=(everything, trace))}
    (found,) = locked_views(views(data_images="trace", data_budget="1G"), lock)
    assert found["locked_data_images"] == [trace.as_dict()]
    assert (found["data_budget"], found["image_store"]) == (1 << 30, "/net/manifests/.images")
    (found,) = locked_views(views(data_images="only"), lock)
    assert found["locked_data_images"] == [everything.as_dict()]
    (found,) = locked_views(views(), lock)
    assert not {"data_images", "locked_data_images", "image_store"} & set(found)


LINKS: list[dict[str, Any]] = [
    {"path": "a/current", "release": "a/2", "reason": None, "link": {"path": "a/current", "target": "2"}},
    {"path": "a/old", "release": "a/1", "reason": None, "link": {"path": "a/old", "target": "1"}},
    {"path": "b/current", "release": "b/1", "reason": None, "link": {"path": "b/current", "target": "1"}},
    {
        "path": "c",
        "release": None,
        "reason": "it leads to /vol2/c, which is outside of the software root",
        "link": None,
    },
]


def chosen_links(**keys: Any) -> tuple[list[str], list[str]]:
    """Return the paths of the links of a view, and the sentences about those that it leaves out."""
    (view,) = views(**{"releases": ["a/2"], **keys})
    choice = choose(view, [listed("a/1"), listed("a/2"), listed("b/1")], None, LINKS)  # type: ignore[arg-type]
    return [one["path"] for one in choice.links], list(choice.left_out)


def test_a_view_shows_the_links_to_its_releases_and_names_those_to_others_of_their_packages() -> None:
    assert chosen_links() == (
        ["a/current"],
        ["view software: link a/old is left out, since the view does not show a/1 at this path"],
    )
    assert chosen_links(releases=["a/1", "a/2", "b/1"]) == (["a/current", "a/old", "b/current"], [])
    # Shown elsewhere, a release is not where the link leads.
    shown, left_out = chosen_links(releases=[{"release": "a/2", "at": "a"}, "a/1"])
    assert (shown, len(left_out)) == (["a/old"], 1)


def test_a_declared_link_is_shown_instead_of_one_on_the_software_root() -> None:
    (view,) = views(releases=["a/2"], links=[{"path": "a/current", "target": "other"}])
    assert choose(view, [listed("a/2")], None, LINKS[:1]).links == (  # type: ignore[arg-type]
        {"path": "a/current", "target": "other"},
    )


def test_links_to_releases_can_be_ignored() -> None:
    assert chosen_links(release_links="ignore") == (
        [],
        ["view software: links to releases are left out (3): release_links: ignore"],
    )


def test_many_links_that_are_left_out_are_counted() -> None:
    many = [{**LINKS[1], "path": f"a/old{number}"} for number in range(15)]
    (view,) = views(releases=["a/2"])
    left_out = choose(view, [listed("a/2")], None, many).left_out  # type: ignore[arg-type]
    assert (len(left_out), left_out[-1]) == (11, "view software: 5 more links to releases are left out")


def test_a_link_that_leads_to_no_release_is_named_with_the_reason() -> None:
    assert list(passed_over({"links": LINKS}, "")) == [
        "link c is passed over: it leads to /vol2/c, which is outside of the software root"
    ]
    assert list(passed_over({"links": LINKS[3:] * 12}, ""))[10:] == ["2 more links are passed over"]


def test_the_links_of_a_lock_are_those_of_the_view() -> None:
    (view,) = views(links=[{"path": "x", "target": "y"}])
    locked = LockedView("software", "0123456789abcdef", ({"release": "a/1"},))
    assert locked_views([view], {"software": locked})[0]["links"] == view["links"]
    more = (*view["links"], {"path": "a/current", "target": "1"})
    assert locked_views([view], {"software": replace(locked, links=more)})[0]["links"] == list(more)


ROOTS = [
    {"name": "houdini", "path": "/net/houdini"},
    {"name": "maya", "path": "/net/maya", "at": "apps/maya", "ready_marker": ".ok"},
]


def test_each_root_is_listed_and_its_releases_have_its_name_and_place() -> None:
    (view,) = views(releases=[], query="@", roots=ROOTS, ready_marker=".ready")
    first, second = Listing.of(view)
    assert (first.root, first.root_name, first.prefix, first.package, first.ready_marker) == (
        *("/net/houdini", "houdini", "houdini", "houdini", ".ready"),
    )
    assert (second.ready_marker, second.pattern) == (".ok", "{version}")
    assert "package" not in second.scan_options()
    assert second.scan_options()["prefix"] == "maya"
    found = [listed("houdini/20.5"), listed("maya/2025", root=None)]
    seen: list[Any] = []

    def select(releases: list[dict[str, Any]], _query: str, **_how: Any) -> list[dict[str, Any]]:
        seen.extend(one["root"] for one in releases)
        return releases

    assert choose(view, found, select).releases == (
        {"source": "20.5", "release": "houdini/20.5"},
        {"source": "2025", "at": "apps/maya/2025", "release": "maya/2025"},
    )
    assert seen == ["houdini", "maya"]
    (view,) = views(releases=["nuke/1"], roots=ROOTS)
    assert choose(view, found, select).problem.startswith("release nuke/1 is of none of the roots houdini, maya")


def links_of_roots(*pairs: tuple[str, str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the links that a view of several roots shows, and what it leaves out, for links to what has a name on another root."""
    releases = ["tools/1.0", "houdini/20.5", {"release": "maya/2025", "at": "maya/2025"}]
    roots = [*ROOTS, {"name": "tools", "path": "/net/tools", "at": ""}]
    (view,) = views(releases=releases, roots=[{**roots[1], "at": "maya"}, roots[0], roots[2]])
    found = [listed(path) for path in ("tools/1.0", "houdini/20.5", "houdini/20.0", "maya/2025")]
    links = [
        {"path": path, "release": None, "elsewhere": name, "reason": None, "link": None, "target": name}
        for path, name in pairs
    ]
    choice = choose(view, [*found, listed("maya/gone", exists=False)], None, links)  # type: ignore[arg-type]
    return [(one["path"], one["target"]) for one in choice.links], list(choice.left_out)


def test_a_link_to_another_root_is_followed_once_to_a_release_there() -> None:
    shown, left_out = links_of_roots(("maya/current", "houdini/20.5"), ("tools/latest", "maya/2025"))
    assert (shown, left_out) == ([("maya/current", "../houdini/20.5"), ("latest", "maya/2025")], [])
    begin = "view software: link maya/current is "
    for name, why in (
        ("houdini/20.0", f"{begin}left out, since the view does not show houdini/20.0 at this path"),
        ("houdini/21", f"{begin}passed over: it leads to houdini/21, where there is no release"),
        ("maya/gone", f"{begin}passed over: it leads to maya/gone, where there is no release"),
        (
            "maya/current",
            f"{begin}passed over: it leads to maya/current, which is a symbolic link: let it lead to the release",
        ),
    ):
        shown, (sentence,) = links_of_roots(("maya/current", name))
        assert (shown, sentence[: len(why)]) == ([], why)


@pytest.mark.parametrize(
    "path", ["tools/maya", "tools/houdini", "tools/houdini/20.5", "tools/houdini/20.5/bin", "tools/1.0"]
)
def test_a_link_of_one_root_changes_nothing_that_the_view_shows_of_another(path: str) -> None:
    shown, (sentence,) = links_of_roots((path, "maya/2025"))
    assert shown == []
    assert f"link {path} is left out, since the view shows a release at its place" in sentence


def test_no_link_is_inside_of_another() -> None:
    shown, left_out = links_of_roots(
        ("tools/nuke", "maya/2025"), ("tools/nuke/1", "maya/2025"), ("tools/nuke", "houdini/20.5")
    )
    assert shown == [("nuke", "maya/2025")]
    assert left_out == [
        "view software: link tools/nuke/1 is left out, since its place nuke/1 is above or below another link"
    ]


def test_a_root_with_a_source_has_to_be_mounted_on_a_host_of_the_run() -> None:
    """One that is not mounted would have no releases, and the view would drop them everywhere."""
    declared = views(releases=[], query="@", roots=[{**ROOTS[0], "source": "filer:/vol/houdini"}, ROOTS[1]])
    for scanning, expected in (("one", [True, False]), ("outside", [False, False])):
        ((view,), differing) = shared_views({"one": declared}, scanning)
        assert differing == []
        assert [listing.options()["mounted"] for listing in Listing.of(view)] == expected


def test_one_root_that_the_run_mounts_has_to_be_mounted() -> None:
    """Below it is often an empty directory, which would seem to be a software root without releases."""
    declared = {"a": views(releases=[], query="@"), "b": views(root="/mnt/software", root_name="s")}
    for mounted, expected in (("/net/software/", True), ("/net/software", True), ("", False), ("/net", False)):
        ((view,), _differing) = shared_views(declared, "a", mounted)
        (listing,) = Listing.of(view)
        assert (listing.options()["mounted"], "mounted" in listing.scan_options()) == (expected, False)


def test_hosts_may_have_a_root_at_different_paths() -> None:
    (other,) = views(
        roots=[{**ROOTS[0], "path": "/mnt/houdini", "source": "filer:/vol"}, ROOTS[1]], releases=["maya/1"]
    )
    (here,) = views(roots=ROOTS, releases=["maya/1"])
    (shared,), problems = shared_views({"a": [here], "b": [other]}, "b")
    assert problems == []
    assert shared["roots"][0]["path"] == "/mnt/houdini"
