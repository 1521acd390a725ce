"""Measure the NFS calls of a fixed set of work, for each way to show the release tree to applications."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farmlib import collection, host, patched, report, software
from farmlib.collection import COUNT
from farmlib.machines import DROP_CACHES, SOFTWARE, Farm, Machine, on_all

# Paths on the nodes.
NFS = "/mnt/farm/nfs"
VIEW = "/mnt/farm/view"
LAYERS = "/var/tmp/farm-layers"

MOUNT_NFS = f"mkdir -p {NFS}; mount -t nfs -o ro,vers=4.2 server:{SOFTWARE} {NFS}"
MOUNT_NFS3 = f"mkdir -p {NFS}; mount -t nfs -o ro,vers=3,nolock server:{SOFTWARE} {NFS}"
LAYER = f"{collection.STATE_DIR}/views/software/current/layer"
MOUNT_VIEW = (
    f"mkdir -p {VIEW}; mount -t overlay overlay -o ro,metacopy=on,redirect_dir=on,lowerdir={LAYER}::{NFS} {VIEW}"
)
OPENS = 200
UNMOUNT = f"for path in {VIEW} {NFS}; do while mountpoint -q $path; do umount $path; done; done"

#: Groups of lines: those of every run; the same with NFS 3; an overlay with NFS as a normal lower layer, before and after the chown
#: and readdir passes (each walks the whole tree); the mount options of the software root; and such an overlay on a patched kernel.
#: Under emulation a line takes minutes.
GROUPS = ("core", "nfs3", "overlay", "options", "patched")
#: Groups with tables of their own.
SEPARATE = ("options", "patched")
#: Names for several groups. The patched kernel is measured alone, since its module cannot be loaded while a view is mounted.
ALIASES = {"calls": GROUPS[:3], "all": GROUPS[:4]}


@dataclass(frozen=True)
class Configuration:
    """Describe one way to present the tree.

    The shell script `setup` mounts everything before each piece of work, with cold caches. `teardown` unmounts everything.
    `prepare` runs once on each node before. The calls of the mount `nfs` are counted.
    """

    name: str
    title: str
    setup: str
    root: str = VIEW
    nfs: str = NFS
    teardown: str = UNMOUNT
    prepare: Callable[[Machine], None] | None = None
    nodes: tuple[str, ...] = ("old", "new")
    work: tuple[str, ...] = ()  # empty: all work
    group: str = "core"
    delegations: bool = True
    block_size: int = 0  # the largest READ that the server accepts; 0: its default, which depends on its memory
    package: str = ""  # `root` shows only this package of the tree


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


def _read_on_patched_kernel(node: Machine) -> None:
    node.ssh(UNMOUNT)
    patched.load(node)
    node.ssh(f"set -eu; {_overlay('finalized')}; ls -lR {VIEW} >/dev/null; {UNMOUNT}", timeout=900)


def _deployed(node: Machine) -> None:
    collection.deployment(_farm())
    node.ssh(UNMOUNT)


def _nothing_mounted(node: Machine) -> None:
    """Unmount everything of the server, because some options only apply to a client's first mount of a server."""
    if node.ssh(f"test -d {LAYER}", check=False).returncode != 0:
        collection.deployment(_farm())
    paths = f"{VIEW} {NFS} {collection.VIEW} {collection.ROOT} {collection.STORE}"
    node.ssh(f"for path in {paths}; do while mountpoint -q $path; do umount $path; done; done")


def _farm() -> Farm:
    assert Farm.running is not None
    return Farm.running


def kept(mountpoint: str) -> str:
    """Return a setup script for a mount that stays, as on a farm.

    It makes the mount cold by dropping all its inodes, directory entries and pages, and those below it, from memory.
    """
    return f"mountpoint -q {mountpoint}; {DROP_CACHES}"


#: The view as the collection's playbook has deployed it, on the software root as role host has mounted it.
COLLECTION = Configuration(
    "collection",
    "the collection's view, as the playbook deploys it",
    setup=kept(collection.VIEW),
    root=collection.VIEW,
    nfs=collection.ROOT,
    teardown="true",
    prepare=_deployed,
)


@dataclass(frozen=True)
class Variant:
    """Describe options of the software root, besides `ro`.

    With `delegations` the server gives them. A client with a delegation need not revalidate the file, but many file servers give
    none. `block_size` is the largest READ that the server accepts; the default is 128 KiB, because the farm's server has little
    memory. `after` is a shell command that makes a setting which is not a mount option, or checks an option.
    """

    options: str
    delegations: bool = False
    block_size: int = 0
    title: str = ""
    after: str = "true"
    plain: bool = False  # measured for plain NFS as well


