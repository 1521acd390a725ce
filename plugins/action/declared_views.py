# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Complete and check the views that a host declares, on the controller."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.renderfarm.overlay.plugins.filter.select_releases import query_problem
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.declared_values import is_blank
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import (
    declared_views,
    one_line,
    run_problem,
    unknown_variables,
    view_label,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_keys import KEYS, RUN_VARIABLES
from ansible_collections.renderfarm.overlay.plugins.module_utils.fleet.view_roots import mounts_of

_PREFIX = "overlay_"
#: The variables that are files with tasks.
HOOKS = ("before_host", "after_host")
#: The variables that are not keys of views.
_OTHERS = (
    *("become", "hosts", "source", "view", "views", "lock", "lock_file", "serial", "max_fail_percentage"),
    *("hold", "hold_reason", "lift_holds", "canary", "canary_min", "promote_after"),
    *("report", "report_dir", "metrics_file", *HOOKS),
    *("level", "sample", "time_limit", "repair", "verify_file"),
    *("retire", "drain", "drain_seconds", "delete_release", "unreachable_use", "prune_keep", "prune_min_age"),
)
#: What the playbooks rollback and remove set for all views. Extra variables win over the variables of a playbook, also if they are
#: blank, so this is not the name of a variable that users set.
_UNLESS_GIVEN = "_overlay_unless_given"


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible ships no types
    """See plugins/modules/declared_views.py for the documentation."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        names = [name for name in variables if name.startswith(_PREFIX)]
        # Facts that an earlier job cached are not misspelt variables.
        facts = variables.get("ansible_facts", {})
        asked = [name for name in names if name not in facts]
        problems = [*unknown_variables(asked, [_PREFIX + name for name in _OTHERS])]
        common: dict[str, Any] = {}
        views: Any = []
        chosen = source = ""
        unknown: list[str] = []
        for name in names:
            key = name[len(_PREFIX) :]
            if key not in KEYS and key not in ("views", "view", "source", *HOOKS, *RUN_VARIABLES):
                continue
            try:
                value = self._templar.template(variables[name])
            except AnsibleError as error:
                problems += self._unevaluated(name, variables[name], error)
                unknown.append(key)
                continue
            if key == "views":
                views = value
            elif key in HOOKS:
                problems += _problems_of_tasks(name, value)
            elif key == "view":
                chosen = str(value or "")
            elif key == "source":
                source = str(value or "").strip()
            elif key in RUN_VARIABLES:
                problems += filter(None, [run_problem(key, value)])
            else:
                common[key] = value
        if "overlay_views" not in names:
            problems.append("overlay_views is missing: it lists the views of the host")
        # A state or generation that is given for the run is meant for all views, whatever they declare. A blank one counts as not given.
        otherwise = self._templar.template(variables.get(_UNLESS_GIVEN, {}))
        overrides = {}
        for key in ("state", "generation"):
            value = common.pop(key, None)
            value = otherwise.get(key) if is_blank(value) else value
            overrides.update({} if value is None else {key: value.strip() if isinstance(value, str) else value})
        if overrides and isinstance(views, (list, tuple)):
            views = [{**view, **overrides} if isinstance(view, dict) else view for view in views]
        completed, found = declared_views(views, common, chosen, unknown)
        found += _problems_of_queries(completed)
        named = [str(view["name"]) for view in views if isinstance(view, dict) and view.get("name")] if views else []
        mounts = [] if problems or found else mounts_of(view for view in completed if view["state"] == "mounted")
        # A host with a path for scanning has the software root there.
        root = str(common.get("root") or "") if source and not common.get("scan_root") else ""
        result.update(mounts=mounts, software_root={"path": root, "source": source} if root else {})
        result.update(changed=False, views=completed, problems=[*problems, *found], names=named, chosen=chosen)
        return result

    def _unevaluated(self, name: str, given: Any, error: AnsibleError) -> Iterator[str]:
        """Yield what is wrong with the templates in a variable, which is `error`; in the views of a host for each key."""
        found = False
        views = given if name == "overlay_views" and isinstance(given, (list, tuple)) else ()
        for number, view in enumerate(views, 1):
            for key, value in view.items() if isinstance(view, Mapping) else ():
                try:
                    self._templar.template(value)
                except AnsibleError as problem:
                    found = True
                    yield one_line(f"{view_label(view, number)}: {key} cannot be evaluated: {_reason(problem)}")
        if not found:
            yield one_line(f"{name} cannot be evaluated: {_reason(error)}")


def _reason(error: AnsibleError) -> str:
    """Return the text of an error. Before ansible-core 2.19, it has each sentence twice."""
    return ". ".join(dict.fromkeys(str(error).split(". ")))


def _problems_of_queries(views: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for view in views:
        problem = query_problem(view["query"]) if view["query"] and not view["releases"] else ""
        if problem:
            yield one_line(f"view {view['name']}: query is wrong: {problem}")


def _problems_of_tasks(name: str, path: Any) -> list[str]:
    """Return what is wrong with a variable that is a file with tasks on the controller."""
    if not path:
        return []
    if not isinstance(path, str) or not path.startswith("/"):
        return [one_line(f"{name} must be an absolute path, such as {{{{ playbook_dir }}}}/drain.yml, not {path!r}")]
    return [] if os.path.isfile(path) else [one_line(f"{name}: there is no file {path}")]
