# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose releases by a query."""

from __future__ import annotations

DOCUMENTATION = r"""
name: select_releases
short_description: Choose releases by a JMESPath query
version_added: 0.1.0
description:
  - Applies a JMESPath query to the list that M(renderfarm.overlay.release_info) returns, so that a view can be declared as a rule instead
    of a list.
  - Releases that are not ready are never chosen, unless O(ready_only=false). Pre-releases are never chosen, unless O(prereleases=true).
  - Queries can use three functions besides those of JMESPath.
  - V(version_match(version, condition\)) checks whether a version meets a condition such as V(>=20.5), or several conditions separated by
    commas, such as V(>=20.5, <21).
  - V(newest(releases\)) returns the newest release of each package, and V(newest(releases, n\)) the C(n) newest of each.
    All variants of a version count as one.
  - V(is_prerelease(version\)) returns whether a version is one of those that O(prereleases) describes.
author:
  - renderfarm.overlay maintainers (@renderfarm-overlay)
requirements:
  - jmespath on the controller
positional: query
options:
  _input:
    description: The list of releases.
    type: list
    elements: dict
    required: true
  query:
    description: The query. Its input is the list of releases, and it must return a list of some of them.
    type: str
    default: '@'
  ready_only:
    description: Remove releases that are not ready before the query runs.
    type: bool
    default: true
  prereleases:
    description:
      - Also choose pre-releases, unfinished versions, and copies that were set aside.
      - These are versions with one of the words C(dev), C(alpha), C(beta), C(pre), C(preview), C(rc), C(wip), C(draft), C(old), C(bak),
        C(backup), C(orig), C(copy), C(broken), C(tmp) and C(temp), or with C(a), C(b) or C(c) before a number. What follows a C(+) does
        not count.
      - With O(order=pep440) they are those with a pre-release or development segment.
    type: bool
    default: false
  order:
    description:
      - How versions are compared.
      - V(vendor) compares as software vendors write versions. Numbers compare as numbers, so C(15.1v12) is later than C(15.1v3).
        C(2.0rc1) and C(2.0-wip) are earlier than C(2.0), and C(2.0+local) is later. A leading C(v) and trailing zeros make no difference.
      - V(pep440) is the order of Python packages. Versions that PEP 440 does not allow are earlier than all others.
      - V(rez) is the order of rez. A longer version is later, so C(2.0-beta) is later than C(2.0). Words are earlier than numbers.
    type: str
    choices: [vendor, pep440, rez]
    default: vendor
seealso:
  - module: renderfarm.overlay.release_info
"""

EXAMPLES = r"""
- name: Choose the newest release of each package
  ansible.builtin.debug:
    msg: "{{ software.releases | renderfarm.overlay.select_releases('newest(@)') }}"

- name: Choose all releases of one package in a range of versions
  ansible.builtin.debug:
    msg: >-
      {{ software.releases
         | renderfarm.overlay.select_releases("[?package == 'houdini' && version_match(version, '>=20.5, <21')]") }}

- name: Choose the newest release of each package, and for one package also from its pre-releases
  ansible.builtin.debug:
    msg: >-
      {{ software.releases
         | renderfarm.overlay.select_releases("newest([?!is_prerelease(version) || package == 'usd'])",
                                              prereleases=true) }}

- name: Choose the two newest releases of each package, among those that have a manifest
  ansible.builtin.debug:
    msg: "{{ software.releases | renderfarm.overlay.select_releases('newest([?manifest], `2`)') }}"
"""

RETURN = r"""
_value:
  description: The chosen releases, unchanged.
  type: list
  elements: dict
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import OverlayError
from ansible_collections.renderfarm.overlay.plugins.module_utils.releases.versions import (
    ORDERS,
    compare,
    is_prerelease,
    version_key,
)

try:
    import jmespath
    from jmespath import functions

    HAS_JMESPATH = True
except ImportError:
    HAS_JMESPATH = False

_CONDITION = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*(\S+)\s*")


def version_match(version: str, condition: str, order: str) -> bool:
    """Return whether ``version`` meets all conditions, which commas separate. Raises OverlayError if one is malformed."""
    for part in condition.split(","):
        match = _CONDITION.fullmatch(part)
        if not match:
            raise OverlayError(f"version condition {part.strip()!r} is not a comparison such as '>=20.5'")
        if not compare(version, match.group(1), match.group(2), order):
            return False
    return True


def newest(releases: list[dict[str, Any]], count: int, order: str) -> list[dict[str, Any]]:
    """Return the ``count`` newest releases of each package, in the order of ``releases``. All variants of a version count as one."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for release in sorted(releases, key=lambda release: version_key(release["version"], order), reverse=True):
        chosen = kept.setdefault(release["package"], [])
        versions = {one["version"] if one.get("variant") else id(one) for one in chosen}
        if len(versions) < count or (release.get("variant") and release["version"] in versions):
            chosen.append(release)
    return [release for release in releases if any(release is one for one in kept[release["package"]])]


