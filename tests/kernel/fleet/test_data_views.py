"""Views with data images: installed within limits, switched in under users, and enough to stand without the software root."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import installing, published, trace_files
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import declared_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import host_data, host_view, view_parameters
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.data_choice import LockedImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_view import Run
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import LockedView
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.resolution import locked_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.mountinfo import overlay_layers
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import data_image_record, manifest_store
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.data_image_record import DataImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import Trace, TracedFile
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.test_dead_server import dead

RELEASES = ("usd/1", "usd/2", "qt/1")
#: Files of each release. The first one is the only one in images of kind trace.
FILES = {"lib/hot": 5000, "lib/warm": 300_000, "bin/cold": 9}


def content(release: str, name: str) -> bytes:
    seed = f"{release}/{name} ".encode()
    return (seed * (FILES[name] // len(seed) + 1))[: FILES[name]]


class Farm:
    """A software root with releases, their manifests, an image store, and a host with a view."""

    def __init__(self, top: Path) -> None:
        self.top, self.root, self.store = top, top / "root", top / "store"
        self.images, self.state, self.view = top / "store" / ".images", top / "state", top / "software"
        self.published: dict[tuple[str, str], LockedImage] = {}
        for release in RELEASES:
            for name in FILES:
                (self.root / release / name).parent.mkdir(parents=True, exist_ok=True)
                support.write(self.root / release / name, content(release, name))
            (self.root / release / "empty").touch()
        done = support.module("release_manifest", root=str(self.root), store=str(self.store), releases=list(RELEASES))
        assert done.ok["changed"]

    def publish(self, release: str, kind: str, without: tuple[str, ...] = (), opens: int = 1) -> LockedImage:
        """Publish a data image of a release, made by hand."""
        source = self.top / "source"
        for name in ["lib/hot"] if kind == "trace" else [name for name in FILES if name not in without]:
            (source / release / name).parent.mkdir(parents=True, exist_ok=True)
            support.write(source / release / name, content(release, name))
        place = Path(published.release_directory(str(self.images), release))
        place.mkdir(parents=True, exist_ok=True)
        made = self.top / "made.erofs"
        support.command("mkfs.erofs", "-zlz4hc", made, source)
        shutil.rmtree(source)
        manifest = manifest_store.read_record(manifest_store.manifest_path(str(self.store), release), release)
        image = DataImage(
            release=release,
            source=release,
            root_name=str(self.root),
            manifest_digest=manifest.digest,
            kind=kind,
            selection="sha256:" + "0" * 64,
            complete=kind == "everything",
            files=1,
            skipped=0,
            bytes=1,
            opens=opens,
            digest="sha256:" + hashlib.sha256(made.read_bytes()).hexdigest(),
            bytes_on_disk=made.stat().st_size,
        )
        shutil.move(made, published.image_path(str(self.images), image))
        for name in (image.id, kind):
            (place / f"{name}.json").write_bytes(data_image_record.data_image_to_json(image))
        locked = LockedImage(release, kind, image.digest, image.bytes_on_disk, opens, image.complete)
        self.published[release, kind] = locked
        return locked

    def views(self, *releases: str, **keys: Any) -> list[dict[str, Any]]:
        """Return the view as the module takes it, locked with the images that were published."""
        ran = support.module(
            "view_lock",
            views=[
                {
                    "name": "software",
                    "root": str(self.root),
                    "store": str(self.store),
                    "releases": [{"release": one} for one in releases],
                    "linger": 0,
                }
            ],
        )
        (found,) = ran.ok["views"]
        images = tuple(image for (release, _kind), image in self.published.items() if release in releases)
        locked = LockedView("software", found["generation"], tuple(found["releases"]), data_images=images)
        return self.locked(locked, **keys)

    def locked(self, locked: LockedView, **keys: Any) -> list[dict[str, Any]]:
        """Return the view as the module takes it with a lock."""
        declaration = {"name": "software", "mountpoint": str(self.view), "query": "@", **keys}
        common = {
            "root": str(self.root),
            "store": str(self.store),
            "image_store": str(self.images),
            "state_dir": str(self.state),
            "min_age": 0,
            "keep": 0,
            "data_keep_free": 0,
        }
        declared, problems = declared_views([declaration], common)
        assert problems == []
        return locked_views(declared, {"software": locked})

    def bring(self, *releases: str, check: bool = False, **keys: Any) -> support.Ran:
        return support.module("view", check=check, views=self.views(*releases, **keys))

    def data(self) -> list[str]:
        """Return the data layers of the view, each as the name of its directory or the ID of its image."""
        mount = support.live(self.view)
        assert mount is not None
        return [os.path.basename(os.fsdecode(layer)) for layer in overlay_layers(mount).data]

    def installed(self) -> set[str]:
        return set(installing.installed(str(self.state)))

    def row(self, **keys: Any) -> dict[str, Any]:
        """Return the row of the view in a report, compared with a declaration."""
        view = {"name": "software", "mountpoint": str(self.view), "data": [str(self.root)], **keys}
        ran = support.module("view_info", views=[view], state_dir=str(self.state)).ok
        (row,) = ran["report"]
        return dict(row)

    def check_content(self, *releases: str, names: tuple[str, ...] = tuple(FILES)) -> None:
        for release in releases:
            for name in names:
                assert (self.view / release / name).read_bytes() == content(release, name)


@pytest.fixture
def farm(area: Path) -> Farm:
    return Farm(area)


def warnings(ran: support.Ran) -> str:
    assert ran.ok
    return json.dumps(ran.result.get("warnings", []))


def test_a_view_reads_what_a_start_opens_from_its_data_images(farm: Farm) -> None:
    images = [farm.publish(release, "trace") for release in ("usd/1", "qt/1")]
    would = farm.bring("usd/1", "qt/1", check=True, data_images="trace").ok
    assert [action for action in would["actions"] if "data image" in action] == [
        f"install data image {one.id} of release {one.release} ({one.bytes_on_disk} bytes)"
        for one in sorted(images, key=lambda one: (one.bytes_on_disk, one.release))
    ]
    assert not farm.state.exists()
    ran = farm.bring("usd/1", "qt/1", data_images="trace")
    assert warnings(ran) == "[]"
    by_release = sorted(images, key=lambda one: one.release)
    assert farm.data() == [*(one.id for one in by_release), "root"]
    assert [one["release"] for one in ran.ok["views"][0]["data_images"]] == ["qt/1", "usd/1"]
    views = farm.views("usd/1", "qt/1", data_images="trace")
    shutil.rmtree(farm.root / "usd" / "1" / "lib")
    farm.check_content("usd/1", names=("lib/hot", "bin/cold"))
    farm.check_content("qt/1")
    # A steady state needs neither the store nor the software root.
    farm.images.rename(farm.top / "gone")
    again = support.module("view", views=views).ok
    assert (again["changed"], again["actions"]) == (False, [])


def test_adding_an_image_switches_and_makes_no_generation(farm: Farm) -> None:
    first = farm.bring("usd/1", data_images="trace")
    assert "view software: 1 of its releases have no data image on this host" in warnings(first)
    assert "usd/1 (the lock has none)" in warnings(first)
    assert farm.data() == ["root"]
    image = farm.publish("usd/1", "trace")
    second = farm.bring("usd/1", data_images="trace").ok["views"][0]
    assert (second["switched"], second["generation"]) == (True, first.ok["views"][0]["generation"])
    assert farm.data() == [image.id, "root"]
    back = farm.bring("usd/1").ok["views"][0]
    assert (back["switched"], farm.data()) == (True, ["root"])


def test_a_new_release_copies_its_image_and_no_other(farm: Farm) -> None:
    first = farm.publish("usd/1", "trace")
    assert farm.bring("usd/1", data_images="trace").ok["changed"]
    second = farm.publish("qt/1", "trace")
    views = farm.views("usd/1", "qt/1", data_images="trace")
    shutil.rmtree(published.release_directory(str(farm.images), "usd/1"))
    before = os.stat(installing.data_image_path(str(farm.state), first.id))
    ran = support.module("view", views=views).ok
    assert [action for action in ran["actions"] if "data image" in action] == [
        f"install data image {second.id} of release qt/1 ({second.bytes_on_disk} bytes)"
    ]
    after = os.stat(installing.data_image_path(str(farm.state), first.id))
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    assert farm.data() == [second.id, first.id, "root"]


def test_what_is_over_the_budget_is_read_from_the_software_root(farm: Farm) -> None:
    hot = farm.publish("usd/1", "everything", opens=99)
    farm.publish("qt/1", "everything", opens=1)
    budget = hot.bytes_on_disk + 10
    for _run in range(2):
        ran = farm.bring("usd/1", "qt/1", data_images="everything", data_budget=budget)
        assert f"qt/1 (data_budget is {budget} bytes, and {hot.bytes_on_disk} of them are in use)" in warnings(ran)
        assert farm.data() == [hot.id, "root"]
    assert not ran.ok["changed"]
    farm.check_content("usd/1", "qt/1")


def test_a_full_disk_fails_no_deployment(farm: Farm) -> None:
    farm.publish("usd/1", "everything")
    farm.state.mkdir(mode=0o700)
    support.command("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", farm.state)
    kept = farm.bring("usd/1", data_images="everything", data_keep_free="1M")
    assert "bytes of the disk are free, and data_keep_free keeps 1048576" in warnings(kept)
    assert farm.data() == ["root"]
    fill = farm.state / "filler"
    status = os.statvfs(farm.state)
    fill.write_bytes(b"x" * (status.f_bavail * status.f_frsize - 8192))
    # The size in the lock is wrong, so that the disk fills up during the copy.
    views = farm.views("usd/1", data_images="everything")
    views[0]["locked_data_images"][0]["bytes_on_disk"] = 1
    full = support.module("view", views=views)
    assert "usd/1 (the disk is full)" in warnings(full)
    assert farm.data() == ["root"]
    assert sorted(path.name for path in (farm.state / "data").rglob("*") if path.is_file()) == ["lock"]
    fill.unlink()
    assert farm.bring("usd/1", data_images="everything").ok["changed"]
    assert len(farm.data()) == 2


def test_a_view_stands_without_its_software_root_and_goes_back(farm: Farm) -> None:
    assert farm.bring("usd/1", "qt/1").ok["changed"]
    images = [farm.publish(release, "everything") for release in ("qt/1", "usd/1")]
    ran = farm.bring("usd/1", "qt/1", data_images="only").ok["views"][0]
    assert (ran["switched"], ran["detached"]) == (True, True)
    assert farm.data() == [image.id for image in images]
    farm.root.rename(farm.top / "elsewhere")
    farm.store.rename(farm.top / "no store")
    farm.check_content("usd/1", "qt/1")
    # The lock is what a host without the file server is given.
    lock = json.loads((farm.state / "views" / "software" / "lock.json").read_text())["views"][0]
    views = farm.locked(LockedView.from_dict(lock), data_images="only")
    again = support.module("view", views=views).ok
    assert not again["changed"]
    row = farm.row(data_images="only")
    assert (row["status"], row["detached"], row["drift"]) == ("as declared", True, [])
    assert [one["release"] for one in row["data_images"]] == ["qt/1", "usd/1"]
    assert farm.row()["drift"] != []
    # It is mounted again, as after a reboot.
    support.command("umount", farm.view)
    assert support.module("view", views=views).ok["changed"]
    farm.check_content("usd/1", "qt/1")
    farm.store.with_name("no store").rename(farm.store)
    back = support.module("view", views=farm.locked(LockedView.from_dict(lock)))
    assert f"software root {farm.root} does not exist: is it mounted?" in back.message
    assert farm.data() == [image.id for image in images]
    (farm.top / "elsewhere").rename(farm.root)
    assert support.module("view", views=farm.locked(LockedView.from_dict(lock))).ok["changed"]
    assert farm.data() == ["root"]
    farm.check_content("usd/1", "qt/1")


def test_a_view_that_lacks_a_file_keeps_its_software_root_and_names_the_file(farm: Farm) -> None:
    assert farm.bring("usd/1").ok["changed"]
    lacking = farm.publish("usd/1", "everything", without=("bin/cold",))
    for _run in range(2):
        ran = farm.bring("usd/1", data_images="only")
        assert (
            "view software: 1 of 3 files with content are in no data image here, so it cannot stand without the software root:"
            " usd/1/bin/cold is not in the data image of its release, where it would be usd/1/bin/cold"
        ) in ran.message
        assert farm.data() == [lacking.id, "root"]
        farm.check_content("usd/1")
    attached = farm.row(data_images="only")
    assert (attached["status"], attached["detached"]) == ("failed", False)
    assert attached["drift"] == ["it has the software root as a data layer, and is declared to stand without it"]
    farm.publish("usd/1", "everything")
    assert farm.bring("usd/1", data_images="only").ok["views"][0]["detached"]


def test_a_detached_view_stays_as_it_is_if_a_release_has_no_image(farm: Farm) -> None:
    farm.publish("usd/1", "everything")
    assert farm.bring("usd/1", data_images="only").ok["changed"]
    data = farm.data()
    ran = farm.bring("usd/1", "usd/2", data_images="only")
    assert "3 of 6 files with content are in no data image here" in ran.message
    assert "usd/2 (the lock has none)" in ran.message
    assert "it stays as it is" in ran.message
    assert farm.data() == data
    assert sorted(os.listdir(farm.view / "usd")) == ["1"]


def test_a_detached_view_reads_everything_after_its_server_has_gone(area: Path) -> None:
    (area / "root").mkdir()
    with support.filesystem(area, "xfs") as disk:
        support.command("mount", "--bind", disk, area / "root")
        farm = Farm(area)
        for release in RELEASES:
            farm.publish(release, "everything")
        assert farm.bring(*RELEASES).ok["changed"]
        farm.check_content("usd/1")
        views = farm.views(*RELEASES, data_images="only")
        assert support.module("view", views=views).ok["views"][0]["detached"]
        # Nothing holds the software root any more.
        support.command("umount", farm.root)
        support.command("xfs_io", "-x", "-c", "shutdown", disk)
        farm.check_content(*RELEASES)
        for path in farm.view.rglob("*"):
            path.stat()
        with dead(farm.root):
            assert not support.module("view", views=views, timeout=30).ok["changed"]
            farm.check_content(*RELEASES)


def test_a_view_in_use_is_switched_pass_by_pass(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [farm.publish(release, "everything", opens=10 - number) for number, release in enumerate(RELEASES)]
    assert farm.bring(*RELEASES).ok["changed"]
    (given,) = farm.views(*RELEASES, data_images="only")
    defaults = {name: option.get("default") for name, option in view_parameters.options().items()}
    others: dict[str, Any] = {"manifest": None, "at": None, "source": None, "include": [], "exclude": []}
    releases = [{**others, **one} for one in given["releases"]]
    rest = {"take_back": False, "lift_holds": False, "hold": None, "hold_reason": None}
    view = {**defaults, **given, **rest, "scratch_size": 1 << 30, "releases": releases, "generation": None}
    view["companions"] = [view]
    monkeypatch.setattr(host_data, "PASS_BYTES", 1)
    seen: list[list[str]] = []

    def carry_out(plan: Plan, handlers: Handlers) -> None:
        for one in plan:
            if isinstance(one, host_data.InstallDataImage):
                seen.append(farm.data())
            apply(one, handlers)

    brought = host_view.bring(view, Run(False, 60, no_progress, carry_out, str))
    assert brought.failure == ""
    by_heat = [image.id for image in images]
    releases_of = {image.id: image.release for image in images}
    # Before each copy, the view has the images of the passes before.
    assert [[one for one in data if one != "root"] for data in seen] == [
        sorted(by_heat[:number], key=releases_of.__getitem__) for number in range(3)
    ]
    assert all(data[-1] == "root" for data in seen)
    assert farm.data() == sorted(by_heat, key=releases_of.__getitem__)
    farm.check_content(*RELEASES)


def test_an_image_goes_when_nothing_uses_it(farm: Farm) -> None:
    first = farm.publish("usd/1", "trace")
    assert farm.bring("usd/1", data_images="trace").ok["changed"]
    # A newer trace makes another image.
    del farm.published["usd/1", "trace"]
    second = farm.publish("usd/1", "everything")
    with open(farm.view / "usd/1/lib/hot", "rb") as reader:
        assert farm.bring("usd/1", data_images="everything").ok["changed"]
        assert farm.data() == [second.id, "root"]
        assert farm.installed() == {first.id, second.id}
        assert reader.read() == content("usd/1", "lib/hot")
    ran = farm.bring("usd/1", data_images="everything", data_budget=second.bytes_on_disk).ok
    assert [one for one in ran["actions"] if "data image" in one] == [f"remove data image {first.id} of release usd/1"]
    assert farm.installed() == {second.id}
    assert not farm.bring("usd/1", data_images="everything").ok["changed"]
    would = farm.bring("usd/1", check=True).ok
    assert farm.bring("usd/1").ok["changed"]
    assert would["changed"]
    assert farm.installed() == set()


def test_a_view_without_images_is_brought_beside_one_with_images(farm: Farm) -> None:
    farm.publish("usd/1", "everything")
    views = farm.views("usd/1", data_images="everything")
    # The images are installed when the other view is pruned.
    views.append({**farm.views("usd/1", mountpoint=str(farm.top / "plain"))[0], "name": "plain"})
    done = support.module("view", views=views).ok
    assert [one["name"] for one in done["views"]] == ["software", "plain"]
    assert not support.module("view", views=views).ok["changed"]
    assert len(farm.installed()) == 1


def test_images_go_with_the_last_view(farm: Farm) -> None:
    farm.publish("usd/1", "trace")
    assert farm.bring("usd/1", data_images="trace").ok["changed"]
    assert farm.bring("usd/1", state="absent").ok["changed"]
    assert farm.installed() == set()
    assert not farm.bring("usd/1", state="absent").ok["changed"]


def resolved(farm: Farm, *releases: str, check: bool = False, **options: Any) -> support.Ran:
    """Resolve the view on the host that scans, which builds its data images."""
    view = {
        "name": "software",
        "root": str(farm.root),
        "store": str(farm.store),
        "releases": [{"release": one} for one in releases],
        "linger": 0,
        "data_image_store": str(farm.images),
        "data_staging": str(farm.top / "staging"),
        **options,
    }
    return support.module("view_lock", check=check, views=[view])


@pytest.mark.usefixtures("with_programs")
def test_data_images_are_built_once_and_a_host_stands_on_them(farm: Farm) -> None:
    would = resolved(farm, "usd/1", "qt/1", check=True, data_images=["everything"])
    assert warnings(would) == "[]"
    assert sum("data image" in action for action in would.ok["actions"]) == 2
    assert not farm.images.exists()
    ran = resolved(farm, "usd/1", "qt/1", data_images=["everything"], data_required=True)
    (found,) = ran.ok["views"]
    assert [(one["release"], one["kind"], one["complete"]) for one in found["data_images"]] == [
        ("usd/1", "everything", True),
        ("qt/1", "everything", True),
    ]
    again = resolved(farm, "usd/1", "qt/1", data_images=["everything"], data_required=True).ok
    assert (again["changed"], again["views"][0]["data_images"]) == (False, found["data_images"])
    locked = LockedView.from_dict(found)
    assert support.module("view", views=farm.locked(locked, data_images="only")).ok["views"][0]["detached"]
    farm.root.rename(farm.top / "elsewhere")
    farm.check_content("usd/1", "qt/1")


@pytest.mark.usefixtures("with_programs")
def test_data_images_are_built_one_after_the_other_where_that_is_asked_for(farm: Farm) -> None:
    def unbuilt(builds: int) -> list[str] | None:
        (found,) = resolved(farm, "usd/1", "qt/1", data_images=["everything"], data_builds=builds, linger=9).ok["views"]
        left: list[str] | None = found.get("unbuilt")
        return left

    assert unbuilt(0) == ["usd/1", "qt/1"]
    assert unbuilt(1) == ["qt/1"]
    # A view is recorded when it is resolved as a whole.
    assert not (farm.store / ".views").exists()
    assert unbuilt(1) is None
    assert (farm.store / ".views" / "software.json").exists()
    assert unbuilt(0) is None


@pytest.mark.usefixtures("with_programs")
def test_a_release_without_a_trace_is_a_warning(farm: Farm) -> None:
    files = (TracedFile(b"lib/hot", 7, 3), TracedFile(b"lib/warm", 2, 1))
    trace_files.add(str(farm.store), Trace("usd/1", 3, files))
    ran = resolved(farm, "usd/1", "qt/1", data_images=["trace"])
    assert (
        "view software: 1 of its 2 releases have no data image, and are read from the software root: qt/1: there is no trace of them"
    ) in warnings(ran)
    (found,) = ran.ok["views"]
    assert [(one["release"], one["opens"], one["complete"]) for one in found["data_images"]] == [("usd/1", 9, False)]
    views = farm.locked(LockedView.from_dict(found), data_images="trace")
    assert support.module("view", views=views).ok["changed"]
    shutil.rmtree(farm.root / "usd" / "1" / "lib")
    farm.check_content("usd/1", names=("lib/hot", "lib/warm", "bin/cold"))


@pytest.mark.usefixtures("with_programs")
def test_an_image_that_cannot_be_built_is_a_failure_only_for_hosts_that_need_it(farm: Farm) -> None:
    shutil.rmtree(farm.root / "qt" / "1" / "lib")
    shutil.rmtree(farm.root / "qt" / "1" / "bin")
    asked: dict[str, Any] = {"sample": 0, "data_images": ["everything"]}
    ran = resolved(farm, "qt/1", **asked)
    assert (
        "view software: 1 of its 1 releases have no data image, and are read from the software root: qt/1: "
        in warnings(ran)
    )
    assert ran.ok["views"][0]["data_images"] == []
    required = resolved(farm, "qt/1", **asked, data_required=True).ok["views"][0]
    assert required["msg"].startswith("a data image is missing: release qt/1: none of the 3 selected files ")


#: Opens files of a view at random and compares their content, until its input ends. Prints how many it opened, and what was wrong.
_READER = """
import hashlib, json, os, random, select, sys
view, digests = sys.argv[1], json.loads(sys.argv[2])
names = sorted(digests)
opens, wrong = 0, []
print("ready", flush=True)
while opens % 50 or not select.select([sys.stdin], [], [], 0.005)[0]:
    name = random.choice(names)
    opens += 1
    try:
        with open(os.path.join(view, name), "rb") as stream:
            found = hashlib.sha256(stream.read()).hexdigest()
    except OSError as error:
        found = str(error)
    if found != digests[name]:
        wrong.append(f"{name}: {found}")
