"""Every action has a handler, and an action without one is an error before anything is changed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ansible_collections.renderfarm.overlay.plugins.module_utils.at_boot import boot
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import action
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Action,
    CreateMountpoint,
    Handlers,
    RemoveMountpoint,
    UnknownActionError,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.overlays import mounts
from ansible_collections.renderfarm.overlay.plugins.module_utils.runner import Context
from ansible_collections.renderfarm.overlay.plugins.module_utils.software_root import nfs_mount


@dataclass(frozen=True)
class CreateSpecialMountpoint(CreateMountpoint):
    """An action without a handler, although its base class has one."""


@pytest.mark.parametrize("handlers", [{}, mounts.HANDLERS, boot.HANDLERS, nfs_mount.handlers(1.0)])
def test_an_unknown_action_is_an_error(handlers: Handlers) -> None:
    with pytest.raises(UnknownActionError, match=r"^no handler for CreateSpecialMountpoint \(create directory /x\)$"):
        action.apply(CreateSpecialMountpoint(b"/x"), handlers)


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_plan_with_an_unknown_action_is_refused_before_anything_is_done(check_mode: bool) -> None:
    done: list[Action] = []
    context = Context(check_mode, lambda: None, 1.0, note=None)  # type: ignore[arg-type]
    plan = (CreateMountpoint(b"/x"), CreateSpecialMountpoint(b"/y"))
    with pytest.raises(UnknownActionError):
        context.carry_out(plan, {CreateMountpoint: done.append})
    assert done == []


def test_actions_are_carried_out_in_order() -> None:
    done: list[Action] = []
    context = Context(False, lambda: None, 1.0, note=None)  # type: ignore[arg-type]
    plan = (CreateMountpoint(b"/x"), RemoveMountpoint(b"/x"))
    context.carry_out(plan, {CreateMountpoint: done.append, RemoveMountpoint: done.append})
    assert done == list(plan)
