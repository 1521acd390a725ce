"""Deploy to many hosts that are namespaces of this machine, and count tasks, events, time and memory.

Each host has a mount namespace, a PID namespace, a state directory and a /run of its own. Ansible reaches it by a local connection, and by
a Python interpreter that enters the namespaces. A sleeping process keeps them, and ends with the benchmark.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
COLLECTION = Path("ansible_collections/renderfarm/overlay")
DEPLOY = "renderfarm.overlay.deploy"
FORKS = 20
#: Packages on the software root, each in two versions. A view shows the newer one of each.
PACKAGES = 20
#: The last version whose deployment runs roles for each view of each host.
BEFORE = "22ba66b6ab657e2d767a7abdef9c4988579f1c48"
#: Seconds for one run of a playbook.
_LIMIT = 3600.0
#: Seconds between two looks at the memory of the controller.
_PERIOD = 0.25
#: Starts a program that ends when the benchmark does, however that ends.
_END_WITH_US = ("setpriv", "--pdeathsig", "KILL")
#: Starts a shell as the first process of new namespaces.
_ENTER_NEW = (
    *(*_END_WITH_US, "unshare", "--mount", "--propagation", "private", "--pid", "--fork"),
    *("--kill-child", "--mount-proc", "sh", "-ec"),
)
_SET_UP = 'mount --bind "$1" "$2"; mount --bind "$1/run" /run; echo ready; exec sleep infinity'


class FleetError(Exception):
    """A deployment failed, or did what it should not."""


@dataclass(frozen=True)
class Version:
    """A version of the collection, below a path where Ansible finds collections."""

    name: str
    collections: Path


@dataclass(frozen=True)
class Pass:
    """One run of a playbook for all hosts of an inventory."""

    hosts: int
    seconds: float
    #: Seconds of processor time, of the controller and the hosts. Other load disturbs this less.
    processor: float
    #: The most tasks of a host that is not the first one, which also does what is done once.
    tasks: int
    #: The most events of such a host, and all events of the run.
    events: int
    all_events: int
    #: Bytes of all results as JSON.
    result_bytes: int
    #: Hosts on which something changed.
    changed: int
    #: Peak memory in bytes: of the main process, and of all processes of the controller with shared memory counted once.
    main_peak: int
    controller_peak: int


class Fleet:
    """A software root, a manifest store, and hosts that mount views of it."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._root, self._store = place / "root", place / "store"
        #: In each namespace, the files of its host are here.
        self._host = place / "host"
        for directory in (place, self._root, self._store, self._host, *map(self._below, ("hosts", "python", "aside"))):
            directory.mkdir()
        self.hosts: list[str] = []
        self._keepers: list[subprocess.Popen[bytes]] = []
        for package in range(PACKAGES):
            for version in ("1.0", "1.1"):
                self.publish(f"package_{package:02}", version)
        (place / "ansible.cfg").write_text(
            f"[defaults]\nlocal_tmp = {place}/tmp\nremote_tmp = {place}/tmp\nforks = {FORKS}\nnocows = true\n"
            f"callback_plugins = {HERE / 'callbacks'}\ncallbacks_enabled = fleet_events\n",
            encoding="utf-8",
        )

    def _below(self, name: str) -> Path:
        return self._place / name

    def publish(self, package: str, version: str) -> None:
        """Publish a release; it is ready at once."""
        aside = self._below("aside") / f"{package}-{version}"
        (aside / "lib").mkdir(parents=True)
        for name in ("package.py", "lib/module.so"):
            (aside / name).write_text(f"{package} {version} {name}\n", encoding="utf-8")
        (self._root / package).mkdir(exist_ok=True)
        aside.rename(self._root / package / version)

    def grow(self, count: int) -> None:
        """Add hosts until there are ``count``. Raises FleetError if one cannot be made."""
        added = [f"node{number:04}" for number in range(len(self.hosts), count)]
        for name in added:
            files = self._below("hosts") / name
            for directory in ("run", "state", "views"):
                (files / directory).mkdir(parents=True)
            command = [*_ENTER_NEW, _SET_UP, "sh", str(files), str(self._host)]
            self._keepers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
            namespaces = f"/proc/{self._keepers[-1].pid}/ns"
            python = self._below("python") / name
            python.write_text(
                "#!/bin/sh\n"
                f'exec nsenter --mount={namespaces}/mnt --pid={namespaces}/pid_for_children {sys.executable} "$@"\n',
                encoding="utf-8",
            )
            python.chmod(0o755)
        for name, keeper in zip(added, self._keepers[-len(added) :]):
            assert keeper.stdout
            if keeper.stdout.readline() != b"ready\n":
                raise FleetError(f"cannot make namespaces for {name}")
            self.hosts.append(name)

    @contextlib.contextmanager
    def running(self) -> Iterator[Fleet]:
        """End the hosts with the block."""
        try:
            yield self
        finally:
            for keeper in self._keepers:
                keeper.kill()
            for keeper in self._keepers:
                # Its pipe is closed when the first process of the namespace has ended as well.
                keeper.communicate()
            self._keepers.clear()
            self.hosts.clear()

    def generations(self, count: int, views: int) -> list[set[str]]:
        """Return for each view which generations the first ``count`` hosts show."""
        state = [self._below("hosts") / name / "state" / "views" for name in self.hosts[:count]]
        return [
            {os.path.basename(os.readlink(one / _view(view) / "current")) for one in state} for view in range(views)
        ]

    def deploy(
        self,
        version: Version,
        count: int,
        views: int,
        variables: Mapping[str, object] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Pass:
        """Deploy ``views`` views to the first ``count`` hosts. Raises FleetError if a host failed.

        ``settings`` are environment variables of Ansible.
        """
        inventory = self._below("inventory.json")
        inventory.write_text(json.dumps(self._inventory(count, views)), encoding="utf-8")
        events = self._below("events.json")
        events.unlink(missing_ok=True)
        given = {"overlay_hosts": "all", **(variables or {})}
        command = [*_END_WITH_US, "ansible-playbook", "-i", str(inventory), "-e", json.dumps(given), DEPLOY]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(self._below("ansible.cfg")),
            "ANSIBLE_COLLECTIONS_PATH": str(version.collections),
            "FLEET_EVENTS": str(events),
            **(settings or {}),
        }
        environment.pop("PYTHONPATH", None)
        output = self._below("output")
        started = time.perf_counter()
        with output.open("wb") as stream, _Running(command, environment, stream) as controller:
            status, processor = controller.wait()
            seconds = time.perf_counter() - started
        if status or not events.exists():
            raise FleetError(f"{version.name}: the deployment to {count} hosts failed:\n{_end_of(output)}")
        return _pass_of(json.loads(events.read_bytes()), self.hosts[:count], (seconds, processor), controller)

    def payload(self, version: Version, views: int) -> int:
        """Return the bytes of the modules that a deployment without changes sends to a host that is not the first one."""
        one, two = (self._sent(version, count, views) for count in (1, 2))
        return two - one

    def _sent(self, version: Version, count: int, views: int) -> int:
        kept = self._below("kept")
        settings = {"ANSIBLE_KEEP_REMOTE_FILES": "1", "ANSIBLE_REMOTE_TEMP": str(kept)}
        self.deploy(version, count, views, settings=settings)
        found = sum(path.stat().st_size for path in kept.rglob("AnsiballZ_*.py"))
        shutil.rmtree(kept)
        return found

    def _inventory(self, count: int, views: int) -> dict[str, Any]:
        declared = [
            {"name": _view(number), "mountpoint": str(self._host / "views" / _view(number)), "query": "newest(@)"}
            for number in range(views)
        ]
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": f"{self._below('python')}/{{{{ inventory_hostname }}}}",
            "overlay_become": False,
            "overlay_root": str(self._root),
            "overlay_store": str(self._store),
            "overlay_state_dir": str(self._host / "state"),
            "overlay_format": "directory",
            "overlay_linger": 0,
            "overlay_views": declared,
        }
        return {"all": {"hosts": {name: {} for name in self.hosts[:count]}, "vars": common}}


