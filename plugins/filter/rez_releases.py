# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a resolved rez context into releases."""

from __future__ import annotations

DOCUMENTATION = r"""
name: rez_releases
short_description: Turn a resolved rez context into the releases of a view
version_added: 0.1.0
description:
  - Takes a resolved context, the content of an C(.rxt) file as C(rez-env --output) writes it, and returns the releases that it resolved
    to, in the order of the resolve.
  - A release is a version of a package with all its variants, C({package}/{version}) in its package repository.
  - The implicit packages of a context are no packages of their own. They only restrict which others are resolved.
  - C(rez-env) works inside the view, since the package definitions are part of the releases.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.resolved
positional: root
options:
  _input:
    description: The context, as text or parsed.
    type: raw
    required: true
  root:
    description:
      - The software root, as the paths of the package repositories in the context have it.
      - Packages in repositories outside of it have no release, and neither have packages without a version.
    type: path
    required: true
  pattern:
    description:
      - Where a release is below its package repository. The fields are C({package}) and C({version}).
      - A package repository below O(root) is a part of the path of the release.
    type: str
    default: '{package}/{version}'
"""

EXAMPLES = r"""
- name: Declare a view of what rez resolved for a show
  ansible.builtin.set_fact:
    overlay_views:
      - name: dragon
        mountpoint: /shows/dragon/software
        releases: >-
          {{ lookup('ansible.builtin.file', 'dragon.rxt')
             | renderfarm.overlay.rez_releases('/net/software', exclude=['platform', 'arch', 'os']) }}

- name: Show which packages are left out, and why
  ansible.builtin.debug:
    msg: >-
      {{ lookup('ansible.builtin.file', 'dragon.rxt')
         | renderfarm.overlay.rez_releases('/net/software', left_out='return') }}
"""

RETURN = r"""
_value:
  description:
    - The releases, as the key C(releases) of a view takes them. They are paths below the software root, or with O(at) dictionaries with
      C(release) and C(at).
    - With O(left_out=return), dictionaries with C(package), C(version) and C(reason).
  type: list
  elements: raw
  sample: [houdini/20.5.410, usd/25.05]
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers import resolved, rez


def rez_releases(
    context: Any,
    root: Any,
    pattern: Any = resolved.DEFAULT_PATTERN,
    at: Any = None,
    exclude: Any = None,
    left_out: Any = resolved.FAIL,
) -> list[Any]:
    """Return the releases of a rez context; see DOCUMENTATION. Raises AnsibleFilterError with the reason if there are none."""
    try:
        return resolved.releases(rez.environment(context, root), resolved.Resolving(pattern, at, exclude, left_out))
    except OverlayError as error:
        raise AnsibleFilterError(f"renderfarm.overlay.rez_releases: {error}") from error


class FilterModule:
    """Jinja2 filter for rez contexts."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"rez_releases": rez_releases}
