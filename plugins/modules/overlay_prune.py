#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_prune
short_description: Remove generations of views that nobody needs any more
version_added: 0.1.0
description:
  - Removes the layers of earlier generations from this host, and what killed runs have left of views.
  - A generation stays when it is the current or the previous one, when it is mounted in any mount namespace, when a process still uses an
    overlay of it that was switched away, when it is mounted at boot, when it is among the O(keep) newest, or when it is younger than
    O(min_age).
  - Where a process uses an overlay that somebody has detached by hand (C(umount --lazy)), nobody can tell which layers that has. All
    generations stay then, until the process ends; the reason names it.
  - Nothing on the file server is touched, neither manifests nor image stores.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.state_dir
options:
  name:
    description: Name of the view. All views on this host when it is left out.
    type: str
  keep:
    description: How many of the newest generations of each view stay, the current and the previous one counted.
    type: int
    default: 3
  min_age:
    description: Seconds for which a generation has to have been on this host before it is removed.
    type: float
    default: 3600.0
seealso:
  - module: renderfarm.overlay.metadata_layer
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Keep the five newest generations of each view, and those of the last day
  renderfarm.overlay.overlay_prune:
    keep: 5
    min_age: 86400

- name: Keep nothing but what is current, was before, or is in use
  renderfarm.overlay.overlay_prune:
    name: software
    keep: 0
    min_age: 0
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [remove generation 1b90e5a07c3d4e21 of view software]
removed:
  description: The generations that were removed, or in check mode would be.
  type: list
  elements: dict
  returned: success
  contains:
    view:
      description: Name of the view.
      type: str
      sample: software
    generation:
      description: Name of the generation.
      type: str
      sample: 1b90e5a07c3d4e21
    format:
      description: Format of its layer.
      type: str
      sample: erofs
    bytes:
      description: Room that its layer took, besides inodes.
      type: int
      sample: 5242880
kept:
  description: The generations that stay.
  type: list
  elements: dict
  returned: success
  contains:
    view:
      description: Name of the view.
      type: str
      sample: software
    generation:
      description: Name of the generation.
      type: str
      sample: 4ff24b6d8e0c11a7
    format:
      description: Format of its layer.
      type: str
      sample: erofs
    reason:
      description: Why it stays.
      type: str
      sample: it is used by houdini-bin (4711)
remains:
  description: Paths of what killed runs had left, and was removed, or in check mode would be.
  type: list
  elements: str
  returned: success
  sample: [/var/lib/renderfarm-overlay/views/software/staging]
bytes_freed:
  description: Room that was freed, or in check mode would be, in bytes, besides inodes and what killed runs had left.
  type: int
  returned: success
  sample: 5242880
"""

import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Action, Plan
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import generations, pruning, removal, usage
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.generation import ViewPaths
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.layer_plan import RemoveGeneration, RemoveRemains
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.retention import Candidate


def main() -> None:
    runner.run(
        {
            "name": {"type": "str"},
            "state_dir": runner.STATE_DIR,
            "keep": {"type": "int", "default": 3},
            "min_age": {"type": "float", "default": 3600.0},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    runner.check_absolute(params["state_dir"], "state_dir")
    for option in ("keep", "min_age"):
        if params[option] < 0:
            raise OverlayError(f"{option} must not be negative, and is {params[option]:g}")
    wanted = params["name"]
    names = pruning.view_names(params["state_dir"]) if wanted is None else [wanted]
    outcome = _Outcome()
    for name in names:
        paths = ViewPaths.of(params["state_dir"], name)
        if not os.path.isdir(paths.root):
            continue
        if context.check_mode:
            _prune(paths, name, params, context, outcome)
        else:
            with generations.locked(paths, context.timeout, context.progress):
                _prune(paths, name, params, context, outcome)
    return outcome.finished()


class _Outcome:
    """What was found and done, over all views."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.removed: list[dict[str, Any]] = []
        self.kept: list[dict[str, Any]] = []
        self.remains: list[str] = []

    def finished(self) -> runner.Outcome:
        values = {
            "removed": self.removed,
            "kept": self.kept,
            "remains": self.remains,
            "bytes_freed": sum(one["bytes"] for one in self.removed),
        }
        before = sorted(_line(one) for one in (*self.removed, *self.kept))
        after = sorted(_line(one) for one in self.kept)
        shown = {"generations": before, "remains": self.remains}
        return runner.Outcome(values, tuple(self.actions), shown, {"generations": after, "remains": []})


def _line(generation: dict[str, Any]) -> str:
    return f"{generation['view']}: {generation['generation']} ({generation['format']})"


def _prune(paths: ViewPaths, name: str, params: dict[str, Any], context: runner.Context, outcome: _Outcome) -> None:
    state = generations.observe(paths)
    uses = usage.of_generations(paths, forget=not context.check_mode)
    if not context.check_mode and removal.restore_used(paths, uses):
        state = generations.observe(paths)
    found = pruning.verdicts(paths, state, uses, params["keep"], params["min_age"])
    for verdict in found:
        if verdict.reason is not None:
            outcome.kept.append({**_described(name, verdict.candidate), "reason": verdict.reason})
    by_folder = {verdict.candidate.folder: verdict.candidate for verdict in found if verdict.reason is None}
    remains = pruning.remains(paths, state, uses, params["min_age"])
    plan: Plan = (
        # First, since what is left of an earlier removal is where generations are put aside.
        *(RemoveRemains(name, path) for path in remains),
        *(RemoveGeneration(name, folder) for folder in by_folder),
    )
    done = list(plan)

    def remove(action: RemoveGeneration) -> None:
        reason = removal.remove_generation(paths, action.folder, context.progress)
        if reason is not None:
            done.remove(action)
            outcome.kept.append({**_described(name, by_folder.pop(action.folder)), "reason": reason})

    def remove_remains(action: RemoveRemains) -> None:
        if not pruning.remove_remains(paths, action.path, context.progress):
            done.remove(action)
            remains.remove(action.path)

    context.carry_out(plan, {RemoveGeneration: remove, RemoveRemains: remove_remains})
    outcome.actions += done
    outcome.removed += [{**_described(name, one), "bytes": one.bytes} for one in by_folder.values()]
    outcome.remains += remains


def _described(view: str, candidate: Candidate) -> dict[str, Any]:
    generation, layer_format, *_more = candidate.folder.split("-")
    return {"view": view, "generation": generation, "format": layer_format}


if __name__ == "__main__":
    main()
