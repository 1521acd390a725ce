"""A release is removed from stores and from the software root, wholly or not at all, and nothing else is."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import published
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, files
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement import (
    deleting,
    retire_plan,
    retired_notes,
    retiring,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.release_roots import ReleaseRoot
from ansible_collections.renderfarm.overlay.tests.kernel import support

MARKER = ".ready"
RELEASE = "tool/1.0"


@dataclass
class Farm:
    area: Path

    @property
    def root(self) -> Path:
        return self.area / "root"

    @property
    def store(self) -> Path:
        return self.area / "store"

    def publish(self, release: str = RELEASE) -> None:
        support.make_small_release(self.root / release, release)
        support.write(self.root / release / MARKER)
        support.scanned(self.store, self.root, release)

    def retire(self, *releases: str, check: bool = False, **options: Any) -> support.Ran:
        given: dict[str, Any] = {
            "root": str(self.root),
            "store": str(self.store),
            "image_store": str(self.store / "images"),
            "releases": list(releases or [RELEASE]),
            "ready_marker": MARKER,
            "state_dirs": [str(self.area / "state")],
            **options,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return support.module("release_retire", check=check, **given)

    def everything(self) -> list[str]:
        """Return all paths of the software root and of the store."""
        return sorted(str(path.relative_to(self.area)) for top in (self.root, self.store) for path in top.rglob("*"))

    def request(self) -> retiring.RetireRequest:
        return retiring.RetireRequest(
            (ReleaseRoot(str(self.root), str(self.root), MARKER),), str(self.store), None, True
        )


@pytest.fixture
def farm(area: Path) -> Farm:
    found = Farm(area)
    found.publish()
    found.publish("tool/2.0")
    (found.store / "images").mkdir(exist_ok=True)
    return found


def image(farm: Farm, *releases: str) -> str:
    """Publish a metadata image that shows releases; return the ID of its generation."""
    given: dict[str, Any] = {
        "name": "view",
        "releases": [{"manifest": str(farm.store / f"{one}.dump.gz")} for one in releases],
        "image_store": str(farm.store / "images"),
        "state_dir": str(farm.area / "builder"),
    }
    return str(support.module("metadata_layer", **given).ok["generation"])


@pytest.mark.usefixtures("with_programs")
def test_manifest_trace_and_images_of_a_release_are_removed(farm: Farm) -> None:
    both, other = image(farm, RELEASE, "tool/2.0"), image(farm, "tool/2.0")
    support.write(farm.store / f"{RELEASE}.trace.json", b"{}")
    before = farm.everything()
    checked = farm.retire(check=True).ok
    assert farm.everything() == before
    assert checked["diff"]["before"] == {RELEASE: {"manifest": True, "images": [both]}}
    done = farm.retire().ok
    assert (
        done["actions"]
        == checked["actions"]
        == [
            f"remove the manifest of release {RELEASE}",
            f"remove image {both} from the image store, since it shows release {RELEASE}",
        ]
    )
    assert not list((farm.store / "tool").glob("1.0*"))
    assert {path.name.partition(".")[0] for path in (farm.store / "images").iterdir()} == {other}
    # The release itself stays.
    assert (farm.root / RELEASE / MARKER).exists()
    assert not farm.retire().ok["changed"]


def test_the_data_images_of_a_release_are_removed(farm: Farm) -> None:
    store, built = str(farm.store / "images"), farm.area / "built"
    support.write(built, b"content")
    for number, kind in enumerate(("trace", "everything", "trace")):
        described = DataImage(
            release=RELEASE,
            source=RELEASE,
            root_name=str(farm.root),
            manifest_digest=f"sha256:{'0' * 64}",
            kind=kind,
            selection=f"sha256:{'1' * 64}",
            complete=False,
            files=1,
            skipped=0,
            bytes=7,
            opens=0,
            digest=f"sha256:{number}{'2' * 63}",
            bytes_on_disk=7,
        )
        published.publish(store, described, str(built), is_private=False)
    actions = farm.retire().ok["actions"]
    assert len([action for action in actions if action.startswith("remove data image")]) == 3
    assert not (farm.store / "images" / ".data").exists() or not list((farm.store / "images" / ".data").rglob("*"))
    assert not farm.retire().ok["changed"]


def test_a_release_is_deleted_and_nothing_else(farm: Farm) -> None:
    outside = farm.area / "outside"
    outside.mkdir()
    support.write(outside / "precious")
    (farm.root / RELEASE / "link").symlink_to(outside)
    kept = sorted(path for path in farm.root.rglob("*") if path.is_relative_to(farm.root / "tool/2.0"))
    before = farm.everything()
    checked = farm.retire(check=True, delete=True).ok
    assert farm.everything() == before
    done = farm.retire(delete=True).ok
    assert (
        done["actions"]
        == checked["actions"]
        == [
            f"remove the ready marker of release {RELEASE}",
            f"rename release {RELEASE} on the software root",
            f"remove the manifest of release {RELEASE}",
            f"delete release {RELEASE} from the software root",
        ]
    )
    assert sorted(path.name for path in (farm.root / "tool").iterdir()) == ["2.0"]
    assert sorted((farm.root / "tool/2.0").rglob("*")) == [path for path in kept if path != farm.root / "tool/2.0"]
    assert (outside / "precious").exists()
    assert not farm.retire(delete=True).ok["changed"]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_that_was_interrupted_is_continued(farm: Farm, steps: int) -> None:
    request = farm.request()
    plan = retire_plan.unique_plan(retiring.observe(request, [RELEASE], no_progress))
    for action in plan[:steps]:
        apply(action, retiring.handlers(request, no_progress))
    assert not (farm.root / RELEASE / MARKER).exists()
    ready = support.module("release_info", root=str(farm.root), store=str(farm.store), ready_marker=MARKER).ok
    assert [one["path"] for one in ready["releases"] if one["ready"]] == ["tool/2.0"]
    assert farm.retire(delete=True).ok["changed"]
    assert [path.name for path in (farm.root / "tool").iterdir()] == ["2.0"]
    assert not list((farm.store / "tool").glob("1.0*"))


def test_a_deletion_that_was_killed_half_way_is_continued(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    request = farm.request()
    plan = retire_plan.unique_plan(retiring.observe(request, [RELEASE], no_progress))
    handlers = retiring.handlers(request, no_progress)
    for action in plan[:-1]:
        apply(action, handlers)

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(beneath, "remove_directory", killed)
        with pytest.raises(KeyboardInterrupt):
            apply(plan[-1], handlers)
    assert farm.retire(delete=True).ok["actions"] == [f"delete release {RELEASE} from the software root"]
    assert [path.name for path in (farm.root / "tool").iterdir()] == ["2.0"]


def test_a_release_that_is_in_use_or_shown_is_not_removed(farm: Farm) -> None:
    state = farm.area / "state"
    state.mkdir(mode=0o700)
    layer, _generation, _report = support.build(state, [support.scanned(farm.store, farm.root, RELEASE)])
    view = farm.area / "view"
    before = farm.everything()
    given: dict[str, Any] = {"path": str(view), "lower": [str(layer)], "data": [str(farm.root)]}
    assert support.module("overlay_mount", **given).ok["changed"]
    assert f"a view shows it at {view}" in farm.retire(delete=True).message
    code = f"import sys\nheld = open(sys.argv[1])\n{support.WAIT}"
    with support.background(code, view / RELEASE / "bin" / "tool") as process:
        support.module("overlay_mount", path=str(view), state="unmounted", switch="replace")
        support.unmount_all(view)
        message = farm.retire(delete=True).message
        assert f"({process.pid})" in message
        assert "so nothing was removed" in message
        assert farm.everything() == before
    with support.background(code, farm.root / RELEASE / "bin" / "tool"):
        assert "uses it" in farm.retire(delete=True).message
    assert farm.everything() == before
    assert farm.retire(delete=True).ok["changed"]


def not_scanned(farm: Farm) -> str:
    support.make_small_release(farm.root / "plain", "plain")
    return "plain"


def above(farm: Farm) -> str:
    support.scanned(farm.store, farm.root, "tool")
    return "tool"


def inside(farm: Farm) -> str:
    support.scanned(farm.store, farm.root, f"{RELEASE}/bin")
    return f"{RELEASE}/bin"


def mounted_inside(farm: Farm) -> str:
    support.command("mount", "-t", "tmpfs", "tmpfs", farm.root / RELEASE / "bin")
    return RELEASE


def mounted_on(farm: Farm) -> str:
    support.command("mount", "--bind", farm.root / RELEASE, farm.root / RELEASE)
    return RELEASE


def linked(farm: Farm) -> str:
    shutil.move(farm.root / "tool", farm.area / "moved")
    (farm.root / "tool").symlink_to(farm.area / "moved")
    return RELEASE


def a_link(farm: Farm) -> str:
    (farm.root / RELEASE).rename(farm.root / "tool" / "elsewhere")
    (farm.root / RELEASE).symlink_to("elsewhere")
    return RELEASE


def replaced(farm: Farm) -> str:
    """Put another release in the place of the release."""
    (farm.root / RELEASE).rename(farm.root / "tool" / "moved")
    (farm.root / "tool/2.0").rename(farm.root / RELEASE)
    return RELEASE


def left_by_nobody(farm: Farm) -> str:
    """Give another release the name that a release gets before it is deleted."""
    shutil.rmtree(farm.root / RELEASE)
    (farm.root / "tool/2.0").rename(farm.root / "tool" / os.fsdecode(deleting.aside_name(os.fsencode(RELEASE))))
    return RELEASE


def of_another_root(farm: Farm) -> str:
    support.scanned(farm.store, farm.root, RELEASE, root_name="other")
    return RELEASE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (not_scanned, "has no manifest in"),
        (above, "another release is inside of release tool "),
        (inside, "is inside of release tool/1.0 "),
        (mounted_inside, "something is mounted at"),
        (mounted_on, "is on another mount than the software root"),
        (linked, "has a symbolic link or a file in its path"),
        (a_link, "is not a directory, and so no release"),
        (replaced, "is not what its manifest says"),
        (left_by_nobody, "is not the directory of release tool/1.0 that an earlier run has renamed"),
        (of_another_root, "is of the software root other"),
        (lambda _farm: "../outside", "may not contain '..'"),
        (lambda _farm: ".", "is not a path below the software root"),
        (lambda farm: str(farm.root / RELEASE), "is not a path below the software root"),
    ],
)
def test_what_is_no_release_below_the_root_is_not_deleted(farm: Farm, make: Any, message: str) -> None:
    release = make(farm)
    before = farm.everything()
    for check in (True, False):
        assert message in farm.retire(release, delete=True, check=check).message
        assert farm.everything() == before


def test_a_release_that_is_there_again_is_not_mixed_with_what_is_left(farm: Farm) -> None:
    aside = farm.root / "tool" / os.fsdecode(deleting.aside_name(os.fsencode(RELEASE)))
    aside.mkdir()
    assert "is there again: remove it by hand" in farm.retire(delete=True).message
    assert stat.S_ISDIR(aside.stat().st_mode)
    assert (farm.root / RELEASE).is_dir()


def test_a_directory_that_is_replaced_after_the_check_is_not_deleted(farm: Farm) -> None:
    request = farm.request()
    marker, aside, *rest = retire_plan.unique_plan(retiring.observe(request, [RELEASE], no_progress))
    handlers = retiring.handlers(request, no_progress)
    # Between the check and the first change.
    replaced(farm)
    for action in (marker, aside):
        with pytest.raises(OverlayError, match="was replaced by another directory while it was being retired"):
            apply(action, handlers)
    assert (farm.root / RELEASE / MARKER).exists()
    (farm.root / RELEASE).rename(farm.root / "tool/2.0")
    (farm.root / "tool/moved").rename(farm.root / RELEASE)
    # Between the renaming and the deletion.
    apply(aside, handlers)
    place = farm.root / "tool" / os.fsdecode(deleting.aside_name(os.fsencode(RELEASE)))
    place.rename(farm.root / "tool/moved")
    (farm.root / "tool/2.0").rename(place)
    with pytest.raises(OverlayError, match="that an earlier run has renamed"):
        apply(rest[-1], handlers)
    assert (place / "bin/tool").exists()
    # The run is continued once the right directory is back.
    place.rename(farm.root / "tool/2.0")
    (farm.root / "tool/moved").rename(place)
    assert farm.retire(delete=True).ok["changed"]
    assert [path.name for path in (farm.root / "tool").iterdir()] == ["2.0"]
    assert not list(farm.store.glob("tool/*1.0*"))


def test_a_note_without_a_directory_is_removed(farm: Farm) -> None:
    """A run was killed between the deletion of the directory and the removal of its note."""
    shutil.rmtree(farm.root / RELEASE)
    retired_notes.write(str(farm.store), os.fsencode(RELEASE), 12)
    assert farm.retire(delete=True).ok["changed"]
    assert not farm.retire(delete=True).ok["changed"]


def test_odd_names_and_hard_links_of_a_release_are_deleted(farm: Farm) -> None:
    release = "tool/1\n .0\\"
    farm.publish(release)
    shared = farm.root / release / "bin" / "tool"
    os.link(shared, farm.root / "tool/2.0/shared")
    content = shared.read_bytes()
    assert farm.retire(release, delete=True).ok["changed"]
    assert sorted(path.name for path in (farm.root / "tool").iterdir()) == ["1.0", "2.0"]
    assert (farm.root / "tool/2.0/shared").read_bytes() == content


def test_another_mount_is_never_entered(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something is mounted after the check, and before the release is deleted."""
    request = farm.request()
    plan = retire_plan.unique_plan(retiring.observe(request, [RELEASE], no_progress))
    handlers = retiring.handlers(request, no_progress)
    for action in plan[:-1]:
        apply(action, handlers)
    aside = farm.root / "tool" / os.fsdecode(deleting.aside_name(os.fsencode(RELEASE)))
    support.command("mount", "--bind", farm.root / "tool" / "2.0", aside / "bin")
    monkeypatch.setattr(files, "check_nothing_mounted", lambda _fd: None)
    with pytest.raises(OverlayError, match=f"something is mounted at {aside / 'bin'}"):
        apply(plan[-1], handlers)
    assert (farm.root / "tool/2.0/bin/tool").exists()


