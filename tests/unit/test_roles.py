"""Roles and the playbook deploy: defaults, argument specs, READMEs and keys of views agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import declared_views
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_keys import KEYS

CHECKOUT = Path(__file__).resolve().parents[2]
#: Keys of a view that the playbook deploy knows and the role view does not: they need the lock of a run, and a generation that is not yet
#: the current one, or the lock says which overlays show the releases. The role makes a generation current before it mounts it, and has no
#: lock.
OF_THE_PLAYBOOK = {
    *("health_check", "health_timeout", "health_user"),
    *("data_images", "data_budget", "data_keep_free", "roots"),
}
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


def test_the_playbook_deploy_has_the_keys_and_defaults_of_the_role_view() -> None:
    assert {f"view_{key}" for key in KEYS if key not in OF_THE_PLAYBOOK} == set(options("view"))
    required = {name for name, spec in options("view").items() if spec.get("required")}
    assert {f"view_{name}" for name, key in KEYS.items() if key.required} == required
    view = {"name": "software", "mountpoint": "/software", "releases": ["a/1"]}
    ([completed], problems) = declared_views([view], {"root": "/net/software", "store": "/net/manifests"})
    assert problems == []
    # Defaults that the role derives from other variables are templates.
    literal = {name: value for name, value in defaults("view").items() if "{{" not in str(value)}
    assert {name: completed[name[len("view_") :]] for name in literal} == {
        **literal,
        "view_releases": [{"release": "a/1"}],
    }


def test_no_play_and_no_role_gathers_facts_that_ask_a_file_server() -> None:
    """Facts about mounts wait for a server that does not answer."""
    paths = [path for top in ("playbooks", "roles") for path in (CHECKOUT / top).rglob("*.yml")]
    read = [(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in paths]
    entries = [(path, one) for path, found in read if isinstance(found, list) for one in found if isinstance(one, dict)]
    plays = [(path.name, one) for path, one in entries if "hosts" in one]
    assert plays
    assert [name for name, play in plays if play.get("gather_facts") is not False] == []
    gathered = [
        one["ansible.builtin.setup"]["gather_subset"] for _path, one in entries if "ansible.builtin.setup" in one
    ]
    assert gathered == [["!all", "!min", "distribution"]] * len(gathered) != []
