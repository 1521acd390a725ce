"""Count the NFS calls that this client sends for a fixed set of work. Runs on a render node with the standard library only.

    python3 count.py plan ROOT                     choose the work from a tree, once, and print it as JSON
    python3 count.py measure PLAN --root VIEW ...  do the work, cold and warm, and print the counts as JSON

The counts come from /proc/self/mountstats (Documentation/filesystems/nfs, fs/nfs/super.c: statvers 1.1).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MISSING_NAMES, MISSING_DIRECTORIES = 5000, 40
STATS = 5000
OPENS, OPEN_LIMIT = 200, 1 << 20
ATTRIBUTES_EXPIRE = 4  # seconds; the default of acregmin is 3
SETTLE, SETTLE_LIMIT = 0.25, 30  # seconds without an ended call that count as settled, and the time limit for that

STARTS = {
    "start-usd": "from pxr import Usd",
    "start-qt": "import PySide6.QtCore",
    "start-numpy": "import numpy",
}
# A session sends these by itself, independent of the work.
KEEP_ALIVE = frozenset({"SEQUENCE", "RENEW"})


# --- Reading /proc/self/mountstats ---


@dataclass(frozen=True)
class Calls:
    calls: int
    errors: int


def parse_mountstats(text: str) -> dict[str, dict[str, Calls]]:
    """Return the calls and errors of each operation, for each NFS mount by its mountpoint."""
    mounts: dict[str, dict[str, Calls]] = {}
    current: dict[str, Calls] | None = None
    in_operations = False
    for line in text.splitlines():
        if line.startswith("device "):
            current, in_operations = None, False
            mountpoint, filesystem = _device(line)
            if filesystem in ("nfs", "nfs4"):
                current = mounts[mountpoint] = {}
        elif line.strip() == "per-op statistics":
            in_operations = True
        elif in_operations and current is not None and ":" in line:
            name, _, numbers = line.strip().partition(":")
            fields = numbers.split()
            # The ninth number, the calls that ended in an error, exists since Linux 5.3.
            current[name] = Calls(int(fields[0]), int(fields[8]) if len(fields) > 8 else 0)
    return mounts


def _device(line: str) -> tuple[str, str]:
    """Return mountpoint and type from a line `device SOURCE mounted on MOUNTPOINT with fstype TYPE [statvers=…]`."""
    _, _, rest = line.partition(" mounted on ")
    mountpoint, _, filesystem = rest.rpartition(" with fstype ")
    return _unescaped(mountpoint), filesystem.split(" ")[0]


def _unescaped(name: str) -> str:
    for octal, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        name = name.replace(octal, plain)
    return name


def difference(before: Mapping[str, Calls], after: Mapping[str, Calls]) -> dict[str, Calls]:
    """Return the calls between two readings of one mount, without operations that were not sent."""
    none = Calls(0, 0)
    found = {}
    for name, now in after.items():
        then = before.get(name, none)
        if now.calls != then.calls:
            found[name] = Calls(now.calls - then.calls, now.errors - then.errors)
    return found


def total(calls: Mapping[str, Calls]) -> int:
    return sum(count.calls for name, count in calls.items() if name not in KEEP_ALIVE)


# --- The work ---


def make_plan(root: str) -> dict[str, Any]:
    """Choose names below `root`. Return the same names for the same tree."""
    chance = random.Random("renderfarm")
    directories, files, small = [], [], []
    for base, subdirectories, names in os.walk(root):
        subdirectories.sort()
        relative = os.path.relpath(base, root)
        if relative.count("/") >= 1:
            directories.append(relative)
        for name in sorted(names):
            path = os.path.join(base, name)
            if not os.path.islink(path):
                files.append(os.path.relpath(path, root))
                if 0 < os.path.getsize(path) <= OPEN_LIMIT:
                    small.append(files[-1])
    each = MISSING_NAMES // MISSING_DIRECTORIES
    return {
        "missing": [
            f"{directory}/absent-{number}.so"
            for directory in chance.sample(directories, MISSING_DIRECTORIES)
            for number in range(each)
        ],
        "stat": chance.sample(files, min(STATS, len(files))),
        "open": chance.sample(small, OPENS),
        "entries": len(files),
    }


def work_missing(root: str, plan: Mapping[str, Any]) -> str:
    found = 0
    for name in plan["missing"]:
        try:
            os.stat(f"{root}/{name}")
        except FileNotFoundError:
            found += 1
    return f"{found} missing"


def work_stat(root: str, plan: Mapping[str, Any]) -> str:
    return f"{sum(os.stat(f'{root}/{name}').st_size for name in plan['stat'])} bytes"


def work_open(root: str, plan: Mapping[str, Any]) -> str:
    read = 0
    for name in plan["open"]:
        with open(f"{root}/{name}", "rb") as file:
            read += len(file.read())
    return f"{read} bytes"


def work_later(root: str, plan: Mapping[str, Any]) -> str:
    """Stat and open the files of `open` again, after attributes with the default lifetime have expired."""
    time.sleep(ATTRIBUTES_EXPIRE)
    return f"{sum(os.stat(f'{root}/{name}').st_size for name in plan['open'])}, {work_open(root, plan)}"


def work_readdir(root: str, _plan: Mapping[str, Any]) -> str:
    """List every name and its type without a stat, as `find` does."""
    entries = 0
    directories = [root]
    while directories:
        with os.scandir(directories.pop()) as listing:
            for entry in listing:
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
    return f"{entries} entries"


def software_start(statement: str) -> Callable[[str, Mapping[str, Any]], str]:
    def work(root: str, plan: Mapping[str, Any]) -> str:
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": ":".join(f"{root}/{release}/python" for release in plan["environment"]),
            "LD_LIBRARY_PATH": ":".join(f"{root}/{release}/lib" for release in plan["environment"]),
        }
        done = subprocess.run(
            ["/usr/bin/python3", "-c", statement], env=environment, cwd="/", capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{statement}: {done.stderr.strip()[-400:]}")
        return statement

    return work


WORKS: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
    "missing": work_missing,
    "stat": work_stat,
    "open": work_open,
    "later": work_later,
    "readdir": work_readdir,
    **{name: software_start(statement) for name, statement in STARTS.items()},
}


# --- Measuring ---


def mount_calls(mountpoint: str) -> dict[str, Calls]:
    with open("/proc/self/mountstats", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountstats(file.read())[mountpoint]


def settled_calls(mountpoint: str) -> dict[str, Calls]:
    """Wait until no more calls are sent, and return the counts. Nothing waits for a CLOSE, so some calls follow the work.

    Raises RuntimeError if calls are still sent after SETTLE_LIMIT seconds.
    """
    end = time.monotonic() + SETTLE_LIMIT
    found = mount_calls(mountpoint)
    while True:
        time.sleep(SETTLE)
        before, found = found, mount_calls(mountpoint)
        if total(before) == total(found):
            return found
        if time.monotonic() > end:
            raise RuntimeError(f"{mountpoint}: calls are still sent {SETTLE_LIMIT} s after the work: {before} {found}")


def script(text: str) -> None:
    done = subprocess.run(["/bin/sh", "-eu"], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {text.strip()}\n{done.stdout}{done.stderr}")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    with open(options.plan, encoding="utf-8") as file:
        plan = json.load(file)
    rows = []
    for name in options.work:
        script(options.teardown)
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3\n")
        script(options.setup)
        try:
            before = settled_calls(options.nfs)
            for state in ("cold", "warm"):
                began = time.monotonic()
                done = WORKS[name](options.root, plan)
                seconds = time.monotonic() - began
                after = settled_calls(options.nfs)
                calls, before = difference(before, after), after
                rows.append(
                    {
                        "work": name,
                        "state": state,
                        "done": done,
                        "seconds": round(seconds, 2),
                        "calls": total(calls),
                        "operations": {key: [count.calls, count.errors] for key, count in sorted(calls.items())},
                    }
                )
        finally:
            script(options.teardown)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    planning = actions.add_parser("plan")
    planning.add_argument("root")
    measuring = actions.add_parser("measure")
    measuring.add_argument("plan")
    measuring.add_argument("--root", required=True, help="the tree that applications see")
    measuring.add_argument("--nfs", required=True, help="mountpoint of the NFS mount whose calls to count")
    measuring.add_argument("--setup", required=True, help="shell commands that mount")
    measuring.add_argument("--teardown", required=True, help="shell commands that unmount everything")
    measuring.add_argument(
        "--work", nargs="+", choices=list(WORKS), default=[name for name in WORKS if name != "later"]
    )
    options = parser.parse_args()
    json.dump(make_plan(options.root) if options.action == "plan" else measure(options), sys.stdout)


if __name__ == "__main__":
    main()