def _view(number: int) -> str:
    return f"view_{number:02}"


class _Running:
    """A playbook that runs, and the memory that its processes need. Its processes end with the block."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], output: Any) -> None:
        self._process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._over = threading.Event()
        self._limit = threading.Timer(_LIMIT, self._kill)
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self.main_peak = 0
        self.controller_peak = 0

    def __enter__(self) -> _Running:
        self._watching.start()
        self._limit.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._limit.cancel()
        self._kill()
        self._process.wait()
        self._watching.join()

    def _kill(self) -> None:
        # Each worker is in a session of its own.
        for pid in (*_workers(self._process.pid), self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def wait(self) -> tuple[int, float]:
        """Wait for the end; return the exit status, and the processor time of all processes in seconds."""
        _pid, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, used.ru_utime + used.ru_stime

    def _watch(self) -> None:
        main = self._process.pid
        while not self._over.wait(_PERIOD):
            self.main_peak = max(self.main_peak, _kilobytes(main, "status", "VmHWM"))
            now = sum(_kilobytes(pid, "smaps_rollup", "Pss") for pid in (main, *_workers(main)))
            self.controller_peak = max(self.controller_peak, now)


def _workers(main: int) -> list[int]:
    """Return the processes that a playbook has forked, without the programs that they run."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{main}/task/{main}/children").read_text(encoding="ascii")
        return [int(pid) for pid in children.split()]
    return []


