# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace has each file of a release that was opened in a view, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import (
    trace_files,
    traced_view,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.fanotify import (
    Opened,
    OpenedFile,
    OpenListener,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.layers.erofs_layer import Builder
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import (
    TracedFile,
    trace_of,
    trace_to_text,
)
from ansible_collections.renderfarm.overlay.tests.kernel import support

LIMIT = Path("/proc/sys/fs/fanotify/max_queued_events")


@dataclass
class View:
    area: Path
    root: Path
    store: Path
    place: Path
    layer: Path

    def trace(self, check: bool = False, **arguments: Any) -> support.Ran:
        given = {"path": str(self.place), "store": str(self.store), "user": "root", **arguments}
        return support.module(
            "access_trace", check=check, **{name: one for name, one in given.items() if one is not None}
        )

    def files(self, release: str = "tool/1") -> dict[str, tuple[int, int]]:
        """Return the opens and starts of each file in a trace of the store."""
        found = trace_files.find(str(self.store), release)
        return {os.fsdecode(one.path): (one.opens, one.starts) for one in found.files} if found else {}


def make_release(top: Path) -> None:
    """Make a release with a program, a library, hard links, symbolic links and an empty file."""
    (top / "lib").mkdir(parents=True)
    (top / "bin").mkdir()
    (top / "etc").mkdir()
    for number in range(20):
        support.write(top / "lib" / f"file{number}", b"%d" % number)
    support.write(top / "lib" / "not utf-8 \udcff\n", b"x")
    support.write(top / "lib" / "empty")
    support.write(top / "first", b"linked")
    os.link(top / "first", top / "second")
    (top / "link").symlink_to("lib/file7")
    (top / "directory").symlink_to("lib")
    shutil.copy("/bin/cat", top / "bin" / "cat")
    support.write(top / "bin" / "script", b"#!/bin/sh\ncat $(dirname $0)/../etc/settings\n", 0o755)
    support.write(top / "etc" / "settings", b"on\n")


@contextmanager
def shown(area: Path, layer: Path, root: Path, strategy: str = "data_only") -> Iterator[View]:
    with support.mounted(support.declared(area / "view", [layer], [root], strategy=strategy)) as place:
        yield View(area, root, area / "store", place, layer)


@pytest.fixture(params=["directory", "image", "redirect"])
def view(area: Path, request: pytest.FixtureRequest) -> Iterator[View]:
    root, state_dir = area / "root", area / "state"
    make_release(root / "tool" / "1")
    state_dir.mkdir(mode=0o700)
    kind = request.param
    builder = Builder("mkcomposefs", str(support.PROGRAMS / "mkcomposefs")) if kind == "image" else None
    strategy = "redirect" if kind == "redirect" else "data_only"
    placement = support.scanned(area / "store", root, "tool/1")
    layer, _generation, _report = support.build(state_dir, [placement], builder=builder, strategy=strategy)
    with shown(area, layer, root, strategy) as view:
        yield view


@pytest.fixture
def plain(area: Path) -> Iterator[View]:
    root, state_dir = area / "root", area / "state"
    make_release(root / "tool" / "1")
    state_dir.mkdir(mode=0o700)
    layer, _generation, _report = support.build(state_dir, [support.scanned(area / "store", root, "tool/1")])
    with shown(area, layer, root) as view:
        yield view


def test_a_command_is_traced(view: View) -> None:
    ran = view.trace(
        command="cd tool/1 && cat lib/file1 lib/file2 lib/file2 lib/empty link directory/file9 second first >/dev/null"
        " && stat lib/file3 >/dev/null && ls lib >/dev/null && bin/script && bin/cat lib/not*; exit 0"
    )
    result = ran.ok
    files = view.files()
    assert {name: starts for name, (_opens, starts) in files.items()} == dict.fromkeys(
        (
            *("bin/cat", "bin/script", "etc/settings", "first", "lib/file1", "lib/file2", "lib/file7", "lib/file9"),
            "lib/not utf-8 \udcff\n",
        ),
        1,
    )
    assert files["lib/file1"][0] == 1
    # The second name of a file is not in the trace, since the content is at the first one.
    assert files["first"][0] in (1, 2)
    (release,) = result["releases"]
    assert release["release"] == "tool/1"
    assert (release["files"], release["starts"]) == (len(files), 1)
    assert release["opens"] == sum(opens for opens, _starts in files.values())
    assert release["bytes"] == sum((view.root / "tool/1" / name).stat().st_size for name in files)
    assert release["trace"] == str(view.store / "tool/1.trace.json")
    assert (result["overflowed"], result["unmapped"], result["exit_code"]) == (False, 0, 0)
    assert result["output"].startswith("on\n")
    assert result["changed"]
    assert result["diff"]["before"] == {"tool/1": {}}


def test_runs_are_merged_and_the_text_depends_on_the_counts_alone(plain: View) -> None:
    for _run in range(2):
        assert plain.trace(command="cat tool/1/lib/file1").ok
    text = (plain.store / "tool/1.trace.json").read_bytes()
    assert text == trace_to_text(trace_of("tool/1", 2, [TracedFile(b"lib/file1", 2, 2)]))
    assert plain.trace(command=["cat", "tool/1/lib/file2"]).ok["diff"] == {
        "before": {"tool/1": {"files": 1, "opens": 2, "starts": 2}},
        "after": {"tool/1": {"files": 2, "opens": 3, "starts": 3}},
    }


def test_only_the_command_is_traced(plain: View) -> None:
    code = "import os, sys, time\nprint('ready', flush=True)\nwhile True: open(sys.argv[1]).close(); time.sleep(0.001)"
    with support.background(code, plain.place / "tool/1/lib/file5") as noise:
        assert plain.trace(command="cat tool/1/lib/file1; sleep 0.3").ok
        noise.kill()
    assert plain.files() == {"lib/file1": (1, 1)}


def test_a_duration_records_all_processes_in_all_mount_namespaces(plain: View) -> None:
    code = "import sys, time\nprint('ready', flush=True)\nwhile True: open(sys.argv[1]).read(); time.sleep(0.05)"
    with (
        support.background(code, plain.place / "tool/1/lib/file1") as one,
        support.background(code, plain.place / "tool/1/lib/file1") as two,
        support.background(code, plain.place / "tool/1/lib/file2", prefix=["unshare", "--mount"]) as apart,
    ):
        result = plain.trace(duration=1.0).ok
        for process in (one, two, apart):
            process.kill()
    files = plain.files()
    assert {name: starts for name, (_opens, starts) in files.items()} == {"lib/file1": 2, "lib/file2": 1}
    assert 4 <= files["lib/file1"][0] <= 60
    assert result["releases"][0]["starts"] == 3
    assert result["exit_code"] is None


def test_opens_at_another_place_in_another_mount_namespace_are_of_no_release(plain: View) -> None:
    other = plain.area / "other"
    other.mkdir()
    start = f"import subprocess, sys, time\nsubprocess.run(['mount', '--bind', {str(plain.place)!r}, {str(other)!r}], check=True)"
    loop = "print('ready', flush=True)\nwhile True: open(sys.argv[1]).read(); time.sleep(0.05)"
    with support.background(f"{start}\n{loop}", other / "tool/1/lib/file1", prefix=["unshare", "--mount"]) as apart:
        result = plain.trace(duration=0.5).ok
        apart.kill()
    assert result["unmapped"] >= 2
    assert plain.files() == {}


def test_a_path_from_elsewhere_is_not_looked_up_through_links(plain: View) -> None:
    opened = Opened({b"/directory-elsewhere/file1": OpenedFile(1, {1}), b"/tool/1/directory/file1": OpenedFile(2, {1})})
    found = traced_view.attributed(traced_view.observe(os.fsencode(plain.place)), opened, False, 10, lambda: None)
    assert found.unmapped == 3
    assert found.releases == []


def test_without_a_store_only_counts_are_returned(plain: View) -> None:
    result = plain.trace(command="cat tool/1/lib/file1", store=None).ok
    assert [(one["files"], one["trace"]) for one in result["releases"]] == [(1, None)]
    assert not result["changed"]
    assert not (plain.store / "tool/1.trace.json").exists()


def test_check_mode_runs_nothing_and_records_nothing(plain: View) -> None:
    result = plain.trace(check=True, command=f"touch {plain.area}/ran").ok
    assert result["skipped"]
    assert "nothing is recorded" in result["msg"]
    assert result["changed"]
    assert not plain.trace(check=True, command="true", store=None).ok["changed"]
    assert not (plain.area / "ran").exists()
    assert sorted(os.listdir(plain.store)) == ["tool"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"command": "cat tool/1/lib/file1; echo broken; exit 3"},
            r"failed with status 3, so nothing .*it printed: 1broken",
        ),
        ({"command": "kill -9 $$"}, "was ended by signal 9"),
        ({"command": "cat tool/1/lib/file1; sleep 60", "time_limit": 0.5}, r"did not end within 0\.5 seconds"),
        ({"command": ["/no/such/program"]}, r"/no/such/program.*No such file"),
        ({"command": "true", "user": "nobody-at-all"}, "user 'nobody-at-all' does not exist"),
        ({"command": []}, "give the program"),
        ({"command": " "}, "give the program"),
        ({"command": "true", "duration": 1}, "mutually exclusive"),
        ({}, "one of the following is required"),
        ({"duration": -1}, "greater than 0"),
        ({"command": "true", "path": "/proc"}, "no view is mounted at /proc"),
        ({"command": "true", "path": "relative"}, "absolute path"),
        ({"command": "true", "store": "/no/store"}, "/no/store does not exist"),
    ],
)
def test_a_failure_is_named_and_records_nothing(plain: View, arguments: dict[str, Any], message: str) -> None:
    assert re.search(message, plain.trace(**arguments).message)
    assert plain.files() == {}


