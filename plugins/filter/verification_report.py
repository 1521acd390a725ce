# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summarizing what verifications found."""

from __future__ import annotations

DOCUMENTATION = r"""
name: verification_report
short_description: Summarize what overlay_verify found on many hosts
version_added: 0.1.0
description:
  - Takes what M(renderfarm.overlay.overlay_verify) returned on each host, and makes one summary of it.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
positional: format
options:
  _input:
    description:
      - A mapping of hosts to what M(renderfarm.overlay.overlay_verify) returned there.
      - It is a registered result, which may be that of a loop, or a list of results.
      - V(none) or an empty text stands for a host on which it did not run.
    type: dict
    required: true
  format:
    description: What to make.
    type: str
    default: table
    choices:
      table: A list of lines for a terminal. Hosts are written as ranges, so it stays readable for hundreds of hosts.
      rows: A list with a mapping for each view of each host.
      summary: A small mapping with counts, the first problems, and the hosts that have problems or failed, for C(set_stats).
"""

EXAMPLES = r"""
- name: Show what was found on all hosts
  ansible.builtin.debug:
    msg: "{{ dict(ansible_play_hosts | zip(results)) | renderfarm.overlay.verification_report }}"
  vars:
    results: "{{ ansible_play_hosts | map('extract', hostvars, 'verified') | list }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: The summary. It is a list for O(format=table) and O(format=rows), and a mapping for O(format=summary).
  type: raw
"""

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.reports import verification

_FORMATS: dict[str, Callable[..., Any]] = {
    "table": verification.verification_table,
    "rows": list,
    "summary": verification.verification_summary,
}


def verification_report(results: Any, format: str = "table") -> Any:  # noqa: A002
    """See DOCUMENTATION. Raises AnsibleFilterError if the results or the format are wrong."""
    try:
        if format not in _FORMATS:
            raise OverlayError(f"format must be one of {', '.join(_FORMATS)}, not {format!r}")
        if not isinstance(results, Mapping):
            raise OverlayError("give a mapping of hosts to results")
        return _FORMATS[format](verification.verification_rows(results))
    except OverlayError as error:
        raise AnsibleFilterError(f"renderfarm.overlay.verification_report: {error}") from error


class FilterModule:
    """Jinja2 filters for verifications."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"verification_report": verification_report}
