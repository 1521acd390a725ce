"""Roles and the playbook deploy: defaults, argument specs, READMEs and keys of views agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (CHECKOUT / "roles").iterdir())

#: A default of the role view: the key of the entry that the playbook deploys, or else an expression.
FROM_ENTRY = re.compile(r"{{ _view_entry\.(\w+) \| default\((.*)\) }}")


def load(path: str) -> Any:
    return yaml.safe_load((CHECKOUT / path).read_text(encoding="utf-8"))


def options(role: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    return found


def evaluate(expression: str) -> Any:
    """Return the value of a Jinja2 literal, or a template where the expression uses variables."""
    names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(f"{{{{ {expression} }}}}"))  # noqa: S701
    return f"{{{{ {expression} }}}}" if names else jinja2.Environment().compile_expression(expression)()  # noqa: S701


def defaults(role: str) -> dict[str, Any]:
    """Return the defaults of a role, for a view without the entry that each of them looks at first."""
    found: dict[str, Any] = load(f"roles/{role}/defaults/main.yml")
    if role != "view":
        return found
    matches = {name: FROM_ENTRY.fullmatch(value) for name, value in found.items()}
    assert [name for name, match in matches.items() if not match or f"view_{match.group(1)}" != name] == []
    return {name: evaluate(match.group(2)) for name, match in matches.items() if match}


def deploy() -> dict[str, Any]:
    (play,) = load("playbooks/deploy.yml")
    found: dict[str, Any] = play
    return found


def passed(task: str) -> dict[str, str]:
    """Return the variables that a task of the playbook deploy passes to a role."""
    found: dict[str, str] = next(one["vars"] for one in deploy()["tasks"] if one["name"] == task)
    return found


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_agree(role: str) -> None:
    specified = {name: spec["default"] for name, spec in options(role).items() if "default" in spec}
    assert defaults(role) == specified


@pytest.mark.parametrize("role", ROLES)
def test_each_variable_has_a_default_or_is_required(role: str) -> None:
    assert all(("default" in spec) != spec.get("required", False) for spec in options(role).values())


@pytest.mark.parametrize("role", ROLES)
def test_public_variables_begin_with_the_name_of_the_role_and_others_with_an_underscore(role: str) -> None:
    assert all(name.startswith(f"{role}_") for name in options(role))
    assert all(name.startswith(f"_{role}_") for name in load(f"roles/{role}/vars/main.yml"))
    for path in (CHECKOUT / "roles" / role / "tasks").iterdir():
        registered = re.findall(r"^ +(?:register|loop_var): (\w+)", path.read_text(encoding="utf-8"), re.M)
        assert all(re.match(f"__?{role}_", name) for name in registered)


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_names_each_variable(role: str) -> None:
    text = (CHECKOUT / "roles" / role / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"`({role}_\w+)`", text))
    assert named == set(options(role))


def test_no_key_of_a_view_is_a_method_of_a_dictionary() -> None:
    assert [name for name in options("view") if hasattr(dict, name[len("view_") :])] == []


def test_the_playbook_passes_a_view_as_one_dictionary_and_the_required_variables_from_it() -> None:
    required = [name for name, spec in options("view").items() if spec.get("required")]
    wanted = {name: f"{{{{ _view_entry.{name[len('view_') :]} }}}}" for name in required}
    given = passed("Deploy each view")
    assert {name: value for name, value in given.items() if name != "_view_entry"} == wanted
    assert "_view_entry" in given
    assert {f"view_{key}" for key in deploy()["vars"]["_overlay_required_keys"]} == set(required)


def test_the_playbook_takes_keys_and_defaults_of_views_from_the_role() -> None:
    [path] = deploy()["vars_files"]
    assert (CHECKOUT / "playbooks" / path).resolve() == CHECKOUT / "roles" / "view" / "defaults" / "main.yml"
    assert f"lookup('ansible.builtin.file', '{path}')" in deploy()["vars"]["_overlay_keys"]
    assert {f"view_{key}" for key in deploy()["vars"]["_overlay_own_keys"]} <= set(options("view"))


def test_the_playbook_has_the_defaults_of_the_role_host() -> None:
    for name, value in passed("Prepare the hosts").items():
        match = re.fullmatch(r"{{ overlay_\w+ \| default\('(.*)'\) }}", value)
        assert match, name
        assert match.group(1) == options("host")[name]["default"], name
