# Copyright: (c) 2026, renderfarm.overlay maintainers
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the declaration of views, and complete it with defaults, before anything is changed anywhere.

A declaration is a list of views, each a mapping of keys, and common values for the keys that views leave out. ``KEYS`` says what each
key may hold. All problems are found, not only the first, and each is one line that names the view and the key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.declared_values import (
    InvalidValueError,
    described,
    in_quotes,
    is_blank,
    shortened,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_keys import (
    KEYS,
    RUN_VARIABLES,
    roots_of,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_problems import (
    contradictions,
    problems_between,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.linux.errors import (
    OverlayError,
    did_you_mean,
    show_text,
)

#: Characters of a message: of its beginning, and of its end, which says what to do.
_BEGINNING, _END = 300, 100
#: How the variables begin that are given for all views.
_PREFIX = "overlay_"


def declared_views(
    views: Any, common: Mapping[str, Any], chosen: str = "", unknown: Collection[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the declared views, each with a value for every key, and the problems of the declaration, one line each.

    ``common`` has values for keys that views leave out, by their names. ``unknown`` are keys that are given for all views with values
    that are not known. ``chosen`` is the name of the one view to return; if it is empty, all are returned. What is blank or None counts
    as not given. If there are problems, the views are not to be used.
    """
    if not isinstance(views, (list, tuple)):
        return [], [f"overlay_views must be a list of views, not {described(views)}"]
    problems = [*_common_problems(common)]
    completed = []
    for number, view in enumerate(views, 1):
        if not isinstance(view, Mapping):
            problems.append(f"view number {number} must be a mapping of keys to values, not {described(view)}")
            continue
        values, found = _completed(view, common, unknown, number)
        problems += found
        completed.append(values)
    problems += problems_between(completed)
    if chosen:
        completed = [view for view in completed if view["name"] == chosen]
    return completed, list(dict.fromkeys(map(one_line, problems)))


def one_line(text: str) -> str:
    """Return a message as one line of a length that can be read: without control characters, and with a gap if it is too long."""
    line = show_text(" ".join(part.strip() for part in text.splitlines()))
    return line if len(line) <= _BEGINNING + _END else f"{line[:_BEGINNING]} ... {line[-_END:]}"


def declared_roots(roots: Any) -> list[dict[str, Any]]:
    """Return several software roots, each with all its keys; none if they are not given. Raises OverlayError if one is wrong."""
    if is_blank(roots):
        return []
    try:
        return roots_of(roots)
    except InvalidValueError as error:
        raise OverlayError(f"{_PREFIX}roots {error}") from None


def unknown_variables(names: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Yield a line for each variable that begins as ours do and means nothing; ``others`` are variables that are not keys of views."""
    known = {*(_PREFIX + name for name, key in KEYS.items() if key.common), *others}
    for name in sorted(set(names) - known):
        meant = did_you_mean(name, sorted(known), _PREFIX) or ": leave it out"
        yield f"there is no variable {shortened(name)}{meant}"


def run_problem(name: str, value: Any) -> str:
    """Return what is wrong with a variable of a run that is no key of views, given its name without the prefix; empty if nothing is."""
    try:
        if name in RUN_VARIABLES and not is_blank(value):
            RUN_VARIABLES[name](value)
    except InvalidValueError as error:
        return one_line(f"{_PREFIX}{name} {error}")
    return ""


def _common_problems(common: Mapping[str, Any]) -> Iterator[str]:
    for name, value in common.items():
        key = KEYS.get(name)
        if key and key.common and not is_blank(value):
            try:
                key.convert(value)
            except InvalidValueError as error:
                yield f"overlay_{name} {error}"


def _completed(
    view: Mapping[str, Any], common: Mapping[str, Any], unknown: Collection[str], number: int
) -> tuple[dict[str, Any], list[str]]:
    """Return a view with a value for every key, and its problems."""
    label = view_label(view, number)
    problems = [f"{label}: {problem}" for name in view if name not in KEYS for problem in _wrong_key(name, KEYS)]
    values: dict[str, Any] = {}
    wrong = set()
    for name, key in KEYS.items():
        value, is_own = view.get(name), True
        if is_blank(value) and key.common:
            # What is given for all views is for those that need it.
            value, is_own = None if key.unless and _has(view, values, key.unless) else common.get(name), False
        if is_blank(value) and name in unknown:
            values[name] = None
            wrong.add(name)
        elif is_blank(value):
            values[name] = key.default(values) if callable(key.default) else key.default
            if key.required and not (key.unless and (key.unless in wrong or _has(view, values, key.unless))):
                also = f", or overlay_{name} for all views" if key.common else ""
                problems.append(f"{label}: {name} is missing: give it{also}")
        else:
            try:
                values[name] = key.convert(value)
            except InvalidValueError as error:
                values[name] = None
                wrong.add(name)
                if is_own:
                    problems.append(f"{label}: {name} {error}")
    if not problems and not wrong:
        problems = [f"{label}: {problem}" for problem in contradictions(values)]
    return values, problems


def view_label(view: Mapping[str, Any], number: int) -> str:
    """Return how messages name a view: by its name if it has one, else by its number in the list, from 1 on."""
    name = view.get("name")
    return f"view {shortened(name)}" if isinstance(name, str) and name.strip() else f"view number {number}"


def _wrong_key(name: Any, known: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with a key that is not known, as the end of a sentence that begins with what has it."""
    if not isinstance(name, str):
        yield f"there is no key {described(name)}, since keys are text{in_quotes(name)}"
        return
    shown = shortened(name) if name.strip() else repr(str(name))
    yield f"there is no key {shown}" + (did_you_mean(name, known) or ": leave it out")


def _has(view: Mapping[str, Any], values: Mapping[str, Any], name: str) -> bool:
    """Return whether a view has a value for a key, of its own or of those that are given for all views."""
    return bool(values.get(name)) or not is_blank(view.get(name))
