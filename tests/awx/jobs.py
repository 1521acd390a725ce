"""Run the jobs of examples/awx in ansible-runner, with the files that AWX writes for a job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.renderfarm.overlay.tests.awx.controller import Controller, Item

CHECKOUT = Path(__file__).resolve().parents[2]
PROJECT = CHECKOUT / "examples" / "awx"
TOOLS = CHECKOUT / ".build" / "venv-awx" / "bin"
HOSTS = ("render001", "render002")


def environment(home: Path) -> dict[str, str]:
    """Return the environment of the tools. Nothing of the user's configuration of Ansible is in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PYTHON"))}
    return {
        **kept,
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
        "HOME": str(home),
        "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / ".build" / "collections"),
        "PYTHONPYCACHEPREFIX": str(CHECKOUT / ".build" / "cache" / "python"),
    }


def configure(home: Path, controller: Controller, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run configure.yml, as who sets up AWX does."""
    env = {
        **environment(home),
        "CONTROLLER_HOST": controller.url,
        "CONTROLLER_OAUTH_TOKEN": "token",
        "ANSIBLE_PIPELINING": "1",
    }
    site = {
        "farm_project_url": "https://git.example.com/render/awx.git",
        "farm_image": "registry.example.com/overlay-ee:1",
    }
    argv = ["ansible-playbook", "configure.yml", "-e", json.dumps(site), *arguments]
    return subprocess.run(argv, cwd=PROJECT, env=env, check=False, capture_output=True, text=True)


class _UnsafeDumper(yaml.SafeDumper):
    """Marks each text as one that is no template, as AWX does with what a user gives a job."""

    def represent_data(self, data: Any) -> Any:
        if isinstance(data, str):
            return self.represent_scalar("!unsafe", data)
        return super().represent_data(data)


@dataclass(frozen=True)
class Job:
    """The end of a job."""

    status: int
    events: list[Item]

    def events_of(self, host: str) -> list[Item]:
        return [event for event in self.events if event["event_data"].get("host") == host]

    def tasks_of(self, host: str) -> int:
        """Return the number of tasks of a host, also skipped ones."""
        return sum(
            event["event"] in ("runner_on_ok", "runner_on_skipped", "runner_on_failed")
            for event in self.events_of(host)
        )

    @property
    def _stats(self) -> Item:
        [stats] = [event["event_data"] for event in self.events if event["event"] == "playbook_on_stats"]
        return dict(stats)

    @property
    def changed(self) -> dict[str, int]:
        """Return for each host how many tasks changed something."""
        return dict(self._stats["changed"])

    @property
    def artifacts(self) -> Item:
        """Return what the job gives the next jobs of its workflow."""
        return dict(self._stats.get("artifact_data", {}))

    @property
    def output(self) -> str:
        return "\n".join(event["stdout"] for event in self.events)


class Farm:
    """Two render nodes: mount namespaces of this machine, with a directory each at the same path, and a common software root."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.software, self.store, self.here = place / "software", place / "manifests", place / "here"
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        self._count = 0
        self._facts: dict[str, Item] = {}
        for directory in (self.software, self.store, self.here, place / "home"):
            directory.mkdir()
        for host in HOSTS:
            self._start(host)
        self.inventory = self._inventory()

    def _start(self, host: str) -> None:
        own = self.place / host
        own.mkdir()
        script = f"mount --bind {own} {self.here} && touch {own}/up && exec sleep infinity"
        self._keepers[host] = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script])
        while not (own / "up").exists():
            if self._keepers[host].poll() is not None:
                raise RuntimeError(f"{host} did not start")
        program = own / "python"
        program.write_text(
            f'#!/bin/sh\nexec nsenter --target={self._keepers[host].pid} --mount -- {sys.executable} "$@"\n'
        )
        program.chmod(0o755)

    def stop(self) -> None:
        for keeper in self._keepers.values():
            keeper.kill()
            keeper.wait()

    def on(self, host: str, *argv: str) -> str:
        """Run a command in the mount namespace of a host and return its output."""
        command = ["nsenter", f"--target={self._keepers[host].pid}", "--mount", "--", *argv]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def publish(self, *releases: str) -> None:
        for release in releases:
            (self.software / release).mkdir(parents=True)
            (self.software / release / "name").write_text(release)
            (self.software / release / ".ready").touch()

    def shown(self, host: str, package: str) -> list[str]:
        """Return the versions of a package in the view `software` of a host."""
        return self.on(host, "ls", f"{self.here}/software/{package}").split()

    def is_mounted(self, host: str) -> bool:
        """Return whether the view `software` of a host is mounted."""
        return f" {self.here}/software overlay " in self.on(host, "cat", "/proc/mounts")

    def _inventory(self) -> Item:
        """Return what an update of the inventory reads from the project, with the paths and connections of this machine."""
        argv = ["ansible-inventory", "-i", "inventory/hosts.yml", "--list", "--export"]
        done = subprocess.run(argv, cwd=PROJECT, env=environment(self.place / "home"), check=True, capture_output=True)
        found: Item = json.loads(done.stdout)
        variables = found["render"]["vars"]
        del variables["overlay_source"]
        for view in variables["overlay_views"]:
            view["mountpoint"] = f"{self.here}{view['mountpoint']}"
        variables |= {
            "ansible_connection": "local",
            "overlay_become": False,
            "overlay_root": str(self.software),
            "overlay_store": str(self.store),
            "overlay_state_dir": f"{self.here}/state",
            # There is no systemd in these namespaces.
            "overlay_persist": "none",
        }
        hostvars = {host: {"ansible_python_interpreter": f"{self.place}/{host}/python"} for host in HOSTS}
        return {**found, "_meta": {"hostvars": hostvars}}

    def launch(
        self,
        controller: Controller,
        name: str,
        given: Mapping[str, Any] | None = None,
        *,
        limit: str | None = None,
        job_type: str | None = None,
    ) -> Job:
        """Run a job of a job template. Without `given`, its survey has the defaults for answers, which are blank for the most part."""
        template = controller.get("job_templates", name)
        controller.check_prompts(template, {"limit": limit, "job_type": job_type})
        own = json.loads(template["extra_vars"] or "{}")
        answers = {element["variable"]: element["default"] for element in controller.survey(template)}
        variables = {**own, **answers, **(given or {})}
        trusted = {key for key, value in own.items() if variables[key] == value}
        arguments = ["--forks", str(template["forks"])]
        if limit:
            arguments += ["--limit", limit]
        if job_type == "check":
            arguments += ["--check", "--diff"]
        # What the credential of the AWX API sets.
        api = {"CONTROLLER_HOST": controller.url, "CONTROLLER_OAUTH_TOKEN": "token"}
        return self._run(template["playbook"], variables, trusted, arguments, api)

    def launch_node(self, controller: Controller, identifier: str, artifacts: Item) -> Job:
        """Run the job of a node of the workflow, which is given the artifacts of the jobs before it."""
        node = controller.get("workflow_job_template_nodes", identifier)
        template = controller.by_id(node["unified_job_template"])
        # What the workflow gives a job wins over the survey and the variables of its template.
        given = {**artifacts, **(node.get("extra_data") or {})}
        return self.launch(controller, template["name"], given, limit=node.get("limit"))

    def _run(
        self,
        playbook: str,
        variables: Mapping[str, Any],
        trusted: Collection[str],
        arguments: Sequence[str],
        api: Mapping[str, str],
    ) -> Job:
        self._count += 1
        ident = str(self._count)
        directory = self.place / f"job{ident}"
        artifacts = directory / "artifacts" / ident
        shutil.copytree(PROJECT, directory / "project")
        for path in (directory / "inventory", directory / "env", artifacts / "fact_cache"):
            path.mkdir(parents=True)
        hosts = directory / "inventory" / "hosts"
        hosts.write_text(f"#! /usr/bin/env python3\n# -*- coding: utf-8 -*-\nprint({json.dumps(self.inventory)!r})\n")
        hosts.chmod(0o700)
        everything = {**variables, "awx_job_id": self._count, "awx_job_launch_type": "scheduled"}
        settings = {"suppress_ansible_output": True, "fact_cache": "fact_cache", "fact_cache_type": "jsonfile"}
        for file, content in (
            ("extravars", "".join(_dumped(key, value, key in trusted) for key, value in everything.items())),
            ("envvars", json.dumps(api)),
            ("settings", json.dumps(settings)),
            ("cmdline", " ".join(arguments)),
        ):
            (directory / "env" / file).write_text(content)
        for host, facts in self._facts.items():
            (artifacts / "fact_cache" / host).write_text(json.dumps(facts))
        argv = ["ansible-runner", "run", str(directory), "--ident", ident, "--playbook", playbook, "--quiet"]
        done = subprocess.run(argv, env=environment(self.place / "home"), stdin=subprocess.DEVNULL, check=False)
        # AWX keeps the facts of a host for its next jobs.
        self._facts |= _facts(artifacts)
        return Job(done.returncode, _events(artifacts))

    def remembered(self, host: str) -> Item:
        """Return the facts of a host that its earlier jobs cached."""
        # From ansible-core 2.19 on, the name of the file has a prefix, and the facts are text in it with their origin.
        [found] = [facts for name, facts in self._facts.items() if name.endswith(host)]
        facts = json.loads(found["__payload__"]) if "__payload__" in found else found
        return {name: one.get("value", one) for name, one in facts.items()}


def _dumped(key: str, value: Any, trusted: bool) -> str:
    return yaml.dump({key: value}, Dumper=yaml.SafeDumper if trusted else _UnsafeDumper)


def _events(artifacts: Path) -> list[Item]:
    """Return the events of a job in their order."""
    paths = (artifacts / "job_events").glob("*-*.json")
    ordered = sorted(paths, key=lambda path: int(path.name.partition("-")[0]))
    return [json.loads(path.read_text()) for path in ordered]


def _facts(artifacts: Path) -> dict[str, Item]:
    return {path.name: json.loads(path.read_text()) for path in (artifacts / "fact_cache").iterdir()}
