# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: the actions that lead from the observed state to the desired one, and the one way to carry them out.

A plan is a tuple of actions. A module reports ``changed`` when its plan is not empty. Check mode makes the plan and does not apply it.
Each room declares the actions of its subject, and a table of handlers that carry them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show


class Action:
    """A step of a plan. Its string is shown to the user."""


Plan = tuple[Action, ...]

#: Maps each type of action to the function that carries it out.
Handlers = Mapping[type[Action], Callable[[Any], None]]


class UnknownActionError(TypeError):
    """An action has no handler, which is a bug in the module that planned it."""


def apply(action: Action, handlers: Handlers) -> None:
    """Carry out an action. Raises UnknownActionError if there is no handler for exactly its type."""
    _handler(action, handlers)(action)


def check_handled(plan: Plan, handlers: Handlers) -> None:
    """Check that every action of a plan can be carried out. Raises UnknownActionError if there is no handler for one of them."""
    for action in plan:
        _handler(action, handlers)


def _handler(action: Action, handlers: Handlers) -> Callable[[Any], None]:
    try:
        return handlers[type(action)]
    except KeyError:
        raise UnknownActionError(f"no handler for {type(action).__name__} ({action})") from None


@dataclass(frozen=True)
class CreateMountpoint(Action):
    """Create a mountpoint and its missing parents."""

    path: bytes

    def __str__(self) -> str:
        return f"create directory {show(self.path)}"


@dataclass(frozen=True)
class RemoveMountpoint(Action):
    """Remove an empty mountpoint."""

    path: bytes

    def __str__(self) -> str:
        return f"remove directory {show(self.path)}"
