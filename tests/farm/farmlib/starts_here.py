"""Start software from data images and from a local copy on this machine's own processors. Runs in a mount namespace of its own.

    python3 -m farmlib.starts_here WORK ROOT_DISK SOFTWARE_DISK ROUNDS ROWS   measure, and write the rows to the file ROWS

The software is that of the farm, and starts in the root file system of its machines. The software root is its disk, mounted here, so
there is no file server, no network and no emulation.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farmlib import collection, host, image, report, software, starts
from farmlib.machines import DROP_CACHES

WAYS = {"images": "a view with data images", "local": "copy on the local disk"}
ROUNDS = 9
STATES = ("cold", "warm")

#: Seconds by start, way and state: of each round the wall time and the processor time.
Times = dict[tuple[str, str, str], list[tuple[float, float]]]


class Place:
    """Hold the directories of a run. All are in the root file system of the software, where `inside` is their name."""

    def __init__(self, work: Path) -> None:
        self.root = work / "root"
        self.top = self.root / "mnt"
        self.software, self.store, self.view = (self.top / name for name in ("software", "store", "view"))
        self.local, self.state = (self.top / "disk" / name for name in ("local", "state"))

    def inside(self, path: Path) -> str:
        return f"/{path.relative_to(self.root)}"


def prepare(work: Path, root_disk: Path, software_disk: Path) -> Place:
    """Mount the disks, copy the releases, and mount a view with data images of what the starts open."""
    place = Place(work)
    disk = work / "disk"
    for path in (place.root, disk):
        path.mkdir()
    host.run(["mount", "-o", "loop,ro,noload", str(root_disk), str(place.root)])
    host.run(["mount", "-t", "tmpfs", "starts", str(place.top)])
    for path in (place.software, place.store, place.view, place.top / "disk"):
        path.mkdir()
    host.run(["mount", "-o", "loop,ro,noload", str(software_disk), str(place.software)])
    host.run(["mount", "--bind", str(disk), str(place.top / "disk")])
    host.run(["mount", "-t", "proc", "proc", str(place.root / "proc")])
    for release in starts.releases():
        target = place.local / release
        target.parent.mkdir(parents=True, exist_ok=True)
        host.run(["cp", "-a", str(place.software / release), str(target)])
    _mount_view(place)
    return place


def _mount_view(place: Place) -> None:
    releases = starts.releases()
    view = {
        "name": "starts",
        "mountpoint": str(place.view),
        "store": str(place.store),
        "releases": [{"release": release} for release in releases],
        "data": [str(place.software)],
        "image_store": str(place.store / "images"),
        "state_dir": str(place.state),
    }
    (place.store / "images").mkdir()
    common = {"root": str(place.software), "store": str(place.store)}
    _modules(("release_manifest", {**common, "releases": releases}), ("view", {"views": [view]}))
    traced = _modules(*(("access_trace", _trace(place, start)) for start in starts.STARTS))
    found = sorted({release["release"] for trace in traced for release in trace["releases"]})
    image = {**common, "image_store": view["image_store"], "select": "trace"}
    built = _modules(*(("data_image", {**image, "release": release}) for release in found))
    names = ("digest", "bytes_on_disk", "complete")
    locked = [
        {"release": release, "kind": "trace", **{name: values[name] for name in names}}
        for release, values in zip(found, built)
    ]
    _modules(("view", {"views": [{**view, "data_images": "trace", "locked_data_images": locked}]}))


def _environment(root: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": ":".join(f"{root}/{release}/python" for release in starts.releases()),
        "LD_LIBRARY_PATH": ":".join(f"{root}/{release}/lib" for release in starts.releases()),
    }


def _argv(place: Place, root: str, start: str) -> list[str]:
    settings = [f"{name}={value}" for name, value in _environment(root).items()]
    # The search path must not apply to chroot itself, whose libraries are those of this machine.
    argv = ["/usr/bin/env", "-i", *settings, "/usr/bin/python3", "-c", starts.STARTS[start][1]]
    return [str(host.tool_path("chroot")), str(place.root), *argv]


def _trace(place: Place, start: str) -> dict[str, Any]:
    return {
        "path": str(place.view),
        "command": _argv(place, place.inside(place.view), start),
        "user": "root",
        "store": str(place.store),
    }


def _modules(*calls: tuple[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Call modules of the collection on this machine, and return their results in order. Raises FarmError if one fails."""
    return [result.values for result in collection.here(calls)]


