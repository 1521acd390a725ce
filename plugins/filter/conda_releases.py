# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a conda environment into releases."""

from __future__ import annotations

DOCUMENTATION = r"""
name: conda_releases
short_description: Turn a list of conda packages into the releases of a view
version_added: 0.1.0
description:
  - Takes what C(conda list --json) prints, or the records in C(conda-meta) of an environment, and returns the release of each package, in
    the same order.
  - A release is a conda package that was published in a directory of its own.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
extends_documentation_fragment:
  - renderfarm.overlay.resolved
positional: pattern
options:
  _input:
    description: The list, as text or parsed. Its elements may be text as well, as the content of the files in C(conda-meta) is.
    type: raw
    required: true
  pattern:
    description:
      - Where a release is below the software root.
      - "The fields are C({package}), C({version}), C({name}), C({build}), C({subdir}), for example C(linux-64), and C({dist_name}), which
        is name, version and build as conda names the directory of a package."
      - Packages that pip installed have no release.
    type: str
    default: '{package}/{version}'
notes:
  - Conda writes the path of the environment into some files, and puts C(noarch) packages for Python below C(lib/python3.X/site-packages)
    when it installs them. A view shows releases as they were published. Publish such packages as conda installs them, for example with
    C(conda create --no-deps --prefix /net/software/NAME/VERSION NAME=VERSION).
"""

EXAMPLES = r"""
- name: Declare a view that merges the packages of a conda environment
  ansible.builtin.set_fact:
    overlay_views:
      - name: python
        mountpoint: /opt/python
        on_conflict: first
        releases: >-
          {{ lookup('ansible.builtin.file', 'conda-list.json')
             | renderfarm.overlay.conda_releases('conda/{dist_name}', at='/') }}

- name: Read the records of the environment itself
  ansible.builtin.debug:
    msg: "{{ query('ansible.builtin.file', *files) | renderfarm.overlay.conda_releases(left_out='ignore') }}"
  vars:
    files: "{{ query('ansible.builtin.fileglob', 'conda-meta/*.json') | sort }}"
"""

RETURN = r"""
_value:
  description:
    - The releases, as the key C(releases) of a view takes them. They are paths below the software root, or with O(at) dictionaries with
      C(release) and C(at).
    - With O(left_out=return), dictionaries with C(package), C(version) and C(reason).
  type: list
  elements: raw
  sample: [python/3.12.8, numpy/2.2.1]
"""

from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.resolvers import conda, resolved


def conda_releases(
    packages: Any,
    pattern: Any = resolved.DEFAULT_PATTERN,
    at: Any = None,
    exclude: Any = None,
    left_out: Any = resolved.FAIL,
) -> list[Any]:
    """Return the releases of conda packages; see DOCUMENTATION. Raises AnsibleFilterError with the reason if there are none."""
    try:
        return resolved.releases(conda.environment(packages), resolved.Resolving(pattern, at, exclude, left_out))
    except OverlayError as error:
        raise AnsibleFilterError(f"renderfarm.overlay.conda_releases: {error}") from error


class FilterModule:
    """Jinja2 filter for conda packages."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"conda_releases": conda_releases}
