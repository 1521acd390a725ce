"""The NFS calls of fixed work, for each way to show the release tree to applications."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farmlib import collection, host, report, software
from farmlib.collection import COUNT
from farmlib.machines import SOFTWARE, Farm, Machine, on_all

# On the nodes.
NFS = "/mnt/farm/nfs"
VIEW = "/mnt/farm/view"
LAYERS = "/var/tmp/farm-layers"
PLAN = "/usr/local/lib/farm/plan.json"

MOUNT_NFS = f"mkdir -p {NFS}; mount -t nfs -o ro,vers=4.2 server:{SOFTWARE} {NFS}"
OPENS = 200
UNMOUNT = f"for path in {VIEW} {NFS}; do while mountpoint -q $path; do umount $path; done; done"

#: Which lines are measured: those that every run is to show, those about the chown and readdir passes of an overlay that has
#: NFS as a normal lower layer (each walks the whole tree), the same with a layer of redirects, and those about the mount options
#: of the software root.
GROUPS = ("core", "finalize", "redirect", "options")


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
    group: str = "core"
    delegations: bool = True


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


# The collection's layer of all releases, made fit for NFS as a normal lower layer: every directory opaque, and names of the
# software root that no release has whited out.
_MAKE_REDIRECT_LAYER = """
import os, shutil, sys
layer, target, nfs = sys.argv[1:]
shutil.rmtree(target, ignore_errors=True)
os.makedirs(os.path.dirname(target), exist_ok=True)
shutil.copytree(layer, target, symlinks=True, copy_function=os.link)
os.chmod(target, 0o755)
for base, folders, _ in os.walk(target):
    for name in folders:
        if not os.path.islink(f"{base}/{name}"):
            os.setxattr(f"{base}/{name}", "trusted.overlay.opaque", b"y")
for name in set(os.listdir(nfs)) - set(os.listdir(target)):
    os.mknod(f"{target}/{name}", 0o020000)
