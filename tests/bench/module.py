"""Run a module in a process that imports only what the module does.

    module.py NAME ARGUMENTS

Print as JSON its `outcome` and, as `inside`, the seconds between reading its arguments and returning its outcome.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from contextlib import redirect_stdout, suppress

from ansible.module_utils import basic
from stopwatch import Stopwatch

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import deadline


def main(name: str, arguments: str) -> None:
    inside = Stopwatch(deadline.run)
    setattr(deadline, "run", inside)  # noqa: B010 (mypy knows it as a function)
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": json.loads(arguments)}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
    output = io.StringIO()
    with redirect_stdout(output), suppress(SystemExit):
        importlib.import_module(f"ansible_collections.renderfarm.overlay.plugins.modules.{name}").main()
    print(json.dumps({"inside": inside.seconds, "outcome": json.loads(output.getvalue())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
