"""Start software on a render node, cold and warm, and measure each start. Runs on a render node, with count.py beside it.

    python3 starts.py measure PLAN START ROOT SETUP TEARDOWN   print a row for the cold start and one for the warm start as JSON
    python3 starts.py counters PLAN                            print the calls and bytes so far as JSON

PLAN is a file in JSON: `environment` has the releases on the search paths of the software, and `starts` has a statement for Python by
the name of each start. `own` names modules of the node's own Python, which are in memory before each start. SETUP and TEARDOWN are
shell commands that mount and unmount ROOT. The calls and bytes are those of all NFS mounts, so that a mount that should send nothing is
counted too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import count  # type: ignore[import-not-found]  # beside this file on the node

_COUNTERS = "/sys/class/net/farm0/statistics"


def environment(plan: Mapping[str, Any], root: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": ":".join(f"{root}/{release}/python" for release in plan["environment"]),
        "LD_LIBRARY_PATH": ":".join(f"{root}/{release}/lib" for release in plan["environment"]),
    }


def start(plan: Mapping[str, Any], name: str, root: str) -> dict[str, float]:
    """Start software once. Return the wall time, and the processor time of the process in user mode and in the kernel, in seconds.

    Raises RuntimeError with the errors of the software if it fails.
    """
    argv = ["/usr/bin/python3", "-c", plan["starts"][name]]
    began = time.monotonic()
    process = subprocess.Popen(
        argv, env=environment(plan, root), cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"{argv[-1]}: exit {process.returncode}: {errors.decode(errors='replace').strip()[-400:]}")
    return {
        "seconds": round(seconds, 3),
        "processor": round(used.ru_utime + used.ru_stime, 3),
        "kernel": round(used.ru_stime, 3),
    }


def all_calls() -> dict[str, dict[str, count.Calls]]:
    """Return the calls of each NFS mount by its mountpoint and the operation, when no more are sent.

    Raises RuntimeError if calls are still sent after count.SETTLE_LIMIT seconds.
    """
    end = time.monotonic() + count.SETTLE_LIMIT
    found = _calls()
    while True:
        time.sleep(count.SETTLE)
        before, found = found, _calls()
        if not any(map(count.total, differences(before, found).values())):
            return found
        if time.monotonic() > end:
            raise RuntimeError(f"calls are still sent {count.SETTLE_LIMIT} s after the start: {before} {found}")


def _calls() -> dict[str, dict[str, count.Calls]]:
    with open("/proc/self/mountstats", encoding="utf-8", errors="surrogateescape") as file:
        found: dict[str, dict[str, count.Calls]] = count.parse_mountstats(file.read())
    return found


def differences(
    before: Mapping[str, Mapping[str, count.Calls]], after: Mapping[str, Mapping[str, count.Calls]]
) -> dict[str, dict[str, count.Calls]]:
    """Return the calls between two readings by mountpoint, without mounts that sent none."""
    found = {mountpoint: count.difference(before.get(mountpoint, {}), calls) for mountpoint, calls in after.items()}
    return {mountpoint: calls for mountpoint, calls in found.items() if calls}


def network_bytes() -> int:
    """Return the bytes that this node has sent and received on the farm's network."""
    total = 0
    for name in ("rx_bytes", "tx_bytes"):
        with open(f"{_COUNTERS}/{name}", encoding="ascii") as file:
            total += int(file.read())
    return total


def measure(plan: Mapping[str, Any], name: str, root: str, setup: str, teardown: str) -> list[dict[str, Any]]:
    """Start software cold and warm. Return a row for each, with calls, operations by mountpoint, bytes and seconds."""
    rows = []
    count.script(teardown)
    for _ in range(3):
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3\n")
    count.script(setup)
    try:
        subprocess.run(["/usr/bin/python3", "-c", f"import {plan['own']}"], check=True)
        before, sent = all_calls(), network_bytes()
        for state in ("cold", "warm"):
            used = start(plan, name, root)
            after, sent_after = all_calls(), network_bytes()
            mounts = differences(before, after)
            rows.append(
                {
                    "start": name,
                    "state": state,
                    "calls": sum(map(count.total, mounts.values())),
                    "bytes": sent_after - sent,
                    "operations": {
                        mountpoint: {key: [value.calls, value.errors] for key, value in sorted(calls.items())}
                        for mountpoint, calls in mounts.items()
                    },
                    **used,
                }
            )
            before, sent = after, sent_after
    finally:
        count.script(teardown)
    return rows


def main() -> None:
    action, plan_file, *arguments = sys.argv[1:]
    with open(plan_file, encoding="utf-8") as file:
        plan = json.load(file)
    if action == "counters":
        json.dump({"calls": sum(map(count.total, all_calls().values())), "bytes": network_bytes()}, sys.stdout)
    else:
        json.dump(measure(plan, *arguments), sys.stdout)


if __name__ == "__main__":
    main()
