# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a report of all hosts of a play from what a task returned on each of them, on the controller."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from ansible.plugins.action import ActionBase

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.host_ranges import fold_hosts
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import (
    LockedView,
    lock_from_json,
    lock_from_values,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import report
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.gathering import (
    HostResults,
    rows_of_results,
    run_ends,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report import Row
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report_page import page_data

_TEMPLATE = Path(__file__).resolve().parents[2] / "playbooks" / "templates" / "report.html.j2"
_SPEC = {
    "results": {"type": "list", "elements": "str", "required": True},
    "declared": {"type": "str", "default": ""},
    "lock": {"type": "raw"},
    "unresolved": {"type": "dict", "default": {}},
    "view": {"type": "str", "default": ""},
    "ends_above": {"type": "float"},
    "directory": {"type": "path"},
    "usage": {"type": "dict"},
    "width": {"type": "int", "default": 120},
}


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See plugins/modules/gathered_report.py for the documentation."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        _result, given = self.validate_argument_spec(_SPEC)
        result.update(changed=False, table=[], waiting=[])
        found = {one.host: one for one in _host_results(variables, given)}
        if given["ends_above"] is not None:
            batch = [found[host] for host in variables["ansible_play_batch"] if host in found]
            if not run_ends(batch, given["ends_above"]):
                return result
        try:
            gathered, waiting = rows_of_results(found.values(), _lock(given["lock"]), given["unresolved"])
            if given["view"]:
                gathered = [row for row in gathered if row.get("view") in (None, given["view"])]
            rows = report.rows_of(gathered)
            now = report.time_text(int(time.time()))
            if given["directory"]:
                result["changed"] = self._write(given["directory"], rows, now, given["usage"])
        except OverlayError as error:
            result.update(failed=True, msg=str(error))
            return result
        table = report.table_text(rows, now, given["width"]).splitlines()
        if waiting:
            table.append(
                f"the run ended before it came to {len(waiting)} of the hosts: {', '.join(fold_hosts(waiting))}"
            )
        result.update(table=table, waiting=waiting, summary=report.summary(rows, now))
        return result

    def _write(self, directory: str, rows: list[Row], now: str, usage: Mapping[str, Any] | None) -> bool:
        """Write the report as files; return whether one of them has changed. Raises OverlayError if one cannot be written."""
        if not os.path.isabs(directory):
            raise OverlayError(f"directory must be an absolute path, not {directory!r}")
        template = jinja2.Template(_TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True)
        texts = {
            "views.csv": report.csv_text(rows),
            "views.json": json.dumps(report.whole_report(rows, now), indent=1) + "\n",
            "views.html": template.render(_overlay_report_data=page_data(rows, now, usage)),
        }
        try:
            changed = [write_file(Path(directory) / name, text, self._task.check_mode) for name, text in texts.items()]
        except OSError as error:
            raise OverlayError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
        return any(changed)


def write_file(path: Path, text: str, check_mode: bool) -> bool:
    """Write a file on the controller, unless in check mode, and return whether it changes. Raises OSError if it cannot be written."""
    content = text.encode("utf-8", "backslashreplace")
    if path.is_file() and path.read_bytes() == content:
        return False
    if check_mode:
        return True
    path.parent.mkdir(parents=True, exist_ok=True)
    # Aside and then renamed, so that whoever reads it sees all of it.
    fd, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(fd, "wb") as stream:
            os.fchmod(fd, 0o644)
            stream.write(content)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise
    return True


def _lock(given: Any) -> Mapping[str, LockedView]:
    if not given:
        return {}
    try:
        return lock_from_json(given) if isinstance(given, str) else lock_from_values(given)
    except OverlayError as error:
        raise OverlayError(f"overlay_lock: {error}") from None


def _host_results(variables: Mapping[str, Any], given: Mapping[str, Any]) -> Iterable[HostResults]:
    """Yield what is known of each host of the play. Its variables are read without evaluating them, which would take minutes."""
    left = set(variables["ansible_play_hosts"])
    for host in variables["ansible_play_hosts_all"]:
        known = variables["hostvars"].raw_get(host)
        results = [known[name] for name in given["results"] if isinstance(known.get(name), Mapping)]
        declared = known.get(given["declared"]) or {}
        yield HostResults(str(host), results, set(declared.get("names", ())), host in left)