def measure(place: Place, rounds: int) -> Times:
    """Start software in both ways in turns, in each round in another order."""
    roots = {"images": place.inside(place.view), "local": place.inside(place.local)}
    found: Times = {}
    for number in range(rounds):
        for start in starts.STARTS:
            for way in random.Random(number).sample(sorted(roots), len(roots)):
                argv = _argv(place, roots[way], start)
                host.run(["sh", "-c", DROP_CACHES])
                # The node's own Python is in memory before each start, as on the farm.
                host.run(["chroot", str(place.root), "/usr/bin/python3", "-c", f"import {starts.OWN_MODULES}"])
                for state in STATES:
                    found.setdefault((start, way, state), []).append(_started(argv))
    return found


def _started(argv: Sequence[str]) -> tuple[float, float]:
    """Start software once. Return wall time and processor time in seconds. Raises FarmError if it fails."""
    began = time.monotonic()
    process = subprocess.Popen(argv, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise host.FarmError(f"{argv[-1]}: exit {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime


# --- The table ---


def table(found: Times) -> tuple[str, bool]:
    """Return the table of what was measured, and whether the bar is met for each start."""
    rounds = len(next(iter(found.values())))
    lines = [
        (
            f"Linux {os.uname().release.partition('-')[0]} on {os.cpu_count()} processors, medians of {rounds} rounds. Seconds of the"
            " start, of them waiting. The ratio is the median of all rounds; the bar is"
            f" {starts.LOCAL_BAR:.2f} for the cold start."
        ),
        "",
        f"| | {WAYS['images']}, cold / warm | {WAYS['local']}, cold / warm | ratio, cold / warm | |",
        "|---|--:|--:|--:|---|",
    ]
    all_met = True
    for start, (title, _statement) in starts.STARTS.items():
        ratios = [statistics.median(_ratios(found, start, state)) for state in STATES]
        met = ratios[0] <= starts.LOCAL_BAR
        all_met = all_met and met
        cells = [" / ".join(_seconds(found[start, way, state]) for state in STATES) for way in WAYS]
        shown = " / ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {title} | {' | '.join(cells)} | {shown} | {'met' if met else 'NOT MET'} |")
    return "\n".join([*lines, ""]), all_met


def _seconds(values: Sequence[tuple[float, float]]) -> str:
    waiting = statistics.median(max(0.0, wall - processor) for wall, processor in values)
    return f"{statistics.median(wall for wall, _ in values):.2f} ({waiting:.2f})"


def _ratios(found: Times, start: str, state: str) -> list[float]:
    pairs = zip(found[start, "images", state], found[start, "local", state], strict=True)
    return [one / another for (one, _), (another, _) in pairs]


# --- The run ---


def run(path: Path, rounds: int, document: Path | None = None) -> bool:
    """Measure, print the table, and write it to the directory `path`, and to `document` if given. Return whether the bar is met."""
    path.mkdir(parents=True, exist_ok=True)
    rows = path / "starts-here.json"
    with host.only_one():
        disks = [str(image.build(newest=False).root), str(software.build())]
    with tempfile.TemporaryDirectory(dir=path) as work:
        argv = [sys.executable, "-m", "farmlib.starts_here", work, *disks, str(rounds), str(rows)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(host.FARM_SOURCE), os.environ.get("PYTHONPATH")])),
        }
        host.run(host.contained(argv, proc=True), env=environment)
    text, met = table({tuple(key): values for *key, values in json.loads(rows.read_text(encoding="utf-8"))})
    print(text)
    (path / "starts-here.md").write_text(text, encoding="utf-8")
    if document is not None:
        report.replace(document, "farm starts here", text)
    return met


def main() -> None:
    work, root_disk, software_disk, rounds, rows = sys.argv[1:]
    place = prepare(Path(work), Path(root_disk), Path(software_disk))
    found = measure(place, int(rounds))
    Path(rows).write_text(json.dumps([[*key, values] for key, values in found.items()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