"""


def _redirect_layer(node: Machine) -> None:
    farm = _farm()
    collection.mount_store(node)
    built = collection.module(
        farm,
        node,
        "metadata_layer",
        {
            "name": "farm-redirect",
            "store": collection.STORE,
            "releases": [{"release": release.path} for release in software.releases()],
        },
        timeout=600,
    )
    node.ssh(f"set -eu; {UNMOUNT}; {MOUNT_NFS}")
    argv = ["python3", "-c", _MAKE_REDIRECT_LAYER, built.values["layer"], f"{LAYERS}/redirect", NFS]
    node.ssh(argv, timeout=600)
    node.ssh(UNMOUNT)


def _deployed(node: Machine) -> None:
    assert node.name == "new"
    collection.deployment(_farm())
    node.ssh(UNMOUNT)


def _farm() -> Farm:
    assert Farm.running is not None
    return Farm.running


#: The view as the collection's playbook has deployed it, on the software root as role host has mounted it. It stays mounted, as
#: on a farm; what makes it cold is that no inode, directory entry or page of it or below it is in memory any more.
COLLECTION = Configuration(
    "collection",
    "the collection's view, as the playbook deploys it",
    setup=f"mountpoint -q {collection.VIEW}; for again in 1 2 3; do echo 3 >/proc/sys/vm/drop_caches; done",
    root=collection.VIEW,
    nfs=collection.ROOT,
    teardown="true",
    prepare=_deployed,
    nodes=("new",),
)

#: Options of the software root, besides `ro`, and whether the server hands out delegations: with one of them a client need not
#: ask again whether a file has changed, but many file servers give none.
VARIANTS = (
    ("vers=4.2", True),
    ("vers=4.2", False),
    ("vers=4.2,nocto", False),
    ("vers=4.2,actimeo=3600", False),
    ("vers=4.2,nocto,actimeo=3600", False),
    ("vers=4.2,nocto,actimeo=3600", True),
    ("vers=4.2,nocto,actimeo=3600,lookupcache=positive", True),
    ("vers=4.2,nocto,actimeo=3600,nconnect=4", True),
    ("vers=3,nolock", True),
    ("vers=3,nolock,nocto,actimeo=3600", True),
)


def _variants() -> list[Configuration]:
    found = []
    for number, (options, delegations) in enumerate(VARIANTS):
        mount = f"mkdir -p {NFS} {VIEW}; mount -t nfs -o ro,nosharecache,{options} server:{SOFTWARE} {NFS}"
        layer = f"{collection.STATE_DIR}/views/software/current/layer"
        view = f"mount -t overlay overlay -o ro,metacopy=on,redirect_dir=on,lowerdir={layer}::{NFS} {VIEW}"
        title = options + ("" if delegations else ", no delegations")
        common: dict[str, Any] = {
            "nodes": ("new",),
            "group": "options",
            "prepare": _deployed,
            "delegations": delegations,
        }
        works = ("open", "later", "start-usd")
        everything = ("missing", "stat", *works) if delegations else works
        found += [
            Configuration(f"nfs-{number}", f"plain NFS, {title}", mount, root=NFS, work=everything, **common),
            Configuration(f"view-{number}", f"view, {title}", f"{mount}; {view}", work=works, **common),
        ]
    return found


CONFIGURATIONS = (
    Configuration("nfs", "plain NFS mount", MOUNT_NFS, root=NFS),
    Configuration("overlay", "overlay, NFS as a normal lower layer", _overlay("plain")),
    Configuration(
        "finalized",
        "the same after `chown -R -h` and `ls -lR`, remounted",
        _overlay("finalized"),
        prepare=_chown_and_read,
        nodes=("old",),
        group="finalize",
    ),
    Configuration(
        "finalized-read",
        "the same, and `ls -lR` once more after the mount",
        f"{_overlay('finalized')}; ls -lR {VIEW} >/dev/null",
        nodes=("old",),
        # Each piece of work costs a walk of the whole tree here: only what tells it from the line above.
        work=("missing", "stat", "readdir", "start-usd"),
        group="finalize",
    ),
    Configuration(
        "redirect",
        "opaque directories, absolute redirects, NFS as a normal lower layer (by hand)",
        f"{MOUNT_NFS}; mkdir -p {VIEW}; mount -t overlay overlay "
        f"-o ro,lowerdir={LAYERS}/redirect:{NFS},metacopy=on,redirect_dir=follow {VIEW}",
        prepare=_redirect_layer,
        group="redirect",
    ),
    COLLECTION,
    *_variants(),
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


_measured: dict[tuple[str, str], list[dict[str, Any]]] = {}


def rows(farm: Farm, node: Machine, configuration: Configuration) -> list[dict[str, Any]]:
    """What was measured, by a test or for the table: once in a run."""
    key = (node.name, configuration.name)
    if key not in _measured:
        if node.ssh(f"test -s {PLAN}", check=False).returncode != 0:
            install(farm, [node])
        _measured[key] = measure(node, configuration)
    return _measured[key]


def _with_delegations(farm: Farm, node: Machine, configuration: Configuration) -> list[dict[str, Any]]:
    farm.server.ssh(f"sysctl -q -w fs.leases-enable={int(configuration.delegations)}")
    try:
        return rows(farm, node, configuration)
    finally:
        farm.server.ssh("sysctl -q -w fs.leases-enable=1")


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
    found: list[dict[str, Any]] = json.loads(node.output(argv, timeout=1200))
    host.say(f"{node.name}: {configuration.name} measured in {time.monotonic() - began:.0f} s")
    return found


def run(farm: Farm, results: Path, names: Sequence[str] | None = None, nodes: Sequence[str] = ()) -> None:
    """Measure on every node, or on these; write the counts and the table into `results`. `names` are configurations, groups, or `all`."""
    chosen = _chosen(names or ["core"])
    machines = [node for node in farm.nodes.values() if not nodes or node.name in nodes]
    install(farm, machines)
    if any(configuration.prepare in (_deployed, _redirect_layer) for configuration in chosen):
        # Its manifests are needed on every node.
        collection.deployment(farm)

    found: dict[str, dict[str, list[dict[str, Any]]]] = {node.name: {} for node in machines}

    def on_node(node: Machine) -> None:
        for configuration in chosen:
            if node.name in configuration.nodes and configuration.group != "options":
                found[node.name][configuration.title] = rows(farm, node, configuration)

    # Together: it changes the seconds, which are not compared, and not the calls.
    on_all(machines, on_node)
    # One after the other, since some of them change the server.
    for configuration in chosen:
        for node in machines:
            if node.name in configuration.nodes and configuration.group == "options":
                found[node.name][configuration.title] = _with_delegations(farm, node, configuration)
    measured = {f"{node.name}, kernel {node.output('uname -r')}": found[node.name] for node in machines}
    results.mkdir(parents=True, exist_ok=True)
    (results / "calls.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    table = report.markdown({machine: lines for machine, lines in measured.items() if lines})
    (results / "calls.md").write_text(table, encoding="utf-8")
    print(table)


def _chosen(names: Sequence[str]) -> list[Configuration]:
    known = {"all", *GROUPS, *(configuration.name for configuration in CONFIGURATIONS)}
    if unknown := set(names) - known:
        raise host.FarmError(
            f"no such configuration: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    return [
        configuration
        for configuration in CONFIGURATIONS
        if {"all", configuration.name, configuration.group} & set(names)
    ]