print(json.dumps([opens, wrong[:5], len(wrong)]), flush=True)
"""

#: How often the view is detached and attached, and how many opens that takes at least. The environment can ask for more.
_ROUNDS = int(os.environ.get("OVERLAY_DETACH_ROUNDS", "8"))
_OPENS = 2000 * _ROUNDS


@pytest.mark.usefixtures("with_programs")
def test_who_reads_notices_neither_detaching_nor_attaching(farm: Farm) -> None:
    (found,) = resolved(farm, "usd/1", "usd/2", "qt/1", data_images=["everything"]).ok["views"]
    locked = LockedView.from_dict(found)
    attached, detached = farm.locked(locked), farm.locked(locked, data_images="only", min_age=3600)
    assert support.module("view", views=attached).ok["changed"]
    digests = {
        f"{release}/{name}": hashlib.sha256(content(release, name)).hexdigest()
        for release in RELEASES
        for name in ("lib/hot", "bin/cold")
    }
    with support.background(_READER, farm.view, json.dumps(digests)) as reader:
        for _round in range(_ROUNDS):
            ran = support.module("view", views=detached).ok["views"][0]
            assert (ran["switched"], ran["detached"]) == (True, True)
            assert support.module("view", views=attached).ok["views"][0]["switched"]
        opens, *wrong = json.loads(reader.communicate("end")[0])
    assert wrong == [[], 0]
    assert opens >= _OPENS
