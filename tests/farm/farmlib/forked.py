"""Run modules on a node in processes that one Python forks. Starting Python for each takes an emulated processor seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible

from farmlib import host
from farmlib.machines import Machine

_PROGRAM = "run_modules.py"


@dataclass(frozen=True)
class Ended:
    """Hold what a module returned, None if it did not end, and the seconds that it took."""

    result: Mapping[str, Any] | None
    seconds: float

    @property
    def message(self) -> str:
        return str((self.result or {}).get("msg", ""))


def install(machine: Machine, directory: str) -> None:
    """Copy this checkout's modules, and what they import of Ansible, to a directory of a machine."""
    machine.copy(host.FARM_SOURCE / "guest" / _PROGRAM, f"{directory}/{_PROGRAM}")
    machine.copy(host.CHECKOUT / "plugins", f"{directory}/ansible_collections/renderfarm/overlay/plugins")
    [source] = ansible.__path__
    for name in ("module_utils", "modules/setup.py"):
        machine.copy(Path(source, name), f"{directory}/ansible/{name}")
    # As Ansible makes it for a module.
    machine.write(f"{directory}/ansible/__init__.py", f"__version__ = {ansible.__version__!r}\n__author__ = ''\n")


def at_once(
    machine: Machine, directory: str, calls: Sequence[tuple[str, Mapping[str, Any]]], longest: int
) -> list[Ended]:
    """Run modules at the same time, and return what they ended with, in order. One that takes more than `longest` seconds is killed."""
    return _run(machine, directory, "at-once", calls, longest, longest)


def in_turn(
    machine: Machine, directory: str, calls: Sequence[tuple[str, Mapping[str, Any]]], longest: int
) -> list[Ended]:
    """Run one module after another, until one fails, and return what they ended with, in order.

    One that takes more than `longest` seconds is killed.
    """
    return _run(machine, directory, "in-turn", calls, longest, longest * len(calls))


def _run(
    machine: Machine,
    directory: str,
    order: str,
    calls: Sequence[tuple[str, Mapping[str, Any]]],
    longest: int,
    altogether: int,
) -> list[Ended]:
    argv = ["python3", "-W", "ignore", f"{directory}/{_PROGRAM}", order, str(longest)]
    printed = machine.output(argv, stdin=json.dumps(list(calls)), timeout=altogether + 75)
    return [Ended(**one) for one in json.loads(printed)]