def test_a_failing_command_is_accepted_where_its_status_is(plain: View) -> None:
    result = plain.trace(command="cat tool/1/lib/file1; exit 3", exit_codes=[0, 3]).ok
    assert result["exit_code"] == 3
    assert plain.files() == {"lib/file1": (1, 1)}


def test_a_command_runs_as_a_user_with_an_environment(plain: View) -> None:
    os.chmod(plain.area.parent, 0o755)
    result = plain.trace(
        command='id -u; echo "$WORD"; cat tool/1/lib/file1', user="65534", environment={"WORD": "two words"}
    ).ok
    assert result["output"] == "65534\ntwo words\n1"
    assert plain.files() == {"lib/file1": (1, 1)}


def test_what_a_command_leaves_behind_is_killed(plain: View) -> None:
    assert plain.trace(command=f"(sleep 3; touch {plain.area}/late) >/dev/null 2>&1 & cat tool/1/lib/file1").ok
    time.sleep(3.5)
    assert not (plain.area / "late").exists()


def test_nested_and_merged_releases_are_told_apart(area: Path) -> None:
    root, state_dir, store = area / "root", area / "state", area / "store"
    state_dir.mkdir(mode=0o700)
    for release, names in (
        ("a/1", ["same", "only-a", "x/deep"]),
        ("b/1", ["same", "only-b", "x/other"]),
        ("a/1/in", ["n"]),
    ):
        for name in names:
            (root / release / name).parent.mkdir(parents=True, exist_ok=True)
            support.write(root / release / name, f"{release} {name}".encode())
    one, two = (replace(support.scanned(store, root, release), at=b"merged") for release in ("a/1", "b/1"))
    inner = support.scanned(store, root, "a/1/in")
    for on_conflict, kept in (("first", "a/1"), ("last", "b/1")):
        layer, _generation, _report = support.build(
            state_dir, [one, two, inner], on_conflict=on_conflict, name=on_conflict
        )
        with shown(area, layer, root) as view:
            assert view.trace(command="cat merged/* merged/x/* a/1/in/n; true").ok
            found = {release: set(view.files(release)) for release in ("a/1", "b/1", "a/1/in")}
            both = {"a/1": {"only-a", "x/deep"}, "b/1": {"only-b", "x/other"}, "a/1/in": {"n"}}
            both[kept] |= {"same"}
            assert found == both
            for path in store.rglob("*.trace.json"):
                path.unlink()


