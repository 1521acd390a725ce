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
  - Moves a directory to another place in the same overlay while it is in use. Each file is at every moment at its old or at its new path,
    whole. Whoever looks at the old path first and then at the new one finds it.
  - The directories at the new place are new ones in the upper layer, which are opaque. So a name that is missing there is not looked up
    in the lower layer, and nothing that is added there later shows. Content is not copied.
  - Where a run was interrupted the next one goes on.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
options:
  source:
    description: The directory.
    type: path
    required: true
  destination:
    description:
      - Its new path, with its own name. Folders above it are made, with mode 0755. It must not exist, but for an empty directory, which is
        removed, and for what an interrupted run has left.
    type: path
    required: true
notes:
  - The overlay needs an upper layer and the options C(metacopy=on) and C(redirect_dir=on), which M(renderfarm.overlay.overlay_mount) sets.
  - Owner, group, mode, attributes and time of change of each directory are kept. Symbolic links are moved as they are.
  - Of hard links, the number stays right with C(index=on).
  - While it works there is a directory C(.renderfarm-overlay-moving-*) in the overlay's root, which only root can enter.
  - When the directory is no more at its old place and is at the new one, nothing is changed.
seealso:
  - module: renderfarm.overlay.overlay_mount
"""

EXAMPLES = r"""
- name: Move the tools of last year into the archive
  renderfarm.overlay.overlay_move:
    source: /tools/2024
    destination: /tools/archive/2024
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: success
  sample: [move directory /tools/2024 to /tools/archive/2024]
files:
  description: How many files, symbolic links and the like were there to be moved.
  type: int
  returned: success
  sample: 1250
directories:
  description: How many directories below O(source) were there to be moved.
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
    spec = MoveSpec(_place(params["source"], "source"), _place(params["destination"], "destination"))
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


def _place(path: str, option: str) -> bytes:
    """Return a path whose folder has no symbolic links in it; the directory itself may not be one."""
    runner.check_absolute(path, option)
    folder, name = os.path.split(os.path.normpath(path))
    return os.path.join(os.fsencode(os.path.realpath(folder)), os.fsencode(name))


if __name__ == "__main__":
    main()
