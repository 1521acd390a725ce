"""Count the NFS calls of a view over one or several software roots. Runs on a render node, with count.py beside it.

    python3 roots.py PLAN VIEW ROOT...   print a row for each piece of work, cold and warm, as JSON

PLAN is a file in JSON: `missing` and `open` have paths in the view, `environment` the releases on the search paths of software, and
`start` a statement for Python. The calls are those of the software roots together. Their directories are kept open, since an automount
that expires takes its counts along.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import count  # type: ignore[import-not-found]  # beside this file on the node

#: A client sends these by itself, independent of the work.
_ON_ITS_OWN = {*count.KEEP_ALIVE, "DELEGRETURN"}


def _calls(roots: Sequence[str]) -> Counter[str]:
    """Return the calls of all software roots by operation, when no more are sent. Raises RuntimeError if they do not end."""
    end = time.monotonic() + count.SETTLE_LIMIT
    found: Counter[str] | None = None
    while time.monotonic() < end:
        with open("/proc/self/mountstats", encoding="utf-8", errors="surrogateescape") as file:
            mounts = count.parse_mountstats(file.read())
        before, found = found, Counter()
        for root in roots:
            found.update({name: sent.calls for name, sent in mounts[root].items() if name not in _ON_ITS_OWN})
        if before == found:
            return found
        time.sleep(count.SETTLE)
    raise RuntimeError(f"calls are still sent after {count.SETTLE_LIMIT} s: {found}")


def measure(plan: dict[str, Any], view: str, roots: Sequence[str]) -> list[dict[str, Any]]:
    works = {"missing": count.work_missing, "open": count.work_open, "start": count.software_start(plan["start"])}
    rows = []
    for name, work in works.items():
        for _ in range(3):
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
                file.write("3\n")
        before = _calls(roots)
        for state in ("cold", "warm"):
            done = work(view, plan)
            after = _calls(roots)
            rows.append(
                {"work": name, "state": state, "done": done, "operations": dict(sorted((after - before).items()))}
            )
            before = after
    return rows


def main() -> None:
    plan_file, view, *roots = sys.argv[1:]
    with open(plan_file, encoding="utf-8") as file:
        plan = json.load(file)
    held = [os.open(root, os.O_RDONLY | os.O_DIRECTORY) for root in roots]
    json.dump(measure(plan, view, roots), sys.stdout)
    for fd in held:
        os.close(fd)


if __name__ == "__main__":
    main()