def test_what_reaches_the_software_root_is_recorded_as_a_miss(area: Path) -> None:
    root, local, state_dir = area / "root", area / "local", area / "state"
    root.mkdir()
    support.command("mount", "-t", "tmpfs", "tmpfs", root)
    make_release(root / "tool" / "1")
    shutil.copytree(root / "tool/1/etc", local / "tool/1/etc")
    state_dir.mkdir(mode=0o700)
    layer, _generation, _report = support.build(state_dir, [support.scanned(area / "store", root, "tool/1")])
    with support.mounted(support.declared(area / "view", [layer], [local, root])) as place:
        view = View(area, root, area / "store", place, layer)
        result = view.trace(
            command=f"cat tool/1/lib/file1 tool/1/etc/settings {root}/tool/1/lib/file8", mode="misses"
        ).ok
    assert view.files() == {"lib/file1": (1, 1)}
    assert result["releases"][0]["bytes"] == 1
    assert result["unmapped"] == 0


def test_a_view_without_a_software_root_has_no_misses(plain: View) -> None:
    view = replace(traced_view.observe(os.fsencode(plain.place)), software_root=os.fsencode(plain.area / "image"))
    with pytest.raises(OverlayError, match=r"reads from images alone.*use mode: opens"):
        traced_view.listening(view, misses=True, alone=False)


