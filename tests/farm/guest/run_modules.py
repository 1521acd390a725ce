"""Run modules, each in a process of its own. Runs on a render node, with the collection and Ansible beside this file.

    python3 run_modules.py at-once SECONDS <CALLS   run modules at the same time
    python3 run_modules.py in-turn SECONDS <CALLS   run one module after the other, until one fails

CALLS is a JSON list of the name of each module and its parameters. Prints a JSON list of what each returned and of the seconds that it
took. A module that has not ended after SECONDS is killed, and returns null. All modules are imported first, so none waits for that while
the others run.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import sys
import time
from typing import Any

PREFIX = "ansible_collections.renderfarm.overlay.plugins.modules."


def start(main: Any, parameters: dict[str, Any]) -> tuple[int, int]:
    """Start a module; return its PID, and a descriptor of its output."""
    basic: Any = importlib.import_module("ansible.module_utils.basic")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.close(writing)
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
        # As Ansible gives them to a module in one file.
        basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": parameters}).encode()
        basic._ANSIBLE_PROFILE = "legacy"
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def result(output: bytes) -> Any:
    """Return what a module printed; its output as text if that is no result."""
    lines = [line for line in output.splitlines() if line.startswith(b"{")]
    return json.loads(lines[-1]) if lines else {"failed": True, "msg": output.decode("utf-8", "replace")}


def run(calls: list[tuple[Any, dict[str, Any]]], seconds: float) -> list[dict[str, Any]]:
    """Run modules at the same time, given the function of each and its parameters."""
    began = time.monotonic()
    found: list[dict[str, Any]] = [{"result": None, "seconds": seconds} for _call in calls]
    outputs = [b""] * len(calls)
    running = [start(function, parameters) for function, parameters in calls]
    with selectors.DefaultSelector() as readable:
        for number, (_pid, output) in enumerate(running):
            readable.register(output, selectors.EVENT_READ, number)
        while readable.get_map() and time.monotonic() < began + seconds:
            for key, _events in readable.select(1):
                part = os.read(key.fd, 1 << 16)
                outputs[key.data] += part
                if not part:
                    # A module has ended when everything that it started has closed its output.
                    readable.unregister(key.fd)
                    found[key.data] = {"result": result(outputs[key.data]), "seconds": time.monotonic() - began}
    for one, (pid, output) in zip(found, running):
        os.close(output)
        if one["result"] is None:
            # It is not waited for, because it may hang in the kernel.
            os.kill(pid, signal.SIGKILL)
        else:
            os.waitpid(pid, 0)
    return found


def main() -> None:
    order, seconds, calls = sys.argv[1], float(sys.argv[2]), json.load(sys.stdin)
    named = [(name if "." in name else PREFIX + name, parameters) for name, parameters in calls]
    functions = [(importlib.import_module(name).main, parameters) for name, parameters in named]
    found: list[dict[str, Any]] = []
    for batch in [functions] if order == "at-once" else [[one] for one in functions]:
        found += run(batch, seconds)
        if order == "in-turn" and (found[-1]["result"] or {"failed": True}).get("failed"):
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main()
