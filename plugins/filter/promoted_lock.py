# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of what canary hosts show."""

from __future__ import annotations

DOCUMENTATION = r"""
name: promoted_lock
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
version_added: 0.1.0
short_description: Make a lock of what canary hosts show
description:
  - Takes what M(renderfarm.overlay.view_lock_info) returned on canary hosts, and returns the lock that brings other hosts to the same,
    with the reasons why it should not be used.
options:
  _input:
    description: For each canary host, by its name, the result of M(renderfarm.overlay.view_lock_info). An empty one counts as unreachable.
    type: dict
    required: true
  least:
    description: How many canary hosts must have been reached. All by default.
    type: int
  seconds:
    description: For how long they must have shown each view.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Stop if what the canary hosts show is not fit for the others
  ansible.builtin.assert:
    that: (shown | renderfarm.overlay.promoted_lock(seconds=3600)).problems == []
"""

RETURN = r"""
_value:
  description: A dictionary with C(lock), the same as C(text), and C(problems), a list of sentences.
  type: dict
"""

import json
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet import promotion
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.lock import lock_to_json
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError


def promoted_lock(read: Any, least: int | str | None = None, seconds: int | str = 0) -> dict[str, Any]:
    """See DOCUMENTATION. Raises AnsibleFilterError if the input is not what it should be."""
    try:
        wanted = None if least in (None, "") else int(str(least))
        locked, problems = promotion.promoted(read, wanted, int(seconds))
    except (AttributeError, KeyError, TypeError, ValueError, OverlayError) as error:
        raise AnsibleFilterError(
            f"renderfarm.overlay.promoted_lock works on what view_lock_info returns on each host, and on whole numbers ({error!r})"
        ) from error
    text = lock_to_json(locked)
    return {"lock": json.loads(text), "text": text, "problems": problems}


class FilterModule:
    """Jinja2 filters for promotions."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"promoted_lock": promoted_lock}
