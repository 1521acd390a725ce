"""Share the modules that Ansible packs between all its runs with one home directory, as a part of sitecustomize.py.

Ansible packs a module with its module_utils once in each run, and took a sixth of the processor time of a deployment for that. It keeps
the packed modules in a directory of the run, which is replaced here by a link to one directory.
"""

from __future__ import annotations

import os
import sys

#: The directory, below the home directory. Whoever changes modules has to empty it.
DIRECTORY = ".ansible/packed-modules"


def _share() -> None:
    import tempfile

    make = tempfile.mkdtemp

    def mkdtemp(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:  # noqa: A002
        made = make(suffix, prefix, dir)
        if prefix and prefix.startswith("ansible-local-"):
            kept = os.path.join(os.path.expanduser("~"), DIRECTORY)
            os.makedirs(kept, mode=0o700, exist_ok=True)
            os.symlink(kept, os.path.join(made, "ansiballz_cache"))
        return made

    tempfile.mkdtemp = mkdtemp  # type: ignore[assignment]


if any(os.path.basename(argument) in ("ansible", "ansible-playbook") for argument in getattr(sys, "orig_argv", [])[:3]):
    _share()
