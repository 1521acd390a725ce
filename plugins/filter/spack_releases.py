# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a Spack environment into releases."""

from __future__ import annotations

DOCUMENTATION = r"""
name: spack_releases
short_description: Turn a Spack lock file into the releases of a view
version_added: 0.1.0
description:
  - Takes a lock file of a Spack environment, C(spack.lock), and returns the releases of its roots and of what they need, roots first.
  - With a view of C(spack.yaml) it returns what Spack would show in that view, each release at its place there.
  - Lock files of Spack 0.18 and later are supported, with the environments that they include.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.resolved
positional: pattern
options:
  _input:
    description: The lock file, as text or parsed.
    type: raw
    required: true
  pattern:
    description:
      - Where a release is below the software root, in the words of Spack's projections. The software root is usually Spack's install
        tree, and the pattern its C(projections).
      - "The fields are C({package}), C({version}), C({hash}) (C({hash:7}) for its first 7 characters), C({name}), C({namespace}),
        C({architecture}), C({architecture.platform}), C({architecture.os}), C({architecture.target}), C({compiler.name}) and
        C({compiler.version})."
      - External packages have no release, since Spack did not install them.
      - Two packages with one path are an error. A pattern with C({hash}) tells all packages apart.
    type: str
    default: '{package}/{version}'
  link:
    description:
      - Which packages are shown, as C(link) of a view in C(spack.yaml). V(all) is the roots and all that is needed to link or to run
        them, V(run) the roots and what is needed to run them, and V(roots) the roots alone.
    type: str
    choices: [all, run, roots]
    default: all
  view:
    description:
      - One view of C(spack.yaml), with the keys C(select), C(exclude), C(projections) and C(link). C(root) and C(link_type) are not
        used. V(true) is a view of everything.
      - Packages appear where C(projections) puts them, and at the root of the view without any. O(at) must not be given.
      - Specs in the view may have a name, versions, a compiler and dependencies, for example V(hdf5@1.14 %gcc@13 ^openmpi). Others are
        an error.
    type: raw
"""

EXAMPLES = r"""
- name: Declare a view that merges what a Spack environment has
  ansible.builtin.set_fact:
    overlay_views:
      - name: tools
        mountpoint: /tools
        on_conflict: first
        releases: >-
          {{ lookup('ansible.builtin.file', 'spack.lock')
             | renderfarm.overlay.spack_releases(install_tree, at='/', exclude=['glibc', 'gcc']) }}
  vars:
    install_tree: '{architecture.platform}-{architecture.target}/{name}-{version}-{hash}'

- name: Declare a view as the default view of spack.yaml is
  ansible.builtin.set_fact:
    overlay_views:
      - name: tools
        mountpoint: /tools
        on_conflict: first
        releases: >-
          {{ lookup('ansible.builtin.file', 'spack.lock')
             | renderfarm.overlay.spack_releases('{name}-{version}-{hash}', view=spack_yaml.spack.view.default,
                                                 exclude=['glibc', 'gcc']) }}
  vars:
    spack_yaml: "{{ lookup('ansible.builtin.file', 'spack.yaml') | from_yaml }}"
"""

RETURN = r"""
_value:
  description:
    - The releases, as the key C(releases) of a view takes them. They are paths below the software root, or with O(at) or O(view)
      dictionaries with C(release) and C(at).
    - With O(left_out=return), dictionaries with C(package), C(version) and C(reason).
  type: list
  elements: raw
  sample: [{release: linux-x86_64/hdf5-1.14.5-tbnjtzlotnand3xl6klshnpvkddtusag, at: /}]
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers import resolved, spack


def spack_releases(
    lock: Any,
    pattern: Any = resolved.DEFAULT_PATTERN,
    at: Any = None,
    exclude: Any = None,
    left_out: Any = resolved.FAIL,
    link: Any = "all",
    view: Any = None,
) -> list[Any]:
    """Return the releases of a Spack lock file; see DOCUMENTATION. Raises AnsibleFilterError with the reason if there are none."""
    try:
        if at is not None and view is not None:
            raise OverlayError("at and view must not be given together: a view says itself where packages appear")
        environment = spack.environment(lock, link, view)
        return resolved.releases(environment, resolved.Resolving(pattern, at, exclude, left_out))
    except OverlayError as error:
        raise AnsibleFilterError(f"renderfarm.overlay.spack_releases: {error}") from error


class FilterModule:
    """Jinja2 filter for Spack lock files."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"spack_releases": spack_releases}
