# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several software roots, checked and completed."""

from __future__ import annotations

DOCUMENTATION = r"""
name: declared_roots
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
version_added: 0.1.0
short_description: Check the software roots of views over several
description:
  - Takes the variable C(overlay_roots) of the playbook C(deploy), and returns the software roots as
    M(renderfarm.overlay.release_retire) takes them.
  - Fails if the declaration of a software root is wrong.
positional: ready_marker
options:
  _input:
    description: The software roots. None, and a blank text, mean none.
    type: list
    elements: dict
    required: true
  ready_marker:
    description: The ready marker of releases of software roots that have none of their own.
    type: str
    default: ''
"""

EXAMPLES = r"""
- name: Delete a release of one of several software roots
  renderfarm.overlay.release_retire:
    roots: "{{ overlay_roots | renderfarm.overlay.declared_roots('.ready') }}"
    store: /net/manifests
    releases: [maya/2025]
    delete: true
  run_once: true
"""

RETURN = r"""
_value:
  description: The software roots, for the option O(renderfarm.overlay.release_retire#module:roots).
  type: list
  elements: dict
  sample:
    - {name: maya, path: /net/maya, ready_marker: .ready}
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring import view_declaration
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def declared_roots(roots: Any, ready_marker: str = "") -> list[dict[str, Any]]:
    """See DOCUMENTATION. Raises AnsibleFilterError if the declaration of a software root is wrong."""
    try:
        found = view_declaration.declared_roots(roots)
    except OverlayError as error:
        raise AnsibleFilterError(f"renderfarm.overlay.declared_roots: {error}") from error
    return [
        {
            "name": root["name"],
            "path": root["path"],
            "ready_marker": ready_marker if root["ready_marker"] is None else root["ready_marker"],
        }
        for root in found
    ]


class FilterModule:
    """Jinja2 filters for software roots."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"declared_roots": declared_roots}
