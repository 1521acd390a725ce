"""Roles and the deploy playbook: defaults, argument specs and the playbook's keys say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (CHECKOUT / "roles").iterdir())


def load(path: str) -> Any:
    return yaml.safe_load((CHECKOUT / path).read_text(encoding="utf-8"))


def options(role: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    return found


def defaults(role: str) -> dict[str, Any]:
    found: dict[str, Any] = load(f"roles/{role}/defaults/main.yml")
    return found


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_agree(role: str) -> None:
    specified = {name: spec["default"] for name, spec in options(role).items() if "default" in spec}
    assert specified == defaults(role)


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


def test_the_playbook_passes_each_variable_of_the_role_view() -> None:
    (play,) = load("playbooks/deploy.yml")
    passed = next(task["vars"] for task in play["tasks"] if task["name"] == "Deploy each view")
    assert set(passed) == set(options("view"))
    keys = {*play["vars"]["_overlay_own_keys"], *play["vars"]["_overlay_common_keys"]}
    assert {f"view_{key}" for key in keys} == set(options("view"))


def test_the_playbook_has_the_defaults_of_the_role_view() -> None:
    (play,) = load("playbooks/deploy.yml")
    passed = next(task["vars"] for task in play["tasks"] if task["name"] == "Deploy each view")
    for name, value in defaults("view").items():
        key = name[len("view_") :]
        inner = re.sub(r"^{{ | }}$", "", value) if isinstance(value, str) and value.startswith("{{ ") else repr(value)
        own = f"_overlay_view.{key} | default("
        wanted = {
            f"{{{{ {own}{inner}) }}}}",
            f"{{{{ {own}overlay_{key} | default({inner})) }}}}",
            f"{{{{ overlay_{key} | default({own}{inner})) }}}}",
        }
        assert " ".join(passed[name].replace("': true", "': True").split()) in wanted, name
