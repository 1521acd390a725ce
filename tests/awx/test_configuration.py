"""What configure.yml creates in AWX, with the modules of awx.awx, and the execution environment."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.renderfarm.overlay.tests.awx.controller import Controller, serving
from ansible_collections.renderfarm.overlay.tests.awx.jobs import CHECKOUT, PROJECT, configure, environment

AWX_MODULES = CHECKOUT / ".build" / "collections" / "ansible_collections" / "awx" / "awx" / "plugins" / "modules"
NODES = "workflow_job_template_nodes"
NOT_PROMOTED = ["report_not_promoted", "not_promoted"]


def walk(controller: Controller, failing: str) -> tuple[list[str], bool]:
    """Return the nodes of the workflow that run, in their order, if `failing` fails, and whether the workflow then fails."""
    nodes = {node["identifier"]: node for node in controller.all(NODES)}
    kinds = ("success", "failure", "always")
    later = {name for node in nodes.values() for kind in kinds for name in controller.next_nodes(node, kind)}
    [first] = nodes.keys() - later
    ran, failed, queue = [], False, [first]
    while queue:
        ran.append(queue.pop(0))
        node = nodes[ran[-1]]
        fails = ran[-1] == failing or "enforcement_failure" in (node.get("extra_data") or {})
        after = [
            *controller.next_nodes(node, "failure" if fails else "success"),
            *controller.next_nodes(node, "always"),
        ]
        # A node that fails without a next node for this fails its workflow.
        failed |= fails and not after
        queue += after
    return ran, failed


@pytest.mark.parametrize(
    ("failing", "nodes"),
    [
        ("", ["pause", "resolve", "canary", "approve", "promote", "advance", "report"]),
        ("pause", ["pause"]),
        ("resolve", ["pause", "resolve", *NOT_PROMOTED]),
        ("canary", ["pause", "resolve", "canary", *NOT_PROMOTED]),
        ("approve", ["pause", "resolve", "canary", "approve", *NOT_PROMOTED]),
        ("promote", ["pause", "resolve", "canary", "approve", "promote", "report_stopped", "stopped"]),
        ("advance", ["pause", "resolve", "canary", "approve", "promote", "advance"]),
    ],
)
def test_a_rollout_that_fails_ends_as_failed(controller: Controller, failing: str, nodes: list[str]) -> None:
    assert walk(controller, failing) == (nodes, bool(failing))


def test_the_schedules_deploy_check_and_report(controller: Controller) -> None:
    schedules = {
        one["name"]: (controller.by_id(one["unified_job_template"])["name"], one.get("job_type"))
        for one in controller.all("schedules")
    }
    assert schedules == {
        "Enforce views": ("Deploy views", None),
        "Check for drift": ("Deploy views", "check"),
        "Report views": ("Report views", None),
        "Verify views": ("Verify views", None),
    }


def test_a_second_run_changes_nothing(controller: Controller, home: Path) -> None:
    """What enforcement.yml has set stays, too: the lock of the last rollout, and the pause of the schedule."""
    template, schedule = controller.get("job_templates", "Deploy views"), controller.get("schedules", "Enforce views")
    controller.update("job_templates", template["id"], {"extra_vars": '{"overlay_lock": "x"}'})
    controller.update("schedules", schedule["id"], {"enabled": False})
    before = controller.everything()
    controller.written.clear()
    try:
        done = configure(home, controller)
        after = controller.everything()
    finally:
        controller.update("job_templates", template["id"], {"extra_vars": template["extra_vars"]})
        controller.update("schedules", schedule["id"], {"enabled": True})
    assert done.returncode == 0, done.stdout + done.stderr
    assert after == before
    # The module of awx.awx writes an approval in each run, as it is.
    assert [one for one in controller.written if "/workflow_approval_templates/" not in one] == []
    assert " changed=1 " in done.stdout


def test_check_mode_writes_nothing(home: Path) -> None:
    """Where nothing is configured yet it ends early: a task needs what the one before would have created."""
    with serving(Controller(PROJECT)) as empty:
        done = configure(home, empty, "--check")
        assert empty.written == []
    assert "execution_environments/?name=Render+farm returned 0 items" in done.stdout


def test_every_question_may_be_left_blank(controller: Controller) -> None:
    templates = [*controller.all("job_templates"), *controller.all("workflow_job_templates")]
    questions = [question for template in templates for question in controller.survey(template)]
    assert len(questions) > 10
    assert [one["variable"] for one in questions if one["required"] or not isinstance(one["default"], str)] == []


def undocumented(values: Any, options: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yield the keys of values that the documentation of a module does not have, at any depth."""
    for value in values if isinstance(values, list) else [values]:
        for key, inner in value.items():
            name = f"{where}{key}"
            if key not in options:
                yield name
            elif "choices" in options[key] and inner not in options[key]["choices"]:
                yield f"{name}={inner}"
            elif "suboptions" in options[key]:
                yield from undocumented(inner, options[key]["suboptions"], f"{name}.")


def test_the_nodes_of_the_workflow_have_documented_keys() -> None:
    """The module takes nodes as they are, and leaves out keys that it does not know."""
    source = (AWX_MODULES / "workflow_job_template.py").read_text(encoding="utf-8")
    options = yaml.safe_load(source.split("DOCUMENTATION = '''")[1].split("'''")[0])["options"]
    [play] = yaml.safe_load((PROJECT / "configure.yml").read_text(encoding="utf-8"))
    [workflow] = [
        task["awx.awx.workflow_job_template"] for task in play["tasks"] if "awx.awx.workflow_job_template" in task
    ]
    assert list(undocumented(workflow, options)) == []
    assert list(undocumented([{"identifier": "x", "extra_vars": {}}], options["workflow_nodes"]["suboptions"])) == [
        "extra_vars"
    ]


def test_the_execution_environment_can_be_built_from_its_definition(tmp_path: Path) -> None:
    argv = [
        "ansible-builder",
        "create",
        "--file",
        "execution-environment.yml",
        "--context",
        str(tmp_path),
        "--output-filename",
        "Containerfile",
    ]
    done = subprocess.run(argv, cwd=PROJECT, env=environment(tmp_path), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    build = tmp_path / "_build"
    assert "renderfarm/overlay" in (build / "requirements.yml").read_text()
    assert "jmespath" in (build / "requirements.txt").read_text()
    assert "openssh-clients" in (build / "bindep.txt").read_text()
