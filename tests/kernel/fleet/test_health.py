"""A view is checked before the host switches to it, where nobody else sees it; a host returns to what it showed before."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.renderfarm.overlay.tests.kernel import support
from ansible_collections.renderfarm.overlay.tests.kernel.fleet.test_view import Farm


@pytest.fixture
def farm(area: Path) -> Farm:
    """Return a farm that shows usd/1."""
    found = Farm(area)
    assert found.bring(found.views(found.lock("usd/1"))).ok["changed"]
    return found


def current(farm: Farm, name: str = "software") -> str:
    return os.readlink(farm.top / "state" / "views" / name / "current")


def processes_with(word: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if word.encode() in Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" "):
                    found.append(int(name))
            except OSError:
                continue
    return found


def soon_without(word: str) -> bool:
    """Return whether no process has a word in its command line, or soon none has."""
    limit = time.monotonic() + 20
    while processes_with(word) and time.monotonic() < limit:
        time.sleep(0.05)
    return not processes_with(word)


@pytest.fixture
def word() -> str:
    """Return a command whose processes can be found by it."""
    return f"sleep {time.time_ns() // 1000}"


def test_a_view_without_the_content_of_a_release_is_not_switched_to(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/2", "qt/1"))
    (farm.root / "qt" / "1" / "file").unlink()
    before = current(farm)
    ran = farm.bring(views)
    assert "failed its health check, and it still shows generation" in ran.message
    assert f"release qt/1: {farm.top}/software/qt/1/file cannot be opened: No such file or directory" in ran.message
    assert farm.shown() == ["1"]
    assert current(farm) == before
    assert "health check" in farm.status()["failure"]
    # What is missing comes back, and the next run switches.
    support.write(farm.root / "qt" / "1" / "file", b"qt/1")
    manifest = (farm.root / "usd" / "1" / "file").stat()
    os.utime(farm.root / "qt" / "1" / "file", ns=(manifest.st_atime_ns, manifest.st_mtime_ns))
    assert farm.bring(views).ok["changed"]
    assert farm.shown() == ["2"]
    assert farm.status()["failure"] == ""


def test_only_releases_that_are_new_are_opened(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1", "usd/2"))
    # It is in the current generation, and whoever uses it knows already.
    (farm.root / "usd" / "1" / "file").unlink()
    assert farm.bring(views).ok["changed"]
    assert farm.shown() == ["1", "2"]


def test_a_new_view_that_fails_is_not_mounted_and_leaves_no_mountpoint(area: Path) -> None:
    farm = Farm(area)
    ran = farm.bring(farm.views(farm.lock("usd/1"), health_check="exit 3"))
    assert "failed its health check, and it was not mounted: the command 'exit 3' failed with status 3" in ran.message
    assert not (area / "software").exists()
    assert not (area / "state" / "views" / "software" / "current").exists()
    assert farm.bring(farm.views(farm.lock("usd/1"), health_check="none")).ok["changed"]
    assert farm.shown() == ["1"]


def test_the_command_sees_the_new_view_while_everybody_else_sees_the_old_one(farm: Farm) -> None:
    talk = farm.top / "talk"
    talk.mkdir(mode=0o777)
    talk.chmod(0o777)
    command = (
        f"ls usd > {talk}/seen; pwd >> {talk}/seen; echo $OVERLAY_VIEW $OVERLAY_GENERATION >> {talk}/seen; id -un >> {talk}/seen;"
        f" echo ${{HIDDEN:-none}} >> {talk}/seen; touch {talk}/there; until test -e {talk}/go; do sleep 0.05; done"
    )
    views = farm.views(farm.lock("usd/2"), health_check=command)[:1]
    shown = []

    def look() -> None:
        while not (talk / "there").exists():
            time.sleep(0.02)
        shown.append(farm.shown())
        (talk / "go").touch()

    os.environ["HIDDEN"] = "secret"
    looking = threading.Thread(target=look)
    looking.start()
    try:
        ran = farm.bring(views).ok
    finally:
        del os.environ["HIDDEN"]
        (talk / "there").touch()
        looking.join()
    assert shown == [["1"]]
    generation = ran["views"][0]["generation"]
    assert (talk / "seen").read_text().splitlines() == [
        *("2", str(farm.top / "software"), f"software {generation}", "nobody", "none")
    ]
    assert ran["mount_changed"]
    assert farm.shown() == ["2"]


def test_a_command_that_fails_is_reported_and_leaves_no_process(farm: Farm, word: str) -> None:
    command = f"{word} & echo licence server is gone >&2; exit 4"
    ran = farm.bring(farm.views(farm.lock("usd/2"), health_check=command))
    assert "failed with status 4: licence server is gone" in ran.message
    assert farm.shown() == farm.shown("tools") == ["1"]
    assert soon_without(word)


def test_a_command_that_does_not_end_is_given_up(farm: Farm, word: str) -> None:
    ran = farm.bring(farm.views(farm.lock("usd/2"), health_check=f"echo waiting; {word}; :", health_timeout=0.3)[:1])
    assert "did not end within 0.3 seconds; it printed: waiting" in ran.message
    assert farm.shown() == ["1"]
    assert soon_without(word)


def test_a_command_dies_with_its_module(farm: Farm, word: str) -> None:
    views = farm.views(farm.lock("usd/2"), health_check=f"{word}; :")[:1]
    with support.forked_module("view", {"views": views, "timeout": 60}) as child:
        child.go()
        limit = time.monotonic() + 60
        while len(processes_with(word)) < 2 and time.monotonic() < limit:
            time.sleep(0.02)
        assert len(processes_with(word)) >= 2
    assert soon_without(word)
    assert farm.shown() == ["1"]
    assert farm.bring(farm.views(farm.lock("usd/2"))).ok["changed"]


def test_a_command_may_print_a_lot_and_run_longer_than_the_time_limit_of_the_module(farm: Farm) -> None:
    command = "head -c 1000000 /dev/zero; sleep 3; echo end; exit 1"
    ran = farm.bring(farm.views(farm.lock("usd/2"), health_check=command)[:1], timeout=2)
    assert ran.message.rstrip().endswith("end")
    assert len(ran.message) < 10_000


def test_nothing_is_checked_when_nothing_is_mounted(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/1"), health_check="false")
    assert not farm.bring(views).ok["changed"]
    assert not farm.bring(views, check=True).ok["mount_changed"]
    assert farm.bring(farm.views(farm.lock("usd/2"), health_check="false"), check=True).ok["mount_changed"]


def test_a_user_who_does_not_exist_is_named(farm: Farm) -> None:
    views = farm.views(farm.lock("usd/2"), health_check="true", health_user="nobody-here")
    assert "health_user 'nobody-here' does not exist on this host" in farm.bring(views).message
    assert farm.shown() == ["1"]


def test_the_command_runs_as_the_user_that_is_named(farm: Farm) -> None:
    command = "test $(id -u) = 0 && test $(id -g) = 0"
    assert "failed with status 1" in farm.bring(farm.views(farm.lock("usd/2"), health_check=command)).message
    assert farm.bring(farm.views(farm.lock("usd/2"), health_check=command, health_user="0")).ok["changed"]


def test_private_files_are_not_opened(farm: Farm) -> None:
    # Their file server may refuse them to root.
    private = farm.root / "usd" / "3"
    private.mkdir()
    support.write(private / "file", b"usd/3", 0o600)
    assert support.module("release_manifest", root=str(farm.root), store=str(farm.store), releases=["usd/3"]).ok[
        "changed"
    ]
    views = farm.views(farm.lock("usd/3"))
    (private / "file").unlink()
    assert farm.bring(views).ok["changed"]
    assert farm.shown() == ["3"]


def test_mounts_inside_of_the_view_are_there_for_the_command(farm: Farm) -> None:
    plugins = farm.top / "plugins"
    plugins.mkdir()
    (plugins / "site").write_text("site")
    support.command("mount", "--bind", plugins, farm.top / "software" / "usd")
    views = farm.views(farm.lock("usd/2"), health_check="cat usd/site")[:1]
    assert farm.bring(views).ok["changed"]
    assert os.listdir(farm.top / "software" / "usd") == ["site"]


def test_a_host_returns_to_what_it_showed_before_until_something_else_is_declared(farm: Farm) -> None:
    first, second, third = farm.lock("usd/1"), farm.lock("usd/2"), farm.lock("usd/1", "usd/2")
    assert farm.bring(farm.views(second)).ok["changed"]
    returned = farm.bring(farm.views(second), take_back=True, hold_reason="no licence").ok
    assert returned["changed"]
    assert farm.shown() == farm.shown("tools") == ["1"]
    hold = {"generation": first[0]["generation"], "until": 0, "reason": "no licence"}
    assert farm.status()["hold"] == {**hold, "instead_of": second[0]["generation"]}
    # Enforcement leaves it there, also again and again.
    for _time in range(2):
        held = farm.bring(farm.views(second)).ok
        assert not held["changed"]
        assert held["views"][0]["held"] == {**hold, "instead_of": second[0]["generation"]}
    assert farm.shown() == ["1"]
    # A run that switched nothing has nothing to take back.
    assert not farm.bring(farm.views(second), take_back=True).ok["changed"]
    assert farm.status()["hold"]["reason"] == "no licence"
    # Another declaration ends the hold.
    assert farm.bring(farm.views(third)).ok["changed"]
    assert farm.shown() == ["1", "2"]
    assert farm.status()["hold"] is None


def test_a_view_that_was_new_stays_when_its_host_returns(area: Path) -> None:
    farm = Farm(area)
    locked = farm.lock("usd/1")
    assert farm.bring(farm.views(locked)).ok["changed"]
    assert not farm.bring(farm.views(locked), take_back=True).ok["changed"]
    assert farm.shown() == ["1"]
    assert not farm.bring(farm.views(locked)).ok["changed"]