_CONNECTIONS = f"sed -n '\\,mounted on {NFS} ,,/^device/p' /proc/self/mountstats | grep -c xprt:"
_READ_AHEAD = f"/sys/class/bdi/$(mountpoint -d {NFS})/read_ahead_kb"
_CHOSEN = "vers=4.2,nocto,actimeo=3600"
VARIANTS = (
    Variant("vers=4.2", True, plain=True),
    Variant("vers=4.2,nocto", True),
    Variant("vers=4.2,actimeo=3600", True),
    Variant(_CHOSEN, True, plain=True),
    Variant("vers=4.2", plain=True),
    Variant("vers=4.2,nocto", plain=True),
    Variant("vers=4.2,actimeo=3600", plain=True),
    Variant(_CHOSEN, plain=True),
    Variant(f"{_CHOSEN},lookupcache=positive"),
    Variant(f"{_CHOSEN},noatime"),
    Variant(f"{_CHOSEN},nconnect=4", after=f"[ $({_CONNECTIONS}) = 4 ]"),
    # Wait a second, because udev resets a value that is set right after the mount.
    Variant(_CHOSEN, block_size=1 << 20, title="READs up to 1 MiB"),
    Variant(
        _CHOSEN,
        block_size=1 << 20,
        title="READs up to 1 MiB, read-ahead of 1 MiB",
        after=f"sleep 1; echo 1024 >{_READ_AHEAD}",
    ),
    Variant(
        _CHOSEN,
        block_size=1 << 20,
        title="READs up to 1 MiB, read-ahead of 15 MiB",
        after=f"sleep 1; echo 15360 >{_READ_AHEAD}",
    ),
    Variant("vers=3,nolock", plain=True),
    Variant("vers=3,nolock,nocto"),
    Variant("vers=3,nolock,actimeo=3600"),
    Variant("vers=3,nolock,nocto,actimeo=3600"),
)


def _variants() -> list[Configuration]:
    found = []
    for number, variant in enumerate(VARIANTS):
        mount = f"mkdir -p {NFS}; mount -t nfs -o ro,nosharecache,{variant.options} server:{SOFTWARE} {NFS}; {variant.after}"
        title = f"`{variant.options}`" + (f", {variant.title}" if variant.title else "")
        title += ", delegations" if variant.delegations else ""
        common: dict[str, Any] = {
            "nodes": ("new",),
            "group": "options",
            "prepare": _nothing_mounted,
            "delegations": variant.delegations,
            "block_size": variant.block_size,
        }
        common["work"] = ("later", "start-usd")
        if variant.plain:
            found.append(Configuration(f"nfs-options-{number}", f"plain: {title}", mount, root=NFS, **common))
        found.append(Configuration(f"view-options-{number}", f"view: {title}", f"{mount}; {MOUNT_VIEW}", **common))
    return found


CONFIGURATIONS = (
    Configuration("nfs", "plain NFS mount", MOUNT_NFS, root=NFS),
    Configuration("nfs-3", "plain NFS mount, NFS 3", MOUNT_NFS3, root=NFS, nodes=("new",), group="nfs3"),
    Configuration(
        "overlay-plain", "overlay, NFS as a normal lower layer", _overlay("plain"), nodes=("old",), group="overlay"
    ),
    Configuration(
        "finalized",
        "the same after `chown -R -h` and `ls -lR`, remounted",
        _overlay("finalized"),
        prepare=_chown_and_read,
        nodes=("old",),
        group="overlay",
    ),
    Configuration(
        "finalized-read",
        "the same, and `ls -lR` once more after the mount",
        f"{_overlay('finalized')}; ls -lR {VIEW} >/dev/null",
        nodes=("old",),
        # Each piece of work walks the whole tree here, so run only those that differ from the line above.
        work=("missing", "stat", "readdir", "start-usd"),
        group="overlay",
    ),
    COLLECTION,
    # The same layer and data, without the options that role host sets.
    Configuration(
        "view-3",
        "the same layer over NFS 3 with the kernel's default options",
        f"{MOUNT_NFS3}; {MOUNT_VIEW}",
        prepare=_deployed,
        nodes=("new",),
        group="nfs3",
    ),
    *_variants(),
    Configuration(
        "unpatched",
        "overlay, NFS as a normal lower layer, after `chown -R -h` and `ls -lR`, remounted",
        _overlay("finalized"),
        prepare=_chown_and_read,
        nodes=("new",),
        group="patched",
    ),
    # The same upper layer.
    Configuration(
        "patched",
        "the same on the patched kernel, after `ls -lR`, remounted",
        _overlay("finalized"),
        prepare=_read_on_patched_kernel,
        nodes=("new",),
        group="patched",
    ),
)


def install(farm: Farm, nodes: Sequence[Machine], package: str = "") -> None:
    """Install count.py and one plan of work, chosen from the tree on the server, on nodes without them."""
    plan_file = _plan_file(package)
    nodes = [node for node in nodes if node.ssh(f"test -s {plan_file}", check=False).returncode != 0]
    if not nodes:
        return
    source = host.FARM_SOURCE / "guest" / "count.py"
    for machine in [farm.server, *nodes]:
        machine.copy(source, COUNT)
    plan = json.loads(farm.server.output(["python3", COUNT, "plan", f"{SOFTWARE}/{package}"], timeout=300))
    plan["environment"] = [release.path for release in software.newest(software.releases())]
    for node in nodes:
        node.write(plan_file, json.dumps(plan))