@pytest.mark.usefixtures("with_programs")
def test_old_images_that_nobody_needs_are_removed_from_the_store(farm: Farm) -> None:
    store = farm.store / "images"
    generations = [image(farm, *releases) for releases in ([RELEASE], ["tool/2.0"], [RELEASE, "tool/2.0"])]
    for number, generation in enumerate(generations):
        os.utime(store / f"{generation}.json", (number + 1, number + 1))
    oldest, middle, newest = generations

    def prune(check: bool = False, **options: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"image_store": str(store), "needed": [], "keep": 0, "min_age": 60, **options}
        return support.module("image_store_prune", check=check, **given).ok

    assert not prune(keep=3)["changed"]
    assert not prune(min_age=1e10)["changed"]
    before = farm.everything()
    checked = prune(needed=[oldest], keep=1, check=True)
    assert farm.everything() == before
    done = prune(needed=[oldest], keep=1)
    assert done["removed"] == checked["removed"]
    assert [one["generation"] for one in done["removed"]] == [middle]
    assert {one["generation"]: one["reason"] for one in done["kept"]} == {
        oldest: "a host or a lock needs it",
        newest: "it is among the 1 newest",
    }
    assert done["bytes_freed"] > 0
    assert {path.name.partition(".")[0] for path in store.iterdir()} == {oldest, newest}
    # An image that is a layer of a mounted overlay stays.
    support.command("gunzip", store / f"{oldest}.erofs.gz")
    given: dict[str, Any] = {"path": str(farm.area / "view"), "lower": [str(store / f"{oldest}.erofs")]}
    assert support.module("overlay_mount", data=[str(farm.root)], **given).ok["changed"]
    assert [one["generation"] for one in prune()["removed"]] == [newest]


