"""Switch a view over several software roots many times under readers, as the module `view` does. Runs on a render node.

    python3 switching.py VIEW DIGESTS TIMES   print what the readers found as JSON

The Python path has the collection. VIEW is a file with the declaration of the view in JSON. The view is switched between the two
generations that the node has. DIGESTS is the output of sha256sum for files, relative to the mountpoint, that both generations show. After
each switch, the next one waits until each reader has opened some more files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import host_view, view_parameters, view_roots
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mountinfo, namespaces
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan, apply
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import no_progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import mounting, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths

READERS = 2
#: Files that each reader opens between two switches, at least.
OPENS = 10
LIMIT = 60  # seconds for a reader to do that
FAULTS_SHOWN = 5
_WORD = struct.Struct("<q")


class Shared:
    """The counts of the readers, and whether they have to end, in memory that all processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def get(self, place: int) -> int:
        return int(_WORD.unpack_from(self._memory, place * _WORD.size)[0])

    def set(self, place: int, value: int) -> None:
        _WORD.pack_into(self._memory, place * _WORD.size, value)


#: Where the memory says that the readers have to end. The places before it have the opens of each reader.
STOP = READERS


def read(number: int, top: str, digests: Sequence[tuple[str, str]], shared: Shared) -> dict[str, Any]:
    """Open files at random until told to stop. Return the faults, and how many opens failed or gave another file."""
    chance = random.Random(number)
    found: dict[str, Any] = {"failed": 0, "wrong": 0, "faults": []}
    while not shared.get(STOP):
        digest, path = chance.choice(digests)
        try:
            with open(f"{top}/{path}", "rb") as file:
                if hashlib.sha256(file.read()).hexdigest() != digest:
                    found["wrong"] += 1
                    found["faults"].append(path)
        except OSError as error:
            found["failed"] += 1
            found["faults"].append(str(error))
        shared.set(number, shared.get(number) + 1)
    return {**found, "opens": shared.get(number), "faults": found["faults"][:FAULTS_SHOWN]}


def _started(number: int, top: str, digests: Sequence[tuple[str, str]], shared: Shared) -> tuple[int, int]:
    """Start a reader. Return its process, and the descriptor to read its result from."""
    result, given = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(given, json.dumps(read(number, top, digests, shared)).encode())
        finally:
            os._exit(0)
    os.close(given)
    return child, result


def _wait_for_readers(shared: Shared) -> None:
    wanted = [shared.get(number) + OPENS for number in range(READERS)]
    end = time.monotonic() + LIMIT
    while any(shared.get(number) < opens for number, opens in enumerate(wanted)):
        if time.monotonic() > end:
            raise RuntimeError(f"a reader has not opened {OPENS} files within {LIMIT} s")
        time.sleep(0.005)


def _carry_out(plan: Plan, handlers: Handlers) -> None:
    for action in plan:
        apply(action, handlers)


def switch(view: Mapping[str, Any], paths: ViewPaths, directory: str) -> str:
    """Switch the view to a generation, given the name of its directory, and return the method."""
    generation = view_state.read_generation(paths, directory)
    path = os.fsencode(view["mountpoint"])
    live = mountinfo.top_mount(namespaces.own_mounts(), path)
    roots = view_roots.mount_parameters(view["roots"], generation.releases)
    params = host_view.mount_parameters({**view, **roots}, paths, directory, live)
    _task, report = mounting.bring(path, params, False, LIMIT, no_progress, _carry_out)
    return str(report.values["method"])


def main() -> None:
    view_file, digests_file, times = sys.argv[1:]
    with open(view_file, encoding="utf-8") as file:
        defaults = {name: option.get("default") for name, option in view_parameters.options().items()}
        view = {**defaults, **json.load(file)}
    with open(digests_file, encoding="utf-8") as file:
        digests = [(digest, path) for digest, path in (line.rstrip("\n").split("  ", 1) for line in file)]
    paths = ViewPaths.of(view["state_dir"], view["name"])
    state = view_state.observe(paths)
    [other] = set(state.generations) - {state.current}
    shared = Shared()
    readers = [_started(number, view["mountpoint"], digests, shared) for number in range(READERS)]
    began = time.monotonic()
    methods = []
    try:
        for turn in range(int(times)):
            _wait_for_readers(shared)
            methods.append(switch(view, paths, str(state.current) if turn % 2 else other))
        _wait_for_readers(shared)
    finally:
        shared.set(STOP, 1)
    found = []
    for child, result in readers:
        with open(result, "rb") as file:
            found.append(json.loads(file.read()))
        os.waitpid(child, 0)
    json.dump({"methods": methods, "readers": found, "seconds": round(time.monotonic() - began, 1)}, sys.stdout)


if __name__ == "__main__":
    main()
