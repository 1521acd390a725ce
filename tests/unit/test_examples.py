"""The files of examples/ name playbooks and variables that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.renderfarm.overlay.plugins.action.declared_views import _OTHERS
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_declaration import (
    declared_views,
    unknown_variables,
)
from ansible_collections.renderfarm.overlay.plugins.module_utils.declaring.view_keys import KEYS

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "examples"
PREFIX = "renderfarm.overlay."


def documents() -> Iterator[tuple[str, Any]]:
    """Yield each YAML file of the examples, with its path below the checkout."""
    for path in sorted(EXAMPLES.rglob("*.yml")):
        yield str(path.relative_to(CHECKOUT)), yaml.safe_load(path.read_text(encoding="utf-8"))


def imported() -> Iterator[tuple[str, str]]:
    """Yield the playbooks of the collection that the examples import, each with the file that imports it."""
    for path, content in documents():
        for play in content if isinstance(content, list) else []:
            name = play.get("ansible.builtin.import_playbook", "")
            if name.startswith(PREFIX):
                yield path, name[len(PREFIX) :]


def variables(value: Any) -> Iterator[str]:
    """Yield the overlay_* variables that a YAML file sets or asks for, at any depth."""
    if isinstance(value, list):
        for one in value:
            yield from variables(one)
    elif isinstance(value, dict):
        yield from (key for key in value if str(key).startswith("overlay_"))
        asked = value.get("variable")
        if isinstance(asked, str) and asked.startswith("overlay_"):
            yield asked
        for one in value.values():
            yield from variables(one)


@pytest.mark.parametrize(("path", "playbook"), list(imported()))
def test_an_imported_playbook_exists(path: str, playbook: str) -> None:
    assert (CHECKOUT / "playbooks" / f"{playbook}.yml").is_file(), f"{path} imports {PREFIX}{playbook}"


@pytest.mark.parametrize(
    ("path", "name"), sorted({(path, name) for path, content in documents() for name in variables(content)})
)
def test_a_variable_is_known_to_the_check_of_the_declaration(path: str, name: str) -> None:
    """A deployment refuses variables that it does not know, so each variable that a job or an inventory sets must be known."""
    assert list(unknown_variables([name], [f"overlay_{other}" for other in _OTHERS])) == [], path


@pytest.mark.parametrize(
    "path", [path for path, content in documents() if isinstance(content, dict) and "overlay_views" in content]
)
def test_the_views_of_an_example_are_declared_without_problems(path: str) -> None:
    content = dict(documents())[path]
    common = {name: content[f"overlay_{name}"] for name in KEYS if f"overlay_{name}" in content}
    views, problems = declared_views(content["overlay_views"], common)
    assert problems == []
    assert views