def test_deleted_files_are_counted_and_the_others_are_recorded(plain: View) -> None:
    gone = plain.root / "tool/1/lib/file3"
    result = plain.trace(command=f"cat tool/1/lib/file1; exec 3<tool/1/lib/file3; rm {gone}; cat <&3; sleep 0.5").ok
    assert plain.files().keys() >= {"lib/file1"}
    assert plain.files().keys() <= {"lib/file1", "lib/file3"}
    assert result["unmapped"] + len(plain.files()) == 2


def test_an_overflow_is_reported(plain: View) -> None:
    limit = LIMIT.read_text()
    LIMIT.write_text("4")
    try:
        listener = OpenListener()
    finally:
        LIMIT.write_text(limit)
    try:
        listener.mark(os.fsencode(plain.place), whole=False)
        support.command("sh", "-c", f"cat {plain.place}/tool/1/lib/file*")
        listener.read()
    finally:
        listener.close()
    assert listener.opened.overflowed
    assert len(listener.opened.files) == 4


def listening(parent: int) -> list[int]:
    """Wait until children of a process listen to opens, and return their PIDs."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        found = [int(pid) for pid in children if is_listening(Path("/proc", pid))]
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("nothing listens")


def is_listening(process: Path) -> bool:
    try:
        return any(" mask:" in info.read_text() for info in (process / "fdinfo").iterdir())
    except OSError:  # it, or a descriptor, has gone meanwhile
        return False


def test_an_overflow_is_warned_of(plain: View) -> None:
    arguments = {"path": str(plain.place), "duration": 2.0, "store": str(plain.store)}
    limit = LIMIT.read_text()
    LIMIT.write_text("4")
    try:
        with support.forked_module("access_trace", arguments) as module:
            module.go()
            listeners = listening(module.pid)
            for pid in listeners:
                os.kill(pid, signal.SIGSTOP)
            support.command("sh", "-c", f"cat {plain.place}/tool/1/lib/file*")
            for pid in listeners:
                os.kill(pid, signal.SIGCONT)
            result = module.finish().ok
    finally:
        LIMIT.write_text(limit)
    assert result["overflowed"]
    assert "max_queued_events" in str(result["warnings"])
    assert len(plain.files()) == 4


def test_a_switch_meanwhile_is_warned_of(plain: View) -> None:
    with support.forked_module(
        "access_trace", {"path": str(plain.place), "duration": 4.0, "store": str(plain.store)}
    ) as module:
        module.go()
        listening(module.pid)
        support.unmount_all(plain.place)
        with support.mounted(support.declared(plain.place, [plain.layer], [plain.root])):
            result = module.finish().ok
    assert "another view was mounted" in str(result["warnings"])


def test_a_killed_run_leaves_the_store_whole(plain: View) -> None:
    assert plain.trace(command="cat tool/1/lib/file1").ok
    before = (plain.store / "tool/1.trace.json").read_bytes()
    arguments = {
        "path": str(plain.place),
        "command": "cat tool/1/lib/file2; sleep 60",
        "store": str(plain.store),
        "user": "root",
    }
    with support.forked_module("access_trace", arguments) as module:
        module.go()
        time.sleep(1)
        os.kill(module.pid, signal.SIGKILL)
        os.waitpid(module.pid, 0)
        module.pid = 0
    time.sleep(0.5)
    assert (plain.store / "tool/1.trace.json").read_bytes() == before
    assert support.command("ps", "-eo", "args").count("cat tool/1/lib/file2; sleep 60") == 0
    assert plain.trace(command="cat tool/1/lib/file1").ok
    assert plain.files() == {"lib/file1": (2, 2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}", "is not a trace"),
        (trace_to_text(trace_of("tool/2", 1, [TracedFile(b"a", 1, 1)])), "is the trace of release tool/2"),
        (
            trace_to_text(trace_of("tool/1", 1, [TracedFile(b"lib/unknown", 1, 1)])),
            "has 'lib/unknown', which the manifest of release tool/1 does not have",
        ),
        (
            trace_to_text(trace_of("tool/1", 1, [TracedFile(b"link", 1, 1)])),
            "has 'link', which the manifest of release tool/1 does not have as a file with content",
        ),
        (
            json.dumps({"format": 1, "release": "tool/1", "starts": 1, "files": [["../x", 1, 1]]}).encode(),
            "is not a trace",
        ),
    ],
)
def test_a_hostile_trace_in_the_store_is_refused_by_name(plain: View, text: bytes, message: str) -> None:
    path = plain.store / "tool/1.trace.json"
    path.write_bytes(text)
    said = plain.trace(command="cat tool/1/lib/file1").message
    assert str(path) in said
    assert message in said
    assert path.read_bytes() == text


def test_a_store_of_other_manifests_is_refused_before_anything_runs(plain: View, area: Path) -> None:
    other = area / "other"
    other.mkdir()
    said = plain.trace(command=f"touch {area}/ran", store=str(other)).message
    assert "has the manifest of no release of the view" in said
    assert not (area / "ran").exists()


def test_two_runs_at_once_lose_nothing(plain: View) -> None:
    arguments = {"path": str(plain.place), "store": str(plain.store), "user": "root", "command": "cat tool/1/lib/file1"}
    with (
        support.forked_module("access_trace", arguments) as one,
        support.forked_module("access_trace", arguments) as two,
    ):
        one.go()
        two.go()
        assert one.finish().ok["changed"]
        assert two.finish().ok["changed"]
    assert plain.files() == {"lib/file1": (2, 2)}


def test_a_place_that_cannot_be_traced_is_named() -> None:
    listener = OpenListener()
    try:
        with pytest.raises(OverlayError, match=r"opens below /no/such/place cannot be traced: .*No such file"):
            listener.mark(b"/no/such/place", whole=False)
    finally:
        listener.close()
