#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_prune
short_description: Remove generations of views and data images that are not needed any more
version_added: 0.1.0
description:
  - Removes the layers of earlier generations from this host, and what killed runs have left.
  - The current and the previous generation are kept, and so are the O(keep) newest ones and those younger than O(min_age).
  - A generation in use is kept. It is in use if it is mounted in any mount namespace, such as that of a container, if it is mounted at
    boot, or if a process still uses an overlay of it that was switched away.
  - If a process uses an overlay that a user has detached (C(umount --lazy)), its layers are unknown. All generations are then kept until
    the process ends, and the reason names the process.
  - A generation whose record is damaged is kept, and a view that cannot be pruned is left as it is. The module prunes everything else,
    and then fails with the reasons.
  - Without O(name), the module also removes data images that no view of O(state_dir) needs. It keeps those in use, in the same sense. It
    keeps those younger than O(min_age). For each release of a current or previous generation, it keeps the newest data image of each kind.
  - Nothing on the file server is changed, neither manifests nor image stores.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
  - renderfarm.overlay.options.state_dir
options:
  name:
    description: Name of the view to prune. By default all views on this host are pruned, and the data images.
    type: str
  keep:
    description: How many of the newest generations of each view are kept. The current and the previous one count among them.
    type: int
    default: 3
  min_age:
    description: How long a generation or a data image has to have been on this host before it is removed, in seconds.
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

- name: Keep only the current and the previous generation, and those in use
  renderfarm.overlay.overlay_prune:
    name: software
    keep: 0
    min_age: 0
"""

RETURN = r"""
actions:
  description: What was done. In check mode, what would be done.
  type: list
  elements: str
  returned: success
  sample: [remove generation 1b90e5a07c3d4e21 of view software]
removed:
  description: The generations that were removed. In check mode, those that would be.
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
      description: Disk space that its layer used besides inodes, in bytes.
      type: int
      sample: 5242880
kept:
  description: The generations that are kept.
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
      description: Why it is kept.
      type: str
      sample: it is used by houdini-bin (4711)
removed_images:
  description: The data images that were removed. In check mode, those that would be.
  type: list
  elements: dict
  returned: success
  contains:
    id:
      description: The first digits of its digest, which name its files.
      type: str
      sample: 9c1f0b2e77a4d385
    release:
      description: The release whose files it holds.
      type: str
      sample: houdini/20.5.410
    kind:
      description: How its files were selected.
      type: str
      sample: trace
    bytes:
      description: Size of its file, in bytes.
      type: int
      sample: 158334976
kept_images:
  description: The data images that are kept; empty with O(name).
  type: list
  elements: dict
  returned: success
  contains:
    id:
      description: The first digits of its digest, which name its files.
      type: str
      sample: 51d7c4e0b9a3f268
    release:
      description: The release whose files it holds.
      type: str
      sample: houdini/20.5.445
    kind:
      description: How its files were selected.
      type: str
      sample: trace
    reason:
      description: Why it is kept.
      type: str
      sample: it is mounted at /software
remains:
  description: Paths that killed runs had left and that were removed. In check mode, those that would be.
  type: list
  elements: str
  returned: success
  sample: [/var/lib/renderfarm-overlay/views/software/staging]
bytes_freed:
  description: >-
    Disk space that was freed by generations and data images, in bytes. In check mode, what would be freed. Inodes and what killed runs had
    left are not counted.
  type: int
  returned: success
  sample: 5242880
"""

import contextlib
import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import pruning_images
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.pruning_images import DataImagePruning
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.views import pruning, view_state
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.pruning import ViewPruning
from ansible_collections.renderfarm.overlay.plugins.module_utils.views.view_paths import ViewPaths


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
            raise OverlayError(f"{option} must not be negative, but it is {params[option]:g}")
    names = pruning.view_names(params["state_dir"]) if params["name"] is None else [params["name"]]
    pruned: list[ViewPruning] = []
    images = DataImagePruning(params["state_dir"])
    problems: list[str] = []
    for name in names:
        paths = ViewPaths.of(params["state_dir"], name)
        if os.path.isdir(paths.root):
            try:
                pruned.append(_prune(paths, params, context))
            except OverlayError as error:
                # A view that cannot be pruned must not keep the others from being pruned.
                problems.append(str(error))
    if params["name"] is None:
        try:
            images = _prune_images(params, context)
        except OverlayError as error:
            problems.append(str(error))
    return _outcome(pruned, images, [*(one for view in pruned for one in view.damaged), *problems])


def _prune(paths: ViewPaths, params: dict[str, Any], context: runner.Context) -> ViewPruning:
    with contextlib.ExitStack() as stack:
        if not context.check_mode:
            stack.enter_context(view_state.locked(paths, context.timeout, context.progress))
        found = pruning.find_removable(paths, params["keep"], params["min_age"], context.check_mode)
        context.carry_out(found.plan, found.handlers(context.progress))
        return found


def _prune_images(params: dict[str, Any], context: runner.Context) -> DataImagePruning:
    state_dir = params["state_dir"]
    with pruning_images.locked(state_dir, context.check_mode, context.progress):
        keep = pruning_images.images_of_views(state_dir)
        found = pruning_images.find_data_images(state_dir, keep, params["min_age"], context.check_mode)
        context.carry_out(found.plan, found.handlers(context.progress))
        return found


def _outcome(pruned: list[ViewPruning], images: DataImagePruning, problems: list[str]) -> runner.Outcome:
    removed = [values for one in pruned for values in one.removed_values()]
    kept = [values for one in pruned for values in one.kept_values()]
    remains = [*(path for one in pruned for path in one.remains), *images.remains]
    return runner.Outcome(
        {
            "removed": removed,
            "kept": kept,
            "removed_images": images.removed_values(),
            "kept_images": images.kept_values(),
            "remains": remains,
            "bytes_freed": sum(one["bytes"] for one in (*removed, *images.removed_values())),
        },
        (*(action for one in pruned for action in one.plan), *images.plan),
        {"generations": sorted(map(_line, (*removed, *kept))), "data_images": images.before, "remains": remains},
        {"generations": sorted(map(_line, kept)), "data_images": images.after, "remains": []},
        failure="; ".join(dict.fromkeys(problems)),
    )


def _line(generation: dict[str, Any]) -> str:
    return f"{generation['view']}: {generation['generation']} ({generation['format']})"


if __name__ == "__main__":
    main()