@dataclass
class Roots(Farm):
    """Software roots with releases at equal paths, beside each other on one file system."""

    def publish(self, release: str = RELEASE) -> None:
        name, _slash, path = release.partition("/")
        support.make_small_release(self.root / release, release)
        support.write(self.root / release / MARKER)
        options: dict[str, Any] = {
            "root": str(self.root / name),
            "root_name": name,
            "prefix": name,
            "store": str(self.store),
        }
        assert support.module("release_manifest", releases=[f"{name}/{path}"], **options).ok["changed"]

    def retire(self, *releases: str, check: bool = False, **options: Any) -> support.Ran:
        given: dict[str, Any] = {"roots": self.roots("maya", "houdini"), **options}
        return super().retire(*releases, check=check, root=None, **given)

    def roots(self, *names: str) -> list[dict[str, str]]:
        return [{"name": name, "path": str(self.root / name)} for name in names]


@pytest.fixture
def roots(area: Path) -> Roots:
    found = Roots(area)
    (found.store / "images").mkdir(exist_ok=True)
    for release in ("maya/1.0", "maya/2.0", "houdini/1.0"):
        found.publish(release)
    return found


def test_a_release_of_one_of_several_roots_is_deleted_there_alone(roots: Roots) -> None:
    assert "maya/1.0 is of none of the roots houdini" in roots.retire("maya/1.0", roots=roots.roots("houdini")).message
    code = f"import sys\nheld = open(sys.argv[1])\n{support.WAIT}"
    with support.background(code, roots.root / "maya/1.0/bin/tool") as process:
        message = roots.retire("maya/1.0", delete=True).message
        assert f"({process.pid}) uses it" in message
        # The other root has the same path.
        assert roots.retire("houdini/1.0", delete=True, check=True).ok["changed"]
    before = roots.everything()
    checked = roots.retire("maya/1.0", delete=True, check=True).ok
    assert roots.everything() == before
    assert checked["actions"][-1] == "delete release maya/1.0 from the software root"
    assert roots.retire("maya/1.0", delete=True).ok["actions"] == checked["actions"]
    assert set(before) - set(roots.everything()) == {
        path for path in before if path.startswith(("root/maya/1.0", "store/maya/1.0."))
    }
    assert not roots.retire("maya/1.0", delete=True).ok["changed"]


