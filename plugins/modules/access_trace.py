#!/usr/bin/python
# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: access_trace
short_description: Record which files of the releases of a view are opened
version_added: 0.1.0
description:
  - Records which files a start of software opens, while a command runs or for some time. The kernel reports each open (fanotify(7)).
  - The trace of a release is kept beside its manifest, as C(RELEASE.trace.json). It has one line for each file, sorted by path, with the
    number of opens and of starts. Each run adds to the counts, on any number of hosts at the same time.
  - The trace of a release says which of its files to put on render nodes.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.attributes
  - renderfarm.overlay.options
attributes:
  check_mode:
    details: In check mode the command is not run and nothing is recorded. The task is skipped with a message.
  idempotent:
    support: none
    details: Each run adds what it recorded to the traces.
options:
  path:
    description: Mountpoint of the view.
    type: path
    required: true
  command:
    description:
      - Record while this command runs. A string is run by C(/bin/sh), and a list without a shell.
      - It runs in a mount namespace of its own, so that opens of other processes are not recorded. It also runs in a PID namespace of its
        own, which ends with it. So processes that it leaves behind are killed.
      - Its working directory is O(path). Its environment has C(PATH), C(HOME=/), C(LANG=C.UTF-8) and O(environment).
      - Opens through mounts that the command itself makes, for example in a container, are not recorded with O(mode=opens).
    type: raw
  duration:
    description:
      - Record for this many seconds what all processes open, in any mount namespace.
      - Opens through a mount at another path than O(path) count only while that mount is gone from its mount namespace or shows the view
        at the same path. Others are counted in RV(unmapped).
    type: float
  user:
    description: The user who runs O(command), by name or uid.
    type: str
    default: nobody
  environment:
    description: Variables that are added to the environment of O(command).
    type: dict
    default: {}
  exit_codes:
    description: The exit statuses of O(command) that are no failure. If it is a failure, nothing is recorded and the task fails.
    type: list
    elements: int
    default: [0]
  time_limit:
    description: Seconds after which O(command) is killed, which is a failure.
    type: float
    default: 600
  store:
    description:
      - The manifest store that the view was made from. The traces are kept there, so this host must be able to write to it.
      - Only names that the manifest of a release has are recorded.
      - Without it nothing is kept, and only the counts are returned.
    type: path
  mode:
    description:
      - V(opens) records what is opened in the view.
      - V(misses) records what is opened on the software root through any overlay of this host. That is what no data layer before it has.
        It includes opens of other processes while O(command) runs. Opens through the mount of the software root itself do not count.
    type: str
    choices: [opens, misses]
    default: opens
notes:
  - Only regular files with content are recorded. Reading the names, attributes and symbolic links of a view needs no content.
  - A file with several names is recorded by its first name, at which its content is.
  - Each file that is opened is opened once more by the kernel, for the path. On a software root without delegations, this sends an OPEN and
    a CLOSE for each open while the module runs.
  - Opens of a file that one process repeats at once may be counted as one.
  - The mount of the view, and with O(mode=misses) the file system of the software root, is in use while the module runs.
seealso:
  - module: renderfarm.overlay.release_manifest
  - module: renderfarm.overlay.view
"""

EXAMPLES = r"""
- name: Record what a start of usdview opens
  renderfarm.overlay.access_trace:
    path: /software
    command: [/software/usd-core/26.11/bin/usdcat, --help]
    environment:
      PYTHONPATH: /software/usd-core/26.11/lib/python
    store: /net/manifests

- name: Record for an hour what the jobs of this render node open
  renderfarm.overlay.access_trace:
    path: /software
    duration: 3600
    store: /net/manifests

- name: Count what a start still reads from the file server
  renderfarm.overlay.access_trace:
    path: /software
    command: /software/houdini/20.5.410/bin/hython -c "import hou"
    user: render
    mode: misses
  register: missed
"""

RETURN = r"""
actions:
  description: What was added to traces, or in check mode that opens would be recorded. Empty without O(store).
  type: list
  elements: str
  returned: success
  sample: [add 1250 opens of 776 files to the trace of release usd-core/26.11]
