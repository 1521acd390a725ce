"""Check mode of finalizing: a single place decides whether changes are made, and every decision has a change."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

from ansible_collections.renderfarm.overlay.plugins.module_utils import finalize
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.copy_up import CHANGES
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.decisions import Decision, LeaveAlone

ROOM = Path(finalize.__path__[0])


def test_check_mode_is_looked_at_once() -> None:
    looks = [
        f"{path.name}:{node.lineno}"
        for path in sorted(ROOM.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "check_mode"
    ]
    assert [look.partition(":")[0] for look in looks] == ["passes.py"], looks


def test_every_decision_but_to_leave_an_entry_alone_is_carried_out() -> None:
    assert {*CHANGES, LeaveAlone} == set(get_args(Decision))
