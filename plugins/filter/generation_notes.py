# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts of a deployment show another generation."""

from __future__ import annotations

DOCUMENTATION = r"""
name: generation_notes
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
version_added: 0.1.0
short_description: Name the hosts that show different generations of a view
description:
  - Compares what M(renderfarm.overlay.view) returned on the hosts of a play. Returns one line for each view that hosts show in different
    generations, and one for each view that a rollback holds.
  - Returns an empty list if all hosts show the same. Views that failed are left out.
options:
  _input:
    description: For each host, by its name, the list of views that M(renderfarm.overlay.view) returned on it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Report hosts that show different generations
  ansible.builtin.debug:
    msg: "{{ {'node1': first.views, 'node2': second.views} | renderfarm.overlay.generation_notes }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: One line for each view and difference.
  type: list
  elements: str
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import shown_generations


def generation_notes(results: Any) -> list[str]:
    """See DOCUMENTATION. Raises AnsibleFilterError if the results are not those of the module."""
    try:
        return shown_generations.generation_notes(results)
    except (AttributeError, KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"renderfarm.overlay.generation_notes works on the views that the module view returns ({error!r})"
        ) from error


class FilterModule:
    """Jinja2 filters for deployments."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"generation_notes": generation_notes}
