"""The event source for ansible-rulebook, run as ansible-rulebook runs it: by its path, with a queue of one event.

`make eda` runs it in ansible-rulebook itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import syscalls
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases import (
    manifest_writer,
    patterns,
)

COLLECTION = Path(patterns.__file__).parents[3]
SOURCE = COLLECTION / "extensions" / "eda" / "plugins" / "event_source" / "releases.py"
RULEBOOK = COLLECTION / "extensions" / "eda" / "rulebooks" / "deploy_new_releases.yml"

#: A test that waits longer than this has failed.
LIMIT = 20.0


class FilteredQueue:
    """The queue that ansible-rulebook hands to a source, around the one of one event that its rules read."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)

    async def put(self, event: dict[str, Any]) -> None:
        await self.queue.put(event)

    async def path(self) -> str:
        """Take an event, and return the path of its release."""
        event = await asyncio.wait_for(self.queue.get(), LIMIT)
        assert set(event) == {"release"}
        return str(event["release"]["path"])


class Place:
    """A software root and a manifest store, and the arguments of a source that watches the root."""

    def __init__(self, directory: Path) -> None:
        self.root, self.store = directory / "software", directory / "manifests"
        self.root.mkdir()
        self.store.mkdir()
        self.state = directory / "state" / "releases.json"
        self.state.parent.mkdir()
        self.args: dict[str, Any] = {
            "root": str(self.root),
            "ready_marker": ".ready",
            "interval": 0.05,
            "state_file": str(self.state),
        }

    def copy(self, release: str) -> None:
        """Begin to publish a release: it is there, and not ready."""
        (self.root / release / "bin").mkdir(parents=True)

    def publish(self, *releases: str) -> None:
        for release in releases:
            if not (self.root / release).exists():
                self.copy(release)
            (self.root / release / ".ready").touch()

    def scan(self, release: str) -> str:
        """Write the manifest of a release, and return its digest."""
        return manifest_writer.write(str(self.store), str(self.root), release, checksum=False).record.digest

    def known(self) -> list[str] | None:
        return json.loads(self.state.read_text())["releases"] if self.state.exists() else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def module() -> dict[str, Any]:
    """Load the source as ansible-rulebook does. Its functions see this copy of its globals by ``__globals__`` alone."""
    return runpy.run_path(str(SOURCE))


@contextlib.asynccontextmanager
async def running(module: dict[str, Any], args: dict[str, Any]) -> AsyncIterator[FilteredQueue]:
    """Run a source, and end it as ansible-rulebook does. An error of the source fails the test."""
    queue = FilteredQueue()
    task = asyncio.create_task(module["main"](queue, args))
    try:
        yield queue
        assert not task.done() or task.exception() is None
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""

    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(look(), LIMIT)


async def is_silent(queue: FilteredQueue, seconds: float = 0.6) -> bool:
    """Return whether no event comes for some polls."""
    try:
        await asyncio.wait_for(queue.queue.get(), seconds)
    except asyncio.TimeoutError:
        return True
    return False


