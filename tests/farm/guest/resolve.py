"""Count the NFS calls of a resolve with rez. Runs on a render node, with rez in the directory `rez` beside this file.

    python3 resolve.py REPOSITORY MOUNTPOINT CONTEXT PACKAGE   resolve cold and warm, and print the counts as JSON

The caches of MOUNTPOINT must be cold at the start. CONTEXT is a path to which the resolved context is copied.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import count  # type: ignore[import-not-found]  # beside this file on the node

REZ = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rez")
REZ_ENV = ("/usr/bin/python3", "-c", "from rez.cli._entry_points import run_rez_env; run_rez_env()")


def rez_env(repository: str, package: str, command: Sequence[str]) -> None:
    """Run a command in an environment of a package. Raises RuntimeError with the errors of rez if it fails.

    All caches of rez have their defaults: there is no memcached, and no cache of packages on local disks.
    """
    environment = {
        "HOME": "/nonexistent",
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": REZ,
        "REZ_DISABLE_HOME_CONFIG": "1",
        "REZ_DEFAULT_SHELL": "bash",
        "REZ_PACKAGES_PATH": repository,
    }
    argv = [*REZ_ENV, package, "--", *command]
    done = subprocess.run(argv, env=environment, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"rez-env {package} -- {' '.join(command)}: {done.stderr.strip()[-800:]}")


def calls(repository: str, mountpoint: str, context: str, package: str) -> list[dict[str, Any]]:
    """Return the calls of `rez-env PACKAGE -- COMMAND`, cold and warm. The second command keeps the context."""
    rows = []
    before = count.settled_calls(mountpoint)
    for state, command in (("cold", ["true"]), ("warm", ["sh", "-c", f'cp "$REZ_RXT_FILE" {context}'])):
        rez_env(repository, package, command)
        after = count.settled_calls(mountpoint)
        found, before = count.difference(before, after), after
        operations = {name: [of.calls, of.errors] for name, of in sorted(found.items()) if name not in count.KEEP_ALIVE}
        rows.append({"state": state, "calls": count.total(found), "operations": operations})
    return rows


if __name__ == "__main__":
    json.dump(calls(*sys.argv[1:]), sys.stdout)
