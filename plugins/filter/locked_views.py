# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Views of a host, with what a lock resolved them to."""

from __future__ import annotations

DOCUMENTATION = r"""
name: locked_views
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
version_added: 0.1.0
short_description: Give the views of a host what a lock resolved them to
description:
  - Takes the views of a host, as M(renderfarm.overlay.declared_views) returns them, and a lock, and returns the views as
    M(renderfarm.overlay.view) takes them.
  - A view that is to be mounted and is not in the lock could not be resolved. It stays at the generation that the host showed last.
positional: lock
options:
  _input:
    description: The completed views of a host.
    type: list
    elements: dict
    required: true
  lock:
    description: The lock, as M(renderfarm.overlay.resolved_views) returns it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Bring the views of this host to their state
  renderfarm.overlay.view:
    views: "{{ declared.views | renderfarm.overlay.locked_views(resolved.lock) }}"
"""

RETURN = r"""
_value:
  description: The views, for the option O(renderfarm.overlay.view#module:views).
  type: list
  elements: dict
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import resolution
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import lock_from_values
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def locked_views(views: Any, lock: Any) -> list[dict[str, Any]]:
    """See DOCUMENTATION. Raises AnsibleFilterError if the lock or a view is not what it should be."""
    try:
        return resolution.locked_views(views, lock_from_values(lock))
    except OverlayError as error:
        raise AnsibleFilterError(f"renderfarm.overlay.locked_views: {error}") from error
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"renderfarm.overlay.locked_views works on the views that declared_views returns ({error!r})"
        ) from error


class FilterModule:
    """Jinja2 filters for locks."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"locked_views": locked_views}
