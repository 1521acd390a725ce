# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Report what uses releases on all hosts of a play from what a task returned on each of them, on the controller."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.renderfarm.overlay.plugins.action.gathered_report import write_file
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import usage_report
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import time_text

_SPEC = {
    "results": {"type": "list", "elements": "str", "required": True},
    "releases": {"type": "list", "elements": "str", "default": []},
    "unreachable_use": {"type": "bool", "default": True},
    "directory": {"type": "path"},
}


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See plugins/modules/gathered_usage.py for the documentation."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _result, given = self.validate_argument_spec(_SPEC)
        found = usage_report.farm_usage(_host_results(task_vars or {}, given["results"]), given["releases"])
        now = time_text(int(time.time()))
        usage = found.as_dict(given["unreachable_use"])
        result.update(changed=False, table=usage_report.table_lines(found, now), usage=usage)
        result["obstacles"] = {one["release"]: one["obstacles"] for one in usage["releases"] if one["obstacles"]}
        result["reasons"] = [f"{release}: {'; '.join(found)}" for release, found in result["obstacles"].items()]
        if given["directory"]:
            directory = given["directory"]
            if not os.path.isabs(directory):
                result.update(failed=True, msg=f"directory must be an absolute path, not {directory!r}")
                return result
            texts = {
                "usage.csv": usage_report.usage_csv(found),
                "usage.json": json.dumps({"time": now, **usage}, indent=1) + "\n",
            }
            try:
                changed = [
                    write_file(Path(directory) / name, text, self._task.check_mode) for name, text in texts.items()
                ]
            except OSError as error:
                result.update(failed=True, msg=f"{error.filename or directory} cannot be written: {error.strerror}")
                return result
            result["changed"] = any(changed)
        return result


def _host_results(variables: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """Return what tasks returned on each host of the play, in the order of their names."""
    found = {}
    for host in variables["ansible_play_hosts_all"]:
        known = variables["hostvars"].raw_get(host)
        found[str(host)] = [known[name] for name in names if isinstance(known.get(name), Mapping)]
    return found