def _functions(order: str) -> Any:
    """Return the functions that queries can use. They compare versions in one of ``ORDERS``."""

    class ReleaseFunctions(functions.Functions):
        @functions.signature({"types": ["string"]}, {"types": ["string"]})
        def _func_version_match(self, version: str, condition: str) -> bool:
            return version_match(version, condition, order)

        @functions.signature({"types": ["string"]})
        def _func_is_prerelease(self, version: str) -> bool:
            return is_prerelease(version, order)

        # If the second argument were the variadic one, JMESPath would require it.
        @functions.signature({"types": ["array"], "variadic": True})
        def _func_newest(self, releases: list[Any], *count: Any) -> list[dict[str, Any]]:
            if len(count) > 1 or not all(isinstance(one, int) and one >= 0 for one in count):
                raise OverlayError("newest(releases, n): n must be a whole number, and the last argument")
            if not all(isinstance(one, dict) and {"package", "version"} <= set(one) for one in releases):
                raise OverlayError("newest(releases): give it a list of releases, each with package and version")
            return newest(releases, count[0] if count else 1, order)

    return ReleaseFunctions()


def select_releases(
    releases: Any, query: str = "@", ready_only: bool = True, prereleases: bool = False, order: str = "vendor"
) -> list[dict[str, Any]]:
    """Return the releases that ``query`` chooses. Raises AnsibleFilterError if it does not return a list of releases."""
    if not HAS_JMESPATH:
        raise AnsibleFilterError(
            "renderfarm.overlay.select_releases needs jmespath on the controller: pip install jmespath"
        )
    if not isinstance(releases, (list, tuple)) or not all(isinstance(release, Mapping) for release in releases):
        raise AnsibleFilterError(
            "renderfarm.overlay.select_releases: the input must be the list that release_info returns as 'releases'"
        )
    if order not in ORDERS:
        raise AnsibleFilterError(
            f"renderfarm.overlay.select_releases: there is no order {order!r} of versions; use one of {', '.join(ORDERS)}"
        )
    # jmespath accepts only Python's own types, not Ansible's subclasses of them.
    candidates = json.loads(
        json.dumps(
            [
                dict(one)
                for one in releases
                if (one.get("ready") or not ready_only)
                and (prereleases or not is_prerelease(str(one.get("version", "")), order))
            ]
        )
    )
    try:
        chosen = jmespath.search(str(query), candidates, jmespath.Options(custom_functions=_functions(order)))
    except (jmespath.exceptions.JMESPathError, OverlayError) as error:
        raise AnsibleFilterError(f"renderfarm.overlay.select_releases: query {str(query)!r}: {error}") from error
    if not isinstance(chosen, list) or not all(
        isinstance(one, dict) and isinstance(one.get("path"), str) for one in chosen
    ):
        raise AnsibleFilterError(
            f"renderfarm.overlay.select_releases: query {str(query)!r} does not return a list of releases, but {chosen!r:.200}"
        )
    return chosen


def query_problem(query: str) -> str:
    """Return what is wrong with a query whatever the releases are: its syntax, or a function that does not exist; empty if nothing is."""
    if not HAS_JMESPATH:
        return ""
    try:
        jmespath.search(query, [], jmespath.Options(custom_functions=_functions(next(iter(ORDERS)))))
    except (
        jmespath.exceptions.ParseError,
        jmespath.exceptions.LexerError,
        jmespath.exceptions.UnknownFunctionError,
    ) as error:
        return str(error)
    except (jmespath.exceptions.JMESPathError, OverlayError):
        # It may be right for releases, of which this list has none.
        return ""
    return ""


class FilterModule:
    """Provide Jinja2 filters for releases."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"select_releases": select_releases}
