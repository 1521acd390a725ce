"""Run the collection's playbooks and modules on the farm, through Ansible over ssh, as a studio does."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farmlib import host, software
from farmlib.machines import MANIFESTS, SOFTWARE, Farm, Machine

COLLECTION = "renderfarm.overlay"

# Paths on the nodes.
ROOT = "/net/software"
STORE = "/net/manifests"
#: The most NFS calls that open and read one file: lookups on its path, the open, a read and the close.
CALLS_TO_OPEN = 12
VIEW = "/software"
STATE_DIR = "/var/lib/renderfarm-overlay"
COUNT = "/usr/local/lib/farm/count.py"

#: The variables of a studio.
SITE: Mapping[str, Any] = {
    "overlay_root": ROOT,
    "overlay_source": f"server:{SOFTWARE}",
    "overlay_store": STORE,
    "overlay_ready_marker": software.READY_MARKER,
    "overlay_scan_host": "new",
    "overlay_views": [{"name": "software", "mountpoint": VIEW, "query": "@"}],
    # The guests have the NFS client, and no network to install packages.
    "host_install_packages": False,
    # Ansible logs in as root, and there is no sudo.
    "overlay_become": False,
}


@dataclass(frozen=True)
class Result:
    """Hold the result of a task on one host."""

    host: str
    task: str
    action: str
    status: str  # ok, failed, ignored, skipped, unreachable; in a loop, for each item: item, item failed
    values: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "unreachable")

    @property
    def changed(self) -> bool:
        return bool(self.values.get("changed"))

    @property
    def message(self) -> str:
        return str(self.values.get("msg", ""))

    @property
    def warnings(self) -> str:
        return "\n".join(str(warning) for warning in self.values.get("warnings", ()))


@dataclass(frozen=True)
class Run:
    code: int
    output: str
    results: tuple[Result, ...]

    def of(self, machine: str | Machine, module: str = "") -> list[Result]:
        """Return the results on one host that were not skipped, or only those of one module of the collection."""
        name = machine if isinstance(machine, str) else machine.name
        return [
            result
            for result in self.results
            if result.host == name
            and result.status != "skipped"
            and (not module or result.action == f"{COLLECTION}.{module}")
        ]

    def views(self, machine: str | Machine) -> dict[str, Mapping[str, Any]]:
        """Return, by name, the views of one host as the module `view` returned them; empty if it did not run there."""
        return {view["name"]: view for result in self.of(machine, "view") for view in result.values.get("views", ())}

    @property
    def resolution(self) -> Result:
        """Return the result of resolving the views. Ansible records it for a host of the play, wherever it ran."""
        action = f"{COLLECTION}.resolved_views"
        return [result for result in self.results if result.action == action and result.status != "skipped"][-1]

    def changed(self, machine: str | Machine) -> list[str]:
        """Return the names of the tasks that changed something on a host."""
        return [result.task for result in self.of(machine) if result.changed and not result.status.startswith("item")]

    def failures(self, machine: str | Machine) -> list[str]:
        return [f"{result.task}: {_why(result)}" for result in self.of(machine) if "failed" in result.status]


def _why(result: Result) -> str:
    return result.message or json.dumps(dict(result.values), default=str)[:500]


@dataclass(frozen=True)
class Deployment:
    """Hold the run that deployed the view of all releases to the render nodes."""

    run: Run


_deployment: list[Deployment] = []


def deployment(farm: Farm) -> Deployment:
    """Deploy the site to all render nodes once, and again only after a view was lost, for example by a reboot."""
    for node in farm.nodes.values():
        mount_store(node)
    if not _deployment:
        _deployment.append(Deployment(deploy(farm, hosts="render_nodes")))
    elif any(node.ssh(f"mountpoint -q {VIEW}", check=False).returncode != 0 for node in farm.nodes.values()):
        deploy(farm, hosts="render_nodes")
    return _deployment[0]


def calls(machine: Machine, mountpoint: str) -> dict[str, int]:
    """Return the calls that a machine sent for an NFS mount since it was mounted, by operation."""
    machine.copy(host.FARM_SOURCE / "guest" / "count.py", COUNT)
    script = (
        "import json, os, sys; sys.path.insert(0, os.path.dirname(sys.argv[1])); import count\n"
        "print(json.dumps({name: found.calls for name, found in count.mount_calls(sys.argv[2]).items() if found.calls}))\n"
    )
    found: dict[str, int] = json.loads(machine.output(["python3", "-B", "-c", script, COUNT, mountpoint]))
    return found


def mount_store(machine: Machine) -> None:
    """Mount the share with the manifests. The studio does this, not the collection."""
    machine.ssh(f"mkdir -p {STORE}; mountpoint -q {STORE} || mount -t nfs -o vers=4.2 server:{MANIFESTS} {STORE}")


def deploy(
    farm: Farm,
    views: Sequence[Mapping[str, Any]] | None = None,
    *,
    hosts: str = "new",
    check: bool = True,
    arguments: Sequence[str] = (),
) -> Run:
    """Deploy the given views, or those of the site."""
    variables = {**SITE, "overlay_hosts": hosts}
    if views is not None:
        variables["overlay_views"] = list(views)
    return playbook(farm, "deploy", variables, check=check, arguments=arguments)


def playbook(
    farm: Farm,
    name: str | Path,
    variables: Mapping[str, Any] | None = None,
    *,
    arguments: Sequence[str] = (),
    check: bool = True,
    timeout: float = 1800,
) -> Run:
    """Run a playbook of the collection by its name, or a file.

    Raises FarmError if it fails and `check` is true, or if it does not end in time.
    """
    source = str(name) if isinstance(name, Path) else f"{COLLECTION}.{name}"
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(dict(variables or {}), file)
        file.flush()
        argv = ["ansible-playbook", "-i", str(farm.hosts_file), "-e", f"@{file.name}", *arguments, source]
        run = _run(argv, timeout)
    if check and run.code != 0:
        # The output does not have what an unexpected error of a module says.
        traces = [result.values["exception"] for result in run.results if result.values.get("exception")]
        raise host.FarmError("\n".join([f"{source} failed ({run.code}):", run.output[-6000:], *traces]))
    return run


def module(
    farm: Farm,
    machine: Machine,
    name: str,
    options: Mapping[str, Any],
    *,
    check: bool = True,
    timeout: float = 300,
) -> Result:
    """Call a module of the collection on one machine.

    Raises FarmError if it fails and `check` is true, if it gives no result, or if it does not end in time.
    """
    argv = ["ansible", machine.name, "-i", str(farm.hosts_file), "-m", f"{COLLECTION}.{name}"]
    run = _run([*argv, "-a", json.dumps(dict(options))], timeout)
    if len(run.results) != 1:
        raise host.FarmError(f"{name} on {machine.name} gave no result ({run.code}):\n{run.output[-3000:]}")
    result = run.results[0]
    if check and result.failed:
        raise host.FarmError(f"{name} on {machine.name} failed: {_why(result)}")
    return result


def modules(
    farm: Farm, machine: Machine, calls: Sequence[tuple[str, Mapping[str, Any]]], *, timeout: float = 1800
) -> list[Result]:
    """Call several modules of the collection on one machine, in one run of Ansible, which costs less than single calls.

    Return their results in order. Raises FarmError if one fails, or if they do not end in time.
    """
    tasks = [{f"{COLLECTION}.{name}": dict(options)} for name, options in calls]
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "modules.yml")
        source.write_text(
            json.dumps([{"hosts": machine.name, "gather_facts": False, "tasks": tasks}]), encoding="utf-8"
        )
        return playbook(farm, source, timeout=timeout).of(machine)


def here(calls: Sequence[tuple[str, Mapping[str, Any]]], *, timeout: float = 1800) -> list[Result]:
    """Call several modules of the collection in these namespaces, and return their results in order. Raises FarmError if one fails."""
    tasks = [{f"{COLLECTION}.{name}": dict(options)} for name, options in calls]
    play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "modules.yml")
        source.write_text(json.dumps([play]), encoding="utf-8")
        run = _run(["ansible-playbook", "-i", "localhost,", "-c", "local", str(source)], timeout, contain=list)
    if run.code != 0:
        raise host.FarmError(f"a module failed here ({run.code}):\n{run.output[-6000:]}")
    return run.of("localhost")


def _run(argv: Sequence[str], timeout: float, *, contain: Callable[[Sequence[str]], list[str]] = host.contained) -> Run:
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "results"
        record.touch()
        settings = Path(directory) / "ansible.cfg"
        # While a guest works, Ansible asks itself a thousand times a second whether it has ended.
        settings.write_text("[defaults]\ninternal_poll_interval = 0.02\n", encoding="ascii")
        environment = {
            **os.environ,
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(settings),
            "ANSIBLE_LOCAL_TEMP": directory,
            "ANSIBLE_NOCOLOR": "1",
            # Of unexpected errors of modules.
            "ANSIBLE_DISPLAY_TRACEBACK": "error",
            "ANSIBLE_CALLBACK_PLUGINS": str(host.FARM_SOURCE / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "farm_record",
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
            "RENDERFARM_RECORD": str(record),
        }
        # Ansible's workers start separate sessions, so only a namespace contains them.
        process = host.spawn(
            contain(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as error:
            host.kill_session(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise host.FarmError(f"{' '.join(argv[:1])} did not end within {timeout:.0f} s") from None
            raise
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    return Run(process.returncode, output, tuple(_result(line) for line in lines))


def _result(line: Mapping[str, Any]) -> Result:
    return Result(line["host"], line["task"], line["action"], line["status"], line["result"])