def run(work: Awaitable[None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work, 3 * LIMIT)

    asyncio.run(limited())


def test_a_release_sends_one_event_when_it_becomes_ready(module: dict[str, Any], place: Place) -> None:
    async def work() -> None:
        place.publish("houdini/20.5.332")
        async with running(module, place.args) as queue:
            await until(lambda: place.known() == ["houdini/20.5.332"])
            # rez is still writing it, whatever the ready marker says.
            building = place.root / "houdini" / ".building20.5.410"
            building.touch()
            place.copy("houdini/20.5.410")
            assert await is_silent(queue)
            place.publish("houdini/20.5.410")
            assert await is_silent(queue)
            building.unlink()
            assert await asyncio.wait_for(queue.queue.get(), LIMIT) == {
                "release": {
                    "package": "houdini",
                    "version": "20.5.410",
                    "path": "houdini/20.5.410",
                    "root": str(place.root),
                }
            }
            assert await is_silent(queue)

    run(work())


def test_a_release_in_a_store_is_ready_when_it_has_a_manifest(module: dict[str, Any], place: Place) -> None:
    async def work() -> None:
        args = {"store": str(place.store), "interval": 0.05, "initial": "emit", "pattern": "apps/{package}/{version}"}
        async with running(module, args) as queue:
            place.publish("apps/usd/25.05")
            assert await is_silent(queue)
            digest = place.scan("apps/usd/25.05")
            assert (await asyncio.wait_for(queue.queue.get(), LIMIT))["release"] == {
                "package": "usd",
                "version": "25.05",
                "path": "apps/usd/25.05",
                "root": str(place.root),
                "store": str(place.store),
                "manifest": str(place.store / "apps/usd/25.05.dump.gz"),
                "digest": digest,
            }
            assert await is_silent(queue)

    run(work())


def test_a_restart_sends_what_became_ready_meanwhile_and_nothing_twice(module: dict[str, Any], place: Place) -> None:
    async def work() -> None:
        async with running(module, place.args) as queue:
            await until(lambda: place.known() == [])
            place.publish("usd/25.05")
            assert await queue.path() == "usd/25.05"
            await until(lambda: place.known() == ["usd/25.05"])
        place.publish("usd/25.08", "usd/25.11")
        async with running(module, place.args) as queue:
            assert [await queue.path(), await queue.path()] == ["usd/25.08", "usd/25.11"]
            assert await is_silent(queue)
        async with running(module, place.args) as queue:
            assert await is_silent(queue)

    run(work())


def test_an_event_that_was_not_taken_is_sent_again_after_a_restart(module: dict[str, Any], place: Place) -> None:
    async def work() -> None:
        async with running(module, place.args) as queue:
            await until(lambda: place.known() == [])
            place.publish("a/1", "a/2")
            await until(queue.queue.full)
        assert place.known() == []
        async with running(module, place.args) as queue:
            assert await queue.path() == "a/1"
            await until(queue.queue.full)
        assert place.known() == ["a/1"]
        async with running(module, place.args) as queue:
            assert await queue.path() == "a/2"

    run(work())


def test_with_feedback_a_release_is_known_when_its_event_is_processed(module: dict[str, Any], place: Place) -> None:
    async def work() -> None:
        feedback: asyncio.Queue[dict[str, Any]] = asyncio.Queue(1)
        args = {**place.args, "feedback": True, "eda_feedback_queue": feedback}
        async with running(module, args) as queue:
            await until(lambda: place.known() == [])
            place.publish("a/1")
            assert await queue.path() == "a/1"
            await asyncio.sleep(0.2)
            assert place.known() == []
            await feedback.put({})
            await until(lambda: place.known() == ["a/1"])

    run(work())


def test_initial_emit_sends_what_is_there(module: dict[str, Any], place: Place) -> None:
    async def work() -> None:
        place.publish("a/1", "b/1")
        args = {**place.args, "initial": "emit"}
        async with running(module, args) as queue:
            assert [await queue.path(), await queue.path()] == ["a/1", "b/1"]
            await until(lambda: place.known() == ["a/1", "b/1"])
        async with running(module, args) as queue:
            assert await is_silent(queue)

    run(work())


def test_a_root_that_is_away_is_reported_once_and_polled_until_it_is_back(
    module: dict[str, Any], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with running(module, place.args) as queue:
            await until(lambda: place.known() == [])
            away = place.root.rename(place.root.with_name("away"))
            await until(lambda: bool(caplog.records))
            await asyncio.sleep(0.5)
            (away / "a" / "1").mkdir(parents=True)
            (away / "a" / "1" / ".ready").touch()
            away.rename(place.root)
            assert await queue.path() == "a/1"

    with caplog.at_level(logging.WARNING):
        run(work())
    assert [record.getMessage().replace(str(place.root), "ROOT") for record in caplog.records] == [
        "ROOT cannot be read, and is tried every 0.05 seconds: [Errno 2] No such file or directory: 'ROOT'",
        "ROOT can be read again",
    ]


#: A poll whose file server does not answer.
HANGING = (sys.executable, "-c", "import time; time.sleep(600)")


def test_a_poll_that_hangs_is_killed_and_a_later_one_sends_the_events(
    module: dict[str, Any], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        inside = module["main"].__globals__
        poll, inside["POLL"] = inside["POLL"], HANGING
        place.publish("a/1")
        async with running(module, {**place.args, "initial": "emit", "timeout": 3.0}) as queue:
            await until(lambda: bool(caplog.records))
            inside["POLL"] = poll
            assert await queue.path() == "a/1"

    with caplog.at_level(logging.WARNING):
        run(work())
    assert caplog.records[0].getMessage().endswith("no answer within 3 seconds")


#: A poll that is ended as by the shutdown of a service.
ENDED = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")


def test_a_poll_that_is_ended_by_a_signal_is_reported_as_that(
    module: dict[str, Any], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        module["main"].__globals__["POLL"] = ENDED
        async with running(module, place.args):
            await until(lambda: bool(caplog.records))

    with caplog.at_level(logging.WARNING):
        run(work())
    assert caplog.records[0].getMessage().endswith("the process of the poll was ended by signal 15")


def test_no_other_poll_starts_while_one_cannot_be_killed(
    module: dict[str, Any], place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that waits for an NFS server may not end before the server answers."""
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def record(*argv: str, **options: Any) -> asyncio.subprocess.Process:
        started.append(await start(*argv, **options))
        return started[-1]

    async def work() -> None:
        inside = module["main"].__globals__
        inside["REAP_SECONDS"] = 0.05
        poll, inside["POLL"] = inside["POLL"], HANGING
        place.publish("a/1")
        async with running(module, {**place.args, "initial": "emit", "timeout": 3.0}) as queue:
            await until(lambda: bool(caplog.records))
            await asyncio.sleep(0.5)
            assert len(started) == 1
            inside["POLL"] = poll
            os.kill(started[0].pid, signal.SIGKILL)
            assert await queue.path() == "a/1"

    monkeypatch.setattr(asyncio, "create_subprocess_exec", record)
    monkeypatch.setattr(asyncio.subprocess.Process, "kill", lambda _process: None)
    with caplog.at_level(logging.WARNING):
        run(work())
    assert len(caplog.records) == 2


def test_the_source_ends_at_once_while_a_poll_hangs(module: dict[str, Any], place: Place) -> None:
    async def work() -> None:
        module["main"].__globals__["POLL"] = HANGING
        async with running(module, place.args):
            await asyncio.sleep(0.2)
            before = time.monotonic()
        assert time.monotonic() - before < 2

    run(work())


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({}, "give either store or root"),
        ({"store": "/s", "root": "/r"}, "give either store or root"),
        ({"store": "manifests"}, "store must be an absolute path, not 'manifests'"),
        ({"root": "/r"}, "root needs ready_marker"),
        ({"root": "/r", "ready_marker": "/.ready"}, "ready_marker must be a path inside of a release"),
        ({"root": "/r", "ready_marker": "../x"}, "ready_marker must be a path inside of a release"),
        ({"store": "/s", "ready_marker": ".ready"}, "ready_marker goes with root"),
        ({"store": "/s", "interval": 0}, "interval must be a number of seconds above 0"),
        ({"store": "/s", "timeout": float("nan")}, "timeout must be a number of seconds above 0"),
        ({"store": "/s", "interval": "60"}, "interval must be of type float, not '60'"),
        ({"store": "/s", "interval": True}, "interval must be of type float, not True"),
        ({"store": "/s", "initial": "all"}, "initial must be 'remember' or 'emit', not 'all'"),
        ({"store": "/s", "intervall": 1}, "unknown argument 'intervall'; the arguments are store, root"),
        ({"store": "/s", "state_file": "/none/x.json"}, "state_file /none/x.json: its directory does not exist"),
        ({"store": "/", "pattern": "{package}"}, "pattern '{package}' must have"),
    ],
)
def test_a_wrong_argument_ends_the_source_with_its_name(
    module: dict[str, Any], args: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        run(module["main"](FilteredQueue(), args))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is not a state file"),
        ("[]", "is not a state file of this version"),
        ('{"format": 2, "releases": []}', "is not a state file of this version"),
        ('{"format": 1, "releases": [1]}', "is not a state file of this version"),
        ('{"format": 1, "releases": [], "watched": {"root": "/other"}}', "is for other arguments"),
    ],
)
def test_a_state_file_that_is_not_ours_is_refused(
    module: dict[str, Any], place: Place, content: str, reason: str
) -> None:
    place.state.write_text(content)
    with pytest.raises(ValueError, match=reason):
        run(module["main"](FilteredQueue(), place.args))


def test_a_state_file_that_cannot_be_written_is_reported_once_and_written_later(
    module: dict[str, Any], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with running(module, place.args) as queue:
            await until(lambda: place.known() == [])
            away = place.state.parent.rename(place.state.parent.with_name("elsewhere"))
            place.publish("a/1")
            assert await queue.path() == "a/1"
            place.publish("a/2")
            assert await queue.path() == "a/2"
            await until(lambda: bool(caplog.records))
            away.rename(place.state.parent)
            place.publish("a/3")
            assert await queue.path() == "a/3"
            await until(lambda: place.known() == ["a/1", "a/2", "a/3"])
        assert os.listdir(place.state.parent) == [place.state.name]

    with caplog.at_level(logging.WARNING):
        run(work())
    assert len([record for record in caplog.records if "cannot be written" in record.getMessage()]) == 1


def test_a_manifest_that_cannot_be_read_is_named_and_the_others_send_events(
    module: dict[str, Any], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        place.publish("a/1", "a/2")
        for release in ("a/1", "a/2"):
            place.scan(release)
        (place.store / "a" / "1.json").write_text("{")
        args = {"store": str(place.store), "interval": 0.05, "initial": "emit"}
        async with running(module, args) as queue:
            assert await queue.path() == "a/2"
            assert await is_silent(queue)

    with caplog.at_level(logging.WARNING):
        run(work())
    (record,) = caplog.records
    assert "no events for releases that cannot be read" in record.getMessage()
    assert "a/1.json" in record.getMessage()


def test_a_name_that_is_not_utf_8_sends_no_event(
    module: dict[str, Any], place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        place.publish("a/\udcff", "a/1")
        async with running(module, {**place.args, "initial": "emit"}) as queue:
            assert await queue.path() == "a/1"
            assert await is_silent(queue)

    with caplog.at_level(logging.WARNING):
        run(work())
    (record,) = caplog.records
    assert r"'a/\udcff' is not UTF-8" in record.getMessage()


def test_a_poll_asks_the_server_about_each_directory_above_the_releases(
    module: dict[str, Any], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client would otherwise not list new releases until its cached attributes expire."""
    place.publish("apps/a/1", "apps/b/1", "apps/b/2", "other/c/1")
    asked: list[str] = []
    monkeypatch.setattr(syscalls, "refresh", lambda fd: asked.append(os.readlink(f"/proc/self/fd/{fd}")))
    monkeypatch.setattr(sys, "path", [*sys.path])
    request = {**place.args, "store": "", "pattern": "apps/{package}/{version}", "known": ["apps/a/1"]}
    answer = module["poll"](request)
    assert [release["path"] for release in answer["releases"]] == ["apps/b/1", "apps/b/2"]
    above = [str(place.root / directory) for directory in (".", "apps", "apps/a", "apps/b")]
    ready = [str(place.root / release["path"]) for release in answer["releases"]]
    assert sorted(asked) == sorted(above + ready)


def test_the_documentation_has_the_arguments_and_their_defaults(module: dict[str, Any]) -> None:
    options = yaml.safe_load(module["DOCUMENTATION"])["options"]
    settings = module["Settings"]()
    documented = {name: option.get("default", "") for name, option in options.items()}
    assert documented == {name: value for name, value in vars(settings).items() if name != "feedback"}


def test_the_playbook_of_the_rulebook_refers_to_nothing_by_a_relative_path() -> None:
    """ansible-rulebook runs a copy of the playbook, outside of the collection."""
    (ruleset,) = yaml.safe_load(RULEBOOK.read_text(encoding="utf-8"))
    (action,) = ruleset["rules"][0]["actions"]
    assert action["run_playbook"]["name"] == "renderfarm.overlay.deploy"
    playbook = (COLLECTION / "playbooks" / "deploy.yml").read_text(encoding="utf-8")
    assert (
        re.findall(
            r"\b(?:include_tasks|import_tasks|include_vars|vars_files|import_playbook):(?! *renderfarm\.)", playbook
        )
        == []
    )


def test_the_rulebook_and_the_examples_give_arguments_that_the_source_takes(module: dict[str, Any]) -> None:
    rulesets = [*yaml.safe_load(module["EXAMPLES"]), *yaml.safe_load(RULEBOOK.read_text(encoding="utf-8"))]
    sources = [source for ruleset in rulesets for source in ruleset["sources"]]
    assert len(sources) == 3
    known = set(vars(module["Settings"]()))
    for source in sources:
        assert set(source["renderfarm.overlay.releases"]) <= known
