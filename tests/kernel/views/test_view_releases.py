"""Releases that leave a view linger, withdrawn ones do not, and releases that were changed in place are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.views import linger, view_record
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.linger import Record
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.test_modules import everything, four_runs

TWO_DAYS = 172_800


def done(name: str, /, **arguments: Any) -> dict[str, Any]:
    """Run a module, which must succeed, and return its values."""
    return support.module(name, **arguments).ok


class Farm:
    """A software root with three releases of one package, a store with their manifests, and a mountpoint of a view."""

    def __init__(self, area: Path) -> None:
        self.area = area
        self.root, self.store, self.view = area / "root", area / "store", area / "view"
        self.view.mkdir()
        for version in "123":
            release = self.root / "usd" / version
            (release / "lib").mkdir(parents=True)
            (release / ".ready").touch()
            for name in ("early", "late"):
                support.write(release / "lib" / f"{name}.py", f"word = '{name} {version}'\n".encode())
            self.scan(f"usd/{version}")

    def scan(self, release: str) -> None:
        done("release_manifest", root=str(self.root), store=str(self.store), release=release)

    def decide(self, *releases: str | dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        """Run view_releases, which must succeed, and return its values."""
        return self.ran(*releases, check=check, **options).ok

    def refusal(self, *releases: str | dict[str, Any], check: bool = False, **options: Any) -> str:
        """Run view_releases, which must fail, and return the message."""
        return self.ran(*releases, check=check, **options).message

    def ran(self, *releases: str | dict[str, Any], check: bool = False, **options: Any) -> support.Ran:
        given = [one if isinstance(one, dict) else {"release": one} for one in releases]
        return support.module("view_releases", check=check, **{**self.options, "releases": given, **options})

    @property
    def options(self) -> dict[str, Any]:
        return {"name": "view", "root": str(self.root), "store": str(self.store), "ready_marker": ".ready"}

    def deploy(self, *releases: str | dict[str, Any], **options: Any) -> dict[str, Any]:
        """Decide, build and mount, as the role does. Return the values of view_releases and the generation."""
        decided = self.decide(*releases, **options)
        state_dir, releases = str(self.area / "state"), decided["releases"]
        layer = done("metadata_layer", name="view", store=str(self.store), state_dir=state_dir, releases=releases)
        mount = {"path": str(self.view), "lower": [layer["layer"]], "data": [str(self.root)]}
        done("overlay_mount", **mount)
        return {**decided, "generation": layer["generation"]}

    def shown(self) -> list[str]:
        return sorted(os.listdir(self.view / "usd"))

    @property
    def record(self) -> Path:
        return self.store / ".views" / "view.json"


@pytest.fixture
def farm(area: Path) -> Farm:
    return Farm(area)


def names(entries: list[dict[str, Any]]) -> list[str]:
    return [one["release"] for one in entries]


#: Imports a Python module of its release, and another one after it has read a line.
JOB = """
import os, sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import early
print("ready", flush=True)
sys.stdin.readline()
import late
print(early.word, late.word, flush=True)
"""


# ---- lingering


def test_a_process_still_finds_its_lingering_release_after_a_switch(farm: Farm) -> None:
    """The case in the README: a job runs from usd/1 while newest(@) deploys usd/2."""
    farm.deploy("usd/1")
    with support.background(JOB, farm.view / "usd" / "1" / "lib") as job:
        assert names(farm.deploy("usd/2")["leaving"]) == ["usd/1"]
        assert job.stdin
        assert job.stdout
        job.stdin.write("\n")
        job.stdin.flush()
        assert job.stdout.readline() == "early 1 late 1\n"
    assert farm.shown() == ["1", "2"]


def test_with_linger_0_the_old_release_is_removed_at_once(farm: Farm) -> None:
    farm.deploy("usd/1", linger=0)
    assert farm.deploy("usd/2", linger=0)["leaving"] == []
    assert farm.shown() == ["2"]
    assert not farm.record.exists()


def test_the_first_deployment_after_the_linger_time_removes_the_release(farm: Farm) -> None:
    farm.deploy("usd/1", now=1000)
    farm.deploy("usd/2", now=2000)
    decided = farm.deploy("usd/3", now=2000 + TWO_DAYS - 1)
    assert decided["leaving"] == [
        {"release": "usd/1", "since": "1970-01-01T00:33:20Z", "until": "1970-01-03T00:33:20Z"},
        {"release": "usd/2", "since": "1970-01-03T00:33:19Z", "until": "1970-01-05T00:33:19Z"},
    ]
    assert farm.shown() == ["1", "2", "3"]
    decided = farm.deploy("usd/3", now=2000 + TWO_DAYS)
    assert decided["left"] == [{"release": "usd/1", "at": "usd/1", "reason": "it has lingered for 172800 seconds"}]
    assert farm.shown() == ["2", "3"]


def test_check_and_real_runs_agree_and_the_second_run_changes_nothing(farm: Farm) -> None:
    farm.decide("usd/1", now=1000)
    given = {**farm.options, "releases": [{"release": "usd/2"}], "now": 2000}
    ran = four_runs("view_releases", **given)
    assert ran["actions"] == ["record the releases of view view"]
    assert ran["diff"]["before"] == {"declared": ["usd/1 at usd/1"], "leaving": []}
    assert ran["diff"]["after"] == {
        "declared": ["usd/2 at usd/2"],
        "leaving": ["usd/1 until 1970-01-03T00:33:20Z"],
    }


def test_later_batches_and_hosts_have_the_same_generation(farm: Farm) -> None:
    farm.decide("usd/1", now=1000)
    first = farm.deploy("usd/2", now=2000)
    # A later batch with the same "now" decides as the first one, and so does a run just before the linger time ends.
    assert farm.deploy("usd/2", now=first["now"])["generation"] == first["generation"]
    assert farm.deploy("usd/2", now=2000 + TWO_DAYS - 1)["generation"] == first["generation"]
    # A release that was removed does not come back, even if the clock is set back.
    last = farm.deploy("usd/2", now=2000 + TWO_DAYS)
    assert last["generation"] != first["generation"]
    assert farm.deploy("usd/2", now=3000)["generation"] == last["generation"]


def test_a_release_at_another_place_than_its_own_path_is_replaced_at_once(farm: Farm) -> None:
    farm.deploy({"release": "usd/1", "at": "usd/current"})
    decided = farm.deploy({"release": "usd/2", "at": "usd/current"})
    assert decided["leaving"] == []
    assert names(decided["left"]) == ["usd/1"]
    assert (farm.view / "usd/current/lib/late.py").read_text() == "word = 'late 2'\n"


def test_a_declared_link_replaces_a_release_at_once(farm: Farm) -> None:
    farm.decide("usd/1")
    decided = farm.decide("usd/2", links=[{"path": "usd/1", "target": "2"}])
    assert decided["leaving"] == []
    assert names(decided["releases"]) == ["usd/2"]


def test_a_release_lingers_with_its_patterns(farm: Farm) -> None:
    farm.decide({"release": "usd/1", "exclude": ["**/late.py"]})
    decided = farm.deploy("usd/2")
    assert decided["releases"][1] == {"release": "usd/1", "at": "usd/1", "source": "usd/1", "exclude": ["**/late.py"]}
    assert os.listdir(farm.view / "usd/1/lib") == ["early.py"]


@pytest.mark.parametrize("how", ["withdrawn", "deleted", "without a manifest"])
def test_an_unusable_release_does_not_linger(farm: Farm, how: str) -> None:
    farm.deploy("usd/1")
    farm.deploy("usd/2")
    if how == "withdrawn":
        (farm.root / "usd/1/.ready").unlink()
    elif how == "deleted":
        shutil.rmtree(farm.root / "usd/1")
    else:
        (farm.store / "usd/1.json").unlink()
    decided = farm.deploy("usd/2")
    assert decided["leaving"] == []
    assert names(decided["left"]) == ["usd/1"]
    assert farm.shown() == ["2"]
    # It does not come back with its directory unless it is declared.
    (farm.root / "usd/1").mkdir(exist_ok=True)
    (farm.root / "usd/1/.ready").touch()
    assert farm.decide("usd/2", sample=0)["leaving"] == []


# ---- withdrawn releases


def test_a_withdrawn_release_is_refused_by_name_although_it_was_scanned(farm: Farm) -> None:
    farm.decide("usd/1", "usd/2")
    before = everything(farm.store)
    (farm.root / "usd/2/.ready").unlink()
    for check in (True, False):
        message = farm.refusal("usd/1", "usd/2", check=check)
        assert "release usd/2 is not ready: it has no .ready, so it was withdrawn" in message
        assert "usd/1" not in message
    (farm.root / "usd/2/.ready").touch()
    assert everything(farm.store) == before
    # Writing the marker again changed the mtime of the directory, which is not a change of the release.
    assert farm.decide("usd/1", "usd/2", sample=1000)["leaving"] == []


# ---- releases that were changed in place


def overwrite(farm: Farm) -> None:
    with open(farm.root / "usd/1/lib/late.py", "r+b") as stream:
        stream.truncate()
        stream.write(b"longer than what was there before\n")


def rewrite_with_the_same_size(farm: Farm) -> None:
    path = farm.root / "usd/1/lib/late.py"
    path.write_bytes(path.read_bytes()[::-1])


def replace_by_a_rename(farm: Farm) -> None:
    path = farm.root / "usd/1/lib/late.py"
    path.with_suffix(".new").write_text("new")
    path.with_suffix(".new").rename(path)


def add(farm: Farm) -> None:
    (farm.root / "usd/1/lib/added.py").touch()


def add_at_the_top(farm: Farm) -> None:
    (farm.root / "usd/1/added").mkdir()


def remove(farm: Farm) -> None:
    (farm.root / "usd/1/lib/late.py").unlink()


def remove_a_directory(farm: Farm) -> None:
    shutil.rmtree(farm.root / "usd/1/lib")


def change_the_kind(farm: Farm) -> None:
    (farm.root / "usd/1/lib/late.py").unlink()
    (farm.root / "usd/1/lib/late.py").symlink_to("early.py")


def lead_elsewhere(farm: Farm) -> None:
    (farm.root / "usd/1/lib").rename(farm.root / "usd/elsewhere")
    (farm.root / "usd/1/lib").symlink_to("../elsewhere")


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (overwrite, ["/lib/late.py: size 16 -> 34, mtime"]),
        (rewrite_with_the_same_size, ["/lib/late.py: mtime"]),
        (replace_by_a_rename, ["/lib/late.py: size 16 -> 3, mtime"]),
        (add, ["/lib/added.py: it has been added"]),
        (add_at_the_top, ["/added: it has been added"]),
        (remove, ["/lib/late.py: it is gone"]),
        (remove_a_directory, ["/lib: it is gone", "/lib/late.py: it is gone"]),
        (change_the_kind, ["/lib/late.py: it is a symbolic link and was a file"]),
        (lead_elsewhere, ["/lib: it is a symbolic link and was a directory"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_release_that_was_changed_in_place_is_refused_by_name(farm: Farm, change: Any, reported: list[str]) -> None:
    farm.decide("usd/1", "usd/2")
    recorded = farm.record.read_bytes()
    time.sleep(0.02)
    change(farm)
    message = farm.refusal("usd/1", "usd/2", "usd/3", sample=1000)
    assert "release usd/1 is no longer what its manifest says" in message
    assert "publish this under a new version" in message
    assert [text for text in reported if text not in message] == []
    assert "usd/2" not in message
    assert farm.record.read_bytes() == recorded
    assert farm.decide("usd/1", "usd/2", sample=0)["changed"] is False
    # The remedy in the message works.
    done("release_manifest", root=str(farm.root), store=str(farm.store), release="usd/1", state="absent")
    farm.scan("usd/1")
    assert farm.decide("usd/1", "usd/2", sample=1000)["changed"] is False


def test_a_touched_directory_is_not_a_difference(farm: Farm) -> None:
    os.utime(farm.root / "usd/1/lib")
    os.utime(farm.root / "usd/1")
    farm.decide("usd/1", sample=1000)


def test_an_unchanged_release_with_entries_of_all_kinds_equals_its_manifest(root: Path, odd: Any) -> None:
    store = Path(odd.manifest).parents[1]
    given = {"name": "odd", "root": str(root), "store": str(store), "releases": [{"release": "odd/1"}]}
    done("view_releases", sample=10**6, **given)


def test_each_run_compares_another_random_sample(farm: Farm) -> None:
    release = farm.root / "many" / "1"
    for number in range(10):
        (release / f"{number}").mkdir(parents=True)
        for index in range(4):
            support.write(release / f"{number}" / f"{index}", b"as it was")
    (release / ".ready").touch()
    farm.scan("many/1")
    support.write(release / "7" / "2", b"longer than it was")
    noticed = [bool(farm.ran("many/1", sample=10).result.get("failed")) for _run in range(60)]
    # Each run compares 5 of 40 files.
    assert 0 < sum(noticed) < 60


def test_the_default_sample_notices_a_mostly_overwritten_release(farm: Farm) -> None:
    release = farm.root / "many" / "1"
    release.mkdir(parents=True)
    (release / ".ready").touch()
    for number in range(1000):
        support.write(release / f"{number}", b"as it was")
    farm.scan("many/1")
    for number in range(0, 1000, 2):
        support.write(release / f"{number}", b"longer than it was")
    assert "many/1 is no longer" in farm.refusal("many/1")


# ---- the record and the stores


def test_the_mode_of_the_record_does_not_depend_on_the_umask(farm: Farm) -> None:
    for mask in (0o000, 0o077):
        before = os.umask(mask)
        try:
            shutil.rmtree(farm.store / ".views", ignore_errors=True)
            view_record.write(str(farm.store), "view", Record(()))
        finally:
            os.umask(before)
        assert [path.stat().st_mode & 0o7777 for path in (farm.record.parent, farm.record)] == [0o755, 0o644]


def test_symbolic_links_to_the_record_or_its_directory_are_refused(farm: Farm) -> None:
    outside = farm.area / "outside"
    outside.mkdir()
    (farm.store / ".views").symlink_to(outside)
    for check in (True, False):
        assert f"{farm.store}/.views is no directory, or a symbolic link" in farm.refusal("usd/1", check=check)
    assert os.listdir(outside) == []
    (farm.store / ".views").unlink()
    (farm.store / ".views").mkdir()
    (outside / "view.json").write_bytes(linger.record_to_json("view", Record(())))
    farm.record.symlink_to(outside / "view.json")
    before = (outside / "view.json").read_bytes()
    assert str(farm.record) in farm.refusal("usd/1")
    assert (outside / "view.json").read_bytes() == before


@pytest.mark.parametrize("kind", ["garbage", "pipe", "device", "directory", "deep"])
def test_an_invalid_record_is_refused_by_its_path(farm: Farm, kind: str) -> None:
    farm.record.parent.mkdir()
    if kind == "garbage":
        farm.record.write_bytes(b"{")
    elif kind == "pipe":
        os.mkfifo(farm.record)
    elif kind == "device":
        os.mknod(farm.record, 0o20666, os.makedev(1, 5))
    elif kind == "directory":
        farm.record.mkdir()
    else:
        farm.record.write_bytes(b"[" * 200_000)
    message = farm.refusal("usd/1", timeout=20)
    assert str(farm.record) in message
    assert "bug" not in message
    assert "file server" not in message


def test_a_run_that_is_killed_during_the_write_leaves_the_old_record(farm: Farm) -> None:
    farm.decide("usd/1")
    before = farm.record.read_bytes()
    code = (
        "import os, signal, sys\n"
        "from ansible_collections.renderfarm.overlay.plugins.module_utils.views.linger import Record\n"
        "from ansible_collections.renderfarm.overlay.plugins.module_utils.views import view_record\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        "view_record.write(sys.argv[1], 'view', Record(()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    killed = subprocess.run([sys.executable, "-c", code, farm.store], env=environment, check=False)
    assert killed.returncode == -9
    assert farm.record.read_bytes() == before
    assert names(farm.decide("usd/2")["leaving"]) == ["usd/1"]


def test_a_read_only_store_is_refused_by_name_unless_nothing_lingers(farm: Farm) -> None:
    support.command("mount", "--bind", farm.store, farm.store)
    support.command("mount", "-o", "remount,bind,ro", farm.store)
    message = farm.refusal("usd/1")
    assert f"{farm.record} cannot be written: Read-only file system" in message
    assert "unless 'linger' is 0" in message
    farm.decide("usd/1", linger=0)
    farm.decide("usd/1", check=True)


@pytest.mark.parametrize("module", ["view_releases", "release_manifest", "release_info", "metadata_layer"])
def test_a_missing_store_is_an_error_and_is_never_created(farm: Farm, module: str) -> None:
    missing = farm.area / "net" / "manifests"
    given = {
        "view_releases": {**farm.options, "releases": [{"release": "usd/1"}]},
        "release_manifest": {"root": str(farm.root), "release": "usd/1"},
        "release_info": {"root": str(farm.root)},
        "metadata_layer": {"name": "view", "state_dir": str(farm.area / "state"), "releases": [{"release": "usd/1"}]},
    }[module]
    for check in (True, False):
        ran = support.module(module, check=check, **{**given, "store": str(missing)})
        assert f"manifest store {missing} does not exist: is it mounted?" in ran.message
    assert not missing.parent.exists()
    assert not (farm.area / "state").exists()


def test_an_empty_store_causes_a_warning(farm: Farm) -> None:
    """A mountpoint whose share is not mounted looks like a new store."""
    given = {"root": str(farm.root), "release": "usd/1"}
    (farm.area / "other").mkdir()
    first = done("release_manifest", store=str(farm.area / "other"), **given)
    assert f"manifest store {farm.area}/other was empty" in str(first["warnings"])
    assert "warnings" not in done("release_manifest", store=str(farm.area / "other"), **given)
    assert "warnings" not in done("release_manifest", store=str(farm.store), **{**given, "release": "usd/2"})


@pytest.mark.usefixtures("with_programs")
def test_an_image_store_is_created_only_as_images_in_the_manifest_store(farm: Farm) -> None:
    given: dict[str, Any] = {"name": "view", "store": str(farm.store), "releases": [{"release": "usd/1"}]}
    for missing in (farm.area / "missing", farm.area / "net" / "images", farm.store / "some" / "images"):
        ran = support.module("metadata_layer", **given, image_store=str(missing))
        assert f"image store {missing} does not exist: is it mounted?" in ran.message
        assert not missing.exists()
    done("metadata_layer", **given, image_store=str(farm.store / ".images"))
    assert (farm.store / ".images").stat().st_mode & 0o7777 == 0o755
    (farm.area / "images").mkdir()
    done("metadata_layer", **given, image_store=str(farm.area / "images"))


# ---- private mount namespaces


@pytest.mark.parametrize(("propagation", "kept"), [("private", True), ("slave", False)])
def test_a_private_mount_namespace_does_not_follow_a_switch_and_a_slave_does(
    farm: Farm, propagation: str, kept: bool
) -> None:
    """In a slave mount namespace, as PrivateMounts of systemd creates, the unmount of the old overlay propagates."""
    support.command("mount", "--bind", farm.area, farm.area)
    support.command("mount", "--make-shared", farm.area)
    farm.deploy("usd/1", linger=0)
    with support.namespace(propagation) as pid:
        farm.deploy("usd/2", linger=0)
        inside = support.command("nsenter", f"--target={pid}", "--mount", "ls", farm.view / "usd").split()
        assert inside == (["1"] if kept else ["2"])
        if kept:
            read = support.command("nsenter", f"--target={pid}", "--mount", "cat", farm.view / "usd/1/lib/late.py")
            assert read == "word = 'late 1'\n"
    assert farm.shown() == ["2"]


def test_the_record_omits_fields_that_have_their_default(farm: Farm) -> None:
    farm.decide({"release": "usd/1", "at": "usd/current"}, "usd/2", now=1000)
    farm.decide("usd/3", now=2000)
    assert json.loads(farm.record.read_bytes()) == {
        "format": 1,
        "view": "view",
        "declared": [{"release": "usd/3"}],
        "leaving": [{"release": "usd/2", "since": 2000}],
    }
