"""Modules as Ansible runs them: processes that read JSON and write JSON."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.entries import Placement
from ansible_collections.renderfarm.overlay.tests.kernel import support


def four_runs(name: str, /, **arguments: Any) -> dict[str, Any]:
    """Run a module in check mode, for real, again, and again in check mode; return the result of the first real run."""
    checked = support.module(name, check=True, **arguments).ok
    done = support.module(name, **arguments).ok
    again = support.module(name, **arguments).ok
    check_again = support.module(name, check=True, **arguments).ok
    assert [run["changed"] for run in (checked, done, again, check_again)] == [True, True, False, False]
    assert checked["actions"] == done["actions"] != []
    assert again["actions"] == check_again["actions"] == []
    assert checked["diff"]["before"] == done["diff"]["before"]
    assert "diff" not in again
    return done


def everything(area: Path) -> dict[bytes, tuple[int, int, int]]:
    """Map each path to its mode, mtime and inode number, which check mode must not change."""
    return {path: (status.st_mode, status.st_mtime_ns, status.st_ino) for path, status in support.listing(area).items()}


def test_from_a_release_to_its_view_and_back(area: Path) -> None:
    support.make_small_release(area / "root" / "tool" / "1", "one")
    support.make_small_release(area / "root" / "tool" / "2", "two")
    root, store = str(area / "root"), str(area / "store")
    made = [four_runs("release_manifest", root=root, release=f"tool/{number}", store=store) for number in (1, 2)]
    listed = support.module("release_info", root=root, store=store).ok["releases"]
    assert [(one["path"], one["manifest"], one["digest"]) for one in listed] == [
        ("tool/1", made[0]["manifest"], made[0]["digest"]),
        ("tool/2", made[1]["manifest"], made[1]["digest"]),
    ]
    layer_of: dict[str, Any] = {"name": "v", "state_dir": str(area / "state")}
    mount: dict[str, Any] = {"path": str(area / "view"), "data": [root]}
    built = [four_runs("metadata_layer", releases=[{"manifest": made[0]["manifest"]}], **layer_of)]
    mounted = four_runs("overlay_mount", lower=[built[0]["layer"]], **mount)
    assert mounted["mount"]["lower"] == [built[0]["layer"]]
    assert support.compare_trees(area / "view" / "tool" / "1", area / "root" / "tool" / "1") == []
    built.append(four_runs("metadata_layer", releases=[{"manifest": one["manifest"]} for one in made], **layer_of))
    assert built[1]["previous"] == built[0]["generation"]
    switched = four_runs("overlay_mount", lower=[built[1]["layer"]], **mount)
    assert (switched["switched"], switched["method"]) == (True, "beneath")
    assert sorted(os.listdir(area / "view" / "tool")) == ["1", "2"]
    refused = support.module("metadata_layer", state="absent", **layer_of)
    assert f"it is mounted at {area}/view)" in refused.message
    four_runs("overlay_mount", state="unmounted", path=str(area / "view"))
    support.module("overlay_mount", lower=[built[1]["layer"]], **mount)
    four_runs("overlay_mount", state="absent", path=str(area / "view"))
    assert not (area / "view").exists()
    four_runs("metadata_layer", state="absent", **layer_of)
    for number in (1, 2):
        four_runs("release_manifest", state="absent", root=root, release=f"tool/{number}", store=store)
    assert os.listdir(area / "state" / "views") == os.listdir(store) == []


def test_check_mode_writes_nothing(area: Path) -> None:
    support.make_small_release(area / "root" / "tool" / "1", "one")
    manifest = support.module(
        "release_manifest", root=str(area / "root"), release="tool/1", store=str(area / "store")
    ).ok["manifest"]
    for name in ("layer", "images"):
        (area / name).mkdir()
    before = everything(area)
    arguments: dict[str, dict[str, Any]] = {
        "release_manifest": {"root": str(area / "root"), "release": "tool/1", "store": str(area / "images")},
        "metadata_layer": {"name": "v", "state_dir": str(area / "s"), "releases": [{"manifest": manifest}]},
        "overlay_mount": {
            "path": str(area / "view"),
            "lower": [str(area / "layer")],
            "data": [str(area / "root")],
        },
    }
    for name, given in arguments.items():
        assert support.module(name, check=True, **given).ok["changed"]
    assert everything(area) == before
    assert support.live(area / "view") is None


def test_an_unchanged_view_is_recognised_without_reading_anything(area: Path, odd: Placement) -> None:
    # The manifest is replaced by zeros of the same length, and the layer is removed. Both would be noticed if they were read. The manifest
    # is in a copy of the store, since other tests use the store itself.
    store = area / "copied"
    store.mkdir()
    support.command("cp", "-a", Path(odd.manifest).parent, store)
    manifest = store / Path(odd.manifest).parent.name / Path(odd.manifest).name
    arguments: dict[str, Any] = {
        "name": "v",
        "state_dir": str(area / "state"),
        "releases": [{"manifest": str(manifest)}],
    }
    built = support.module("metadata_layer", **arguments).ok
    assert built["changed"]
    manifest.write_bytes(b"\0" * manifest.stat().st_size)
    layer = Path(built["layer"])
    support.command("rm", "-rf", layer)
    again = support.module("metadata_layer", **arguments).ok
    assert not again["changed"]
    assert {key: again[key] for key in ("generation", "layer", "entries", "bytes")} == {
        key: built[key] for key in ("generation", "layer", "entries", "bytes")
    }


def test_two_runs_at_the_same_time_build_once(area: Path, odd: Placement) -> None:
    arguments: dict[str, Any] = {
        "name": "v",
        "state_dir": str(area / "state"),
        "releases": [{"manifest": odd.manifest}],
    }
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(support.module, "metadata_layer", **arguments) for _ in range(3)]
        done = [run.result().ok for run in runs]
    assert sorted(run["changed"] for run in done) == [False, False, True]
    assert len({run["layer"] for run in done}) == 1


def test_a_release_that_changed_is_named_by_a_rescan(area: Path) -> None:
    top = area / "root" / "tool" / "1"
    support.make_small_release(top, "one")
    arguments: dict[str, Any] = {"root": str(area / "root"), "release": "tool/1", "store": str(area / "store")}
    support.module("release_manifest", **arguments)
    assert not support.module("release_manifest", rescan=True, **arguments).ok["changed"]
    os.utime(top / "bin" / "tool", (1, 1))
    (top / "extra").touch()
    message = support.module("release_manifest", rescan=True, **arguments).message
    assert "release tool/1 is no longer what its manifest says" in message
    assert "/bin/tool: mtime " in message
    assert "/extra: added" in message


@pytest.mark.parametrize("record", [b"", b"{}", b"\0\xff"])
def test_a_manifest_with_a_damaged_record_is_named_and_can_be_removed(area: Path, record: bytes) -> None:
    support.make_small_release(area / "root" / "tool" / "1", "one")
    arguments: dict[str, Any] = {"root": str(area / "root"), "release": "tool/1", "store": str(area / "store")}
    support.module("release_manifest", **arguments)
    (area / "store/tool/1.json").write_bytes(record)
    message = support.module("release_manifest", **arguments).message
    assert f"{area}/store/tool/1.json: not the record of a manifest" in message
    assert support.module("release_manifest", state="absent", **arguments).ok["changed"]
    assert os.listdir(area / "store") == []
    assert support.module("release_manifest", **arguments).ok["changed"]


def test_a_release_that_is_not_ready_has_no_manifest(area: Path) -> None:
    support.make_small_release(area / "root" / "tool" / "1", "one")
    arguments: dict[str, Any] = {"root": str(area / "root"), "release": "tool/1", "store": str(area / "store")}
    ran = support.module("release_manifest", ready_marker=".ready", **arguments)
    assert "release tool/1 is not ready: it has no .ready" in ran.message
    assert os.listdir(area / "store") == []
    (area / "root/tool/1/.ready").touch()
    assert support.module("release_manifest", ready_marker=".ready", **arguments).ok["changed"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("release_manifest", {"root": "{}/none", "release": "a/1", "store": "{}/store"}, "root {}/none does not exist"),
        ("release_manifest", {"root": "{}", "release": "../x", "store": "{}/store"}, "release '../x' may not contain"),
        ("release_manifest", {"root": "{}", "release": "/", "store": "{}/store"}, "release is empty"),
        ("release_manifest", {"root": "{}", "release": "a", "store": "{}/a/store"}, "store {}/a/store is inside"),
        ("release_manifest", {"root": "x", "release": "a", "store": "{}/store"}, "root must be an absolute path"),
        ("metadata_layer", {"name": "../v", "state_dir": "{}/s"}, "view name '../v' is not usable"),
        ("metadata_layer", {"name": "v", "state_dir": "s"}, "state_dir must be an absolute path"),
        ("metadata_layer", {"name": "v", "state_dir": "{}/s", "owner": "nobody-here"}, "owner 'nobody-here' does not"),
        ("metadata_layer", {"name": "v", "state_dir": "{}/s", "owner": "4294967295"}, "owner 4294967295 is larger"),
        (
            "metadata_layer",
            {"name": "v", "state_dir": "{}/s", "owner_map": {"root": 1, "0": 2}},
            "owner_map maps 0 to 1 and, under another name, to 2",
        ),
        ("metadata_layer", {"name": "v", "state_dir": "{}/s", "group_map": {"1": "no-group"}}, "group_map 'no-group'"),
        ("metadata_layer", {"name": "v", "state_dir": "{}/s", "mode": "0755"}, "mode '0755' is no symbolic mode"),
        (
            "metadata_layer",
            {"name": "v", "state_dir": "{}/s", "links": [{"path": "../x", "target": "y"}]},
            "path of the link '../x' may not contain",
        ),
        (
            "metadata_layer",
            {"name": "v", "state_dir": "{}/s", "releases": [{"manifest": "{}/none.dump.gz"}]},
            "{}/none.dump.gz: there is no such manifest",
        ),
        ("overlay_mount", {"path": "{}/a/v", "lower": ["{}/b"], "data": ["{}/a"]}, "inside of the data layer {}/a"),
        (
            "overlay_mount",
            {"path": "{}/v", "lower": ["{}/none"]},
            "layer {}/none of the overlay at {}/v does not exist",
        ),
        ("overlay_mount", {"path": "{}/full", "lower": ["{}/b"]}, "mountpoint {}/full is not empty"),
        ("metadata_layer", {"name": "v", "owner": "a\0b", "_ansible_no_log": True}, "option owner has a NUL byte"),
        (
            "metadata_layer",
            {"name": "v", "releases": [{"release": "\ud800"}]},
            "option releases.release has lone surrogates",
        ),
        ("metadata_layer", {"name": "v", "owner": "9" * 5000}, "owner 999999"),
        ("overlay_mount", {"path": "{}/v", "options": {"\ud800": 1}}, "option options has lone surrogates"),
        ("overlay_mount", {"path": "{}/v", "timeout": "nan"}, "option timeout has to be a number"),
        ("overlay_mount", {"path": "{}/v", "timeout": 1e300}, "timeout must be a number of seconds"),
        ("overlay_prune", {"name": "v", "min_age": "nan"}, "option min_age has to be a number"),
        ("overlay_mount", {"path": "{}/v", "lower": []}, "'lower' needs at least one layer"),
        ("overlay_mount", {"path": "{}/v", "lower": ["{}/b"], "options": {"loud": 1}}, "option 'loud' is not known"),
    ],
)
def test_a_refusal_names_the_option_or_path_and_leaves_nothing(
    area: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    for one in ("a", "b", "full/of"):
        (area / one).mkdir(parents=True)
    before = everything(area)

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{}", str(area))
        if isinstance(value, list):
            return [filled(one) for one in value]
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        return value

    assert message.replace("{}", str(area)) in support.module(name, **filled(arguments)).message
    assert everything(area) == before


def test_without_capabilities_the_message_says_become_root(area: Path) -> None:
    for one in ("layer", "other"):
        (area / one).mkdir()
    ran = support.module(
        "overlay_mount",
        privileged=False,
        path=str(area / "view"),
        lower=[str(area / "layer"), str(area / "other")],
    )
    assert "become: true" in ran.message


@pytest.mark.parametrize("name", ["v \xe9\u65e5", "v,a:b c\\d"])
def test_paths_with_special_characters_pass_through_the_modules(area: Path, name: str) -> None:
    support.make_small_release(area / "root" / "tool" / name, "one")
    (area / f"store {name}").mkdir()
    made = support.module(
        "release_manifest", root=str(area / "root"), release=f"tool/{name}", store=str(area / f"store {name}")
    ).ok
    built = support.module(
        "metadata_layer", name="v", state_dir=str(area / name), releases=[{"manifest": made["manifest"]}]
    ).ok
    ran = four_runs("overlay_mount", path=str(area / f"view {name}"), lower=[built["layer"]], data=[str(area / "root")])
    assert ran["mount"]["path"] == str(area / f"view {name}")
    assert (area / f"view {name}" / "tool" / name / "version").read_text() == "one"


def test_names_that_are_not_utf8_are_listed_without_a_crash(area: Path) -> None:
    support.make_small_release(area / "root" / "tool" / "1 \udcff", "one")
    listed = support.module("release_info", root=str(area / "root")).ok["releases"]
    assert len(listed) == 1


@pytest.mark.parametrize("name", ["release_info", "release_manifest", "overlay_mount"])
def test_arguments_that_are_not_utf8_are_refused_without_a_traceback(area: Path, name: str) -> None:
    path = f"{area}/\udcff"
    arguments: dict[str, Any] = {
        "release_info": {"root": path},
        "release_manifest": {"root": path, "release": "a", "store": path},
        "overlay_mount": {"path": path, "state": "absent"},
    }[name]
    ran = support.module(name, **arguments)
    assert "UTF-8" in ran.message
    assert "Traceback" not in ran.output


def test_a_run_that_does_not_get_the_lock_of_a_view_fails_on_timeout(area: Path) -> None:
    (area / "state/views/v").mkdir(parents=True)
    with open(area / "state/views/v/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = support.module("metadata_layer", name="v", state_dir=str(area / "state"), timeout=1)
        assert "another run has been at work" in ran.message


def test_a_layer_of_read_only_files_is_built_without_capabilities(area: Path) -> None:
    top = area / "root" / "tool" / "1"
    support.make_small_release(top, "one")
    for mode in (0o000, 0o444, 0o555, 0o4555):
        support.write(top / f"mode-{mode:o}", b"content", mode)
    (top / "closed").mkdir(0o555)
    made = support.module("release_manifest", root=str(area / "root"), release="tool/1", store=str(area / "store")).ok
    built = support.module(
        "metadata_layer",
        privileged=False,
        name="v",
        state_dir=str(area / "state"),
        xattr_namespace="user",
        releases=[{"manifest": made["manifest"]}],
    ).ok
    spec = support.declared(area / "view", [Path(built["layer"])], [area / "root"], userxattr=True)
    with support.mounted(spec) as view:
        assert support.compare_trees(view / "tool" / "1", top) == []
