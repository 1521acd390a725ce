# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove old images from an image store."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.deadline import Progress
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement import stored_images
from ansible_collections.renderfarm.overlay.plugins.module_utils.retirement.retire_plan import RemoveStoredImage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import image_store, usage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.retention import (
    Candidate,
    Retention,
    RetentionRules,
)


@dataclass(frozen=True)
class StorePruning:
    """What is to be removed from an image store, and what is kept."""

    decided: tuple[Retention, ...]

    @property
    def plan(self) -> Plan:
        """The actions that remove images."""
        return tuple(
            RemoveStoredImage(one.candidate.directory, "since no host needs it")
            for one in self.decided
            if one.reason is None
        )

    def values(self) -> dict[str, Any]:
        """Return the return values of the module."""
        removed = [one.candidate for one in self.decided if one.reason is None]
        return {
            "removed": [{"generation": one.directory, "bytes": one.bytes} for one in removed],
            "kept": [
                {"generation": one.candidate.directory, "reason": one.reason}
                for one in self.decided
                if one.reason is not None
            ],
            "bytes_freed": sum(one.bytes for one in removed),
        }


def observe(store: str, needed: Collection[str], keep: int, min_age: float, progress: Progress) -> StorePruning:
    """Return what can be removed from a store.

    ``needed`` are the IDs of generations whose images stay. So do the ``keep`` newest ones, those that are younger than ``min_age``
    seconds, and those in use on this host. Raises OverlayError if there is no store.
    """
    image_store.check_store(store, None)
    found = []
    for image in stored_images.stored_images(store):
        found.append(image)
        progress()
    paths = {image.generation.id: image_store.image_path(store, image.generation.id) for image in found}
    in_use = usage.of_images([path for one, path in paths.items() if one not in needed])
    candidates = []
    for image in found:
        generation = image.generation
        if generation.image is None:
            raise OverlayError(f"{paths[generation.id]} is not recorded as an image: remove it and its record")
        reasons = ["a host or a lock needs it"] if generation.id in needed else in_use[paths[generation.id]]
        size = (generation.image.packed or generation.image).bytes + sum(one.bytes for one in generation.image.deltas)
        candidates.append(Candidate(generation.id, image.written, size, tuple(reasons)))
    rules = RetentionRules(None, None, keep, min_age)
    return StorePruning(tuple(rules.decide(candidates, time.time())))


def handlers(store: str) -> Handlers:
    """Return the handlers that carry out the plan."""
    return {RemoveStoredImage: lambda action: stored_images.remove(store, action.generation)}
