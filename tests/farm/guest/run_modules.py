"""Run modules at the same time, each in a process of its own. Runs on a render node, with the collection and Ansible beside this file.

    python3 run_modules.py SECONDS <CALLS   run modules; print a JSON list of what each returned and of the seconds that it took

CALLS is a JSON list of the name of each module and its parameters. A module that has not ended after SECONDS is killed, and returns null.
All modules are imported first, so none waits for that while the others run.
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


def main() -> None:
    seconds, calls = float(sys.argv[1]), json.load(sys.stdin)
    names = [name if "." in name else PREFIX + name for name, _parameters in calls]
    mains = [importlib.import_module(name).main for name in names]
    began = time.monotonic()
    found: list[dict[str, Any]] = [{"result": None, "seconds": seconds} for _call in calls]
    outputs = [b""] * len(calls)
    running = [start(main, parameters) for main, (_name, parameters) in zip(mains, calls)]
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
    for one, (pid, _output) in zip(found, running):
        if one["result"] is None:
            os.kill(pid, signal.SIGKILL)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