def test_roots_inside_of_each_other_keep_a_release_from_being_deleted(roots: Roots) -> None:
    nested = [*roots.roots("maya"), {"name": "all", "path": str(roots.root)}]
    options: dict[str, Any] = {"root": str(roots.root), "root_name": "all", "prefix": "all", "store": str(roots.store)}
    support.module("release_manifest", releases=["all/maya/1.0", "all/houdini"], **options)
    inner = {"name": "inner", "path": str(roots.root / "maya/2.0/bin")}
    for release, given, message in (
        ("maya/1.0", nested, "is in the same directory as release all/maya/1.0"),
        ("maya/2.0", [*roots.roots("maya"), inner], "the software root inner"),
        ("houdini/1.0", [*nested, *roots.roots("houdini")], "is inside of release all/houdini"),
    ):
        before = roots.everything()
        assert message in roots.retire(release, roots=given, delete=True).message
        assert roots.everything() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"name": "a/b", "path": "/net/a"}], "root name 'a/b' is not usable"),
        ([{"name": "a", "path": "/net/a"}, {"name": "a", "path": "/net/b"}], "root a is given twice"),
        ([{"name": "a", "path": "net"}], "roots must be an absolute path"),
        ([], "roots is empty: give the software roots"),
    ],
)
def test_the_roots_are_checked(roots: Roots, given: list[dict[str, str]], message: str) -> None:
    assert message in roots.retire("maya/1.0", roots=given).message
