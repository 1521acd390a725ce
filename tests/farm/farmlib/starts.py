"""Measure starts of real software: through views with data images, and through what people use instead."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farmlib import collection, host, measure, report, software, start_tables
from farmlib.machines import DROP_CACHES, SOFTWARE, Farm, Machine

PROGRAM = "/usr/local/lib/farm/starts.py"
PLAN = "/usr/local/lib/farm/starts.json"

# Paths on the node.
DIRECTORY = "/var/tmp/farm-starts"
LOCAL = f"{DIRECTORY}/local"
SQUASH = f"{DIRECTORY}/squash"
CACHE = "/var/cache/fscache"
NFS = "/mnt/farm/nfs"
FSC = "/mnt/farm/fsc"
IMAGES = "/starts"
IMAGE_STORE = f"{collection.STORE}/.images"

#: The file with all rows, in the directory of the results.
ROWS = "starts.json"

#: The software that is started, by name: its title, and a statement for Python.
STARTS = {
    "usd": ("USD", "from pxr import Usd"),
    "qt": ("Qt", "import PySide6.QtCore"),
    "numpy": ("NumPy", "import numpy"),
    "imaging": ("OpenImageIO, OCIO, EXR, MaterialX", "import OpenImageIO, PyOpenColorIO, OpenEXR, MaterialX"),
    "scipy": ("SciPy", "import scipy.stats, scipy.ndimage, scipy.signal"),
    "editorial": ("OTIO, lxml, jinja2", "import opentimelineio, lxml.etree, jinja2"),
}
#: Modules of the node's own Python that starts import. They are in memory before each start, because every way reads them alike.
OWN_MODULES = (
    "asyncio, concurrent.futures, ctypes, decimal, email.message, fractions, html, http.client, importlib.metadata, inspect, json, "
    "logging, multiprocessing, numbers, pathlib, pickle, platform, random, ssl, statistics, tempfile, typing, unittest, urllib.request, "
    "uuid, xml.etree.ElementTree, zipfile"
)
LATENCIES = (0, 1, 10)
#: The release that is deployed last, to measure what one more release costs, and a start of it. No other start uses it.
ONE_MORE, ONE_MORE_START = "usd-core/25.11", "usd"
#: The largest wall time of a start from data images, as a multiple of the same start from a copy on the local disk.
LOCAL_BAR = 1.10
#: What bars compare: a way, the way that it is compared with, and the largest ratio of the times. Other ways are measured once.
BARS = (("images", "local", LOCAL_BAR), ("view", "nfs", 1.0))
COMPARED = frozenset(itertools.chain.from_iterable(pair for *pair, _bar in BARS))

_CACHE_CONFIGURATION = f"{DIRECTORY}/cachefilesd.conf"
_CACHE_STOP = "pkill -x cachefilesd || true; while pidof cachefilesd >/dev/null; do sleep 0.1; done"
_CACHE_START = (
    f"modprobe cachefiles; mkdir -p {CACHE}; cachefilesd -f {_CACHE_CONFIGURATION}; "
    "while ! pidof cachefilesd >/dev/null; do sleep 0.1; done"
)


def _unmount(mountpoint: str) -> str:
    return f"while mountpoint -q {mountpoint}; do umount {mountpoint}; done"


def _mount_nfs(mountpoint: str, options: str) -> str:
    return f"mkdir -p {mountpoint}; mount -t nfs -o ro,{options} server:{SOFTWARE} {mountpoint}"


@dataclass(frozen=True)
class Way:
    """Describe one way to bring software to a node. `setup` mounts it with cold caches, `teardown` unmounts it."""

    name: str
    title: str
    root: str
    setup: str = DROP_CACHES
    teardown: str = "true"


WAYS = (
    Way("nfs", "plain NFS", NFS, _mount_nfs(NFS, "vers=4.2"), _unmount(NFS)),
    Way(
        "fsc-empty",
        "NFS with `fsc`, empty cache",
        FSC,
        f"{_unmount(FSC)}; {_CACHE_STOP}; rm -rf {CACHE}; {_CACHE_START}; {_mount_nfs(FSC, 'vers=4.2,fsc')}",
        _unmount(FSC),
    ),
    Way("fsc", "NFS with `fsc`, filled cache", FSC, _mount_nfs(FSC, "vers=4.2,fsc"), _unmount(FSC)),
    Way("view", "a view", collection.VIEW, measure.kept(collection.VIEW)),
    Way("images", "a view with data images", IMAGES, measure.kept(IMAGES)),
    Way("local", "copy on the local disk (rsync)", LOCAL),
    Way("squash", "a squashfs for each release", SQUASH),
)


@dataclass
class Results:
    """Hold what was measured: rows of starts by latency and way, and costs of preparing each way."""

    machine: str
    rows: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: list[dict[str, Any]] = field(default_factory=list)  # from data images, while the server was stopped

    def of(self, latency: float, way: Way) -> list[dict[str, Any]]:
        """Return the list of the rows of a latency in milliseconds and a way."""
        return self.rows.setdefault(f"{latency:g}", {}).setdefault(way.name, [])


def releases() -> list[str]:
    """Return the paths of the releases that starts have on their search paths."""
    return [release.path for release in software.newest(software.releases())]


def install(node: Machine) -> None:
    """Install the programs that measure starts on a node."""
    for name in ("count.py", "starts.py"):
        node.copy(host.FARM_SOURCE / "guest" / name, f"{os.path.dirname(PROGRAM)}/{name}")
    statements = {name: statement for name, (_title, statement) in STARTS.items()}
    node.write(PLAN, json.dumps({"environment": releases(), "starts": statements, "own": OWN_MODULES}))
    node.write(
        _CACHE_CONFIGURATION,
        f"dir {CACHE}\ntag farm\nbrun 10%\nbcull 7%\nbstop 3%\nfrun 10%\nfcull 7%\nfstop 3%\n",
    )


def measured(node: Machine, way: Way, start: str) -> list[dict[str, Any]]:
    """Start software once cold and once warm, and return a row for each."""
    argv = ["python3", PROGRAM, "measure", PLAN, start, way.root, way.setup, way.teardown]
    rows: list[dict[str, Any]] = json.loads(node.output(argv, timeout=900))
    return rows


def cost(node: Machine, script: str) -> dict[str, Any]:
    """Run a script on a node. Return its seconds, and the calls and bytes that the node sent and received on NFS mounts."""
    before = counters(node)
    node.ssh(f"set -eu; {script}", timeout=3600)
    return _since(before, counters(node))


# --- Preparing each way ---


def _copy(release: str) -> str:
    return f"mkdir -p {LOCAL}/{release}; rsync -aH {NFS}/{release}/ {LOCAL}/{release}/"


def _squash(release: str) -> str:
    """Return a script that makes a squashfs of a release, and mounts it."""
    image = f"{DIRECTORY}/{release.replace('/', '+')}.squashfs"
    return (
        f"mksquashfs {NFS}/{release} {image} -comp lz4 -no-progress -quiet; mkdir -p {SQUASH}/{release}; "
        f"mount -o loop,ro {image} {SQUASH}/{release}"
    )


def prepare(node: Machine, results: Results, ways: Sequence[str]) -> None:
    """Bring the releases of the starts to the node in some ways, and one more, and keep what both cost."""
    node.ssh(f"{_mount_nfs(NFS, 'vers=4.2')}; mkdir -p {DIRECTORY}")
    chosen = releases()
    for name, script, used in (
        ("local", _copy, f"du -sk {LOCAL} | cut -f 1"),
        ("squash", _squash, f"du -ck {DIRECTORY}/*.squashfs | tail -n 1 | cut -f 1"),
    ):
        if name not in ways:
            continue
        node.ssh(DROP_CACHES)
        results.costs[name] = cost(node, "; ".join(map(script, chosen)))
        results.costs[name]["disk"] = int(node.output(used, timeout=600)) * 1024
        node.ssh(DROP_CACHES)
        results.costs[name]["one more"] = cost(node, script(ONE_MORE))
        host.say(f"{node.name}: {name}: {results.costs[name]}")
    node.ssh(_unmount(NFS))


#: A module and its options.
Call = tuple[str, dict[str, Any]]


def trace(start: str, found: Sequence[str] = (), view: str = collection.VIEW) -> Call:
    """Return the call that traces a start in a view, by default that of all releases.

    `found` are the releases on the search paths, by default those of the starts.
    """
    places = [f"{view}/{release}" for release in found or releases()]
    options = {
        "path": view,
        "command": ["/usr/bin/python3", "-c", STARTS[start][1]],
        "environment": {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": ":".join(f"{place}/python" for place in places),
            "LD_LIBRARY_PATH": ":".join(f"{place}/lib" for place in places),
        },
        "store": collection.STORE,
    }
    return "access_trace", options


def build(release: str, select: str = "trace") -> Call:
    """Return the call that builds a data image of a release, and publishes it."""
    options = {
        "root": collection.ROOT,
        "store": collection.STORE,
        "image_store": IMAGE_STORE,
        "release": release,
        "select": select,
    }
    return "data_image", options


def prepare_views(farm: Farm, node: Machine, results: Results) -> None:
    """Trace the starts. Deploy a view, and again with data images of what was traced, each then with one more release.

    Keep what the deployments cost. The manifests and images lie on NFS too. The node is the host that scans and builds, and installs the
    images.
    """
    package = ONE_MORE.split("/", maxsplit=1)[0]
    chosen = releases()
    older = [ONE_MORE if release.startswith(f"{package}/") else release for release in chosen]
    collection.modules(farm, node, [*map(trace, STARTS), trace(ONE_MORE_START, older)])
    for name, mountpoint, kind in (("view", f"{IMAGES}-none", "none"), ("images", IMAGES, "trace")):
        # Each kind has a view of its own. A release that leaves a view lingers in it, so it could not be deployed anew there.
        view = {"name": os.path.basename(mountpoint), "mountpoint": mountpoint, "data_images": kind}
        results.costs[name] = _deployed(farm, node, {**view, "releases": chosen})
        places = f"{collection.STATE_DIR}/views/{view['name']} {collection.STATE_DIR}/data"
        used = node.output(f"du -sk {places} 2>/dev/null | cut -f 1", check=False).split()
        results.costs[name]["disk"] = sum(map(int, used)) * 1024
        results.costs[name]["one more"] = _deployed(farm, node, {**view, "releases": [*chosen, ONE_MORE]})
        host.say(f"{node.name}: {name}: {results.costs[name]}")


def _deployed(farm: Farm, node: Machine, view: Mapping[str, Any]) -> dict[str, Any]:
    """Deploy a view. Return what it cost."""
    before = counters(node)
    collection.deploy(farm, [view], hosts=node.name)
    return _since(before, counters(node))


def counters(node: Machine) -> dict[str, float]:
    """Return the time in seconds, and the calls and bytes that a node has sent and received on NFS mounts."""
    found: dict[str, float] = json.loads(node.output(["python3", PROGRAM, "counters", PLAN]))
    return {**found, "seconds": time.monotonic()}


def _since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    return {name: after[name] - value for name, value in before.items()}


# --- Measuring ---


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run starts", description=__doc__)
    parser.add_argument("--latencies", type=float, nargs="+", default=list(LATENCIES), help="milliseconds")
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--ways", nargs="+", choices=[way.name for way in WAYS], default=[way.name for way in WAYS])
    parser.add_argument(
        "--rounds", type=int, default=3, help="repeat everything so often, and take the medians of times"
    )
    parser.add_argument(
        "--resume", action="store_true", help="add to the rows of an earlier run in the directory of --results"
    )
    return parser.parse_args(arguments)


def run(farm: Farm, path: Path, arguments: Sequence[str], document: Path | None = None) -> bool:
    """Measure, print the tables, and write them and the rows to the directory `path`, and the tables to `document` if given.

    The rows are written after each start and the tables after each latency, so an interruption loses nothing. Return whether all bars
    are met.
    """
    options = _arguments(arguments)
    node = farm.nodes["new"]
    path.mkdir(parents=True, exist_ok=True)
    results = _earlier(path) if options.resume else Results(_machines(farm, node))
    collection.mount_store(node)
    collection.deploy(farm, hosts=node.name)
    node.ssh(f"mkdir -p {DIRECTORY}")
    install(node)
    prepare_views(farm, node, results)
    prepare(node, results, options.ways)
    measure_stopped(farm, node, results, options.starts)
    _keep(results, path)
    try:
        for wanted, latency in itertools.product(range(1, options.rounds + 1), options.latencies):
            node.latency(latency)
            ways = [way for way in WAYS if way.name in options.ways and (wanted == 1 or way.name in COMPARED)]
            # All ways of one start after each other, so that other load on the host affects them alike.
            for start, way in itertools.product(options.starts, ways):
                rows = results.of(latency, way)
                if _rounds(rows, start) < wanted:
                    farm.server.end_delegations(node)
                    found = measured(node, way, start)
                    rows.extend(found)
                    _keep(results, path)
                    host.say(f"{latency:g} ms, {start}, {way.name}: {_shown(found)}")
            _write_tables(results, path, document)
    finally:
        node.latency(0)
    text, met = _write_tables(results, path, document)
    print(text)
    return met


def measure_stopped(farm: Farm, node: Machine, results: Results, names: Sequence[str]) -> None:
    """Start software from data images while the server is stopped."""
    [images] = [way for way in WAYS if way.name == "images"]
    farm.server.end_delegations(node)
    with farm.server.nfsd_stopped():
        for start in names:
            if not _rounds(results.stopped, start):
                found = measured(node, images, start)
                results.stopped.extend(found)
                host.say(f"server stopped, {start}, {images.name}: {_shown(found)}")


def _rounds(rows: Sequence[Mapping[str, Any]], start: str) -> int:
    """Return how often a start was measured."""
    return sum((row["start"], row["state"]) == (start, "cold") for row in rows)


def _machines(farm: Farm, node: Machine) -> str:
    kernel = farm.server.output("uname -r")
    return (
        f"Linux {node.output('uname -r')} (`{node.name}`); the server: Linux {kernel}. All machines run in QEMU ({farm.accelerator}), "
        f"on {os.cpu_count()} processors."
    )


def _earlier(path: Path) -> Results:
    """Return what an earlier run has measured. Raises FarmError if there is none."""
    try:
        return Results(**json.loads((path / ROWS).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise host.FarmError(f"{host.shown(path / ROWS)} is missing: leave --resume out") from None


def _keep(results: Results, path: Path) -> None:
    (path / ROWS).write_text(json.dumps(vars(results), indent=1) + "\n", encoding="utf-8")


def _write_tables(results: Results, path: Path, document: Path | None) -> tuple[str, bool]:
    """Write the tables of what was measured so far. Return them, and whether all bars are met."""
    text, met = tables(results)
    (path / "starts.md").write_text(text, encoding="utf-8")
    if document is not None:
        report.replace(document, "farm starts", text)
    return text, met


def _shown(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{row['state']} {row['calls']} calls, {row['seconds']:.1f} s ({row['processor']:.1f} s)" for row in rows
    )


# --- The tables ---


def tables(results: Results) -> tuple[str, bool]:
    """Return the tables of what was measured, and whether all bars are met."""
    titles = {way.name: way.title for way in WAYS}
    names = {name: title for name, (title, _statement) in STARTS.items()}
    first = next(iter(results.rows))
    everything: dict[str, list[dict[str, Any]]] = {}
    for ways in results.rows.values():
        for name, rows in ways.items():
            everything.setdefault(name, []).extend(rows)
    rounds = sorted(
        {_rounds(rows, row["start"]) for ways in results.rows.values() for rows in ways.values() for row in rows}
    )
    times = " to ".join(map(str, (rounds[0], rounds[-1])[: len(rounds)]))
    parts = [
        f"{results.machine} Each start was measured {times} times at each latency; times are medians.",
        "",
        "NFS calls, cold / warm, the most of all rounds and latencies:",
        "",
    ]
    parts += start_tables.table(everything, titles, names, lambda row: f"{row['calls']:,}")
    for latency, ways in results.rows.items():
        parts += ["", f"Latency {latency} ms: seconds of the start, and of them waiting, cold / warm:", ""]
        parts += start_tables.table(ways, titles, names, lambda row: f"{row['seconds']:.1f} ({row['waiting']:.1f})")
    parts += [
        "",
        f"All starts together at {first} ms, preparing the node, and deploying one more release ({ONE_MORE}):",
        "",
    ]
    parts += start_tables.costs(results.costs, results.rows[first], titles, list(STARTS))
    bars = _bars(results, everything)
    parts += ["", "| bar | | measured | |", "|---|---|---|---|"]
    parts += [f"| {text} | {bar} | {value} | {'met' if met else 'NOT MET'} |" for text, bar, value, met in bars]
    return "\n".join([*parts, ""]), all(met for *_, met in bars)


def _bars(results: Results, everything: start_tables.Ways) -> list[tuple[str, str, str, bool]]:
    bars = []
    for text, rows in (
        ("NFS calls of a start from data images, cold and warm", everything.get("images", ())),
        ("the same with the server stopped", results.stopped),
    ):
        if rows:
            calls = max(row["calls"] for row in rows)
            bars.append((text, "0", f"{calls:,}", calls == 0))
    titles = {way.name: way.title for way in WAYS}
    for latency, ways in results.rows.items():
        for way, other, bar in BARS:
            text = f"time of cold starts: {titles[way]}, to {titles[other]}"
            pairs = _pairs(ways, way, other)
            if pairs:
                ratio = sum(one for one, _ in pairs) / sum(another for _, another in pairs)
                worst = max(one / another for one, another in pairs)
                value = f"{ratio:.2f}; of single starts {worst:.2f} at most"
                bars.append((f"{text}, {latency} ms", f"<= {bar:.2f}", value, worst <= bar))
    return bars


def _pairs(ways: start_tables.Ways, way: str, other: str) -> list[tuple[float, float]]:
    """Return waiting and processor time together, in seconds, of the cold starts that were measured in both ways."""
    found = []
    for start in STARTS:
        one, another = (start_tables.median(ways.get(name, ()), start, "cold") for name in (way, other))
        if one is not None and another is not None:
            found.append((one["waiting"] + one["processor"], another["waiting"] + another["processor"]))
    return found
