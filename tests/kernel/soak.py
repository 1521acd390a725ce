"""Deploy, switch, roll back and prune the same views in four processes that are killed at random moments, while others read the views.

The work runs in the mount namespace and with the /run of the caller. All processes are killed when it ends or fails.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import remount
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import detached
from ansible_collections.renderfarm.overlay.tests.kernel import support

WORKERS = 4
READERS = 2
RELEASES = 6
FILES = 20
VIEWS = ("farm", "desk")

#: Share of the runs that are killed, and the most seconds until then.
_KILLED = 0.3
_KILLED_WITHIN = 0.25

#: Parts of the messages of a run that another run has overtaken. It has changed nothing, and that is no fault.
_REFUSALS = (
    "does not exist or is not a",
    "is not on this host any more",
    "has no previous generation",
    "there is no generation",
    "has no generation",
    "another run has been at work",
    "the layer",
)


@dataclass
class Found:
    """What was observed."""

    runs: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    changed: int = 0
    #: Messages of runs that were overtaken, with their number, and all other failures.
    refused: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    opens: int = 0
    failed_opens: list[str] = field(default_factory=list)
    #: The number of mounts at each mountpoint after a last clean run. A run that is killed during a switch leaves two.
    mounted: dict[str, int] = field(default_factory=dict)
    #: Leftovers after a last clean run of each view.
    left: list[str] = field(default_factory=list)


def _notes() -> frozenset[str]:
    """Return the paths of the notes of detached and of unmounted overlays."""
    return frozenset(
        path for place in (detached.DIRECTORY, remount.DIRECTORY) for path in glob.glob(os.path.join(place, "*"))
    )


@dataclass(frozen=True)
class _World:
    """The directories of a soak."""

    area: Path
    #: Notes that existed before.
    notes: frozenset[str] = field(default_factory=_notes)

    @property
    def root(self) -> Path:
        return self.area / "root"

    @property
    def state_dir(self) -> Path:
        return self.area / "state"

    @property
    def stop(self) -> Path:
        return self.area / "stop"

    def view(self, name: str) -> Path:
        return self.area / "views" / name

    def make(self) -> None:
        """Make the state directory, the releases and their manifests."""
        self.state_dir.mkdir(mode=0o700)
        for number in range(RELEASES):
            top = self.root / "tool" / str(number)
            (top / "bin").mkdir(parents=True)
            for index in range(FILES):
                support.write(top / "bin" / f"file{index}", _content(number))
            (top / "site").mkdir()
            support.scanned(self.area / "store", self.root, f"tool/{number}")


def _content(number: int) -> bytes:
    return b"release %d" % number


def run(area: Path, seconds: float, seed: int = 0) -> Found:
    """Soak for ``seconds`` below ``directory``, and return what was observed."""
    world = _World(area)
    world.make()
    for name in VIEWS:
        for module, arguments in _deployment(world, name, 0, "directory"):
            _must(module, arguments, area)
        # A mount of the site inside the view.
        support.command("mount", "-t", "tmpfs", "site", world.view(name) / "tool" / "site")
        support.write(world.view(name) / "tool" / "site" / "plugin", _content(0))
    with contextlib.ExitStack() as stack:
        names = VIEWS * READERS
        works = [(f"reader{number}", partial(_read, world, name)) for number, name in enumerate(names)]
        works += [(f"worker{number}", partial(_work, world, seed * WORKERS + number)) for number in range(WORKERS)]
        outputs = [stack.enter_context(_process(area / name, work)) for name, work in works]
        time.sleep(seconds)
        world.stop.touch()
        found = Found()
        for output in outputs:
            _add(found, output())
    found.left = _left(world)
    for name in VIEWS:
        found.mounted[str(world.view(name))] = len(
            mountinfo.stack(namespaces.own_mounts(), os.fsencode(world.view(name)))
        )
    for name in VIEWS:
        support.unmount_all(world.view(name))
    if not support.loops_gone(area):
        found.left += [f"loop device {line}" for line in support.loops_on(area)]
    return found


@contextlib.contextmanager
def _process(output: Path, work: Callable[[], dict[str, Any]]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run ``work`` in a process while the block runs; provide a function that waits for its result. Its child processes are killed too."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            output.write_text(json.dumps(work()))
            status = 0
        except BaseException as error:
            output.write_text(json.dumps({"errors": [f"{output.name}: {error!r}"]}))
        finally:
            os._exit(status)

    def wait() -> dict[str, Any]:
        os.waitpid(child, 0)
        found: dict[str, Any] = json.loads(output.read_text())
        return found

    try:
        yield wait
    finally:
        for end in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                end(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _add(found: Found, result: dict[str, Any]) -> None:
    found.runs.update(result.get("runs", {}))
    found.refused.update(result.get("refused", {}))
    found.killed += result.get("killed", 0)
    found.changed += result.get("changed", 0)
    found.errors += result.get("errors", [])
    found.opens += result.get("opens", 0)
    found.failed_opens += result.get("failed_opens", [])


def _read(world: _World, name: str) -> dict[str, Any]:
    """Read all files of a view until the end."""
    top = world.view(name) / "tool"
    files = [*(top / "bin" / f"file{index}" for index in range(FILES)), top / "site" / "plugin"]
    texts = {_content(number) for number in range(RELEASES)}
    opens, failed = 0, []
    while not world.stop.exists():
        for file in files:
            opens += 1
            try:
                with open(file, "rb") as stream:
                    text = stream.read()
                if text not in texts:
                    failed.append(f"{file} reads {text!r}")
            except OSError as error:
                failed.append(repr(error))
    return {"opens": opens, "failed_opens": failed}


def _work(world: _World, seed: int) -> dict[str, Any]:
    """Run random operations until the end, and kill some of them."""
    chance = random.Random(seed)
    runs: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    errors: list[str] = []
    killed = changed = 0
    while not world.stop.exists():
        name = chance.choice(VIEWS)
        what, steps = chance.choice(
            [
                ("deploy", _deployment(world, name, chance.randrange(RELEASES), chance.choice(["directory", "erofs"]))),
                ("deploy", _deployment(world, name, chance.randrange(RELEASES), "directory")),
                ("roll back", _going_back(world, name)),
                ("prune", iter([_pruning(world, name)])),
            ]
        )
        runs[what] += 1
        for module, arguments in steps:
            after = chance.uniform(0, _KILLED_WITHIN) if chance.random() < _KILLED else None
            ran = _ran(module, arguments, world.area, after)
            if ran is None:
                killed += 1
                break
            if ran.result.get("failed"):
                message = str(ran.result["msg"])
                reason = next((reason for reason in _REFUSALS if reason in message), None)
                if reason:
                    refused[reason] += 1
                else:
                    errors.append(f"{what}: {message} {ran.result.get('exception', '')}")
                break
            changed += bool(ran.result["changed"])
            _last[0] = ran.result
    return {"runs": runs, "refused": refused, "errors": errors, "killed": killed, "changed": changed}


#: The result of the last run, from which the next step of the same operation takes the layer.
_last: list[dict[str, Any]] = [{}]

_Step = tuple[str, dict[str, Any]]


def _deployment(world: _World, name: str, number: int, form: str) -> Iterator[_Step]:
    release = {"manifest": str(world.area / "store" / "tool" / f"{number}.dump.gz"), "at": "tool"}
    yield "metadata_layer", {**_view(world, name), "releases": [release], "format": form}
    yield _mounting(world, name)


def _going_back(world: _World, name: str) -> Iterator[_Step]:
    yield "metadata_layer", {**_view(world, name), "generation": "previous"}
    yield _mounting(world, name)


def _mounting(world: _World, name: str) -> _Step:
    arguments = {"path": str(world.view(name)), "lower": [_last[0]["layer"]], "data": [str(world.root)]}
    return "overlay_mount", {**arguments, "options": {"nodev": True, "nosuid": True}}


def _pruning(world: _World, name: str) -> _Step:
    return "overlay_prune", {**_view(world, name), "keep": 0, "min_age": 0}


def _view(world: _World, name: str) -> dict[str, Any]:
    return {"name": name, "state_dir": str(world.state_dir)}


def _ran(module: str, arguments: dict[str, Any], area: Path, kill_after: float | None) -> support.Ran | None:
    """Run a module, and kill it after ``kill_after`` seconds unless that is None. Return its result; None if it was killed."""
    given = {**arguments, "_ansible_remote_tmp": str(area / "tmp")}
    with support.forked_module(module, given) as run:
        run.go()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(run.pid, signal.SIGKILL)
        ran = run.finish()
        return None if ran.status < 0 else ran


def _must(module: str, arguments: dict[str, Any], area: Path) -> dict[str, Any]:
    """Run a module, which must succeed, and return its result."""
    ran = _ran(module, arguments, area, None)
    assert ran is not None
    _last[0] = ran.ok
    return ran.ok


def _left(world: _World) -> list[str]:
    """Deploy and prune each view once more, and return the leftovers of killed runs."""
    left = []
    for name in VIEWS:
        # Twice, so that the previous generation has format directory too.
        for number in (1, 0):
            for module, arguments in _deployment(world, name, number, "directory"):
                _must(module, arguments, world.area)
        for _twice in range(2):
            pruned = _must(*_pruning(world, name), world.area)
        if pruned["changed"]:
            left.append(f"view {name}: a second prune removed {pruned['removed']}")
        for module, arguments in _deployment(world, name, 0, "directory"):
            if _must(module, arguments, world.area)["changed"]:
                left.append(f"view {name}: a second {module} changed something")
        top = world.state_dir / "views" / name
        expected = {"current", "previous", "generations", "lock"}
        left += [str(top / one) for one in set(os.listdir(top)) - expected]
        if len(os.listdir(top / "generations")) != 2:
            left += [str(one) for one in (top / "generations").iterdir()]
    left += [f"note {path}" for path in _notes() - world.notes]
    inside = os.fsencode(world.area) + b"/"
    expected_mounts = {
        os.fsencode(place) for name in VIEWS for place in (world.view(name), world.view(name) / "tool" / "site")
    }
    left += [
        f"mount at {os.fsdecode(one.path)}"
        for one in namespaces.own_mounts()
        if one.path.startswith(inside) and one.path not in expected_mounts
    ]
    return left
