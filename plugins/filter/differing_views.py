# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Views of which hosts show different generations."""

from __future__ import annotations

DOCUMENTATION = r"""
name: differing_views
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
version_added: 0.1.0
short_description: Name the views of which hosts show different generations
description:
  - Takes what M(renderfarm.overlay.view) returned on hosts, and returns a sentence for each view of which they show different generations.
options:
  _input:
    description: For each host, by its name, the return value RV(renderfarm.overlay.view#module:views).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Report hosts that show different generations
  ansible.builtin.debug:
    msg: "{{ dict(groups['render'] | zip(groups['render'] | map('extract', hostvars, ['done', 'views'])))
      | renderfarm.overlay.differing_views }}"
"""

RETURN = r"""
_value:
  description: The sentences; empty if all hosts show the same.
  type: list
  elements: str
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import resolution


def differing_views(shown: Any) -> list[str]:
    """See DOCUMENTATION. Raises AnsibleFilterError if the input is not what it should be."""
    try:
        return resolution.differing_views(shown)
    except (AttributeError, KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"renderfarm.overlay.differing_views works on what view returns as 'views' on each host ({error!r})"
        ) from error


class FilterModule:
    """Jinja2 filters for results of views."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"differing_views": differing_views}
