# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making reports of what hosts show."""

from __future__ import annotations

DOCUMENTATION = r"""
name: view_report
short_description: Make a report of the views of many hosts
version_added: 0.1.0
description:
  - Takes the rows that say where each view of each host stands, and makes one report of all of them.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
positional: format
options:
  _input:
    description:
      - The rows. Each is about one view on one host, or about a host that was not reached.
      - Every row has C(host) and C(status). The status is V(as declared), V(drifted), V(held), V(failed), V(unreachable) or
        V(not declared).
      - A row can have C(view), C(generation), C(declared_generation), C(since), C(mountpoint), C(releases), C(drift), C(failure), C(hold),
        C(bytes_on_disk), C(last_run) and C(verified).
      - C(since) and C(last_run) are times in UTC, such as V(2026-11-27T15:00:00Z). C(drift) is a list of sentences.
      - C(hold) is a mapping with C(until) and C(reason). C(until) is a time in UTC, or seconds since 1970.
      - V(0) stands for a hold without an end.
      - A row without C(releases) gets those of another row with its view and generation.
    type: list
    elements: dict
    required: true
  format:
    description: What to make.
    type: str
    default: table
    choices:
      table: Text for a terminal. Hosts are written as ranges, so it stays readable for hundreds of hosts.
      csv: Text with one line for each row, and a line of headings.
      json: A mapping with all rows, and with the releases of each generation once.
      summary: A small mapping with counts, generations and problems, for C(set_stats) or cacheable facts.
      page: JSON text for the template C(report.html.j2) of this collection, which makes a page from it.
  hosts:
    description:
      - The names of the hosts that the report must cover.
      - A host that has no row gets one with the status V(unreachable).
    type: list
    elements: str
    default: []
  time:
    description:
      - The time of the report in UTC, such as V(2026-11-27T15:00:00Z).
      - If it is empty, the report has no time.
    type: str
    default: ''
  width:
    description: How many columns the terminal has. Only O(format=table) uses it.
    type: int
    default: 120
"""

EXAMPLES = r"""
- name: Show a table of all hosts
  ansible.builtin.debug:
    msg: "{{ (rows | renderfarm.overlay.view_report(hosts=ansible_play_hosts_all)).splitlines() }}"
  run_once: true

- name: Write a CSV file
  ansible.builtin.copy:
    content: "{{ rows | renderfarm.overlay.view_report('csv') }}"
    dest: /srv/reports/views.csv
    mode: "0644"
  delegate_to: localhost
  run_once: true

- name: Give later jobs of a workflow the summary
  ansible.builtin.set_stats:
    data:
      overlay_report: "{{ rows | renderfarm.overlay.view_report('summary') }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: The report. It is text for O(format=table), O(format=csv) and O(format=page), and a mapping for the other formats.
  type: raw
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import report
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports.report_page import page_data

_FORMATS: dict[str, Callable[..., Any]] = {
    "table": report.table_text,
    "csv": lambda rows, _time: report.csv_text(rows),
    "json": report.whole_report,
    "summary": report.summary,
    "page": page_data,
}


def view_report(rows: Any, format: str = "table", hosts: Any = (), time: str = "", width: int = 120) -> Any:  # noqa: A002
    """See DOCUMENTATION. Raises AnsibleFilterError if a row or an option is wrong."""
    try:
        make = _FORMATS.get(format)
        if make is None:
            raise OverlayError(f"format must be one of {', '.join(_FORMATS)}, not {format!r}")
        if not _is_list(rows):
            raise OverlayError("it takes a list of rows")
        if not _is_list(hosts):
            raise OverlayError("hosts must be a list of names")
        if time and not re.fullmatch(report.TIME, time):
            raise OverlayError(f"time must be a time in UTC such as 2026-11-27T15:00:00Z, not {time!r}")
        more = {"width": int(width)} if format == "table" else {}
        return make(report.rows_of(rows, hosts), str(time), **more)
    except (OverlayError, ValueError) as error:
        raise AnsibleFilterError(f"renderfarm.overlay.view_report: {error}") from error


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


class FilterModule:
    """Jinja2 filters for reports."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"view_report": view_report}