releases:
  description: The releases of which files were opened in this run, sorted.
  type: list
  elements: dict
  returned: success, not in check mode
  contains:
    release:
      description: Path of the release below the software root.
      type: str
      sample: usd-core/26.11
    files:
      description: Number of files that were opened.
      type: int
      sample: 776
    opens:
      description: Number of times that they were opened.
      type: int
      sample: 1250
    starts:
      description: 1 for a command. For a duration, the number of processes that opened any of these files.
      type: int
      sample: 1
    bytes:
      description: Size of these files in bytes.
      type: int
      sample: 398000000
    trace:
      description: Path of the trace; none without O(store).
      type: str
      sample: /net/manifests/usd-core/26.11.trace.json
overflowed:
  description:
    - Whether the kernel's queue of events was full, so that opens are missing. A warning says so too.
    - The sysctl C(fs.fanotify.max_queued_events) is its limit.
  type: bool
  returned: success, not in check mode
  sample: false
unmapped:
  description:
    - Number of opens that are of no release of the view or that the manifest does not have. Examples are files that were written to the
      view, and files that were deleted before their path could be read.
  type: int
  returned: success, not in check mode
  sample: 0
exit_code:
  description:
    - Exit status of the command. It is negative if a signal ended the command, and none without a command or if the time limit ended it.
  type: int
  returned: always, except in check mode
  sample: 0
output:
  description: The end of the output of the command; none without a command.
  type: str
  returned: always, except in check mode
  sample: "Usage: usdcat [options] input"
"""

import math
import os
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils import runner
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images import trace_files, trace_task
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.trace_results import (
    AddToTrace,
    RecordOpens,
    plan_traces,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.data_images.trace_task import TraceRequest
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.action import Handlers
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.processes import UserCommand
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.trace_record import Trace


def main() -> None:
    runner.run(
        {
            "path": {"type": "path", "required": True},
            "command": {"type": "raw"},
            "duration": {"type": "float"},
            "user": {"type": "str", "default": "nobody"},
            "environment": {"type": "dict", "default": {}},
            "exit_codes": {"type": "list", "elements": "int", "default": [0]},
            "time_limit": {"type": "float", "default": 600},
            "store": {"type": "path"},
            "mode": {"type": "str", "choices": ["opens", "misses"], "default": "opens"},
        },
        work,
        required_one_of=[("command", "duration")],
        mutually_exclusive=[("command", "duration")],
    )


def work(params: dict[str, Any], context: runner.Context) -> runner.Outcome:
    """Record opens, and add them to the traces of the store."""
    request = _request(params)
    view, records = trace_task.observe(request)
    if context.check_mode:
        message = "check mode: the command is not run and nothing is recorded"
        plan = (RecordOpens(params["path"]),) if request.store else ()
        return runner.Outcome({"skipped": True, "msg": message}, plan)
    traced = trace_task.trace(request, view, records, context.timeout, context.progress)
    found = plan_traces(traced.traces()) if request.store else ()
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for action in found:
        stored = trace_files.find(params["store"], action.trace.release)
        before[action.trace.release] = _summary(stored) if stored else {}

    def add(action: AddToTrace) -> None:
        context.note.write(f"the trace of release {action.trace.release}")
        after[action.trace.release] = _summary(trace_files.add(params["store"], action.trace, context.progress))

    handlers: Handlers = {AddToTrace: add}
    context.carry_out(found, handlers)
    return runner.Outcome(traced.values(), found, before, after, traced.warnings, traced.failure)


def _summary(trace: Trace) -> dict[str, int]:
    """Return a trace as the diff shows it."""
    return {"files": len(trace.files), "opens": trace.opens, "starts": trace.starts}


def _request(params: dict[str, Any]) -> TraceRequest:
    for option in ("path", "store"):
        if params[option] is not None:
            runner.check_absolute(params[option], option)
    for option in ("duration", "time_limit"):
        if params[option] is not None and not 0 < params[option] < math.inf:
            raise OverlayError(f"{option} must be a number of seconds greater than 0, not {params[option]:g}")
    path = os.fsencode(os.path.realpath(params["path"]))
    command = None
    if params["command"] is not None:
        environment = {str(name): str(value) for name, value in params["environment"].items()}
        argv = trace_task.words_of(params["command"])
        command = UserCommand(argv, params["user"], "user", path, environment, params["time_limit"])
    success = frozenset(params["exit_codes"])
    return TraceRequest(path, params["mode"] == "misses", command, params["duration"] or 0, params["store"], success)


if __name__ == "__main__":
    main()
