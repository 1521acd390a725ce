# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count the events of a run as ansible-runner, and so AWX, records them."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any, Callable

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: fleet_events
type: aggregate
short_description: Count the events of a run
description:
  - Counts the tasks and events of a run for each host, and writes the counts as JSON to the file in the environment variable
    E(FLEET_EVENTS).
requirements: []
"""

#: What ansible-runner records once for each host, or each item of a loop. The result is the first argument.
_OF_HOSTS = (
    *("v2_runner_on_ok", "v2_runner_on_failed", "v2_runner_on_skipped", "v2_runner_on_unreachable"),
    *("v2_runner_item_on_ok", "v2_runner_item_on_failed", "v2_runner_item_on_skipped", "v2_runner_retry"),
)
#: What it records once, for all hosts.
_SHARED = (
    *("v2_playbook_on_start", "v2_playbook_on_play_start", "v2_playbook_on_task_start", "v2_playbook_on_include"),
    *("v2_playbook_on_handler_task_start", "v2_playbook_on_no_hosts_matched", "v2_playbook_on_no_hosts_remaining"),
)
#: The events that end a task on a host.
_ENDS = ("v2_runner_on_ok", "v2_runner_on_failed", "v2_runner_on_skipped", "v2_runner_on_unreachable")


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible ships no types
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fleet_events"

    def __init__(self) -> None:
        super().__init__()
        self._tasks: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._shared = 0
        self._bytes = 0

    def v2_runner_on_start(self, host: Any, _task: Any) -> None:
        self._events[host.get_name()] += 1

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._shared += 1
        found = {"tasks": self._tasks, "events": self._events, "shared": self._shared, "bytes": self._bytes}
        hosts = {name: stats.summarize(name) for name in stats.processed}
        with open(os.environ["FLEET_EVENTS"], "w", encoding="utf-8") as stream:
            json.dump({**found, "hosts": hosts}, stream)

    def add_result(self, name: str, result: Any) -> None:
        host = result._host.get_name()
        self._events[host] += 1
        self._tasks[host] += name in _ENDS
        self._bytes += len(json.dumps(result._result, default=str))

    def add_shared(self) -> None:
        self._shared += 1


def _of_host(name: str) -> Callable[..., None]:
    def count(self: CallbackModule, result: Any, *_more: Any, **_options: Any) -> None:
        self.add_result(name, result)

    return count


def _shared(self: CallbackModule, *_more: Any, **_options: Any) -> None:
    self.add_shared()


for _name in _OF_HOSTS:
    setattr(CallbackModule, _name, _of_host(_name))
for _name in _SHARED:
    setattr(CallbackModule, _name, _shared)