def _plan_file(package: str) -> str:
    return f"/usr/local/lib/farm/plan{package and f'-{package}'}.json"


_measured: dict[tuple[str, str], list[dict[str, Any]]] = {}


def rows(farm: Farm, node: Machine, configuration: Configuration) -> list[dict[str, Any]]:
    """Measure a configuration once in a run, for a test or for the table, and return its rows."""
    key = (node.name, configuration.name)
    if key not in _measured:
        install(farm, [node], configuration.package)
        _measured[key] = measure(node, configuration)
    return _measured[key]


def _with_server(farm: Farm, node: Machine, configuration: Configuration) -> list[dict[str, Any]]:
    """Configure the server as the configuration says, and return the rows."""
    place = "/proc/fs/nfsd/max_block_size"

    def restart(block_size: str) -> None:
        # The kernel accepts it only while the service is stopped.
        farm.server.restart_nfsd(f"echo {block_size} >{place}")

    own = farm.server.output(["cat", place])
    farm.server.ssh(f"sysctl -q -w fs.leases-enable={int(configuration.delegations)}")
    try:
        if configuration.block_size:
            _nothing_mounted(node)
            restart(str(configuration.block_size))
        return rows(farm, node, configuration)
    finally:
        farm.server.ssh("sysctl -q -w fs.leases-enable=1")
        if configuration.block_size:
            restart(own)


def measure(node: Machine, configuration: Configuration, work: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run the work on a node. Return rows with work, state (cold, warm), calls, operations and seconds."""
    began = time.monotonic()
    if configuration.prepare is not None:
        configuration.prepare(node)
    _farm().server.end_delegations(node)
    argv = [
        "python3",
        COUNT,
        "measure",
        _plan_file(configuration.package),
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


def run(
    farm: Farm, results: Path, nodes: Sequence[Machine], names: Sequence[str], document: Path | None = None
) -> None:
    """Measure, print the tables, and write them and the counts to `results`. Also write the tables to `document` if given.

    `names` are configurations, groups or aliases. Raises FarmError if one is unknown.
    """
    configurations = chosen(names)
    install(farm, nodes)
    if any(configuration.prepare in (_deployed, _nothing_mounted) for configuration in configurations):
        # Every node needs its manifests.
        collection.deployment(farm)
    tables: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {
        name: {node.name: {} for node in nodes} for name in ("calls", *SEPARATE)
    }

    def on_node(node: Machine) -> None:
        for configuration in configurations:
            if _fits(configuration, node) and configuration.group not in SEPARATE:
                tables["calls"][node.name][configuration.title] = rows(farm, node, configuration)

    # All nodes at once. This affects the seconds, which are not compared, but not the calls.
    on_all(nodes, on_node)
    # One after the other, because some of them reconfigure the server.
    for configuration in configurations:
        for node in nodes:
            if _fits(configuration, node) and configuration.group in SEPARATE:
                tables[configuration.group][node.name][configuration.title] = _with_server(farm, node, configuration)
    results.mkdir(parents=True, exist_ok=True)
    titles = {node.name: f"{node.name}: Linux {node.output('uname -r')}" for node in nodes}
    about = _about(farm)
    for name, measured in tables.items():
        lines = {machine: of_machine for machine, of_machine in measured.items() if of_machine}
        if not lines:
            continue
        (results / f"{name}.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        parts = [
            report.options(titles[machine], of_machine)
            if name == "options"
            else report.calls(titles[machine], of_machine, COLLECTION.title)
            for machine, of_machine in lines.items()
        ]
        text = "\n".join([about, "", *parts])
        (results / f"{name}.md").write_text(text, encoding="utf-8")
        print(text)
        if document is not None:
            report.replace(document, f"farm {name}", text)


def _fits(configuration: Configuration, node: Machine) -> bool:
    # Everything for kernels with data-only layers is also measured on the newest kernel. The patch is for the kernel of `new`.
    also = node.name == "newest" and "new" in configuration.nodes and configuration.group != "patched"
    return also or node.name in configuration.nodes


def _about(farm: Farm) -> str:
    kernel = farm.server.output("uname -r")
    entries = farm.server.output(f"find {SOFTWARE} -mindepth 1 | wc -l", timeout=300)
    return (
        f"The server: kernel nfsd of Linux {kernel}; {len(software.releases())} releases with {int(entries):,} entries. "
        f"All machines run in QEMU ({farm.accelerator}), on {os.cpu_count()} processors."
    )


def chosen(names: Sequence[str]) -> list[Configuration]:
    """Return the configurations of these names, groups or aliases. Raises FarmError if one is unknown."""
    known = {*GROUPS, *ALIASES, *(configuration.name for configuration in CONFIGURATIONS)}
    if unknown := set(names) - known:
        raise host.FarmError(
            f"unknown configuration: {', '.join(sorted(unknown))}; choose from {', '.join(sorted(known))}"
        )
    wanted = {name for given in names for name in (given, *ALIASES.get(given, ()))}
    return [configuration for configuration in CONFIGURATIONS if {configuration.name, configuration.group} & wanted]
