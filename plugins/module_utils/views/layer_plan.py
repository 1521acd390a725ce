# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan how a view gets and loses generations, images, and the record of its releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Action,
    Plan,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import id_of


@dataclass(frozen=True)
class RecordReleases(Action):
    view: str

    def __str__(self) -> str:
        return f"record the releases of view {self.view}"


@dataclass(frozen=True)
class ForgetReleases(Action):
    view: str

    def __str__(self) -> str:
        return f"remove the record of the releases of view {self.view}"


@dataclass(frozen=True)
class BuildGeneration(Action):
    generation: str
    #: ``directory`` or ``erofs``.
    format: str

    def __str__(self) -> str:
        return f"build generation {self.generation} ({self.format})"


@dataclass(frozen=True)
class InstallGeneration(Action):
    generation: str
    #: Path of the image that it is installed from.
    image: str

    def __str__(self) -> str:
        return f"install generation {self.generation} from {self.image}"


@dataclass(frozen=True)
class PublishImage(Action):
    image: str

    def __str__(self) -> str:
        return f"build image {self.image}"


@dataclass(frozen=True)
class MakeCurrent(Action):
    #: The generation's folder.
    folder: str
    #: That of the generation that becomes the previous one; None when there was none or it is the same.
    previous: str | None

    def __str__(self) -> str:
        return f"make generation {id_of(self.folder)} current"


@dataclass(frozen=True)
class RemoveView(Action):
    name: str

    def __str__(self) -> str:
        return f"remove all generations of view {self.name}"


@dataclass(frozen=True)
class RemoveGeneration(Action):
    view: str
    folder: str

    def __str__(self) -> str:
        return f"remove generation {id_of(self.folder)} of view {self.view}"


@dataclass(frozen=True)
class RemoveRemains(Action):
    view: str
    path: str

    def __str__(self) -> str:
        return f"remove what a killed run has left at {self.path}"


@dataclass(frozen=True)
class ViewState:
    """What is there of a view: its finished generations, and which of them is current and was before."""

    exists: bool
    #: By the names of their folders, as are the two below.
    generations: frozenset[str]
    current: str | None
    previous: str | None


def plan_layer(folder: str, provide: Action | None, state: ViewState) -> Plan:
    """``provide`` is how a generation that is not there is made; None for one that has to be.

    Raises OverlayError for one that has to be there and is not, as when another run has removed it meanwhile.
    """
    actions: tuple[Action, ...] = ()
    if provide is None and folder not in state.generations:
        raise OverlayError(f"generation {id_of(folder)} is not on this host any more")
    if provide and folder not in state.generations:
        actions += (provide,)
    if folder != state.current:
        actions += (MakeCurrent(folder, state.current),)
    return actions


def plan_view_removal(name: str, state: ViewState, uses: Mapping[str, Sequence[str]]) -> Plan:
    """``uses`` are the reasons why generations are in use, by their folders.

    Raises OverlayError while one of them is.
    """
    if not state.exists:
        return ()
    check_unused(name, uses)
    return (RemoveView(name),)


def check_unused(name: str, uses: Mapping[str, Sequence[str]]) -> None:
    """Raises OverlayError, which tells who uses what, where something of view ``name`` is in use."""
    listed = "; ".join(
        f"generation {id_of(folder)}: {', '.join(reasons)}" for folder, reasons in sorted(uses.items()) if reasons
    )
    if listed:
        raise OverlayError(
            f"view {name} is in use and nothing of it is removed ({listed}): unmount it there and end these processes, then run the task"
            " again"
        )
