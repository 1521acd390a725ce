"""The NFS calls of fixed work, for each way to show the release tree to applications."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farmlib import host, report, software
from farmlib.machines import SOFTWARE, Farm, Machine, on_all

# On the nodes.
NFS = "/mnt/farm/nfs"
VIEW = "/mnt/farm/view"
LAYERS = "/var/tmp/farm-layers"
COUNT = "/usr/local/lib/farm/count.py"
PLAN = "/usr/local/lib/farm/plan.json"

MOUNT_NFS = f"mkdir -p {NFS}; mount -t nfs -o ro,vers=4.2 server:{SOFTWARE} {NFS}"
UNMOUNT = f"for path in {VIEW} {NFS}; do while mountpoint -q $path; do umount $path; done; done"


@dataclass(frozen=True)
class Configuration:
    """One way to present the tree.

    `setup` is a shell script that mounts everything (run before each piece of work, with cold caches), `teardown` one
    that unmounts whatever is mounted, `prepare` what is done once on a node before. Calls are those of the mount `nfs`.
    """

    name: str
    title: str
    setup: str
    root: str = VIEW
    nfs: str = NFS
    teardown: str = UNMOUNT
    prepare: Callable[[Machine], None] | None = None
    nodes: tuple[str, ...] = ("old", "new")
    work: tuple[str, ...] = ()  # all of it where empty


def _overlay(upper: str) -> str:
    layers = f"{LAYERS}/{upper}"
    return (
        f"{MOUNT_NFS}; mkdir -p {VIEW} {layers}/upper {layers}/work; mount -t overlay overlay "
        f"-o lowerdir={NFS},upperdir={layers}/upper,workdir={layers}/work,metacopy=on,redirect_dir=on,index=on {VIEW}"
    )


def _chown_and_read(node: Machine) -> None:
    node.ssh(
        f"set -eu; {UNMOUNT}; {_overlay('finalized')}; chown -R -h artist:artist {VIEW}; ls -lR {VIEW} >/dev/null; "
        f"{UNMOUNT}",
        timeout=900,
    )


CONFIGURATIONS = (
    Configuration("nfs", "plain NFS mount", MOUNT_NFS, root=NFS),
    Configuration("overlay", "overlay, NFS as a normal lower layer", _overlay("plain")),
    Configuration(
        "finalized",
        "the same after `chown -R -h` and `ls -lR`, remounted",
        _overlay("finalized"),
        prepare=_chown_and_read,
        nodes=("old",),
    ),
    Configuration(
        "finalized-read",
        "the same, and `ls -lR` once more after the mount",
        f"{_overlay('finalized')}; ls -lR {VIEW} >/dev/null",
        nodes=("old",),
        # Each piece of work costs a walk of the whole tree here: only what tells it from the line above.
        work=("missing", "stat", "readdir", "start-usd"),
    ),
)


def install(farm: Farm, nodes: Sequence[Machine]) -> None:
    """Put the counter on the nodes, and the same plan of work, chosen from the tree on the server."""
    source = host.FARM_SOURCE / "guest" / "count.py"
    for machine in [farm.server, *nodes]:
        machine.copy(source, COUNT)
    plan = json.loads(farm.server.output(["python3", COUNT, "plan", SOFTWARE], timeout=300))
    plan["environment"] = [release.path for release in software.newest(software.releases())]
    for node in nodes:
        node.write(PLAN, json.dumps(plan))


def measure(node: Machine, configuration: Configuration, work: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of work, state (cold, warm), calls, operations and seconds."""
    began = time.monotonic()
    if configuration.prepare is not None:
        configuration.prepare(node)
    argv = [
        "python3",
        COUNT,
        "measure",
        PLAN,
        "--root",
        configuration.root,
        "--nfs",
        configuration.nfs,
        "--setup",
        configuration.setup,
        "--teardown",
        configuration.teardown,
    ]
    if work or configuration.work:
        argv += ["--work", *(work or configuration.work)]
    rows: list[dict[str, Any]] = json.loads(node.output(argv, timeout=1200))
    host.say(f"{node.name}: {configuration.name} measured in {time.monotonic() - began:.0f} s")
    return rows


def run(farm: Farm, results: Path, names: Sequence[str] | None = None) -> None:
    """Measure on every node; write the counts and the table into `results`."""
    unknown = set(names or ()) - {configuration.name for configuration in CONFIGURATIONS}
    if unknown:
        raise host.FarmError(f"no such configuration: {', '.join(sorted(unknown))}")
    install(farm, list(farm.nodes.values()))

    def on_node(node: Machine) -> dict[str, list[dict[str, Any]]]:
        return {
            configuration.title: measure(node, configuration)
            for configuration in CONFIGURATIONS
            if node.name in configuration.nodes and (not names or configuration.name in names)
        }

    # Together: it changes the seconds, which are not compared, and not the calls.
    rows = on_all(list(farm.nodes.values()), on_node)
    measured = {f"{node.name}, kernel {node.output('uname -r')}": rows[node.name] for node in farm.nodes.values()}
    results.mkdir(parents=True, exist_ok=True)
    (results / "calls.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    table = report.markdown(measured)
    (results / "calls.md").write_text(table, encoding="utf-8")
    print(table)
