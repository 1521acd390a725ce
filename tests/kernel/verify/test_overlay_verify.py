"""Each code of overlay_verify is found where the fault is made for real, and nowhere else; what can be repaired is."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.links import Link
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import beneath, deadline
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import (
    Note,
    Progress,
    TimeLimitError,
    no_progress,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify import layer_walk, subjects, verifying
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.data_places import DataPlaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.problems import CODES, Findings
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.targets import DataLayers, File, check
from ansible_collections.renderfarm.overlay.plugins.module_utils.verify.verify_task import (
    VerifiedView,
    VerifyOptions,
    VerifyTask,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_view import Farm
from ansible_collections.renderfarm.overlay.tests.kernel.fuse_server import served
from ansible_collections.renderfarm.overlay.tests.kernel.test_dead_server import dead, etc_of_its_own

METACOPY, REDIRECT, OPAQUE = (f"trusted.overlay.{name}" for name in ("metacopy", "redirect", "opaque"))


@dataclass
class View:
    """A mounted view of two releases, and what it is made of."""

    area: Path
    layer: Path
    root: Path
    store: Path
    mountpoint: Path

    def verify(self, level: str = "metadata", check: bool = False, **more: Any) -> support.Ran:
        options: dict[str, Any] = {"fail_on_problems": False, "store": str(self.store), "workers": 1, **more}
        place: dict[str, Any] = {"path": str(self.mountpoint)} if "name" not in more else {}
        return support.module(
            "overlay_verify", check=check, state_dir=str(self.area / "state"), level=level, **place, **options
        )

    def codes(self, level: str = "metadata", **more: Any) -> dict[str, int]:
        return dict(self.verify(level, **more).ok["counts"])

    def file(self, name: str = "tool/1/bin/tool") -> Path:
        return self.layer / name


def make_view(area: Path, strategy: str = "data_only", **more: Any) -> View:
    root = area / "root"
    placements = []
    for version in ("1", "2"):
        support.make_small_release(root / "tool" / version, f"version {version}")
        placements.append(support.scanned(area / "store", root, f"tool/{version}", checksum=True))
    (area / "state").mkdir(mode=0o700)
    layer, _generation, _report = support.build(area / "state", placements, strategy=strategy, **more)
    return View(area, layer / "view" if strategy == "redirect" else layer, root, area / "store", area / "view")


@pytest.fixture
def view(area: Path) -> Iterator[View]:
    made = make_view(area)
    with support.mounted(support.declared(made.mountpoint, [made.layer], [made.root])):
        yield made


def data_layers(path: Path, opened: int, note: Note) -> DataLayers:
    """Return the only data layer of a view, which is open."""
    return DataLayers(DataPlaces.of_one_overlay([os.fsencode(path)]), {os.fsencode(path): opened}, note)


def write_redirect(path: Path, value: bytes) -> None:
    os.setxattr(path, REDIRECT, value)


def set_mtime(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def keep_times(path: Path, change: Callable[[], object]) -> None:
    """Make a change, and restore the mtime of the directory."""
    before = path.stat().st_mtime_ns
    change()
    set_mtime(path, before)


def replace_name(path: Path, make: Callable[[], object]) -> None:
    keep_times(path.parent, lambda: [step() for step in (path.unlink, make)])


def replace_by_link(path: Path, place: Path) -> None:
    path.rename(place)
    path.symlink_to(os.path.relpath(place, path.parent))


#: What is done to the layer, and the codes that are found.
IN_LAYER: dict[str, tuple[Callable[[View], object], set[str]]] = {
    "a name is gone": (
        lambda view: keep_times(view.file().parent, view.file().unlink),
        {"missing_entry"},
    ),
    "a directory is gone": (
        lambda view: keep_times(view.layer / "tool" / "1", lambda: support.command("rm", "-r", view.file().parent)),
        {"missing_entry"},
    ),
    "a name was added": (
        lambda view: keep_times(view.file().parent, (view.file().parent / "new").touch),
        {"unknown_entry"},
    ),
    "a whiteout was added": (
        lambda view: keep_times(view.file().parent, lambda: os.mknod(view.file().parent / "gone", 0o20000)),
        {"unknown_entry"},
    ),
    "mode": (lambda view: view.file().chmod(0o777), {"entry_differs"}),
    "owner": (lambda view: os.chown(view.file(), 12, 13), {"entry_differs"}),
    "mtime": (lambda view: set_mtime(view.file(), 1), {"entry_differs"}),
    "mtime of a directory": (lambda view: set_mtime(view.file().parent, 1), {"entry_differs"}),
    "size": (lambda view: keep_times(view.file(), lambda: os.truncate(view.file(), 7)), {"entry_differs"}),
    "target of a link": (
        lambda view: replace_name(
            view.file("tool/1/latest"), lambda: view.file("tool/1/latest").symlink_to("bin/xxxx")
        ),
        {"entry_differs"},
    ),
    "another xattr": (lambda view: os.setxattr(view.file(), "trusted.overlay.origin", b"x"), {"entry_differs"}),
    "another redirect": (lambda view: write_redirect(view.file(), b"/tool/2/bin/tool"), {"entry_differs"}),
    "hard link": (
        lambda view: replace_name(
            view.file("tool/1/version-again"),
            lambda: support.command("cp", "-a", view.file("tool/1/version"), view.file("tool/1/version-again")),
        ),
        {"lost_hard_links"},
    ),
    "no redirect": (lambda view: os.removexattr(view.file(), REDIRECT), {"metacopy_without_redirect"}),
    "no metacopy": (lambda view: os.removexattr(view.file(), METACOPY), {"redirect_without_metacopy"}),
    "bad metacopy": (lambda view: os.setxattr(view.file(), METACOPY, b"xyz"), {"invalid_metacopy"}),
    "relative": (lambda view: write_redirect(view.file(), b"tool/1/bin/tool"), {"relative_redirect"}),
    "escaping": (lambda view: write_redirect(view.file(), b"/../tool/1/bin/tool"), {"escaping_redirect"}),
    "double slash": (lambda view: write_redirect(view.file(), b"/tool//1/bin/tool"), {"double_slash_redirect"}),
}


@pytest.mark.parametrize("fault", IN_LAYER)
def test_a_fault_of_a_layer_is_found_and_repaired(view: View, fault: str) -> None:
    make, codes = IN_LAYER[fault]
    make(view)
    found = view.verify().ok
    assert set(found["counts"]) == codes, found["problems"]
    assert all(problem["path"].startswith("/tool/1") for problem in found["problems"])
    if fault in ("no metacopy", "a name is gone"):
        # The view is in use meanwhile, and shows the release afterwards.
        with (view.mountpoint / "tool/2/bin/tool").open():
            would = view.verify(check=True, repair=True).ok
            assert would["changed"]
            assert view.codes() == found["counts"]
            done = view.verify(repair=True).ok
            # The job needs the layer that was replaced.
            assert (view.area / "state/views/view/removing").exists()
        assert done["ok"]
        assert done["repaired"] == would["repaired"] == found["problems"]
        assert [action.split()[0] for action in done["actions"]] == ["build", "switch"]
        assert support.compare_trees(view.mountpoint / "tool" / "1", view.root / "tool" / "1") == []
        assert view.verify("content", repair=True).ok["changed"] is False


#: What is done to the software root, the codes that level open finds, and what a user of the view sees.
IN_ROOT: dict[str, tuple[Callable[[View], object], set[str]]] = {
    "gone": (lambda view: (view.root / "tool/1/bin/tool").unlink(), {"missing_target"}),
    "a directory": (
        lambda view: replace_name(view.root / "tool/1/bin/tool", (view.root / "tool/1/bin/tool").mkdir),
        {"target_not_file"},
    ),
    "size": (
        lambda view: keep_times(view.root / "tool/1/bin/tool", lambda: os.truncate(view.root / "tool/1/bin/tool", 3)),
        {"wrong_size"},
    ),
    "mtime": (lambda view: set_mtime(view.root / "tool/1/bin/tool", 5), {"wrong_time"}),
    "a symbolic link at the end": (
        lambda view: replace_name(
            view.root / "tool/1/bin/tool", lambda: (view.root / "tool/1/bin/tool").symlink_to("../version")
        ),
        {"redirect_through_symlink"},
    ),
    "a symbolic link on the way": (
        lambda view: keep_times(
            view.root / "tool/1", lambda: replace_by_link(view.root / "tool/1/bin", view.root / "bin")
        ),
        {"redirect_through_symlink"},
    ),
    "a new name": (lambda view: (view.root / "tool/1/bin/new").touch(), {"release_differs"}),
    "a new name at the top": (lambda view: (view.root / "tool/1/new").touch(), {"release_differs"}),
}


@pytest.mark.parametrize("fault", IN_ROOT)
def test_a_fault_of_the_software_root_is_found_by_opening(view: View, fault: str) -> None:
    make, codes = IN_ROOT[fault]
    make(view)
    found = view.verify("open", repair=True).ok
    # A sample of the files is compared with the manifest too.
    assert codes <= set(found["counts"]) <= codes | {"release_differs"}, found["problems"]
    # Nothing of this is the layer's.
    assert not found["changed"]
    assert "restore" in found["problems"][0]["remedy"] or "unmount" in found["problems"][0]["remedy"]


def test_mounts_inside_of_the_software_root_are_looked_beneath_as_the_kernel_does(view: View) -> None:
    support.command("mount", "--bind", view.root / "tool/2/bin", view.root / "tool/1/bin")
    try:
        assert (view.mountpoint / "tool/1/bin/tool").read_text().endswith("version 1\n")
        # Only who uses the software root itself meets the mount.
        assert set(view.codes("open")) == {"release_differs"}
        # The kernel refuses mounts that the file system makes by itself, such as those of nested exports.
        root = beneath.open_layer(os.fsencode(view.root))
        data = data_layers(view.root, root, Note())
        found = data.problem(File(b"/tool", b"tool/1/bin/tool", 0, 0), None, lambda: None)
        assert found is not None
        assert found.code == "redirect_across_mount"
        os.close(root)
    finally:
        support.unmount_all(view.root / "tool/1/bin")


def test_other_content_of_the_same_size_and_mtime_is_found_by_reading(view: View) -> None:
    place = view.root / "tool/1/bin/tool"
    keep_times(place, lambda: place.write_bytes(place.read_bytes().upper()))
    assert view.codes("open") == {}
    assert view.codes("content") == {"content_differs": 1}


def test_a_sample_finds_a_fault_if_it_draws_everything(view: View) -> None:
    os.removexattr(view.file(), METACOPY)
    (view.root / "tool/2/bin/tool").unlink()
    assert view.codes(sample=1000) == {"redirect_without_metacopy": 1}
    assert {"redirect_without_metacopy", "missing_target"} <= set(view.codes("content", sample=1000))
    assert view.verify(sample=3).ok["checked"] == 3


def test_each_entry_can_be_drawn_without_manifests(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subjects.of_mount(subjects.at_mountpoint(os.fsencode(view.mountpoint)), str(view.area / "state"), None)
    assert subject is not None
    files = [view.layer / f"tool/{version}/{name}" for version in "12" for name in ("bin/tool", "version")]
    for file in files:
        os.truncate(view.root / file.relative_to(view.layer), 1)
    total = subjects.generation(subject).entries.total
    found: dict[bytes, int] = {}
    for drawn in range(total):
        monkeypatch.setattr(random, "sample", lambda _range, _count, drawn=drawn: [drawn])
        options = VerifyOptions("open", sample=1, recorded=False)
        for problem in VerifyTask(subject, options, 10, no_progress, Note()).run().findings.first:
            found[problem.path] = found.get(problem.path, 0) + 1
    assert found == {b"/" + os.fsencode(file.relative_to(view.layer)): 1 for file in files}
    monkeypatch.undo()
    options = VerifyOptions("open", sample=total, recorded=False)
    assert VerifyTask(subject, options, 10, no_progress, Note()).run().findings.counts == {"wrong_size": len(files)}


def test_problems_fail_the_task_and_are_recorded(view: View) -> None:
    os.removexattr(view.file(), METACOPY)
    failed = view.verify(fail_on_problems=True)
    assert failed.message == "view view has 1 problem: 1 redirect_without_metacopy"
    assert failed.result["problems"][0]["path"] == "/tool/1/bin/tool"
    record = view.area / "state/views/view/verified.json"
    before = record.read_bytes()
    assert b"redirect_without_metacopy" in before
    view.verify(check=True)
    assert record.read_bytes() == before
    assert not record.with_name("verified.parts").exists()


def test_a_verification_goes_on_where_it_ended(view: View) -> None:
    os.removexattr(view.file(), METACOPY)
    partial = view.verify(time_limit=0.000001).ok
    assert (partial["complete"], partial["left"]) == (False, 3)
    journal = view.area / "state/views/view/verified.parts"
    header = journal.read_bytes()
    # A run that was killed has verified release 1, and has begun to write about release 2.
    problems = b'"problems": [["/tool/1/bin/tool", "missing_target", ""]], "counts": {"missing_target": 1}'
    finding = b'{"part": 0, "entries": null, "checked": 7, ' + problems + b"}\n"
    journal.write_bytes(header + finding + b'{"part": 1, "prob')
    assert view.codes() == {"missing_target": 1}
    assert not journal.exists()
    assert view.codes() == {"redirect_without_metacopy": 1}


def test_a_verification_goes_on_within_a_release(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    (view.root / "tool/1/bin/tool").unlink()
    (view.root / "tool/2/bin/tool").unlink()
    wanted = view.codes("open")
    assert wanted["missing_target"] == 2
    looked = view.area / "looked"
    problem = DataLayers.problem

    def noted(data: DataLayers, file: File, *others: Any) -> Any:
        with looked.open("ab") as stream:
            stream.write(file.path + b"\n")
        return problem(data, file, *others)

    monkeypatch.setattr(DataLayers, "problem", noted)
    monkeypatch.setattr(verifying, "_MOST_FILES", 1)
    monkeypatch.setattr(layer_walk, "_LINES", 1)
    subject = subjects.of_mount(subjects.at_mountpoint(os.fsencode(view.mountpoint)), str(view.area / "state"), None)
    assert subject is not None
    options = VerifyOptions("open", str(view.store), threads=1, time_limit=1)
    runs: list[VerifiedView] = []
    while not runs or not runs[-1].complete:
        # The time has passed whenever it is looked at for the second time.
        moments = iter([False])
        monkeypatch.setattr(verifying._Layer, "_is_late", lambda _layer, moments=moments: next(moments, True))
        runs.append(VerifyTask(subject, options, 10, no_progress, Note()).run())
        assert len(runs) < 20
    assert len(runs) >= 4
    # Each file was looked up once, in one of the runs.
    assert sorted(looked.read_text().splitlines()) == [
        f"/tool/{n}/{name}" for n in "12" for name in ("bin/tool", "version")
    ]
    assert [run for run in runs[:-1] if "missing_target" in run.findings.counts]
    # Which entries of a release are compared with its manifest is drawn anew in each run.
    found = dict(runs[-1].findings.counts)
    assert found.pop("release_differs") >= 2
    assert wanted.pop("release_differs") >= 2
    assert found == wanted
    assert runs[-1].findings.checked == view.verify().ok["checked"]
    assert not (view.area / "state/views/view/verified.parts").exists()


def test_without_manifests_the_marks_are_checked_alone(view: View) -> None:
    os.removexattr(view.file(), METACOPY)
    view.file("tool/2/bin/tool").chmod(0o700)
    assert view.codes(store=None) == {"redirect_without_metacopy": 1}
    (view.layer / "new").touch()
    assert view.codes(store=None) == {"redirect_without_metacopy": 1, "entry_differs": 1}
    (view.layer / "new").unlink()
    refused = view.verify(store=None, repair=True)
    assert "cannot be repaired: give 'store'" in refused.message
    assert refused.result["counts"] == {"redirect_without_metacopy": 1}
    (view.store / "tool" / "2.json").unlink()
    assert view.codes() == {"redirect_without_metacopy": 1, "manifest_unusable": 1}


def test_others_may_write_and_the_record_is_damaged(view: View) -> None:
    view.layer.parent.chmod(0o777)
    assert view.codes() == {"writable_by_others": 1}
    view.layer.parent.chmod(0o755)
    (view.layer.parent / "view.json").write_bytes(b"{}")
    assert "record_damaged" in view.codes()


def test_merged_releases_with_links_and_owners_are_compared(area: Path) -> None:
    root = area / "root"
    placements = []
    for version in ("1", "2"):
        support.make_small_release(root / "tool" / version, f"version {version}")
        placed = support.scanned(area / "store", root, f"tool/{version}")
        placements.append(replace(placed, at=b"tool", exclude=(b"latest",) if version == "2" else ()))
    (area / "state").mkdir(mode=0o700)
    more: dict[str, Any] = {
        "on_conflict": "last",
        "owner": 77,
        "mode": "go-w",
        "links": (Link(b"usr/now", b"../tool"),),
    }
    layer, _generation, _report = support.build(area / "state", placements, **more)
    options: dict[str, Any] = {"name": "view", "state_dir": str(area / "state"), "store": str(area / "store")}
    assert support.module("overlay_verify", level="open", data=[str(root)], **options).ok["checked"] == 9
    os.chown(layer / "tool/bin/tool", 78, -1)
    assert "entry_differs" in support.module("overlay_verify", **options).message
    assert support.module("overlay_verify", repair=True, **options).ok["actions"]
    assert not (area / "state/views/view/removing").exists()


def test_a_redirect_layer_needs_opaque_directories(area: Path) -> None:
    view = make_view(area, "redirect")
    options: dict[str, Any] = {"name": "view"}
    assert view.codes(**options) == {}
    os.removexattr(view.layer / "tool", OPAQUE)
    keep_times(view.file().parent, lambda: os.mknod(view.file().parent / "gone", 0o20000))
    assert view.codes(**options) == {"missing_opaque": 1, "whiteout_in_opaque": 1}
    assert view.verify(repair=True, **options).ok["ok"]


def test_a_file_that_may_not_be_opened_is_found(area: Path) -> None:
    view = make_view(area, namespace="user")
    view.area.chmod(0o755)
    os.chown(view.root / "tool/1/bin/tool", 12, 13)
    (view.root / "tool/1/bin/tool").chmod(0o600)
    # Root without capabilities has the rights that a server with root_squash leaves it.
    options: dict[str, Any] = {"name": "view", "state_dir": str(view.area / "state"), "data": [str(view.root)]}
    ran = support.module("overlay_verify", privileged=False, level="open", fail_on_problems=False, **options)
    assert ran.ok["counts"] == {"unreadable_target": 1}


def test_a_server_that_does_not_answer_is_named(view: View) -> None:
    with dead(view.root):
        assert view.codes() == {}
        assert (
            f"at data layer {view.root}. No answer from the file server of {view.root}"
            in view.verify("open", timeout=1).message
        )


def test_a_server_that_hangs_during_the_work_is_named(view: View) -> None:
    place = view.area / "served"
    place.mkdir()
    note = Note()
    with served(view.root, place) as server:
        root = beneath.open_layer(os.fsencode(place))
        data = data_layers(place, root, note)
        status = (view.root / "tool/1/version").stat()
        file = File(b"/version", b"tool/1/version", status.st_size, status.st_mtime_ns)

        def look(progress: Progress) -> int:
            findings = Findings()
            check(data, iter([file] * 100), lambda _file: None, 4, findings, progress)
            return findings.total

        assert deadline.run(look, 10) == 0
        server.hang()
        with pytest.raises(TimeLimitError):
            deadline.run(look, 0.5)
        os.close(root)
    assert note.read() == f"/tool/1/version in data layer {place}"


def test_a_view_that_is_not_mounted_as_declared_is_found(area: Path) -> None:
    with etc_of_its_own(area):
        farm = Farm(area)
        farm.bring(farm.views(farm.lock("usd/1", "qt/1"))).ok  # noqa: B018
        options: dict[str, Any] = {"name": "software", "state_dir": str(area / "state"), "fail_on_problems": False}
        assert support.module("overlay_verify", store=str(farm.store), **options).ok["ok"]
        software = area / "software"
        changes: tuple[tuple[str | Path, ...], ...] = (
            ("mount", "-o", "remount,bind,ro,suid,nodev", software),
            # Another overlay is mounted over it.
            ("mount", "-t", "overlay", "-o", f"ro,lowerdir={farm.root}:{area}/etc", "other", software),
        )
        for command in changes:
            support.command(*command)
            found = support.module("overlay_verify", **options).ok
            assert found["counts"] == {"mount_differs": 1}, found
        support.unmount_all(software)
        assert support.module("overlay_verify", **options).ok["counts"] == {"mount_differs": 1}


def test_every_code_is_made_for_real() -> None:
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [code for code in CODES if f'"{code}"' not in source] == []


def test_mtimes_of_data_images_are_those_of_equal_files(area: Path) -> None:
    support.write(area / "file", b"content", mtime_ns=10**18)
    layer = os.fsencode(area)
    opened = {layer: beneath.open_layer(layer)}
    file = File(b"/file", b"file", 7, 2 * 10**18)
    try:
        cases: list[tuple[tuple[bytes, ...], str | None]] = [((), "wrong_time"), ((layer,), None)]
        for images, code in cases:
            data = DataLayers(DataPlaces.of_one_overlay([layer]), opened, Note(), images=images)
            found = data.problem(file, None, no_progress)
            assert (found.code if found else None) == code
    finally:
        os.close(opened[layer])