def _kilobytes(pid: int, file: str, field: str) -> int:
    """Return a field of a file of proc(5) in bytes; 0 if the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


def _pass_of(found: Mapping[str, Any], hosts: Sequence[str], times: tuple[float, float], controller: _Running) -> Pass:
    others = hosts[1:] or hosts
    failed = [name for name in hosts if found["hosts"][name]["failures"] or found["hosts"][name]["unreachable"]]
    if failed:
        raise FleetError(f"{', '.join(failed)} failed")
    return Pass(
        hosts=len(hosts),
        seconds=times[0],
        processor=times[1],
        tasks=max(found["tasks"][name] for name in others),
        events=max(found["events"][name] for name in others),
        all_events=sum(found["events"].values()) + found["shared"],
        result_bytes=found["bytes"],
        changed=sum(1 for name in hosts if found["hosts"][name]["changed"]),
        main_peak=controller.main_peak,
        controller_peak=controller.controller_peak,
    )


def _end_of(output: Path) -> str:
    return output.read_text(encoding="utf-8", errors="replace")[-4000:]


@dataclass(frozen=True)
class Comparison:
    """Unchanged runs of two versions for the same hosts, in turns."""

    hosts: int
    views: int
    ours: Sequence[Pass]
    before: Sequence[Pass]

    def ratios(self, what: str) -> list[float]:
        """Return how many times less ours needs, for each round; ``what`` is a field of Pass."""
        return [getattr(old, what) / getattr(new, what) for new, old in zip(self.ours, self.before)]


def compare(fleet: Fleet, count: int, views: int, rounds: int, old: Version) -> Comparison:
    """Deploy with both versions in turns. Raises FleetError if a run changes something."""
    fleet.grow(count)
    new = current()
    # What one has done, the other finds done, except for records of its own.
    for version in (new, old):
        fleet.deploy(version, count, views)
    found: dict[Version, list[Pass]] = {new: [], old: []}
    for turn in range(rounds):
        for version in (new, old) if turn % 2 == 0 else (old, new):
            found[version].append(unchanged(fleet, version, count, views))
    return Comparison(count, views, found[new], found[old])


def unchanged(fleet: Fleet, version: Version, count: int, views: int) -> Pass:
    """Deploy what is deployed. Raises FleetError if the run changes something."""
    found = fleet.deploy(version, count, views)
    if found.changed:
        raise FleetError(f"{version.name}: a run with nothing to do changed {found.changed} of {count} hosts")
    return found


@dataclass(frozen=True)
class Growth:
    """An unchanged run, and the bytes of the modules that it sends to one host."""

    views: int
    run: Pass
    payload: int


def growth(fleet: Fleet, hosts: Sequence[int], views: Sequence[int]) -> Iterator[Growth]:
    """Deploy each number of views, and yield the costs of unchanged runs for each number of hosts."""
    fleet.grow(max(*hosts, 2))
    for number in views:
        fleet.deploy(current(), len(fleet.hosts), number)
        payload = fleet.payload(current(), number)
        for count in hosts:
            yield Growth(number, unchanged(fleet, current(), count, number), payload)


def many(fleet: Fleet, count: int, views: int) -> Iterator[tuple[str, Pass]]:
    """Yield the first deployment to many hosts, and an unchanged run."""
    fleet.grow(count)
    yield "first deployment", fleet.deploy(current(), count, views)
    yield "nothing to do", unchanged(fleet, current(), count, views)


@dataclass(frozen=True)
class Batches:
    """A rollout in batches while releases are published."""

    hosts: int
    batch: int
    #: Releases that were published during the run.
    published: int
    #: The generations that the hosts show at the end: for each view, how many different ones.
    generations: Sequence[int]
    run: Pass


def in_batches(fleet: Fleet, count: int, batch: int, views: int) -> Batches:
    """Publish releases while a rollout runs in batches, each newer than all that are there.

    Raises FleetError if the rollout does not change each host, or if too little is published meanwhile to tell.
    """
    fleet.grow(count)
    publishing = _Publishing(fleet)
    with publishing:
        run = fleet.deploy(current(), count, views, {"overlay_serial": batch})
    if run.changed < count or publishing.count < count // batch:
        raise FleetError(f"a rollout with {publishing.count} new releases changed {run.changed} of {count} hosts")
    different = [len(shown) for shown in fleet.generations(count, views)]
    return Batches(count, batch, publishing.count, different, run)


class _Publishing:
    """Publishes a release each second, from the beginning of the block to its end."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0

    def __enter__(self) -> None:
        self._publish()
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(1):
            self._publish()

    def _publish(self) -> None:
        self._fleet.publish(f"package_{self.count % PACKAGES:02}", f"2.{self.count}")
        self.count += 1


def current() -> Version:
    """Return the collection of this checkout."""
    return Version("now", CHECKOUT / ".build" / "collections")


def before(place: Path) -> Version:
    """Return the collection as it was when a deployment ran roles for each view, exported to ``place``."""
    target = place / COLLECTION
    target.mkdir(parents=True)
    archive = subprocess.Popen(["git", "-C", str(CHECKOUT), "archive", BEFORE], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(target)], stdin=archive.stdout, check=True)
    if archive.wait():
        raise FleetError(f"git has no commit {BEFORE}: the comparison needs a checkout with its history")
    return Version("before", place)
