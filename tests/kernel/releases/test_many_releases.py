"""One task of release_manifest scans many releases, and a failure of one does not affect the others."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.test_modules import everything, four_runs

NOBODY = 65534


@pytest.fixture
def places(area: Path) -> dict[str, Any]:
    """Return a software root with four releases, and a store, as options of the module."""
    for number in range(1, 5):
        support.make_small_release(area / "root" / "tool" / str(number), f"number {number}")
    return {"root": str(area / "root"), "store": str(area / "store")}


def stored(places: dict[str, Any]) -> dict[str, bytes]:
    """Return the content of the files in the store by relative path."""
    store = Path(places["store"])
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def paths_in(ran: support.Ran, key: str) -> list[str]:
    """Return the paths of the releases in the return value ``key``."""
    return [str(one["release"]) for one in ran.result[key]]


def test_each_release_has_the_manifest_of_a_task_for_it_alone(area: Path, places: dict[str, Any]) -> None:
    alone = {**places, "store": str(area / "other")}
    (area / "other").mkdir()
    expected = [
        {"release": release, **support.module("release_manifest", release=release, **alone).ok}
        for release in ("tool/3", "tool/1", "tool/2")
    ]
    # One release has a manifest already, and one is given twice.
    support.module("release_manifest", release="tool/1", **places)
    done = four_runs("release_manifest", releases=["tool/3", "tool//1/", "tool/2", "./tool/3"], **places)
    assert done["actions"] == ["scan release tool/3", "scan release tool/2"]
    assert stored(places) == stored(alone)
    keys = ("release", "digest", "entries", "bytes")
    assert [[one[key] for key in keys] for one in done["manifests"]] == [[one[key] for key in keys] for one in expected]
    assert [one["manifest"] for one in done["manifests"]] == [
        f"{places['store']}/tool/{number}.dump.gz" for number in (3, 1, 2)
    ]
    assert [one.get("unreadable") for one in done["manifests"]] == [[], None, []]
    assert done["failures"] == []
    assert done["diff"]["before"] == {"tool/3": {}, "tool/2": {}}
    assert {name: after["digest"] for name, after in done["diff"]["after"].items()} == {
        expected[0]["release"]: expected[0]["digest"],
        expected[2]["release"]: expected[2]["digest"],
    }
    removed = four_runs("release_manifest", releases=["tool/1", "tool/9", "tool/3"], state="absent", **places)
    assert removed["actions"] == ["remove the manifest of release tool/1", "remove the manifest of release tool/3"]
    assert sorted(stored(places)) == ["tool/2.dump.gz", "tool/2.json"]


def test_a_release_with_a_manifest_is_neither_walked_nor_is_its_manifest_read(places: dict[str, Any]) -> None:
    releases = ["tool/1", "tool/2"]
    first = support.module("release_manifest", releases=releases, **places).ok
    for one in first["manifests"]:
        manifest = Path(one["manifest"])
        manifest.write_bytes(b"\0" * manifest.stat().st_size)
        shutil.rmtree(f"{places['root']}/{one['release']}/bin")
    again = support.module("release_manifest", releases=releases, **places).ok
    assert not again["changed"]
    assert [one["digest"] for one in again["manifests"]] == [one["digest"] for one in first["manifests"]]


def test_an_empty_list_of_releases_changes_nothing(places: dict[str, Any]) -> None:
    ran = support.module("release_manifest", releases=[], **places).ok
    assert (ran["changed"], ran["manifests"], ran["failures"]) == (False, [], [])
    assert os.listdir(places["store"]) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"releases": ["tool/1", "../x"]}, "release '../x' may not contain '..'"),
        ({"releases": ["tool/1", "."]}, "release is empty"),
        ({"releases": ["tool/1", "tool/2"], "store": "{root}/tool/2/sub"}, "is inside the release {root}/tool/2:"),
        ({"releases": ["tool/1", "tool/2"], "root": "{root}/none"}, "software root {root}/none does not exist"),
        ({"releases": ["tool/1"], "release": "tool/1"}, "mutually exclusive: release|releases"),
        ({}, "one of the following is required: release, releases"),
    ],
)
def test_invalid_input_is_refused_before_anything_is_written(
    area: Path, places: dict[str, Any], arguments: dict[str, Any], reason: str
) -> None:
    root = places["root"]
    given = {
        key: value.replace("{root}", root) if isinstance(value, str) else value for key, value in arguments.items()
    }
    before = everything(area)
    message = support.module("release_manifest", **{**places, **given}).message
    assert reason.replace("{root}", root) in message
    # The error is not attributed to a release.
    assert "releases failed" not in message
    assert everything(area) == before


def test_a_release_that_fails_does_not_keep_the_others_from_being_scanned(places: dict[str, Any]) -> None:
    root = Path(places["root"])
    for number in range(1, 5):
        (root / "tool" / str(number) / ".ready").touch()
    (root / "tool/0").mkdir()
    (root / "tool/link").symlink_to("1")
    os.mknod(root / "tool/2/bin/null", stat.S_IFCHR | 0o644, os.makedev(1, 3))
    support.module("release_manifest", release="tool/4", **places)
    os.truncate(f"{places['store']}/tool/4.dump.gz", 10)
    given: dict[str, Any] = {
        **places,
        "releases": ["tool/0", "tool/1", "tool/link", "tool/2", "tool/9", "tool/4", "tool/3"],
        "ready_marker": ".ready",
    }
    before = everything(root.parent)
    # Check mode reports the failures that it can find without a scan.
    checked = support.module("release_manifest", check=True, **given)
    assert paths_in(checked, "failures") == ["tool/0", "tool/link", "tool/9", "tool/4"]
    assert everything(root.parent) == before

    ran = support.module("release_manifest", **given)
    assert ran.message.startswith("5 of 7 releases failed: release tool/0 is not ready: it has no .ready")
    for part in (
        f"; {root}/tool/link is a symbolic link",
        "; release tool/9 does not exist",
        f"; tool/4: {places['store']}/tool/4.dump.gz has 10 bytes where ",
        f"; {root}/tool/2/bin/null is a character device",
    ):
        assert part in ran.message
    reasons = {one["release"]: one["msg"] for one in ran.result["failures"]}
    assert list(reasons) == ["tool/0", "tool/link", "tool/2", "tool/9", "tool/4"]
    assert all(reason in ran.message for reason in reasons.values())
    # The changes are returned, and the manifests exist.
    assert ran.result["changed"]
    assert ran.result["actions"] == ["scan release tool/1", "scan release tool/3"]
    assert paths_in(ran, "manifests") == ["tool/1", "tool/3"]
    assert list(ran.result["diff"]["after"]) == ["tool/1", "tool/3"]
    assert {"tool/1.json", "tool/3.json"} < set(stored(places))
    assert not {"tool/0.json", "tool/2.json", "tool/2.dump.gz"} & set(stored(places))

    # The next run scans the rest.
    (root / "tool/2/bin/null").unlink()
    again = support.module("release_manifest", **given)
    assert again.result["actions"] == ["scan release tool/2"]
    assert again.message.startswith("4 of 7 releases failed: ")


def test_the_message_names_the_first_failures_and_counts_the_rest(places: dict[str, Any]) -> None:
    releases = [f"tool/{number}" for number in range(11, 20)]
    ran = support.module("release_manifest", releases=["tool/1", *releases], **places)
    assert ran.message.startswith("9 of 10 releases failed: release tool/11 does not exist: ")
    assert "tool/15 does not exist" in ran.message
    assert "tool/16" not in ran.message
    assert ran.message.endswith(" (and 4 more)")
    assert paths_in(ran, "failures") == releases
    assert paths_in(ran, "manifests") == ["tool/1"]


def test_a_list_of_one_release_fails_with_the_message_of_a_single_release(places: dict[str, Any]) -> None:
    ran = [support.module("release_manifest", **places, **given) for given in ({"releases": ["x"]}, {"release": "x"})]
    assert ran[0].message == ran[1].message == f"release x does not exist: there is no {places['root']}/x"


def test_a_full_store_ends_the_task_and_the_next_run_scans_the_rest(area: Path, places: dict[str, Any]) -> None:
    # There is room for the manifest and the record of a small release, but not of the large one.
    support.command("mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", places["store"])
    for _number in range(600):
        support.write(area / "root/tool/2" / os.urandom(60).hex())
    os.makedirs(f"{places['store']}/tool")
    given = {**places, "releases": ["tool/1", "tool/2", "tool/3", "tool/0", "tool/4"]}
    ran = support.module("release_manifest", **given)
    assert paths_in(ran, "failures") == ["tool/2", "tool/3", "tool/0", "tool/4"]
    assert f"{places['store']}/tool/2.dump.gz: No space left on device" in ran.message
    assert "release tool/3 was not tried after that: No space left on device" in ran.message
    assert "release tool/0 does not exist" in ran.message
    assert sorted(stored(places)) == ["tool/1.dump.gz", "tool/1.json"]
    support.command("mount", "-o", "remount,size=1m", places["store"])
    (area / "root/tool/0").mkdir()
    assert support.module("release_manifest", **given).ok["actions"] == [
        f"scan release tool/{number}" for number in (2, 3, 0, 4)
    ]


def test_a_rescan_names_each_release_that_has_changed(places: dict[str, Any]) -> None:
    given = {**places, "releases": [f"tool/{number}" for number in range(1, 5)]}
    support.module("release_manifest", **given)
    os.unlink(f"{places['store']}/tool/4.json")
    assert support.module("release_manifest", rescan=True, check=True, **given).ok["changed"]
    for number in (1, 3):
        Path(f"{places['root']}/tool/{number}/extra").touch()
    ran = support.module("release_manifest", rescan=True, **given)
    assert ran.message.startswith("2 of 4 releases failed: release tool/1 is no longer what its manifest says, in ")
    assert "; release tool/3 is no longer what its manifest says, in " in ran.message
    assert ran.result["actions"] == ["scan release tool/4"]
    assert paths_in(ran, "manifests") == ["tool/2", "tool/4"]


def test_a_warning_names_unreadable_files_and_their_release(places: dict[str, Any]) -> None:
    for number in (1, 3):
        path = Path(f"{places['root']}/tool/{number}/secret")
        support.write(path, b"x", 0o600)
        os.chown(path, NOBODY, NOBODY)
    Path(places["store"]).chmod(0o777)
    ran = support.module("release_manifest", privileged=False, releases=["tool/1", "tool/2", "tool/3"], **places).ok
    assert [one["unreadable"] for one in ran["manifests"]] == [["/secret"], [], ["/secret"]]
    # The last warning is about the store, which was empty.
    assert len(ran["warnings"]) == 3
    for number, warning in zip((1, 3), ran["warnings"]):
        assert f"release tool/{number}: not everybody may read 1 of its files and directories" in str(warning)
