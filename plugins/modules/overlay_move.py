#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_move
short_description: Move a directory within a mounted overlay, out of its lower layer
version_added: 0.1.0
description:
  - Moves a directory to another path in the same overlay, which may be in use. At every moment each complete file is at its old or at its
    new path. A program that tries the old path first and then the new one always finds it.
  - The directories at the new path are made in the upper layer, and are opaque. A name that they do not have is not looked up in the lower
    layer, and what is added to the lower layer later does not show. Content is not copied.
  - A run after an interrupted one continues the move.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  source:
    description: Absolute path of the directory to move. It must not be a symbolic link.
    type: path
    required: true
  destination:
    description:
      - Absolute new path of the directory, including its name. Missing directories above it are made with mode 0755.
      - The path must not exist. An empty directory is replaced, and a move that an interrupted run began is continued.
    type: path
    required: true
notes:
  - The overlay needs an upper layer and the options C(metacopy=on) and C(redirect_dir=on), which M(renderfarm.overlay.overlay_mount) sets.
  - Each directory keeps its owner, group, mode, extended attributes and mtime. Symbolic links are moved unchanged.
  - Link counts of files are preserved if the overlay is mounted with C(index=on).
  - During the move, the root of the overlay has a directory C(.renderfarm-overlay-moving-*), which only root can enter.
  - If O(source) does not exist and O(destination) does, nothing is changed.
seealso:
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Move last year's tools into the archive
  renderfarm.overlay.overlay_move:
    source: /tools/2024
    destination: /tools/archive/2024
"""

RETURN = r"""
actions:
  description: The changes that were made, or in check mode would be made.
  type: list
  elements: str
  returned: success
  sample: [move directory /tools/2024 to /tools/archive/2024]
files:
  description: Number of entries below O(source) before the move that are not directories.
  type: int
  returned: success
  sample: 1250
directories:
  description: Number of directories below O(source) before the move.
  type: int
  returned: success
  sample: 87
"""

import contextlib
import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize import moving
from ansible_collections.renderfarm.overlay.plugins.module_utils.finalize.move_plan import (
    FinishMove,
    MoveDirectory,
    MoveSpec,
    plan_move,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux import mount_lock
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import show


def main() -> None:
    runner.run(
        {
            "source": {"type": "path", "required": True},
            "destination": {"type": "path", "required": True},
        },
        work,
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    spec = MoveSpec(_resolved(params["source"], "source"), _resolved(params["destination"], "destination"))
    with contextlib.ExitStack() as stack:
        if not context.check_mode:
            mountpoint = moving.mountpoint_of(spec.source)
            stack.enter_context(mount_lock.held(mountpoint, context.timeout, context.progress))
        return _moved(spec, context)


def _moved(spec: MoveSpec, context: runner.Context) -> runner.Outcome:
    state = moving.observe(spec, context.progress)
    plan = plan_move(spec, state)
    handlers: Handlers = {
        MoveDirectory: lambda action: moving.move(action.spec, context.progress),
        FinishMove: lambda action: moving.finish(action.spec),
    }
    context.carry_out(plan, handlers)
    values = {
        "files": state.tree.files if state.tree else 0,
        "directories": state.tree.directories if state.tree else 0,
    }
    before = {"directory": show(spec.source)} if plan else {}
    after = {"directory": show(spec.destination)} if plan else {}
    return runner.Outcome(values, plan, before, after)


def _resolved(path: str, option: str) -> bytes:
    """Resolve the symbolic links in the parent of an absolute path. The last name may not be one."""
    runner.check_absolute(path, option)
    parent, name = os.path.split(os.path.normpath(path))
    return os.path.join(os.fsencode(os.path.realpath(parent)), os.fsencode(name))


if __name__ == "__main__":
    main()
