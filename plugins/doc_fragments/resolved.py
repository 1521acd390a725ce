# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the filters that turn a resolved environment into releases."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  at:
    description:
      - Where each release appears, relative to the root of the view. It may have the same fields as O(pattern).
      - V(/) merges all releases at the root of the view.
      - Without it a release appears at its path below the software root.
    type: str
  exclude:
    description:
      - Names of packages that have no release and are left out. The wildcards V(*), V(?) and V([...]) are allowed.
    type: list
    elements: str
    default: []
  left_out:
    description:
      - What to do with packages that have no release.
      - V(fail) fails and names each of them with the reason, unless O(exclude) has it or the environment itself leaves it out.
      - V(ignore) leaves all of them out.
      - V(return) returns the packages that are left out instead of the releases.
    type: str
    choices: [fail, ignore, return]
    default: fail
seealso:
  - module: renderfarm.overlay.metadata_layer
"""
