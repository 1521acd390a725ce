# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan how a view gets and loses generations, images, and the record of its releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import (
    Action,
    Plan,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import generation_of


@dataclass(frozen=True)
class RecordReleases(Action):
    """Record which releases a view declares, and which are leaving it."""

    view: str

    def __str__(self) -> str:
        return f"record the releases of view {self.view}"


@dataclass(frozen=True)
class ForgetReleases(Action):
    """Remove the record of the releases of a view."""

    view: str

    def __str__(self) -> str:
        return f"remove the record of the releases of view {self.view}"


@dataclass(frozen=True)
class BuildGeneration(Action):
    """Build a generation from manifests."""

    #: The ID of the generation.
    generation: str
    #: The name of the layer's format.
    format: str

    def __str__(self) -> str:
        return f"build generation {self.generation} ({self.format})"


@dataclass(frozen=True)
class InstallGeneration(Action):
    """Copy a generation from an image store."""

    #: The ID of the generation.
    generation: str
    #: The path of the image in the image store.
    image: str

    def __str__(self) -> str:
        return f"install generation {self.generation} from {self.image}"


@dataclass(frozen=True)
class PublishImage(Action):
    """Build an image in an image store."""

    image: str

    def __str__(self) -> str:
        return f"build image {self.image}"


@dataclass(frozen=True)
class MakeCurrent(Action):
    """Make a generation the current one."""

    #: The name of the generation's directory.
    directory: str
    #: The directory of the generation that is current until now; None if there is none.
    previous: str | None

    def __str__(self) -> str:
        return f"make generation {generation_of(self.directory)} current"


@dataclass(frozen=True)
class RemoveView(Action):
    """Remove a view with all of its generations."""

    name: str

    def __str__(self) -> str:
        return f"remove all generations of view {self.name}"


@dataclass(frozen=True)
class RemoveGeneration(Action):
    """Remove one generation."""

    view: str
    #: The name of the generation's directory.
    directory: str

    def __str__(self) -> str:
        return f"remove generation {generation_of(self.directory)} of view {self.view}"


@dataclass(frozen=True)
class RemoveRemains(Action):
    """Remove a file or directory that a killed run has left."""

    view: str
    path: str

    def __str__(self) -> str:
        return f"remove what a killed run has left at {self.path}"


@dataclass(frozen=True)
class ViewState:
    """What exists of a view on this host."""

    #: Whether the view has a directory.
    exists: bool
    #: The names of the directories of finished generations.
    generations: frozenset[str]
    #: The directories of the current and of the previous generation.
    current: str | None
    previous: str | None
    #: Maps the directories of generations whose record is damaged to what is wrong with it.
    damaged: Mapping[str, str] = field(default_factory=dict)

    def check_undamaged(self, directory: str) -> None:
        """Check that the generation in a directory has a usable record, or none. Raises OverlayError if its record is damaged."""
        if directory in self.damaged:
            raise OverlayError(self.damaged[directory])


def plan_layer(directory: str, provide: Action | None, state: ViewState) -> Plan:
    """Plan how the generation in a directory gets there and becomes the current one.

    ``provide`` is the action that makes a missing generation; None if the generation has to be there. Raises OverlayError if it has to be
    there and is missing, as when another run has just removed it, or if its record is damaged.
    """
    state.check_undamaged(directory)
    actions: tuple[Action, ...] = ()
    if directory not in state.generations:
        if provide is None:
            raise OverlayError(
                f"generation {generation_of(directory)} is no longer on this host: another run has removed it; run the task again"
            )
        actions += (provide,)
    if directory != state.current:
        actions += (MakeCurrent(directory, state.current),)
    return actions


def plan_view_removal(name: str, state: ViewState, uses: Mapping[str, Sequence[str]]) -> Plan:
    """Plan how the view ``name`` is removed.

    ``uses`` maps the directory of each generation to the reasons why it is in use. Raises OverlayError if one is in use.
    """
    if not state.exists:
        return ()
    check_unused(name, uses)
    return (RemoveView(name),)


def check_unused(name: str, uses: Mapping[str, Sequence[str]]) -> None:
    """Check that nothing of the view ``name`` is in use. Raises OverlayError with the reasons if something is."""
    listed = "; ".join(
        f"generation {generation_of(directory)}: {', '.join(reasons)}"
        for directory, reasons in sorted(uses.items())
        if reasons
    )
    if listed:
        raise OverlayError(
            f"view {name} is in use and nothing of it is removed ({listed}): unmount it there and end these processes, then run the task"
            " again"
        )
